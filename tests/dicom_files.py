"""Writes DICOM files for the tests: every pixel, tag and transfer syntax is the test's own choice."""

from __future__ import annotations

import base64
import gzip
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Transfer syntaxes by a short name. gdcm writes the JPEGs; pydicom's own encoders the others.
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big-endian": "1.2.840.10008.1.2.2",
    "jpeg-baseline": "1.2.840.10008.1.2.4.50",
    "jpeg-extended": "1.2.840.10008.1.2.4.51",
    "jpeg-lossless": "1.2.840.10008.1.2.4.57",
    "jpeg-lossless-sv1": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg-ls-near": "1.2.840.10008.1.2.4.81",
    "jpeg-2000": "1.2.840.10008.1.2.4.90",
    "jpeg-2000-lossy": "1.2.840.10008.1.2.4.91",
    "rle": "1.2.840.10008.1.2.5",
}
CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
    "enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
}
# What must never be seen in a log, a report or a page.
PATIENT = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "HOSP-4711",
    "PatientBirthDate": "19640812",
    "InstitutionName": "St. Elsewhere",
    "ReferringPhysicianName": "Doktor^Who",
    "AccessionNumber": "ACC-0815",
}


def told(folder: Path, *sources: Path) -> list[str]:
    """What the files under a folder, unpacked, and their names tell of `PATIENT` and of the sources' identifiers."""
    from pydicom import dcmread

    secrets = {word for value in PATIENT.values() for word in (value, *value.split("^")) if len(word) > 3}
    for path in (file for source in sources for file in source.rglob("*") if file.is_file()):
        header = dcmread(path, stop_before_pixels=True)
        secrets |= {str(header[key].value) for key in [*header.dir("InstanceUID"), "FrameOfReferenceUID"]}
    found = []
    for path in sorted(folder.rglob("*")):
        content = b"\n".join(unpacked(path.read_bytes())) if path.is_file() else b""
        for secret in sorted(secrets):
            if secret in path.name or secret.encode() in content:
                found.append(f"{path.relative_to(folder)}: {secret}")
    return found


