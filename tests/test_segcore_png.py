"""What is written as PNG is read back by Pillow, whichever packer wrote it; and no larger than a general encoder's."""

from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from segcore.picture import png
from segcore.picture.png import encode_png


@pytest.fixture(params=["isal", "zlib"])
def packer(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(png, "_igzip", lambda: None)
    elif find_spec("isal") is None:
        pytest.skip("isal is not installed")
    return request.param


def as_pillow_reads(content: bytes) -> np.ndarray:
    with Image.open(BytesIO(content)) as picture:
        picture.verify()  # the checksums, too
    return np.asarray(Image.open(BytesIO(content)))


@pytest.mark.parametrize("filter", ["none", "up"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (300, 1), (64, 33), (5, 4, 3), (120, 77, 3)])
def test_every_pixel_comes_back(packer, shape, filter):
    rng = np.random.default_rng(0)
    for pixels in (
        np.zeros(shape, np.uint8),
        np.where(rng.random(shape) < 0.1, 255, 0).astype(np.uint8),
        rng.integers(0, 256, shape, np.uint8),
        np.asfortranarray(rng.integers(0, 256, shape, np.uint8)),
    ):
        np.testing.assert_array_equal(as_pillow_reads(encode_png(pixels, filter=filter)), pixels)


def test_files_are_no_larger_than_twice_pillows(packer):
    rows, columns = np.mgrid[:512, :512]
    mask = np.where((rows - 250) ** 2 + (columns - 200) ** 2 < 120**2, 255, 0).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 8, (512, 512, 3))
    picture = (np.stack([rows // 3, columns // 3, mask // 2], axis=2) + noise).astype(np.uint8)
    for pixels, filter in ((mask, "none"), (picture, "up")):
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
        assert len(encode_png(pixels, filter=filter)) < 2 * len(stream.getvalue())


@pytest.mark.parametrize(
    "pixels", [np.zeros((3, 3), np.uint16), np.zeros((3, 3, 4), np.uint8), np.zeros(3, np.uint8)]
)
def test_what_it_cannot_write_is_our_mistake(pixels):
    with pytest.raises(ValueError, match="pixels must be uint8"):
        encode_png(pixels, filter="none")
