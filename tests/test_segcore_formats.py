"""What a container says of its pixels is obeyed, or the file is refused by name: a fact a row of docs/formats.md.

A scene is written as the fact asks, its twin in the format's plainest way; both must give the same array. A refusal is
held by the words that name the reason. `test_the_page_has_every_fact` keeps table and page together.
"""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from segcore.errors import InputError
from segcore.image import image_size, read_image, read_mask

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from segcore.medical.mask_files import read_mask_file  # noqa: E402
from segcore.medical.read import read_scan  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
RNG = np.random.default_rng(0)
SCENE = np.kron(RNG.integers(0, 256, (3, 5), np.uint8), np.ones((8, 8), np.uint8))
DEEP = RNG.integers(0, 2**16, (24, 40), np.uint16)
MASK = np.zeros((24, 40), np.uint8)
MASK[4:12, 6:30] = 1
# The stored picture that an orientation turns into the scene. Source: EXIF 2.32, Orientation.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, -1),
}
Written = tuple[Path, np.ndarray | str]
FACTS: dict[str, Callable[[Path, object], list[Written]]] = {}


def fact(name: str) -> Callable:
    """Registers what writes the files of a row: (path, the array that is read) or (path, words of the refusal)."""

    def keep(write: Callable) -> Callable:
        assert name not in FACTS
        FACTS[name] = write
        return write

    return keep


def save(folder: Path, name: str, array: np.ndarray | Image.Image, **how: object) -> Path:
    path = folder / name
    (array if isinstance(array, Image.Image) else Image.fromarray(np.ascontiguousarray(array))).save(
        path, **how
    )
    return path


