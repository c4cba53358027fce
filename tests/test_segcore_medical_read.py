"""What is no image, or a damaged one: one line that says what to do, and nothing of the patient."""

import logging
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from segcore.errors import InputError
from segcore.medical.read import read_scan

pydicom = pytest.importorskip("pydicom")

PIXELS = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
DAMAGED = "must be a whole DICOM file, is damaged; copy it again"


def message(path, read=False):
    with pytest.raises(InputError) as error:
        read_scan(path).values(0) if read else read_scan(path)
    return str(error.value)


# --- pictures ---


@pytest.mark.parametrize("suffix", [".png", ".tif", ".dcm"])
def test_pictures_by_content(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(path, format="TIFF" if suffix == ".tif" else "PNG")
    scan = read_scan(path)
    assert (scan.name, scan.kind, scan.slices, scan.size_px) == (path.name, "image", 1, (64, 48))
    assert (scan.spacing_mm, scan.affine, scan.patient, scan.windows, scan.header) == (
        None,
        None,
        None,
        (),
        None,
    )
    np.testing.assert_array_equal(scan.values(0), PIXELS)
    shown = scan.display(0)
    assert (shown.dtype, shown.min(), shown.max()) == (np.uint8, 0, 255)
    grey = (PIXELS >> 4).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_scan(tmp_path / "b.png").display(0), grey)


def test_picture_errors_stay(tmp_path):
    path = tmp_path / "a.png"
    assert message(path) == f"image {path}: must be a file, no such file"
    path.write_bytes(b"")
    assert message(path) == f"image {path}: must be an image, got a file of 0 bytes; copy it again"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert message(path, read=True).startswith(f"image {path}: must be a whole image, is damaged (")
    header = bytearray(path.read_bytes())
    header[16:24] = struct.pack(">LL", 30000, 30000)
    header[29:33] = struct.pack(">L", zlib.crc32(header[12:29]))
    path.write_bytes(header)
    assert message(path).startswith(f"image {path}: must be at most ")