def unpacked(data: bytes) -> Iterator[bytes]:
    """A file's bytes, and those that lie packed in it: gzip, ZIP (as .npz is), text beside PNG pixels, data URIs."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.decompress(data))
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from unpacked(archive.read(name))
    if data[:4] == b"\x89PNG":
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            yield repr(picture.info).encode()
    for uri in re.finditer(rb"base64,([A-Za-z0-9+/]+=*)", data):
        yield from unpacked(base64.b64decode(uri[1]))


def dicom(
    pixels: np.ndarray,
    *,
    frames: bool = False,
    syntax: str = "explicit",
    bits: int | None = None,
    **tags: Any,
) -> Any:
    """A DICOM dataset of pixels H×W, H×W×3, or with `frames` N×H×W or N×H×W×3; a tag of None is left out.

    Args:
        pixels: uint8, uint16 or int16; YBR and palette pictures hold the stored values and name their photometric.
        frames: the first axis counts frames.
        syntax: a name of SYNTAXES.
        bits: BitsStored, all of the dtype's where not given.
        tags: any keyword of the dictionary, over what is filled in here.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import generate_uid

    colour = pixels.ndim == (4 if frames else 3)
    modality = tags.get("Modality", "OT")
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = SYNTAXES["explicit"]
    item.SOPClassUID = CLASSES.get(modality, CLASSES["OT"])
    item.SOPInstanceUID = generate_uid()
    item.StudyInstanceUID, item.SeriesInstanceUID = generate_uid(), generate_uid()
    item.FrameOfReferenceUID = generate_uid()
    item.StudyID, item.SeriesNumber, item.InstanceNumber = "1", 1, 1
    item.StudyDate, item.StudyTime = "20240229", "120000"
    item.Modality, item.Manufacturer = modality, "tests"
    item.PatientSex = "F"
    for keyword, value in PATIENT.items():
        setattr(item, keyword, value)
    item.Rows, item.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    item.SamplesPerPixel = 3 if colour else 1
    item.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        item.PlanarConfiguration = 0
    if frames:
        item.NumberOfFrames = len(pixels)
    item.BitsAllocated = pixels.dtype.itemsize * 8
    item.BitsStored = bits or item.BitsAllocated
    item.HighBit = item.BitsStored - 1
    item.PixelRepresentation = int(pixels.dtype.kind == "i")
    raw = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    item.PixelData = raw + b"\0" * (len(raw) % 2)
    item["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for keyword, value in tags.items():
        if value is not None:
            setattr(item, keyword, value)
        elif keyword in item:
            delattr(item, keyword)
    item.file_meta.MediaStorageSOPClassUID = item.get("SOPClassUID", CLASSES["OT"])
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    return _in_syntax(item, syntax)


def make_dicom(path: Path, pixels: np.ndarray, *, preamble: bool = True, **tags: Any) -> Path:
    """Writes what `dicom` makes; without a preamble also without file meta information, as old archives have it."""
    item = dicom(pixels, **tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    if preamble:
        item.save_as(path, enforce_file_format=True)
    else:
        del item.file_meta
        item.save_as(path, implicit_vr=tags.get("syntax", "implicit") == "implicit", little_endian=True)
    return path


def make_series(
    folder: Path,
    volume: np.ndarray,
    *,
    spacing_mm: tuple[float, float] = (0.5, 0.5),
    slice_spacing_mm: float = 2.0,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    origin_mm: Sequence[float] = (-10, -20, -30),
    **tags: Any,
) -> list[Path]:
    """Writes N×H×W as one CT series, its file names in no order of position; gives the paths in slice order."""
    from pydicom.uid import generate_uid

    normal = np.cross(orientation[:3], orientation[3:])
    ids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    paths = []
    for index, pixels in enumerate(volume):
        position = np.asarray(origin_mm) + normal * slice_spacing_mm * index
        own = {
            "Modality": "CT",
            "PixelSpacing": list(spacing_mm),
            "SliceThickness": slice_spacing_mm,
            "ImageOrientationPatient": list(orientation),
            "ImagePositionPatient": [round(float(p), 6) for p in position],
            "InstanceNumber": index + 1,
        }
        # 7 has an inverse modulo any number of slices it does not divide; a second name keeps the others apart.
        name = f"{(index * 7) % len(volume):03d}-{index}.dcm"
        paths.append(make_dicom(folder / name, pixels, **{**ids, **own, **tags}))
    return paths


def make_enhanced(
    path: Path,
    volume: np.ndarray,
    *,
    positions_mm: Sequence[Sequence[float]],
    spacing_mm: tuple[float, float] = (0.5, 0.5),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    rescales: Sequence[tuple[float, float]] | None = None,
    windows: Sequence[tuple[float, float]] | None = None,
    **tags: Any,
) -> Path:
    """Writes N×H×W as one enhanced CT: geometry, (slope, intercept) and (centre, width) in functional groups."""
    from pydicom.dataset import Dataset

    def group(sequence: str, **values: Any) -> tuple[str, list[Any]]:
        inner = Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        return sequence, [inner]

    shared = Dataset()
    for keyword, items in (
        group("PixelMeasuresSequence", PixelSpacing=list(spacing_mm)),
        group("PlaneOrientationSequence", ImageOrientationPatient=list(orientation)),
    ):
        setattr(shared, keyword, items)
    frames = []
    for index, position in enumerate(positions_mm):
        groups = [group("PlanePositionSequence", ImagePositionPatient=list(position))]
        if rescales:
            slope, intercept = rescales[index]
            groups.append(
                group("PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=intercept)
            )
        if windows:
            centre, width = windows[index]
            groups.append(group("FrameVOILUTSequence", WindowCenter=centre, WindowWidth=width))
        frame = Dataset()
        for keyword, items in groups:
            setattr(frame, keyword, items)
        frames.append(frame)
    own = {
        "Modality": "CT",
        "SOPClassUID": CLASSES["enhanced CT"],
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }
    return make_dicom(path, volume, frames=True, **{**own, **tags})


def _in_syntax(item: Any, syntax: str) -> Any:
    from pydicom.uid import UID

    uid = UID(SYNTAXES[syntax])
    if syntax in ("implicit", "explicit", "deflated"):
        item.file_meta.TransferSyntaxUID = uid
    elif syntax == "big-endian":
        if item.BitsAllocated == 16:
            item.PixelData = np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes()
        item.file_meta.TransferSyntaxUID = uid
    elif syntax.startswith("jpeg-") and syntax[5:] in ("baseline", "extended", "lossless", "lossless-sv1"):
        item = _by_gdcm(item, syntax)
    else:
        options = {
            "jpeg-ls-near": {"jls_error": 2},
            "jpeg-2000-lossy": {"j2k_cr": [10]},
            "rle": {"encoding_plugin": "pydicom"},  # gdcm's aborts on aarch64
        }.get(syntax, {})
        item.compress(uid, generate_instance_uid=False, **options)
    return item


def _by_gdcm(item: Any, syntax: str) -> Any:
    """The dataset compressed by gdcm, by way of files, which is all its Python binding offers."""
    from tempfile import TemporaryDirectory

    import gdcm
    from pydicom import dcmread

    kinds = {
        "jpeg-baseline": gdcm.TransferSyntax.JPEGBaselineProcess1,
        "jpeg-extended": gdcm.TransferSyntax.JPEGExtendedProcess2_4,
        "jpeg-lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
        "jpeg-lossless-sv1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    }
    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.dcm", Path(folder) / "after.dcm"
        item.save_as(before, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(before))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change(), f"gdcm cannot write {syntax}"
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(after))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        done = dcmread(after)
        if done.SamplesPerPixel == 3 and syntax in ("jpeg-baseline", "jpeg-extended"):
            done.PhotometricInterpretation = (
                "YBR_FULL"  # as it is in the JPEG; gdcm 3.2.6 leaves RGB in the header
            )
        done.PixelData  # noqa: B018 - read before the file goes
        return done