def palette(indices: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    return picture


# --- pictures ---


@fact("PNG, JPEG, TIFF, WebP: orientation tag")
def orientation(folder, _):
    files = []
    for number, stored in STORED.items():
        exif = Image.Exif()
        exif[274] = number
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = number
        turned = stored(SCENE)
        files += [(save(folder, f"{number}.png", turned, exif=exif), SCENE),
                  (save(folder, f"{number}.webp", turned, exif=exif, lossless=True), SCENE),
                  (save(folder, f"{number}.tif", turned, tiffinfo=tags), SCENE),
                  (save(folder, f"{number}z.tif", turned, tiffinfo=tags, compression="tiff_deflate"), SCENE)]  # fmt: skip
        path = save(folder, f"{number}.jpg", turned, exif=exif, quality=100)
        assert np.abs(read_image(path).astype(int) - SCENE).max() <= 2  # JPEG comes close
    return files


@fact("TIFF: white is zero")
def white_is_zero(folder, _):
    files = []
    for name, stored in (("8.tif", 255 - SCENE), ("16.tif", 65535 - DEEP)):
        path = save(folder, name, stored)
        raw = bytearray(path.read_bytes())
        at = raw.find(struct.pack("<HHL", 262, 3, 1))
        raw[at + 8 : at + 10] = struct.pack("<H", 0)
        path.write_bytes(raw)
        files.append((path, SCENE if name == "8.tif" else DEEP))
    one = save(folder, "1.tif", Image.fromarray(MASK > 0))
    raw = bytearray(one.read_bytes())
    at = raw.find(struct.pack("<HHL", 262, 3, 1))
    raw[at + 8 : at + 10] = struct.pack("<H", 0)
    one.write_bytes(raw)
    return [*files, (one, (1 - MASK) * np.uint8(255))]


@fact("TIFF: white is zero, 32 bit")
def white_is_zero_float(folder, _):
    path = save(folder, "f.tif", SCENE.astype(np.float32))
    raw = bytearray(path.read_bytes())
    at = raw.find(struct.pack("<HHL", 262, 3, 1))
    raw[at + 8 : at + 10] = struct.pack("<H", 0)
    path.write_bytes(raw)
    return [(path, "must say that 0 is black")]


@fact("PNG, GIF, BMP, TIFF: palette of a picture")
def picture_palette(folder, _):
    picture = Image.fromarray(np.stack([SCENE, SCENE[::-1], 255 - SCENE], -1)).quantize(32)
    grey = palette(
        SCENE // 8, [(8 * (31 - i),) * 3 for i in range(32)]
    )  # entries in another order than their greys
    return [
        (save(folder, f"c.{kind}", picture), np.asarray(picture.convert("RGB")))
        for kind in ("png", "gif", "tif", "bmp")
    ] + [(save(folder, "g.png", grey), (8 * (31 - SCENE // 8)).astype(np.uint8))]


@fact("all: alpha that hides nothing")
def opaque(folder, _):
    return [
        (save(folder, f"{mode}.{kind}", Image.fromarray(SCENE).convert(mode)), SCENE)
        for mode, kind in (("LA", "png"), ("RGBA", "png"), ("RGBA", "tif"))
    ]


@fact("all: transparent pixels")
def transparent(folder, _):
    hidden = Image.fromarray(SCENE).convert("RGBA")
    hidden.putalpha(Image.fromarray(MASK * np.uint8(255)))
    words = "must be opaque"
    return [
        (save(folder, "a.png", hidden), words),
        (save(folder, "t.png", SCENE, transparency=int(SCENE[0, 0])), words),
    ]


@fact("all: 16-bit colour")
def deep_colour(folder, _):
    row = b"\0" + DEEP[0, :6].astype(">u2").tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    )
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return [(folder / "a.png", "must be 8 bit where it is RGB")]


@fact("all: several pages or pictures in a file")
def pages(folder, _):
    several = [Image.fromarray(SCENE), Image.fromarray(255 - SCENE)]
    words = "must hold one picture, got 2 pages"
    return [
        (save(folder, f"a.{kind}", several[0], save_all=True, append_images=several[1:]), words)
        for kind in ("tif", "gif", "webp")
    ]


@fact("JPEG: CMYK")
def cmyk(folder, _):
    return [(save(folder, "a.jpg", Image.fromarray(SCENE).convert("CMYK")), "must be grey or RGB, got CMYK")]


@fact("PPM: largest value of its own")
def ppm(folder, _):
    (folder / "a.pgm").write_bytes(b"P5\n2 2\n15\n\x00\x05\x0a\x0f")
    return [(folder / "a.pgm", np.array([[0, 85], [170, 255]], np.uint8))]


# --- masks: names begin with "mask" ---


@fact("mask: palette of classes")
def mask_palette(folder, _):
    classes = MASK * np.uint8(2)
    return [(save(folder, "a.png", palette(classes, [(0, 0, 0), (128, 0, 0), (0, 128, 0)])), classes),
            (save(folder, "b.png", palette(classes, [(0, 0, 0), (128, 0, 0), (0, 128, 0)]), transparency=0), classes)]  # fmt: skip


@fact("mask: palette of black and white in any order, or turned over")
def mask_palette_order(folder, _):
    white = MASK * np.uint8(255)
    return [
        (save(folder, "a.png", palette(1 - MASK, [(255,) * 3, (0,) * 3])), white),
        (save(folder, "b.png", palette(MASK, [(0,) * 3, (255,) * 3])), white),
        (save(folder, "c.png", palette(255 - white, [(255 - i,) * 3 for i in range(256)])), white),
        (save(folder, "d.gif", white), white),
        (save(folder, "e.bmp", palette(1 - MASK, [(255,) * 3, (0,) * 3])), white),
    ]


@fact("mask: palette whose black is not its first entry")
def mask_palette_black(folder, _):
    return [
        (
            save(folder, "a.png", palette(1 - MASK, [(200, 0, 0), (0, 0, 0)])),
            "must have black, the background",
        )
    ]


@fact("mask: 1, 2 and 4 bits a sample")
def mask_bits(folder, _):
    files = [(save(folder, "1.png", Image.fromarray(MASK > 0)), MASK)]
    for bits in (2, 4):
        values = np.arange(8, dtype=np.uint8).reshape(1, 8) % 2**bits
        row = int("".join(format(v, f"0{bits}b") for v in values[0]), 2).to_bytes(bits, "big")
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"\0" + row)),
            (b"IEND", b""),
        ]
        body = b"".join(
            struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
        )
        (folder / f"{bits}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        files.append((folder / f"{bits}.png", values))
    (folder / "few.pgm").write_bytes(b"P5\n4 1\n3\n\x00\x01\x02\x03")
    return [*files, (folder / "few.pgm", np.array([[0, 1, 2, 3]], np.uint8))]


@fact("mask: black and white in 4 and 16 bits")
def mask_white(folder, _):
    white = MASK * np.uint8(255)
    (folder / "4.pgm").write_bytes(b"P5\n40 24\n15\n" + (MASK * 15).tobytes())
    volume = np.stack([MASK.T * np.uint16(65535)] * 2, -1)
    return [
        (save(folder, "16.png", MASK * np.uint16(65535)), white),
        (folder / "4.pgm", white),
        (nifti(folder, "a.nii.gz", volume), np.stack([white] * 2)),
    ]


@fact("mask: GIF, BMP, WebP, PPM without loss")
def mask_formats(folder, _):
    classes = MASK * np.uint8(3)
    return [(save(folder, f"a.{kind}", classes, **({"lossless": True} if kind == "webp" else {})), classes)
            for kind in ("gif", "bmp", "webp", "pgm", "tif", "png")]  # fmt: skip


@fact("mask: JPEG, also in a TIFF, and lossy WebP")
def mask_lossy(folder, _):
    words = "must be saved without loss"
    return [(save(folder, "a.jpg", MASK * np.uint8(255)), words), (save(folder, "b.tif", MASK, compression="jpeg"), words),
            (save(folder, "c.webp", MASK, quality=80), words)]  # fmt: skip


@fact("mask: numbers a writer's scale moved by less than a thousandth")
def mask_scaled(folder, _):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    volume = np.stack([MASK.T * 2.0] * 3, -1)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1, 2, 1]), header), folder / "a.nii.gz")
    stored = nibabel.load(folder / "a.nii.gz").get_fdata()
    assert 0 < np.abs(stored - volume).max() < 1e-3
    return [(save(folder, "a.tif", MASK * np.float32(1.0004)), MASK), (folder / "a.nii.gz", np.stack([MASK * 2] * 3)),
            (save(folder, "b.tif", MASK * np.float32(1.5)), "got fractions")]  # fmt: skip