@pytest.mark.parametrize("name", ["run.png", "run.dcm", "run", "run.nii.gz"])
@pytest.mark.parametrize(
    "content", [b"MZ\x90\0" + b"\0" * 500, b"\x7fELF" + b"\1" * 500, b"Dear colleague", b"\x1f\x8b oh"]
)
def test_something_else(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert message(path) == (
        f"image {path}: must be PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, DICOM or NIfTI, got something else or a damaged "
        "header; save it again"
    )


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert message(tmp_path / "a.png") == f"image {tmp_path / 'a.png'}: must be a file, no such file"


# --- DICOM that is damaged, or lies ---


@pytest.fixture
def path(dicom_files, tmp_path):
    return dicom_files.make_dicom(tmp_path / "a.dcm", PIXELS)


def test_cut_off_anywhere_is_one_line(path):
    """Every cut of the file is an InputError, and names nothing but the file."""
    whole = path.read_bytes()
    for end in [*range(132, 700, 7), len(whole) - 2000, len(whole) - 1]:
        path.write_bytes(whole[:end])
        text = message(path, read=True)
        assert text.startswith(f"DICOM {path}: must ")
        assert "\n" not in text
    path.write_bytes(whole[: len(whole) - 2000])
    assert message(path) == (
        f"DICOM {path}: must hold the 6144 bytes of pixels its header promises, got 4144; copy it again"
    )
    path.write_bytes(whole[:200])
    assert message(path) == f"DICOM {path}: {DAMAGED}"


@pytest.mark.parametrize("syntax", ["jpeg-2000", "rle", "jpeg-lossless", "jpeg-ls", "deflated"])
def test_compressed_pixels_cut_off(dicom_files, tmp_path, syntax):
    noise = np.random.default_rng(0).integers(0, 4096, (64, 48)).astype(np.uint16)
    path = dicom_files.make_dicom(tmp_path / "a.dcm", noise, syntax=syntax)
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    text = message(path, read=True)
    if syntax == "deflated":
        assert text.startswith(f"DICOM {path}: must hold the 6144 bytes of pixels its header promises, got ")
    else:
        assert (
            text
            == f"DICOM {path}: must hold whole compressed pixels, got a file cut off in them; copy it again"
        )


# Not the other JPEGs: their decoders fill what they cannot read, as they do in broken photographs.
@pytest.mark.parametrize("syntax", ["jpeg-2000", "jpeg-ls", "rle"])
def test_damaged_compressed_pixels(dicom_files, tmp_path, syntax, capfd):
    pixels = (PIXELS >> 4).astype(np.uint8)
    item = dicom_files.dicom(pixels, syntax=syntax)
    raw = bytearray(item.PixelData)
    raw[len(raw) // 2 : -12] = b"\x5a" * (len(raw) - 12 - len(raw) // 2)
    item.PixelData = bytes(raw)
    item["PixelData"].is_undefined_length = True
    path = tmp_path / "a.dcm"
    item.save_as(path, enforce_file_format=True)
    text = message(path, read=True)
    name = pydicom.uid.UID(dicom_files.SYNTAXES[syntax]).name
    assert text in (
        f"DICOM {path}: must be a file whose pixels decode as {name} ({dicom_files.SYNTAXES[syntax]}), is damaged; "
        "copy it again",
        f"DICOM {path}: must hold whole compressed pixels, got a file cut off in them; copy it again",
    )
    assert "Mustermann" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("syntax", ["jpeg-baseline", "jpeg-2000", "jpeg-lossless", "jpeg-ls"])
def test_a_codestream_larger_than_its_header_is_not_decoded(dicom_files, tmp_path, syntax):
    path = dicom_files.make_dicom(tmp_path / "a.dcm", (PIXELS >> 4).astype(np.uint8), syntax=syntax)
    item = pydicom.dcmread(path)
    item.Rows = item.Columns = 32
    item.save_as(path)
    assert message(path, read=True) == (
        f"DICOM {path}: must hold a picture of 32×32 as its header says, got one of 64×48; export it again"
    )


@pytest.mark.parametrize(("syntax", "stored"), [("jpeg-baseline", 8), ("jpeg-2000", 8), ("jpeg-lossless", 8)])
def test_a_codestream_of_other_samples_is_not_decoded(dicom_files, tmp_path, syntax, stored):
    """Gdcm would crash the process."""
    rgb = np.stack([(PIXELS >> i).astype(np.uint8) for i in (4, 5, 6)], axis=-1)
    path = dicom_files.make_dicom(tmp_path / "a.dcm", rgb, syntax=syntax)
    item = pydicom.dcmread(path)
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.save_as(path)
    assert message(path, read=True) == (
        f"DICOM {path}: must hold 1 samples of 8 bit a pixel as its header says, got 3 of {stored} bit; export it again"
    )


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        (
            {"Rows": 30000, "Columns": 30000},
            "must be at most 20000 pixels a side and 100000000 in all, got 30000×30000; tile or shrink it",
        ),
        ({"Rows": 0}, "must have pixels, got 0×48"),
        ({"Rows": None}, "must have pixels, got 0×48"),
        ({"Rows": 128}, "must hold the 12288 bytes of pixels its header promises, got 6144; copy it again"),
        ({"NumberOfFrames": 0}, "must hold at least one frame, got 0; export it again"),
        ({"NumberOfFrames": -3}, "must hold at least one frame, got -3; export it again"),
        (
            {"NumberOfFrames": 7},
            "must hold the 43008 bytes of pixels its header promises, got 6144; copy it again",
        ),
        (
            {"NumberOfFrames": 2_000_000},
            "must be at most 2000000000 pixels in all frames, got 2000000 of 64×48; split it",
        ),
        (
            {"PixelData": None},
            "must hold pixels, got a header alone or a file cut off before them; copy it again",
        ),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
            "must be an image, got a segmentation, which is a mask; give the image that it refers to",
        ),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "PixelData": None},
            "must be an image, got a structured report; give the image that it reports on",
        ),
        (
            {"PhotometricInterpretation": "CMYK"},
            "must be grey, RGB, YBR or palette colours, got CMYK; convert it first",
        ),
        (
            {"PhotometricInterpretation": "MUSTERMANN"},  # a name in the wrong element is not repeated
            "must be grey, RGB, YBR or palette colours, got none of these; convert it first",
        ),
        (
            {"PhotometricInterpretation": "RGB"},
            "must have 3 samples a pixel where it is RGB, got 1; export it again",
        ),
        (
            {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31, "Rows": 32},
            "must be 1, 8 or 16 bit, got 32 bit; convert it first",
        ),
        (
            {"BitsStored": 12, "HighBit": 15},
            "must use the lowest bits of a pixel, got 12 of 16 bits with the highest at 15; export it again",
        ),
        (
            {"PhotometricInterpretation": "PALETTE COLOR"},
            "must be one with its colours' palette, is damaged; export it again",
        ),
    ],
)
def test_a_header_that_is_no_picture_or_lies(dicom_files, tmp_path, tags, text):
    path = dicom_files.make_dicom(tmp_path / "a.dcm", PIXELS, **tags)
    assert message(path, read=True) == f"DICOM {path}: {text}"


