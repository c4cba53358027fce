"""Writes 8-bit pictures as DICOM in the ways hospitals store them, each so that its display gives the picture back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

Spacing = tuple[float, float]

_EXPLICIT, _IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_RLE, _JPEG_LS, _JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
_JPEG_LOSSLESS, _JPEG_BASELINE = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.50"
_DX, _CR, _US = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.6.1"
_US_FRAMES, _CT = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.2"
_MODALITY = {_DX: "DX", _CR: "CR", _US: "US", _US_FRAMES: "US", _CT: "CT"}
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Variant:
    """One way to store pictures.

    Attributes:
        name: for the table.
        write: (folder, pictures H×W uint8, spacing of rows and columns in mm) → what `read_scan` opens; one slice a
            picture, in their order.
        pictures: how many go into one file or series; 0 all of them.
        lossless: the display is the picture, pixel for pixel.
    """

    name: str
    write: Callable[[Path, Sequence[np.ndarray], Spacing], Path]
    pictures: int = 1
    lossless: bool = True


def _one(
    sop_class: str, encode: Callable[[Any, np.ndarray], None], syntax: str = _EXPLICIT
) -> Callable[..., Path]:
    """A writer of one picture; `encode` puts its pixels into the data set, `syntax` is what it is then stored in."""

    def write(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
        item = _item(sop_class, spacing_mm)
        encode(item, pictures[0])
        return _save(item, folder / "picture.dcm", syntax)

    return write


def _grey(item: Any, picture: np.ndarray) -> None:
    _pixels(item, picture, "MONOCHROME2", bits=8)


def _inverted(item: Any, picture: np.ndarray) -> None:
    _pixels(item, 255 - picture, "MONOCHROME1", bits=8)


def _12_bit(item: Any, picture: np.ndarray) -> None:
    """16 stored values a grey level, of which the window makes one again. Source: DICOM PS3.3, C.11.2.1.2.1."""
    _pixels(item, picture.astype(np.uint16) * 16, "MONOCHROME2", bits=12)
    item.WindowCenter, item.WindowWidth = 16 * 255 / 2 + 0.5, 16 * 255 + 1


def _rgb(item: Any, picture: np.ndarray) -> None:
    _pixels(item, np.repeat(picture[..., None], 3, axis=2), "RGB", bits=8)


def _frames(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    item = _item(_US_FRAMES, spacing_mm)
    _pixels(item, np.stack(pictures), "MONOCHROME2", bits=8, frames=len(pictures))
    item.FrameTime = "40"
    item.FrameIncrementPointer = 0x00181063
    return _save(item, folder / "frames.dcm", _EXPLICIT)


def _ct_series(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    """Four Hounsfield units a grey level from −1024 on; oblique planes 2.5 mm apart, files named backwards."""
    from pydicom.uid import generate_uid

    ids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    along, down = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.0, -1.0])
    normal = np.cross(along, down)
    for index, picture in enumerate(pictures):
        item = _item(_CT, spacing_mm)
        for keyword, value in ids.items():
            setattr(item, keyword, value)
        _pixels(item, picture.astype(np.int16) * 4, "MONOCHROME2", bits=16)
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1, -1024, "HU"
        item.WindowCenter, item.WindowWidth = -1024 + 4 * 255 / 2 + 0.5, 4 * 255 + 1
        item.ImageOrientationPatient = [float(x) for x in (*along, *down)]
        item.ImagePositionPatient = [round(float(x), 6) for x in (-100, -80, 60) + 2.5 * index * normal]
        item.SliceThickness, item.InstanceNumber = 2.5, index + 1
        _save(item, folder / f"{len(pictures) - index:04d}.dcm", _EXPLICIT)
    return folder


def _jpeg_lossless(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    """By gdcm, whose Python binding works on files alone."""
    import gdcm

    item = _item(_DX, spacing_mm)
    _grey(item, pictures[0])
    with TemporaryDirectory() as scratch:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(_save(item, Path(scratch) / "plain.dcm", _EXPLICIT)))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(folder / "picture.dcm"))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return folder / "picture.dcm"


def _jpeg_baseline(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    item = _item(_US, spacing_mm)
    _grey(item, pictures[0])
    file = BytesIO()
    Image.fromarray(pictures[0]).save(file, "JPEG", quality=_JPEG_QUALITY)
    item.PixelData = encapsulate([file.getvalue()])
    item.LossyImageCompression = "01"
    item.LossyImageCompressionRatio = round(pictures[0].size / len(file.getvalue()), 2)
    item.LossyImageCompressionMethod = "ISO_10918_1"
    item.file_meta.TransferSyntaxUID = UID(_JPEG_BASELINE)
    item.save_as(folder / "picture.dcm", enforce_file_format=True)
    return folder / "picture.dcm"


def _item(sop_class: str, spacing_mm: Spacing) -> Any:
    """A data set with all but its pixels; a CR has its spacing at the detector, as such files do."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = UID(_EXPLICIT)
    item.SOPClassUID, item.SOPInstanceUID = sop_class, generate_uid()
    item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    item.StudyInstanceUID, item.SeriesInstanceUID = generate_uid(), generate_uid()
    item.PatientName, item.PatientID, item.PatientBirthDate, item.PatientSex = "Test^Picture", "test", "", ""
    item.StudyID, item.StudyDate, item.StudyTime, item.AccessionNumber = "1", "20240101", "120000", ""
    item.ReferringPhysicianName, item.Manufacturer = "", "sam2edge"
    item.Modality, item.SeriesNumber, item.InstanceNumber = _MODALITY[sop_class], 1, 1
    setattr(item, "ImagerPixelSpacing" if sop_class == _CR else "PixelSpacing", list(spacing_mm))
    return item