# --- DICOM ---


def shown(folder, files, name, pixels, **tags):
    return files.make_dicom(folder / f"{name}.dcm", pixels, **tags)


@fact("DICOM: byte order, implicit and deflated syntaxes")
def dicom_syntaxes(folder, files):
    return [
        (shown(folder, files, f"{kind}-{pixels.itemsize}", pixels, syntax=kind), pixels)
        for kind in ("implicit", "big-endian", "deflated", "rle", "jpeg-lossless-sv1", "jpeg-ls")
        for pixels in (SCENE, DEEP)
    ]


@fact("DICOM: white is the lowest value (MONOCHROME1), 8, 12 and 16 bits")
def monochrome1(folder, files):
    twelve = DEEP >> 4
    turned = {"PhotometricInterpretation": "MONOCHROME1"}
    return [
        (shown(folder, files, "8", 255 - SCENE, **turned), SCENE),
        (shown(folder, files, "16", 65535 - DEEP, **turned), DEEP),
        (shown(folder, files, "12", 4095 - twelve, bits=12, **turned), twelve),
    ]


@fact("DICOM: bits above those stored hold an overlay")
def overlay_bits(folder, files):
    twelve = DEEP >> 4
    return [(shown(folder, files, "a", twelve | np.uint16(0xF000), bits=12), twelve)]


