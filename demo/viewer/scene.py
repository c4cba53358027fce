"""The picture viewer as data: what the browser needs to show a picture and every model's mark without asking again.

The page embeds it as `viewer = gr.HTML(None, **VIEWER, elem_id="viewer")` and returns `viewer_value(session)` as its
value; None empties it. It sends three events, whose data are attributes of `gr.EventData`; each has `evt.key`, the
scene's, to drop what came too late:

    viewer.input(fn, ...)    evt.slice: int, counted from 0
    viewer.release(fn, ...)  evt.threshold: float 0.01–0.99, None for each model's own again
    viewer.select(fn, ...)   evt.step: the fields of `demo.session.prompt_dialogue.PromptStep`; evt.slice

It sends the next step when the last one's answer is there: a value whose `prompt.handled` has changed.

`change` is Gradio's own and means that a new value came, from the server too: do not answer it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.session.answers import ModelAnswer
from demo.session.prompt_dialogue import prompt_json
from demo.session.reader_session import ReaderSession
from demo.session.trust import light_of
from segcore.picture.overlay import COLOURS
from segcore.picture.preprocess import CT_WINDOWS, Activation, Window, resize_mask

SHOWN_SIDE_PX = 1024
"""Longer pictures are shown reduced: more would be sent than a screen shows."""
LEVELS = 65536
"""Probabilities travel as `floor(p · LEVELS)`, so that p ≥ t is kept wherever t · LEVELS is whole, as 0.5."""

_HERE = Path(__file__).parent
_SCRIPTS = ("draw.js", "prompts.js", "panels.js", "viewer.js")
VIEWER: dict[str, Any] = {
    "html_template": (_HERE / "viewer.html").read_text("utf-8"),
    "css_template": (_HERE / "viewer.css").read_text("utf-8"),
    # One scope; the file that starts it comes last.
    "js_on_load": "".join((_HERE / name).read_text("utf-8") for name in _SCRIPTS),
    "apply_default_css": False,
}
"""Arguments of `gr.HTML`."""


@dataclass(frozen=True)
class ModelView:
    """What one model says about the picture.

    Attributes:
        title: its panel's heading: "Student small".
        kind: "teacher" or "student".
        probability: of each foreground class, K×H×W float32, 0–1, at the picture's own size; one channel with sigmoid,
            background left out with softmax.
        activation: "sigmoid" (a threshold decides) or "softmax" (the likeliest class, background included).
        threshold: the model's own, 0–1.
        classes: K names.
        quality: the Dice, 0–1, that the model expects of its mask; None where it does not estimate it.
        mask: class indices H×W, where it is not what the probabilities alone decide; for "softmax".
        prompt_iou: the model's estimate of the IoU, 0–1, where the mask answers the reader's prompt; else None.
    """

    title: str
    kind: str
    probability: np.ndarray
    activation: Activation
    threshold: float
    classes: tuple[str, ...]
    quality: float | None = None
    mask: np.ndarray | None = None
    prompt_iou: float | None = None


@dataclass(frozen=True)
class ViewerScene:
    """One slice as the viewer draws it, with what every model says of it.

    Attributes:
        key: the same for every slice of one scan with the same models: a new key resets zoom, window and threshold.
        name: the file's own name, shown as text.
        slice_index: which slice this is, from 0.
        slices: how many the scan has.
        picture: H×W, or H×W×3 (RGB); uint8, uint16 or float32.
        windows: what the select offers, see `offered_windows`; the picture is shown through the first one at first.
        spacing_mm: distance of neighbouring rows and columns; None where unknown.
        models: one or more; the first is what the others are compared with.
        truth: reference mask of class indices, H×W; None where there is none.
        unit: of the values, "HU" in CT.
        prompt: `demo.session.prompt_dialogue.prompt_json`; None where no model takes a click.
    """

    key: str
    name: str
    slice_index: int
    slices: int
    picture: np.ndarray
    windows: tuple[Window, ...]
    spacing_mm: tuple[float, float] | None
    models: tuple[ModelView, ...]
    truth: np.ndarray | None = None
    unit: str = ""
    prompt: dict[str, Any] | None = None


def viewer_value(session: ReaderSession) -> dict[str, Any]:
    """What a session shows, as the viewer's value."""
    scan = session.scan
    assert scan is not None
    picture = scan.values(session.slice_index)
    scene = ViewerScene(
        key=str(session.version),
        name=scan.name,
        slice_index=session.slice_index,
        slices=scan.slices,
        picture=picture,
        windows=offered_windows(picture, own=scan.windows, modality=scan.modality),
        spacing_mm=scan.spacing_mm,
        models=tuple(
            _model_view(n, a) for n, a in zip(session.model_names, session.current_answers, strict=True)
        ),
        truth=session.truth_slice,
        unit="HU" if scan.modality == "CT" else "",
        prompt=None if session.dialogue is None else prompt_json(session.dialogue),
    )
    return scene_json(scene)


def _model_view(name: str, answer: ModelAnswer) -> ModelView:
    output = answer.manifest.output
    return ModelView(
        title=name,
        kind=answer.manifest.kind,
        probability=answer.foreground,
        activation=output.activation,
        threshold=output.threshold,
        classes=answer.manifest.classes,
        quality=answer.quality,
        mask=None if answer.prompt_summary is None else answer.mask,
        prompt_iou=None if answer.prompt_summary is None else answer.prompt_summary.estimated_iou,
    )