def _pixels(item: Any, pixels: np.ndarray, photometric: str, *, bits: int, frames: int = 0) -> None:
    item.Rows, item.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    item.SamplesPerPixel = 3 if photometric == "RGB" else 1
    if photometric == "RGB":
        item.PlanarConfiguration = 0
    if frames:
        item.NumberOfFrames = frames
    item.PhotometricInterpretation = photometric
    item.BitsAllocated, item.BitsStored, item.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    item.PixelRepresentation = int(pixels.dtype.kind == "i")
    raw = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    item.PixelData = raw + b"\0" * (len(raw) % 2)
    item["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"


def _save(item: Any, path: Path, syntax: str) -> Path:
    if syntax in (_RLE, _JPEG_LS, _JPEG_2000):
        item.compress(syntax, generate_instance_uid=False)
    else:
        if syntax == _BIG_ENDIAN and item.BitsAllocated == 16:
            item.PixelData = np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes()
        item.file_meta.TransferSyntaxUID = syntax
    item.save_as(path, enforce_file_format=True)
    return path


VARIANTS = (
    Variant("DX, MONOCHROME2, 8 bit, explicit", _one(_DX, _grey)),
    Variant("CR, MONOCHROME1, 8 bit, implicit", _one(_CR, _inverted, _IMPLICIT)),
    Variant("DX, 12 bit, window", _one(_DX, _12_bit)),
    Variant("DX, 12 bit, window, big endian", _one(_DX, _12_bit, _BIG_ENDIAN)),
    Variant("US, RGB, deflated", _one(_US, _rgb, _DEFLATED)),
    Variant("US, RGB, RLE", _one(_US, _rgb, _RLE)),
    Variant("DX, 12 bit, window, RLE", _one(_DX, _12_bit, _RLE)),
    Variant("DX, 8 bit, JPEG-LS lossless", _one(_DX, _grey, _JPEG_LS)),
    Variant("DX, 12 bit, window, JPEG-LS lossless", _one(_DX, _12_bit, _JPEG_LS)),
    Variant("DX, 8 bit, JPEG 2000 lossless", _one(_DX, _grey, _JPEG_2000)),
    Variant("CR, 12 bit, window, JPEG 2000 lossless", _one(_CR, _12_bit, _JPEG_2000)),
    Variant("DX, 8 bit, JPEG lossless", _jpeg_lossless),
    Variant("US, 8 bit, JPEG baseline (lossy)", _jpeg_baseline, lossless=False),
    Variant("US, 8 bit, multi-frame", _frames, pictures=5),
)
"""Written from the pictures of a data set."""

CT_SERIES = Variant("CT series of the phantom, 16 bit, rescale, window", _ct_series, pictures=0)
"""Written from slices of phantom:ct."""