def _palette_tags(table: np.ndarray, *, bits: int, first: int = 0, big: bool = False, packed: bool = False):
    """A palette of K×3 entries of 8 or 16 bits; `packed`: 8 bits an entry, two in a word."""
    tags: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        entries = table[:, channel]
        if packed:
            raw = entries.astype(np.uint8).tobytes() + b"\0" * (len(entries) % 2)
            data = np.frombuffer(raw, "<u2").astype(">u2" if big else "<u2").tobytes()
        else:
            data = (entries.astype(np.uint16) << (bits - 8)).astype(">u2" if big else "<u2").tobytes()
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [len(entries), first, bits]
        tags[f"{name}PaletteColorLookupTableData"] = data
    return tags


@fact("DICOM: palette, 8 and 16 bits, byte order, first entry, an odd number of them")
def dicom_palette(folder, files):
    table = RNG.integers(0, 256, (21, 3))
    indices = RNG.integers(0, 21, SCENE.shape).astype(np.uint8)
    colours = table[indices].astype(np.uint8)
    written = []
    for name, how in {
        "16": {"bits": 16},
        "packed": {"bits": 8, "packed": True},
        "8-in-16": {"bits": 8},
    }.items():
        for syntax in ("explicit", "big-endian"):
            tags = _palette_tags(table, big=syntax == "big-endian", **how)
            written.append(
                (shown(folder, files, f"{name}-{syntax}", indices, syntax=syntax, **tags), colours)
            )
    later = (
        indices.astype(np.uint16) + 100
    ) % 400  # 100 is the first entry; what lies outside has the ends' colours
    later[0, :4] = [0, 99, 121, 399]
    expected = colours.copy()
    expected[0, :4] = table[[0, 0, 20, 20]]
    written.append(
        (shown(folder, files, "first", later, **_palette_tags(table, bits=16, first=100)), expected)
    )
    low = _palette_tags(table, bits=8) | {
        f"{n}PaletteColorLookupTableDescriptor": [21, 0, 16] for n in ("Red", "Green", "Blue")
    }
    return [*written, (shown(folder, files, "low", indices, **low), colours)]


@fact("DICOM: planar colours, and YBR")
def dicom_planes(folder, files):
    colour = np.stack([SCENE, SCENE[::-1], 255 - SCENE], -1)
    planar = np.ascontiguousarray(colour.transpose(2, 0, 1)).reshape(colour.shape)
    return [(shown(folder, files, "a", planar, PlanarConfiguration=1), colour)]


@fact("DICOM: rescale, and an empty modality table beside it")
def dicom_rescale(folder, files):
    expected = (DEEP >> 4).astype(np.float32) - 1024
    how = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "Modality": "CT"}
    return [
        (shown(folder, files, "a", DEEP >> 4, **how), expected),
        (shown(folder, files, "b", DEEP >> 4, ModalityLUTSequence=[], **how), expected),
    ]


def _table(entries: np.ndarray, bits: int) -> list:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), 0, bits], [int(n) for n in entries]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    item.ModalityLUTType = "US"
    return [item]


@fact("DICOM: modality table; not of angiography and fluoroscopy")
def dicom_modality_table(folder, files):
    steep = (np.arange(256) ** 2).astype(np.uint16)
    written = [
        (
            shown(folder, files, "cr", SCENE, Modality="CR", ModalityLUTSequence=_table(steep, 16)),
            steep[SCENE].astype(np.float32),
        )
    ]
    for kind in ("12.1", "12.2", "12.1.1"):
        tags = {
            "Modality": "XA",
            "SOPClassUID": f"1.2.840.10008.5.1.4.1.1.{kind}",
            "PixelIntensityRelationship": "LOG",
        }
        written.append(
            (shown(folder, files, kind, SCENE, ModalityLUTSequence=_table(steep, 16), **tags), SCENE)
        )
    return written