def test_transfer_syntaxes_that_nothing_reads(dicom_files, tmp_path, path):
    item = pydicom.dcmread(path)
    item.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
    item["PixelData"].is_undefined_length = True
    for uid, text in (
        (
            "1.2.840.10008.1.2.4.100",
            "must be in a transfer syntax that the extra medical reads, got MPEG2 Main Profile / Main Level "
            "(1.2.840.10008.1.2.4.100); store it uncompressed first (a JPEG by dcmtk's dcmdjpeg)",
        ),
        (
            "1.2.840.10008.1.2.4.51",
            "must be 8 bit where it is JPEG Extended (Process 2 and 4) (1.2.840.10008.1.2.4.51), got 12 bit, which no "
            "decoder of the extra medical reads; store it uncompressed first (a JPEG by dcmtk's dcmdjpeg)",
        ),
    ):
        item.BitsStored, item.HighBit = 12, 11
        item.file_meta.TransferSyntaxUID = uid
        item.save_as(path)
        assert message(path) == f"DICOM {path}: {text}"


def test_gdcm_that_ends_takes_nothing_with_it(dicom_files, tmp_path, capfd):
    """Found by damaging files: GDCM aborts its process. The next file is read again."""
    good = dicom_files.make_dicom(tmp_path / "good.dcm", PIXELS, syntax="jpeg-lossless")
    item = pydicom.dcmread(good)
    frame = bytearray(pydicom.encaps.get_frame(item.PixelData, 0))
    frame[frame.index(b"\xff\xc4")] = 0  # the mark of its Huffman table
    item.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
    path = tmp_path / "a.dcm"
    item.save_as(path)
    for _ in range(2):
        assert message(path, read=True) == (
            f"DICOM {path}: must be a file whose pixels decode as JPEG Lossless, Non-Hierarchical (Process 14) "
            "(1.2.840.10008.1.2.4.57), is damaged; copy it again"
        )
        np.testing.assert_array_equal(read_scan(good).values(0), PIXELS)
    assert "".join(capfd.readouterr()) == ""


def test_more_frames_promised_than_fragments(dicom_files, tmp_path):
    path = dicom_files.make_dicom(tmp_path / "a.dcm", PIXELS, syntax="rle")
    item = pydicom.dcmread(path)
    item.NumberOfFrames = 3
    item.save_as(path)
    assert message(path) == f"DICOM {path}: must hold the 3 frames its header promises, got 1; copy it again"


def test_no_word_of_the_patient_in_warnings_and_logs(dicom_files, tmp_path, caplog, capfd):
    """Pydicom quotes malformed values in its warnings."""
    path = dicom_files.make_dicom(tmp_path / "a.dcm", PIXELS)
    uid = pydicom.dcmread(path).SeriesInstanceUID
    secret = "Geheimes".ljust(len(uid), "x")
    path.write_bytes(path.read_bytes().replace(uid.encode(), secret.encode()))
    logging.getLogger("pydicom").setLevel(logging.NOTSET)
    with pytest.warns(UserWarning, match="Geheimes"):
        assert pydicom.dcmread(path).SeriesInstanceUID == secret
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scan = read_scan(path, deidentify=True)
        scan.values(0), scan.display(0), repr(scan)
    said = caplog.text + "".join(capfd.readouterr()) + "".join(str(w.message) for w in caught)
    for value in ("Geheimes", *dicom_files.PATIENT.values()):
        assert value not in said
