"""Does a mask come through the formats unchanged?

`python -m benchmarks.checks.round_trip --bundle B --data D --out O` writes pictures of a data set as DICOM in the
ways hospitals store them, each so that its display gives the picture back; reads and segments each, writes the mask
as DICOM-SEG, NIfTI and PNG, and reads it back. Compared pixel for pixel: what came back with what was
predicted, and what was predicted with the mask of the picture before it was DICOM. The DICOM files themselves go
when the command ends. Exit status 3 if a mask differs.

O/round_trip.md     the table
O/round_trip.json   the same, with the bundle, host and versions
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from benchmarks.measuring import Part, results_folder, write_record
from runtime.predictor import Predictor
from segcore.bundle.folder import open_and_tell
from segcore.command import Progress, Settings, log, print_result, run_command
from segcore.dataset.dataset import Dataset, open_dataset
from segcore.errors import GateError, InputError
from segcore.host import describe_host, library_versions
from segcore.medical.mask_files import MaskFormat, read_mask_file, write_masks
from segcore.medical.read import read_scan
from segcore.outfolder import write_text
from segcore.picture.scan import Scan
from segcore.tables import table_of

Spacing = tuple[float, float]

_EXPLICIT, _IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_RLE, _JPEG_LS, _JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
_JPEG_LOSSLESS, _JPEG_BASELINE = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.50"
_DX, _CR, _US = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.6.1"
_US_FRAMES, _CT = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.2"
_MODALITY = {_DX: "DX", _CR: "CR", _US: "US", _US_FRAMES: "US", _CT: "CT"}
_JPEG_QUALITY = 95


_FILES: dict[MaskFormat, str] = {"dicom-seg": "mask.dcm", "nifti": "mask.nii.gz", "png": "mask.png"}
_MADE_UP_MM = (0.2, 0.3)
_CT_SPACING_MM = (0.7, 0.8)
_SPACING_TOLERANCE = 1e-5
"""Of a spacing: DICOM writes it in at most 16 characters, NIfTI as float32."""


class RoundTripSettings(Settings):
    """`python -m benchmarks.checks.round_trip` writes pictures as DICOM, segments them, and reads back their masks."""

    bundle: Path
    """Folder of an exported bundle for 8-bit pictures."""
    data: str
    """The data set whose test pictures are used; where it knows no spacing, 0.2 by 0.3 mm is written."""
    limit: int = Field(50, ge=1)
    """Pictures, spread over the test split."""
    ct_slices: int = Field(12, ge=2)
    """Slices of the CT series, which is made of phantom:ct."""
    out: Path
    """Folder to write."""
    engine: str | None = None
    """openvino or onnxruntime; by default openvino where it is installed and can open the bundle."""
    threads: int | None = None
    """CPU threads of the engine; by default all that this process may use."""
    overwrite: bool = False
    """Replace OUT if it is there."""


class VariantRow(Part):
    """What came through one variant. Counts are of masks, one a slice, out of `masks`.

    Attributes:
        files: files or series written and read.
        display_equal: slices whose displayed picture is the one that was written.
        prediction_equal: masks equal to that of the picture before it was DICOM.
        seg_equal: masks equal to the prediction after writing and reading a DICOM-SEG; likewise NIfTI and PNG.
        spacing_kept: files whose spacing is the same in the scan, the DICOM-SEG and the NIfTI.
        dciodvfy_errors: lines of errors over all DICOM-SEGs; None where dciodvfy is not installed.
        dciodvfy_warnings: likewise.
    """

    variant: str
    lossless: bool
    files: int = 0
    masks: int = 0
    display_equal: int = 0
    prediction_equal: int = 0
    seg_equal: int = 0
    nifti_equal: int = 0
    png_equal: int = 0
    spacing_kept: int = 0
    dciodvfy_errors: int | None = None
    dciodvfy_warnings: int | None = None

    @property
    def passed(self) -> bool:
        """Every mask came back; where nothing was lost, it is that of the original picture, too."""
        back = self.seg_equal == self.nifti_equal == self.png_equal == self.masks
        same = self.display_equal == self.prediction_equal == self.masks or not self.lossless
        return back and same and self.spacing_kept == self.files and not self.dciodvfy_errors


class RoundTripRecord(Part):
    """What round_trip.json holds."""

    bundle: str
    bundle_sha256: str
    data: str
    rows: tuple[VariantRow, ...]
    host: str = Field(default_factory=describe_host)
    versions: dict[str, str] = Field(default_factory=library_versions)


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


def main(settings: RoundTripSettings, variants: Sequence[Variant] | None = None) -> None:
    """Writes OUT and prints the table.

    Args:
        settings: of the command.
        variants: ways to store pictures; by default `VARIANTS`.

    Raises:
        GateError: a mask differs, a spacing was lost, or dciodvfy finds an error; the table is in OUT.
    """
    bundle = open_and_tell(settings.bundle)
    if bundle.manifest.input.depth != "uint8":
        raise InputError(
            f"--bundle {settings.bundle}: must be of 8-bit pictures, is of {bundle.manifest.input.depth}"
        )
    dataset = open_dataset(settings.data, need_masks=False)
    pictures = _test_pictures(dataset, settings)
    made_from = {"bundle": bundle.sha256, "data": settings.data, "limit": settings.limit}
    with (
        Predictor.open(bundle, engine=settings.engine, threads=settings.threads) as predictor,
        results_folder(settings, made_from) as folder,
    ):
        bar = Progress(VARIANTS if variants is None else variants, "round trips", unit="variant")
        rows = [_try_variant(variant, pictures, predictor) for variant in bar]
        rows.append(_try_variant(CT_SERIES, _ct_slices(settings.ct_slices), predictor))
        head, cells = _table_cells(rows)
        table = table_of("", head, cells, words=[True, *(False for _ in head[1:])])
        write_text(folder / "round_trip.md", table.markdown() + "\n")
        record = RoundTripRecord(
            bundle=bundle.manifest.name, bundle_sha256=bundle.sha256, data=settings.data, rows=tuple(rows)
        )
        write_record(folder / "round_trip.json", record)
    print(table.plain())
    failed = [row.variant for row in rows if not row.passed]
    if rows[0].dciodvfy_errors is None:
        log("dciodvfy is not installed: the DICOM-SEGs were not checked by it (Debian: dicom3tools)")
    print_result(out=str(settings.out), variants=len(rows), failed=failed)
    if failed:
        raise GateError(
            f"{len(failed)} of {len(rows)} variants differ: {'; '.join(failed)}; see {settings.out}"
        )


def _test_pictures(dataset: Dataset, settings: RoundTripSettings) -> list[tuple[np.ndarray, Spacing]]:
    cases = dataset.split("test", limit=settings.limit) or dataset.cases[: settings.limit]
    found = [(case.image(), case.spacing_mm or _MADE_UP_MM) for case in cases]
    if any(image.dtype != np.uint8 or image.ndim != 2 for image, _ in found):
        raise InputError(
            f"--data {settings.data}: must hold 8-bit grey pictures, holds others; choose another"
        )
    return found


def _ct_slices(slices: int) -> list[tuple[np.ndarray, Spacing]]:
    cases = open_dataset(f"phantom:ct:{max(slices, 6)}", need_masks=False).cases
    return [(case.image(), _CT_SPACING_MM) for case in cases[:slices]]


def _try_variant(
    variant: Variant, pictures: Sequence[tuple[np.ndarray, Spacing]], predictor: Predictor
) -> VariantRow:
    total = VariantRow(variant=variant.name, lossless=variant.lossless)
    for group in _groups_of(pictures, variant.pictures):
        row = _round_trip(variant, [picture for picture, _ in group], group[0][1], predictor)
        numbers = {
            key: None if value is None else value + (getattr(total, key) or 0)
            for key, value in row.model_dump(exclude={"variant", "lossless"}).items()
        }
        total = total.model_copy(update=numbers)
    return total


def _groups_of(
    pictures: Sequence[tuple[np.ndarray, Spacing]], many: int
) -> Iterator[list[tuple[np.ndarray, Spacing]]]:
    """So many neighbours of one size; 0 takes all."""
    group: list[tuple[np.ndarray, Spacing]] = []
    for picture in pictures:
        if group and (len(group) == many or picture[0].shape != group[0][0].shape):
            yield group
            group = []
        group.append(picture)
    yield group


def _round_trip(
    variant: Variant, pictures: Sequence[np.ndarray], spacing_mm: Spacing, predictor: Predictor
) -> VariantRow:
    manifest = predictor.manifest
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dicom").mkdir()
        scan = read_scan(variant.write(folder / "dicom", pictures, spacing_mm))
        shown = [scan.picture(index, "uint8") for index in range(scan.slices)]
        masks = np.stack([predictor.predict(picture).mask for picture in shown])
        expected = np.stack([predictor.predict(picture).mask for picture in pictures])
        write_masks(folder, "mask", scan, masks, manifest, ("png", "nifti", "dicom-seg"))
        back = {kind: read_mask_file(_mask_path(folder, kind), scan) for kind in _FILES}
        # A PNG of a single class holds 0 and 255, so that people see it.
        back["png"] = back["png"] // (255 if len(manifest.classes) == 1 else 1)
        errors, warnings = _count_dciodvfy_lines(folder / _FILES["dicom-seg"])
        return VariantRow(
            variant=variant.name,
            lossless=variant.lossless,
            files=1,
            masks=scan.slices,
            display_equal=sum(_shows_picture(a, b) for a, b in zip(shown, pictures, strict=True)),
            prediction_equal=_count_equal(masks, expected),
            seg_equal=_count_equal(back["dicom-seg"], masks),
            nifti_equal=_count_equal(back["nifti"], masks),
            png_equal=_count_equal(back["png"], masks),
            spacing_kept=int(_spacing_kept(folder, scan, spacing_mm)),
            dciodvfy_errors=errors,
            dciodvfy_warnings=warnings,
        )


def _mask_path(folder: Path, kind: MaskFormat) -> Path:
    path = folder / _FILES[kind]
    return path if path.exists() else path.with_suffix("")  # several PNGs are in a folder


def _count_equal(some: np.ndarray, others: np.ndarray) -> int:
    return int((some == others).all(axis=(1, 2)).sum())


def _shows_picture(shown: np.ndarray, picture: np.ndarray) -> bool:
    return bool((shown == (picture[..., None] if shown.ndim == 3 else picture)).all())


def _spacing_kept(folder: Path, scan: Scan, spacing_mm: Spacing) -> bool:
    import nibabel
    from pydicom import dcmread

    seg = dcmread(folder / _FILES["dicom-seg"], stop_before_pixels=True)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    nifti = nibabel.Nifti1Image.from_filename(folder / _FILES["nifti"])
    columns_mm, rows_mm = nifti.header.get_zooms()[:2]
    found = (
        scan.spacing_mm or (0.0, 0.0),
        [float(mm) for mm in measures.PixelSpacing],
        (rows_mm, columns_mm),
    )
    return all(np.allclose(some, spacing_mm, rtol=_SPACING_TOLERANCE) for some in found)


def _count_dciodvfy_lines(path: Path) -> tuple[int | None, int | None]:
    if shutil.which("dciodvfy") is None:
        return None, None
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    return tuple(sum(line.startswith(kind) for line in lines) for kind in ("Error", "Warning"))  # type: ignore[return-value]


def _table_cells(rows: Sequence[VariantRow]) -> tuple[list[str], list[list[str]]]:
    head = ["variant", "files", "masks", "display =", "prediction =", "SEG =", "NIfTI =", "PNG =", "spacing kept",
            "dciodvfy errors", "warnings"]  # fmt: skip
    cells = [
        [
            row.variant,
            *(str(n) for n in (row.files, row.masks, row.display_equal, row.prediction_equal)),
            *(str(n) for n in (row.seg_equal, row.nifti_equal, row.png_equal, row.spacing_kept)),
            *("–" if n is None else str(n) for n in (row.dciodvfy_errors, row.dciodvfy_warnings)),
        ]
        for row in rows
    ]
    return head, cells


# The ways to store a picture, and what puts it into a DICOM data set.


def _single_picture(
    sop_class: str, encode: Callable[[Any, np.ndarray], None], syntax: str = _EXPLICIT
) -> Callable[..., Path]:
    """A writer of one picture; `encode` puts its pixels into the data set, `syntax` is what it is then stored in."""

    def write(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
        item = _new_item(sop_class, spacing_mm)
        encode(item, pictures[0])
        return _save_item(item, folder / "picture.dcm", syntax)

    return write


def _put_grey(item: Any, picture: np.ndarray) -> None:
    _set_pixels(item, picture, "MONOCHROME2", bits=8)


def _put_inverted(item: Any, picture: np.ndarray) -> None:
    _set_pixels(item, 255 - picture, "MONOCHROME1", bits=8)


def _put_12_bit(item: Any, picture: np.ndarray) -> None:
    """16 stored values a grey level, of which the window makes one again. Source: DICOM PS3.3, C.11.2.1.2.1."""
    _set_pixels(item, picture.astype(np.uint16) * 16, "MONOCHROME2", bits=12)
    item.WindowCenter, item.WindowWidth = 16 * 255 / 2 + 0.5, 16 * 255 + 1


def _put_rgb(item: Any, picture: np.ndarray) -> None:
    _set_pixels(item, np.repeat(picture[..., None], 3, axis=2), "RGB", bits=8)


def _write_frames(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    item = _new_item(_US_FRAMES, spacing_mm)
    _set_pixels(item, np.stack(pictures), "MONOCHROME2", bits=8, frames=len(pictures))
    item.FrameTime = "40"
    item.FrameIncrementPointer = 0x00181063
    return _save_item(item, folder / "frames.dcm", _EXPLICIT)


def _write_ct_series(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    """Four Hounsfield units a grey level from −1024 on; oblique planes 2.5 mm apart, files named backwards."""
    from pydicom.uid import generate_uid

    ids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    along, down = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.0, -1.0])
    normal = np.cross(along, down)
    for index, picture in enumerate(pictures):
        item = _new_item(_CT, spacing_mm)
        for keyword, value in ids.items():
            setattr(item, keyword, value)
        _set_pixels(item, picture.astype(np.int16) * 4, "MONOCHROME2", bits=16)
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1, -1024, "HU"
        item.WindowCenter, item.WindowWidth = -1024 + 4 * 255 / 2 + 0.5, 4 * 255 + 1
        item.ImageOrientationPatient = [float(x) for x in (*along, *down)]
        item.ImagePositionPatient = [round(float(x), 6) for x in (-100, -80, 60) + 2.5 * index * normal]
        item.SliceThickness, item.InstanceNumber = 2.5, index + 1
        _save_item(item, folder / f"{len(pictures) - index:04d}.dcm", _EXPLICIT)
    return folder


def _write_jpeg_lossless(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    """By gdcm, whose Python binding works on files alone."""
    import gdcm

    item = _new_item(_DX, spacing_mm)
    _put_grey(item, pictures[0])
    with TemporaryDirectory() as scratch:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(_save_item(item, Path(scratch) / "plain.dcm", _EXPLICIT)))
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


def _write_jpeg_baseline(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: Spacing) -> Path:
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    item = _new_item(_US, spacing_mm)
    _put_grey(item, pictures[0])
    file = BytesIO()
    Image.fromarray(pictures[0]).save(file, "JPEG", quality=_JPEG_QUALITY)
    item.PixelData = encapsulate([file.getvalue()])
    item.LossyImageCompression = "01"
    item.LossyImageCompressionRatio = round(pictures[0].size / len(file.getvalue()), 2)
    item.LossyImageCompressionMethod = "ISO_10918_1"
    item.file_meta.TransferSyntaxUID = UID(_JPEG_BASELINE)
    item.save_as(folder / "picture.dcm", enforce_file_format=True)
    return folder / "picture.dcm"


def _new_item(sop_class: str, spacing_mm: Spacing) -> Any:
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


def _set_pixels(item: Any, pixels: np.ndarray, photometric: str, *, bits: int, frames: int = 0) -> None:
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


def _save_item(item: Any, path: Path, syntax: str) -> Path:
    if syntax in (_RLE, _JPEG_LS, _JPEG_2000):
        item.compress(syntax, generate_instance_uid=False)
    else:
        if syntax == _BIG_ENDIAN and item.BitsAllocated == 16:
            item.PixelData = np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes()
        item.file_meta.TransferSyntaxUID = syntax
    item.save_as(path, enforce_file_format=True)
    return path


VARIANTS = (
    Variant("DX, MONOCHROME2, 8 bit, explicit", _single_picture(_DX, _put_grey)),
    Variant("CR, MONOCHROME1, 8 bit, implicit", _single_picture(_CR, _put_inverted, _IMPLICIT)),
    Variant("DX, 12 bit, window", _single_picture(_DX, _put_12_bit)),
    Variant("DX, 12 bit, window, big endian", _single_picture(_DX, _put_12_bit, _BIG_ENDIAN)),
    Variant("US, RGB, deflated", _single_picture(_US, _put_rgb, _DEFLATED)),
    Variant("US, RGB, RLE", _single_picture(_US, _put_rgb, _RLE)),
    Variant("DX, 12 bit, window, RLE", _single_picture(_DX, _put_12_bit, _RLE)),
    Variant("DX, 8 bit, JPEG-LS lossless", _single_picture(_DX, _put_grey, _JPEG_LS)),
    Variant("DX, 12 bit, window, JPEG-LS lossless", _single_picture(_DX, _put_12_bit, _JPEG_LS)),
    Variant("DX, 8 bit, JPEG 2000 lossless", _single_picture(_DX, _put_grey, _JPEG_2000)),
    Variant("CR, 12 bit, window, JPEG 2000 lossless", _single_picture(_CR, _put_12_bit, _JPEG_2000)),
    Variant("DX, 8 bit, JPEG lossless", _write_jpeg_lossless),
    Variant("US, 8 bit, JPEG baseline (lossy)", _write_jpeg_baseline, lossless=False),
    Variant("US, 8 bit, multi-frame", _write_frames, pictures=5),
)
"""Written from the pictures of a data set."""

CT_SERIES = Variant("CT series of the phantom, 16 bit, rescale, window", _write_ct_series, pictures=0)
"""Written from slices of phantom:ct."""


if __name__ == "__main__":
    run_command(main, RoundTripSettings, "python -m benchmarks.checks.round_trip")