@fact("DICOM: a codestream within boxes")
def jp2_boxes(folder, files):
    import io

    from pydicom.encaps import encapsulate

    stream = io.BytesIO()
    Image.fromarray(SCENE).save(stream, "JPEG2000", irreversible=False)
    boxed = stream.getvalue()
    at = boxed.index(b"jp2c") - 4
    note = b"<note>" + b"x" * 2000 + b"</note>"
    item = files.dicom(SCENE)
    item.file_meta.TransferSyntaxUID = files.SYNTAXES["jpeg-2000"]
    item.PixelData = encapsulate(
        [boxed[:at] + struct.pack(">L", len(note) + 8) + b"xml " + note + boxed[at:]]
    )
    item["PixelData"].VR, item["PixelData"].is_undefined_length = "OB", True
    item.save_as(folder / "a.dcm", enforce_file_format=True)
    return [(folder / "a.dcm", SCENE)]


@fact("DICOM: objects that are no picture")
def dicom_objects(folder, files):
    return [(shown(folder, files, kind, SCENE, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}"), "must be an image, got a")
            for kind in ("66.4", "88.33", "11.1", "104.1", "481.3")]  # fmt: skip


# --- NIfTI ---


def nifti(folder: Path, name: str, volume: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(
        nibabel.Nifti1Image(volume, np.diag([-1.0, -1, 2, 1]) if affine is None else affine), folder / name
    )
    return folder / name


@fact("NIfTI: any orientation of its axes, byte order, gzip")
def nifti_axes(folder, _):
    volume = np.stack([SCENE, SCENE[::-1], 255 - SCENE, SCENE // 2])
    straight = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1, 2, 1]))
    written = []
    for axes in ("LPS", "RAS", "PIR", "SLA"):
        image = straight.as_reoriented(
            nibabel.orientations.ornt_transform(
                nibabel.io_orientation(straight.affine), nibabel.orientations.axcodes2ornt(axes)
            )
        )
        nibabel.save(image, folder / f"{axes}.nii.gz")
        written.append((folder / f"{axes}.nii.gz", volume))
    big = nibabel.Nifti1Image(
        volume.transpose(2, 1, 0).astype(">u2"), straight.affine, nibabel.Nifti1Header(endianness=">")
    )
    nibabel.save(big, folder / "big.nii")
    return [*written, (folder / "big.nii", volume.astype(np.uint16))]


@fact("NIfTI: slope and intercept")
def nifti_scale(folder, _):
    path = nifti(folder, "a.nii", np.stack([DEEP.T >> 1] * 2, -1).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", 2.0, -5.0)
    path.write_bytes(raw)
    return [(path, np.stack([(DEEP >> 1) * 2.0 - 5] * 2).astype(np.float32))]


@fact("NIfTI: several times or channels in a file")
def nifti_times(folder, _):
    return [(nifti(folder, "a.nii", np.zeros((4, 5, 3, 2), np.uint8)), "must be 2-D or 3-D")]


# --- all rows ---


def read(path: Path, *, mask: bool) -> np.ndarray:
    if mask:
        if path.name.endswith(".nii.gz"):
            image = read_scan(path)
            return read_mask_file(path, image)
        return read_mask(path)
    if path.suffix in (".dcm", ".nii", ".gz"):
        scan = read_scan(path)
        values = np.stack([scan.values(i) for i in range(scan.slices)])
        assert values.shape[1:3] == scan.size_px
        return values if scan.kind == "nifti" else values[0]
    picture = read_image(path)
    assert image_size(path) == picture.shape[:2]
    return picture


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_is_obeyed_or_refused_by_name(name, tmp_path, dicom_files):
    for path, expected in FACTS[name](tmp_path, dicom_files):
        if isinstance(expected, str):
            with pytest.raises(InputError) as error:
                read(path, mask=name.startswith("mask"))
            assert expected in str(error.value)
            assert str(path) in str(error.value)
            assert "\n" not in str(error.value)
        else:
            found = read(path, mask=name.startswith("mask"))
            np.testing.assert_array_equal(found, expected, err_msg=path.name)


def test_the_page_has_every_fact():
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE)
    assert [row for row in rows if row in FACTS] == list(FACTS)
