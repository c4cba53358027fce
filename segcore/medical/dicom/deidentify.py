"""A DICOM header without the patient, and the pseudonym that stands for who it was.

Only what geometry, pixels and modality need is kept. A pseudonym is the same for all files of one patient, and slow to
turn back.
"""

from __future__ import annotations

import hashlib
import os
from copy import deepcopy
from functools import lru_cache
from typing import TYPE_CHECKING

from segcore.errors import InputError
from segcore.medical.dicom.file import load_pydicom, text_of

if TYPE_CHECKING:
    from pydicom import Dataset

KEY_VARIABLE = "SAM2EDGE_PSEUDONYM_KEY"
_PUBLIC_KEY = "sam2edge pseudonym 1"
# 2^12 rounds in 4 MiB: about 10 ms a patient on one core. Source: RFC 7914, section 2 (N, r, p).
_SCRYPT_COST, _SCRYPT_BLOCK, _SCRYPT_PARALLEL = 2**12, 8, 1
# Everything else goes: an allow-list cannot forget a tag that the next scanner invents.
_KEPT = {
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "Modality",
    "PresentationIntentType",
    "BodyPartExamined",
    "PatientPosition",
    "PatientOrientation",
    "ViewPosition",
    "Laterality",
    "ImageLaterality",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagerPixelSpacing",
    "EstimatedRadiographicMagnificationFactor",
    "PixelSpacing",
    "PixelSpacingCalibrationType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceLocation",
    "SeriesNumber",
    "InstanceNumber",
    "NumberOfFrames",
    "PresentationLUTShape",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelAspectRatio",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
}
# Kept with those of their own elements that are kept, or named here.
_KEPT_SEQUENCES = {
    "ModalityLUTSequence",
    "VOILUTSequence",
    "SequenceOfUltrasoundRegions",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
}
_KEPT_INSIDE = {
    "LUTDescriptor",
    "LUTData",
    "ModalityLUTType",
    "RegionSpatialFormat",
    "RegionDataType",
    "RegionFlags",
    "RegionLocationMinX0",
    "RegionLocationMinY0",
    "RegionLocationMaxX1",
    "RegionLocationMaxY1",
    "ReferencePixelX0",
    "ReferencePixelY0",
    "PhysicalUnitsXDirection",
    "PhysicalUnitsYDirection",
    "PhysicalDeltaX",
    "PhysicalDeltaY",
}
_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


def deidentified(dataset: Dataset, *, name: str = "DICOM") -> Dataset:
    """A copy that no longer says who, when or where.

    PatientName and PatientID become the pseudonym, which also covers the birth date. The four UIDs that hold a study
    together are hashed: the same UID always gives the same new one, so that a series stays a series, and nobody who
    does not have the old one can find it. Dates, free text, private elements, overlays and all that is not on the
    list are dropped. Pixels are not looked at.

    Args:
        dataset: a header; it is not changed.
        name: what an error calls it.

    Raises:
        InputError: the header says that the pixels themselves show text.
    """
    load_pydicom()
    from pydicom.dataset import FileMetaDataset

    if text_of(dataset, "BurnedInAnnotation").upper() == "YES":
        raise InputError(
            f"{name}: must hold no text in its pixels to be de-identified, got BurnedInAnnotation YES; "
            "cover the text first"
        )
    clean = _keep_elements(dataset, _KEPT)
    for keyword in _UIDS:
        if dataset.get(keyword):
            setattr(clean, keyword, _new_uid(str(dataset[keyword].value)))
    patient = patient_of(dataset)
    clean.PatientName = clean.PatientID = patient or ""
    # Type 2: present and empty. Source: DICOM PS3.3, C.7.1.1 and C.7.2.1.
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(clean, keyword, "")
    clean.ReferringPhysicianName = ""
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "sam2edge: elements kept by list, UIDs hashed, pixels unchanged"
    meta = FileMetaDataset()
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if syntax:
        meta.TransferSyntaxUID = syntax
    clean.file_meta = meta
    return clean


def patient_of(dataset: Dataset) -> str | None:
    """The pseudonym of the header's patient; None without a PatientID."""
    patient_id = text_of(dataset, "PatientID")
    if not patient_id:
        return None
    return pseudonym(patient_id, text_of(dataset, "PatientBirthDate"), text_of(dataset, "IssuerOfPatientID"))


def pseudonym(patient_id: str, birth_date: str = "", issuer: str = "") -> str:
    """A keyed, slow hash of who the patient is in one hospital's files: "p-" and 12 hexadecimal digits.

    The key is the environment variable SAM2EDGE_PSEUDONYM_KEY. Where it is set and kept secret, nobody without it
    can tell whose pseudonym it is. Where it is not set, the key is public: a reader of a report cannot see the
    number, but one who has a list of candidates (a hospital's numbers are short) can try them all, at some
    milliseconds each. So a pseudonym is no anonymity: set a key before results leave the house. Two keys give one
    patient two pseudonyms; use one for all the data that are split or compared together.

    Args:
        patient_id: PatientID; two spellings that differ in outer spaces only are one patient.
        birth_date: PatientBirthDate as DICOM writes it, "" where unknown.
        issuer: IssuerOfPatientID, "" where unknown.

    Source: RFC 7914 (scrypt).
    """
    return _hash_patient(
        patient_id.strip(), birth_date.strip(), issuer.strip(), os.environ.get(KEY_VARIABLE, "")
    )


def _keep_elements(dataset: Dataset, keywords: set[str]) -> Dataset:
    from pydicom.dataset import Dataset

    clean = Dataset()
    for element in dataset:
        if element.keyword in _KEPT_SEQUENCES:
            items = [_keep_elements(item, _KEPT | _KEPT_INSIDE) for item in element.value]
            setattr(clean, element.keyword, items)
        elif element.keyword in keywords:
            clean.add(deepcopy(element))
    return clean


def _new_uid(old: str) -> str:
    """A UID from a hash of the old one, keyed as pseudonyms are. Source: DICOM PS3.5, B.2 (2.25 and 128 bits)."""
    key = hashlib.sha256(os.environ.get(KEY_VARIABLE, "").encode()).digest()
    digest = hashlib.blake2b(old.encode(), key=key, digest_size=16).digest()
    return f"2.25.{int.from_bytes(digest, 'big')}"


@lru_cache(maxsize=4096)  # a series asks for its one patient at every slice, and the hash is slow on purpose
def _hash_patient(patient_id: str, birth_date: str, issuer: str, key: str) -> str:
    # NUL cannot stand in a DICOM string, so no two patients run into one another.
    digest = hashlib.scrypt(
        "\0".join((patient_id, birth_date, issuer)).encode(),
        salt=(key or _PUBLIC_KEY).encode(),
        n=_SCRYPT_COST,
        r=_SCRYPT_BLOCK,
        p=_SCRYPT_PARALLEL,
        dklen=6,
    )
    return f"p-{digest.hex()}"
