"""What a segment is, in SNOMED CT, by the name of its class.

Source: DICOM PS3.16, CID 7150 (categories), CID 7151 and 7191 (types); the codes are those of pydicom's dictionary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Code = tuple[str, str]
"""A code of SNOMED CT and its meaning in words."""

_ANATOMY: Code = ("91723000", "Anatomical Structure")
_ABNORMAL: Code = ("49755003", "Morphologically Abnormal Structure")
_OBJECT: Code = ("260787004", "Physical object")
_TISSUE: Code = ("85756007", "Tissue")

_LUNG: Code = ("39607008", "Lung")
_HEAD: Code = ("69536005", "Head")
_TOOTH: Code = ("38199008", "Tooth")
_LESION: Code = ("52988006", "Lesion")
_NODULE: Code = ("27925004", "Nodule")
_MASS: Code = ("4147007", "Mass")
_NEOPLASM: Code = ("108369006", "Neoplasm")
_IMPLANT: Code = ("40388003", "Implant")
_LEFT: Code = ("7771000", "Left")
_RIGHT: Code = ("24028007", "Right")


@dataclass(frozen=True)
class SegmentCodes:
    """Category and type of a segmented property, and the side of the body where the name tells it."""

    category: Code
    kind: Code
    side: Code | None = None


# Keys as `_key` gives them.
_BY_NAME = {
    "lung": SegmentCodes(_ANATOMY, _LUNG),
    "lungs": SegmentCodes(_ANATOMY, _LUNG),
    "left lung": SegmentCodes(_ANATOMY, _LUNG, _LEFT),
    "lung left": SegmentCodes(_ANATOMY, _LUNG, _LEFT),
    "right lung": SegmentCodes(_ANATOMY, _LUNG, _RIGHT),
    "lung right": SegmentCodes(_ANATOMY, _LUNG, _RIGHT),
    "fetal head": SegmentCodes(_ANATOMY, _HEAD),
    "head": SegmentCodes(_ANATOMY, _HEAD),
    "heart": SegmentCodes(_ANATOMY, ("80891009", "Heart")),
    "liver": SegmentCodes(_ANATOMY, ("10200004", "Liver")),
    "kidney": SegmentCodes(_ANATOMY, ("64033007", "Kidney")),
    "prostate": SegmentCodes(_ANATOMY, ("41216001", "Prostate")),
    "brain": SegmentCodes(_ANATOMY, ("12738006", "Brain")),
    "bone": SegmentCodes(_ANATOMY, ("272673000", "Bone")),
    "tooth": SegmentCodes(_ANATOMY, _TOOTH),
    "teeth": SegmentCodes(_ANATOMY, _TOOTH),
    "lesion": SegmentCodes(_ABNORMAL, _LESION),
    "lung lesion": SegmentCodes(_ABNORMAL, _LESION),
    "nodule": SegmentCodes(_ABNORMAL, _NODULE),
    "lung nodule": SegmentCodes(_ABNORMAL, _NODULE),
    "mass": SegmentCodes(_ABNORMAL, _MASS),
    "tumor": SegmentCodes(_ABNORMAL, _NEOPLASM),
    "tumour": SegmentCodes(_ABNORMAL, _NEOPLASM),
    "caries": SegmentCodes(_ABNORMAL, _LESION),
    "filling": SegmentCodes(_OBJECT, _OBJECT),
    "implant": SegmentCodes(_OBJECT, _IMPLANT),
}
_OTHER = SegmentCodes(_TISSUE, _TISSUE)


def segment_codes(name: str) -> SegmentCodes:
    """The codes of a class by its name; the general "Tissue" for a name that is not known here.

    Args:
        name: as the bundle has it; "left_lung" and "Left lung" are the same.
    """
    return _BY_NAME.get(_key(name), _OTHER)


def _key(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.strip().lower()))
