"""What is ambiguous or damaged is one line that names the file; what is read is what was stored."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segcore.image
from segcore.errors import InputError
from segcore.image import image_size, open_image, read_image, read_mask

WHAT_IS_READ = (
    "must be PNG, JPEG, TIFF, BMP, GIF, WebP or PPM of 8 or 16 bit or 32-bit float, got something else or a damaged "
    "header; save it again"
)


def png_bytes(width: int, height: int, *, bits: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG whose header says what we like, whatever the pixels are."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def message(read, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text.replace(str(path), "FILE")


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_comes_back_as_stored(tmp_path, dtype, suffix):
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7), dtype, endpoint=True)
    read = read_image(save(tmp_path / f"a.{suffix}", array))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_float_tiff_comes_back_as_stored(tmp_path):
    array = np.linspace(-1000, 3000, 20, dtype=np.float32).reshape(4, 5)
    read = read_image(save(tmp_path / "a.tif", array))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array)


def test_rgb_stays_rgb_and_grey_saved_as_rgb_becomes_grey(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.png", array)), array)
    grey = np.repeat(array[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "g.png", grey)), array[..., 0])


def test_one_bit_image_is_black_and_white(tmp_path):
    array = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", array)), array * np.uint8(255))


def test_palette_mask_gives_its_indices(tmp_path):
    indices = np.array([[0, 1], [2, 3]], np.uint8)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png"), indices)


def test_mask_from_16_bit_and_from_grey_rgb(tmp_path):
    mask = np.array([[0, 3], [2, 1]], np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", mask.astype(np.uint16))), mask)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.png", np.repeat(mask[..., None], 3, 2))), mask)


def test_image_size_is_height_then_width(tmp_path):
    assert image_size(save(tmp_path / "a.png", np.zeros((3, 9), np.uint8))) == (3, 9)


@pytest.mark.parametrize("read", [read_image, image_size])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "image FILE: must be an image, got a file of 0 bytes; copy it again"),
        (b"GIF89a not really", f"image FILE: {WHAT_IS_READ}"),
        (b"\x89PNG\r\n\x1a\n", f"image FILE: {WHAT_IS_READ}"),
        (png_bytes(0, 10), f"image FILE: {WHAT_IS_READ}"),
        (
            png_bytes(50_000, 1, pixels=bytes(50_001)),
            "image FILE: must be at most 20000 pixels a side and 100000000 in all, got 1×50000; tile or shrink it",
        ),
        (
            png_bytes(12_000, 12_000),
            "image FILE: must be at most 20000 pixels a side and 100000000 in all, got 12000×12000; "
            "tile or shrink it",
        ),
        (
            png_bytes(60_000, 60_000),
            "image FILE: must be at most 100000000 pixels, got far more; is it really an image?",
        ),
    ],
    ids=["empty", "text", "header only", "0 pixels", "50000 wide", "too many pixels", "bomb"],
)
def test_damaged_headers(tmp_path, read, content, expected):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert message(read, path) == expected


def test_no_such_file(tmp_path):
    assert message(read_image, tmp_path / "a.png") == "image FILE: must be a file, no such file"
    assert message(read_mask, tmp_path / "a.png") == "mask FILE: must be a file, no such file"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    path.write_bytes(path.read_bytes()[:-1500])
    text = message(read_image, path)
    assert text.startswith("image FILE: must be a whole image, is damaged (")
    assert text.endswith("); copy it again")


def test_pixels_that_are_missing_without_a_cut(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(100, 100, pixels=bytes(50)))
    assert message(read_image, path).startswith("image FILE: must be a whole image, is damaged")


@pytest.mark.parametrize(
    ("mode", "suffix", "name"),
    [("CMYK", "jpg", "CMYK"), ("LAB", "tif", "LAB")],
)
def test_colours_with_no_single_reading(tmp_path, mode, suffix, name):
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (4, 4)).save(path)
    expected = f"image FILE: must be grey or RGB, got {name}; convert it to grey or RGB first"
    assert message(read_image, path) == expected
    if suffix != "jpg":
        expected = f"mask FILE: must be one grey channel, got {name}; save class indices as grey"
        assert message(read_mask, path) == expected


def test_16_bit_rgb_would_lose_its_lower_byte(tmp_path):
    row = b"\0" + np.array([256, 512, 300] * 2, ">u2").tobytes()
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(2, 2, bits=16, colour=2, pixels=row * 2))
    expected = "image FILE: must be 8 bit where it is RGB or has an alpha, got 16 bit; save it as grey or as 8-bit RGB"
    assert message(read_image, path) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float_with_numbers_that_are_none(tmp_path, bad):
    array = np.zeros((3, 3), np.float32)
    array[0, :2] = bad
    expected = "image FILE: must hold finite numbers, got 2 NaN or infinite pixels; replace them"
    assert message(read_image, save(tmp_path / "a.tif", array)) == expected
    assert message(read_mask, tmp_path / "a.tif").startswith(
        "mask FILE: must hold class indices 0 to 255, got"
    )


def test_negative_and_huge_integers(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[-5, 70_000]], np.int32))
    assert message(read_image, path) == "image FILE: must be 8 or 16 bit, got values -5 to 70000; rescale it"
    assert message(read_mask, path) == "mask FILE: must hold class indices 0 to 255, got values -5 to 70000"


def test_several_pages(tmp_path):
    pages = [Image.new("L", (4, 4)) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    expected = "image FILE: must hold one picture, got 3 pages; save the page you mean"
    assert message(read_image, tmp_path / "a.tif") == expected


def test_another_format_under_our_suffix(tmp_path):
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "SGI")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    assert message(read_image, tmp_path / "a.png") == f"image FILE: {WHAT_IS_READ}"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on odd TIFF tags
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_damage_anywhere_is_an_input_error_or_a_picture(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = save(tmp_path / f"a.{suffix}", rng.integers(0, 255, (24, 24), np.uint8))
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(len(damaged) // 2, len(damaged) + 1)])
        try:
            assert read_image(path).size > 0
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


# JPEG through two decoders: a machine with the extra `fast` must not see other pixels.


def jpeg_files(folder: Path):
    rng = np.random.default_rng(0)
    for n, (height, width) in enumerate([(1, 1), (63, 65), (200, 7), (120, 160)]):
        coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        for mode in ("L", "RGB", "CMYK"):
            for sampling in ("4:4:4", "4:2:2", "4:2:0"):
                for progressive in (False, True):
                    path = folder / f"{n}-{mode}-{sampling.replace(':', '')}-{progressive}.jpg"
                    picture.convert(mode).save(
                        path, quality=80, subsampling=sampling, progressive=progressive
                    )
                    yield path
    stored_as_rgb = folder / "rgb.jpg"
    picture.save(stored_as_rgb, keep_rgb=True)
    yield stored_as_rgb


def outcome(path: Path) -> np.ndarray | str:
    try:
        return read_image(path)
    except InputError as error:
        return str(error)


def test_both_jpeg_decoders_give_the_same_pixels_and_errors(tmp_path, monkeypatch):
    pytest.importorskip("simplejpeg", reason="the extra fast is not installed")
    paths = list(jpeg_files(tmp_path))
    whole, rng = (tmp_path / "3-RGB-420-False.jpg").read_bytes(), np.random.default_rng(1)
    for n in range(60):  # cut off, or with bytes turned
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if n % 2 else whole)
        for at in rng.integers(0, len(damaged), 0 if n % 2 else 3):
            damaged[at] = rng.integers(256)
        paths.append(tmp_path / f"damaged-{n}.jpg")
        paths[-1].write_bytes(damaged)
    quick, calls = segcore.image._decode_jpeg, []

    def counted(*given):
        calls.append(quick(*given))
        return calls[-1]

    monkeypatch.setattr(segcore.image, "_decode_jpeg", counted)
    found = [outcome(path) for path in paths]
    assert sum(one is not None for one in calls) > 40
    monkeypatch.setattr(segcore.image, "_decode_jpeg", lambda *_: None)
    for path, one in zip(paths, found, strict=True):
        expected = outcome(path)
        assert type(one) is type(expected), path
        np.testing.assert_array_equal(one, expected, err_msg=str(path))


def test_an_opened_image_is_decoded_once_and_shared(tmp_path):
    path = tmp_path / "a.png"
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(stored).save(path)
    size_px, pixels = open_image(path)
    path.unlink()  # it is open already
    assert size_px == (3, 4)
    np.testing.assert_array_equal(pixels(), stored)
    assert pixels() is pixels()
    assert not pixels().flags.writeable


def test_an_opened_image_that_is_damaged_says_so_each_time(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    _, pixels = open_image(path)
    first, second = (message(lambda _: pixels(), path) for _ in range(2))
    assert first == second == message(read_image, path)
