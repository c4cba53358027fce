"""A DICOM frame as a screen shows it: 8 bits through the file's own VOI LUT or window. Source: DICOM PS3.3, C.11.2."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from segcore.medical.dicom.file import DicomFile
from segcore.medical.dicom.header import frame_group, numbers_of
from segcore.medical.dicom.pixels import (
    ends_sum,
    frame_values,
    gives_float,
    measured,
    pixels_of,
    through_table,
)
from segcore.picture.windows import Window

_NARROWEST = 1e-3
# A window's explanation is free text, which may hold anything: it is repeated only where it is made of these words.
_WINDOW_WORDS = re.compile(
    r"(abdomen|angio|bone|brain|breast|chest|contrast|default|ear|hard|harder|head|heart|high|inner|kidney|liver|low"
    r"|lungs?|mediastinum|neck|normal|pelvis|pulmonary|soft|softer|spine|standard|stroke|thorax|tissue|vessel|wide"
    r"|window)\d{0,2}"
)


@dataclass(frozen=True)
class _Voi:
    """One window as the file writes it, in values before MONOCHROME1 is turned over."""

    name: str
    centre: float
    width: float
    function: str

    def ends(self) -> tuple[float, float]:
        """The values that become black and white. Source: DICOM PS3.3, C.11.2.1.2.1 and C.11.2.1.3.2."""
        if self.function == "LINEAR" and self.width >= 1:
            low = self.centre - 0.5 - (self.width - 1) / 2
            return low, low + max(self.width - 1, _NARROWEST)
        return self.centre - self.width / 2, self.centre + self.width / 2


def windows_of(file: DicomFile, index: int) -> tuple[Window, ...]:
    """The windows that one frame's header lists, the default first, in the scan's values; of a sigmoid the middle."""
    turned = ends_sum(file, index) if pixels_of(file).inverted else None
    windows = []
    for voi in _listed(file, index):
        low, high = voi.ends()
        windows.append(
            Window(voi.name, low, high) if turned is None else Window(voi.name, turned - high, turned - low)
        )
    return tuple(windows)


def frame_display(file: DicomFile, index: int) -> np.ndarray:
    """One frame through its VOI LUT, else its first window, else the full range of its values; colours as they are.

    Returns:
        H×W or H×W×3 (RGB), uint8. 8-bit values without a window are shown as stored.
    """
    pixels = pixels_of(file)
    if not pixels.grey or pixels.allocated == 1:
        return frame_values(file, index, as_float=False)
    values: np.ndarray = measured(file, index)
    listed = _listed(file, index)
    shown: np.ndarray
    group = frame_group(file.header, "FrameVOILUTSequence", index)
    if group.get("VOILUTSequence"):
        looked_up, top = through_table(np.round(values).astype(np.int32), group, "VOILUTSequence", file)
        shown = looked_up / top
    elif listed:
        shown = _through_window(values, listed[0])
    elif pixels.stored == 8 and not gives_float(file):
        shown = values / 255.0
    else:
        low, high = float(values.min()), float(values.max())
        shown = (values - low) / ((high - low) or 1.0)
    if pixels.inverted:
        shown = 1.0 - shown
    return np.round(np.clip(shown, 0.0, 1.0) * 255.0).astype(np.uint8)


def _listed(file: DicomFile, index: int) -> list[_Voi]:
    if not pixels_of(file).grey:
        return []
    group = frame_group(file.header, "FrameVOILUTSequence", index)
    centres, widths = numbers_of(group, "WindowCenter"), numbers_of(group, "WindowWidth")
    function = str(group.get("VOILUTFunction") or "LINEAR")
    names = group.get("WindowCenterWidthExplanation") or []
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    listed = []
    for i, (centre, width) in enumerate(zip(centres, widths, strict=False)):
        own = _harmless(names[i]) if i < len(names) else ""
        if width > 0:  # some writers leave 0 where they mean none
            listed.append(_Voi(own or ("file" if i == 0 else f"file {i + 1}"), centre, width, function))
    return listed


def _harmless(name: str) -> str:
    words = re.split(r"[\s_-]+", name.strip().lower())
    return name.strip() if all(_WINDOW_WORDS.fullmatch(word) for word in words) else ""


def _through_window(values: np.ndarray, voi: _Voi) -> np.ndarray:
    if voi.function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - voi.centre) / voi.width)))
    low, high = voi.ends()
    return np.asarray((values - low) / (high - low))