def scene_json(scene: ViewerScene) -> dict[str, Any]:
    """The viewer's value: JSON with arrays as base64 of zlib-deflated little-endian bytes, row by row."""
    height, width = scene.picture.shape[:2]
    shown_hw = _shown_size((height, width))
    first = scene.windows[0]
    return {
        "key": scene.key,
        "name": scene.name,
        "slice": scene.slice_index,
        "slices": scene.slices,
        "size": [width, height],  # the browser counts width first, numpy height first
        "shown": [shown_hw[1], shown_hw[0]],
        "picture": _picture_json(_reduce_plane(scene.picture, shown_hw)),
        "window": [float(first.low), float(first.high)],
        "windows": [{"name": w.name, "low": float(w.low), "high": float(w.high)} for w in scene.windows],
        "unit": scene.unit,
        "spacing_mm": None if scene.spacing_mm is None else [float(s) for s in scene.spacing_mm],
        "models": [_model_json(model, shown_hw) for model in scene.models],
        "truth": None
        if scene.truth is None
        else _pack_array(resize_mask(scene.truth.astype(np.uint8), shown_hw)),
        "colours": [list(c) for c in COLOURS],
        "prompt": scene.prompt,
    }


def offered_windows(
    picture: np.ndarray, *, own: Sequence[Window] = (), modality: str = ""
) -> tuple[Window, ...]:
    """Display windows to offer, the best to begin with first.

    Args:
        picture: H×W, or H×W×3 (RGB).
        own: the file's, `Scan.windows`.
        modality: `Scan.modality`; "CT" adds the usual three.
    """
    words = ["as in the file" if w.name in ("", "file") else f"as in the file ({w.name})" for w in own]
    offered = [Window(word, w.low, w.high) for word, w in zip(words, own, strict=True)]
    if modality == "CT":
        offered += CT_WINDOWS
    if picture.dtype == np.uint8:
        return (*offered, Window("full range", 0.0, 255.0))
    low, high = (float(v) for v in np.percentile(picture, (0.5, 99.5)))
    least, most = float(picture.min()), float(picture.max())
    offered.append(Window("automatic", low, high if high > low else low + 1.0))
    return (*offered, Window("full range", least, most if most > least else least + 1.0))


def quantise_probability(probability: np.ndarray) -> np.ndarray:
    """Probabilities as they travel: `floor(p · 65536)`, at most 65535, uint16."""
    # LEVELS is a power of two: the product is exact in the array's own precision.
    return np.asarray(np.minimum(probability * np.float32(LEVELS), np.float32(LEVELS - 1)), "<u2")


def _model_json(model: ModelView, shown: tuple[int, int]) -> dict[str, Any]:
    reduced = [_reduce_plane(np.asarray(p, np.float32), shown) for p in model.probability]
    light = None if model.quality is None else light_of(model.quality)
    return {
        "title": model.title,
        "kind": model.kind,
        "activation": model.activation,
        "threshold": float(model.threshold),
        "classes": list(model.classes),
        "probability": [_pack_array(quantise_probability(p)) for p in reduced],
        # The browser decides by the threshold; the likeliest class is decided here, before rounding.
        "mask": _pack_array(_decide_mask(model, reduced, shown)) if model.activation == "softmax" else None,
        "prompted": model.prompt_iou,
        "light": None
        if light is None
        else {"colour": light.colour, "word": light.word, "dice": round(float(model.quality or 0), 2)},
    }


def _decide_mask(model: ModelView, reduced: Sequence[np.ndarray], shown: tuple[int, int]) -> np.ndarray:
    return _likeliest_class(np.stack(reduced)) if model.mask is None else resize_mask(model.mask, shown)


def _likeliest_class(foreground: np.ndarray) -> np.ndarray:
    background = 1.0 - foreground.sum(axis=0, keepdims=True)
    return np.asarray(np.concatenate([background, foreground]).argmax(axis=0), np.uint8)


def _picture_json(picture: np.ndarray) -> dict[str, Any]:
    """The picture as 8 or 16 bits with the way back: value = offset + scale · stored."""
    scale, offset, stored = 1.0, 0.0, picture
    if picture.dtype.kind == "f":
        low, high = float(picture.min()), float(picture.max())
        whole = high - low < LEVELS and bool((picture == np.round(picture)).all())
        # Whole values, as Hounsfield units mostly are, stay exact.
        scale, offset = (1.0 if whole else max((high - low) / (LEVELS - 1), 1e-12)), low
        stored = np.round((picture.astype(np.float64) - offset) / scale).astype(np.uint16)
    kind = "uint8" if stored.dtype == np.uint8 else "uint16"
    return {
        "type": kind,
        "channels": 1 if stored.ndim == 2 else 3,
        "scale": scale,
        "offset": offset,
        "data": _pack_array(stored.astype("<u2" if kind == "uint16" else "u1", copy=False)),
    }


def _shown_size(size_px: tuple[int, int]) -> tuple[int, int]:
    # Never enlarged: the browser does that without more bytes on the way.
    factor = min(1.0, SHOWN_SIDE_PX / max(size_px))
    return max(1, round(size_px[0] * factor)), max(1, round(size_px[1] * factor))


def _reduce_plane(plane: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """The mean over each pixel's area; whole values stay whole."""
    if plane.shape[:2] == size_px:
        return plane
    if plane.ndim == 3:
        return np.stack([_reduce_plane(plane[..., c], size_px) for c in range(plane.shape[2])], axis=-1)
    image = Image.fromarray(plane.astype(np.float32))
    means = np.asarray(image.resize((size_px[1], size_px[0]), Image.Resampling.BOX))
    return np.asarray(means if plane.dtype.kind == "f" else means.round(), plane.dtype)


def _pack_array(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).data, 1)).decode()
