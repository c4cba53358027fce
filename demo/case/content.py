"""What the case page says and shows, as plain data: the HTML and the PDF print the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from PIL import Image, ImageDraw

from demo.session.answers import (
    ModelAnswer,
    apart_words,
    have_same_classes,
    model_title,
    speed_rows,
    speed_words,
    timing_note,
)
from demo.session.model_story import short_limits
from demo.session.prompt_summary import iou_sentence, prompt_sentence
from demo.session.reader_session import ReaderSession
from demo.session.trust import SCORE_HINT, Light, against_truth, light_limits, light_of
from segcore import __version__
from segcore.measure.masks import ClassMeasurements, VolumeMeasurements, describe, measure_mask
from segcore.picture.overlay import COLOURS, as_rgb
from segcore.picture.preprocess import resize_mask
from segcore.picture.prompts import Prompt

NOT_A_DEVICE = "Research use only. Not a medical device."
BANNER = f"{NOT_A_DEVICE} Do not use it for diagnosis or treatment."
_LONG_CELL = 24


@dataclass(frozen=True)
class CaseView:
    """What a reader looks at when they ask for the case page. Nothing in it comes from a DICOM header.

    Attributes:
        name: the file's own name, the reader's words; "" leaves it out of the page.
        time: when the page was made, in local time.
        image: the slice as shown, H×W or H×W×3 uint8 (through the window the reader chose).
        answers: one or more; every other is compared with the first. Their masks are those shown, H×W.
        hashes: `Bundle.sha256` of each answer's model, in the same order.
        slice_index: from 0.
        slices: how many the scan has.
        spacing_mm: of neighbouring rows and columns; None where the file does not say.
        truth: reference mask H×W of this slice, class indices; None where none was given.
        threshold: the probability from which a pixel is marked, where the reader moved it; None: each model's own.
        measurements: of this slice, one `segcore.measure.masks.measure_mask(...)` an answer; () leaves the table out.
        volume: of the whole scan, one `segcore.measure.masks.measure_volume(...)` an answer; () leaves it out.
    """

    name: str
    time: datetime
    image: np.ndarray
    answers: tuple[ModelAnswer, ...]
    hashes: tuple[str, ...]
    slice_index: int = 0
    slices: int = 1
    spacing_mm: tuple[float, float] | None = None
    truth: np.ndarray | None = None
    threshold: float | None = None
    measurements: tuple[tuple[ClassMeasurements, ...], ...] = ()
    volume: tuple[tuple[VolumeMeasurements, ...], ...] = ()


def view_of_case(session: ReaderSession) -> CaseView:
    """What a session shows; the file's name stays out, it may be a patient's."""
    scan = session.scan
    assert scan is not None
    spacing, reference = scan.spacing_mm, session.models.reference_for
    return CaseView(
        name="",
        time=datetime.now(),
        image=scan.display(session.slice_index),
        answers=session.shown_answers,
        hashes=tuple(session.models.sha256(name) for name in session.model_names),
        slice_index=session.slice_index,
        slices=scan.slices,
        spacing_mm=spacing,
        truth=session.truth_slice,
        threshold=session.threshold,
        measurements=tuple(
            measure_mask(
                a.mask, a.manifest.classes, spacing_mm=spacing, reference=reference(a.manifest.classes)
            )
            for a in session.shown_answers
        ),
        volume=tuple(
            session.measured_volume(session.volume_masks[name], session.models.manifest(name).classes)
            for name in session.model_names
            if name in session.volume_masks
        ),
    )


@dataclass(frozen=True)
class CaseText:
    """The page from top to bottom.

    Attributes:
        heading: what the page is.
        facts: of the picture, in one line.
        banner: that it is no medical device.
        figures: one a model, where they differ, the reference.
        notes: what must be said below the pictures.
        tables: measurements, scores, speed.
        models: each model's title, bundle and limits.
        footer: when and by what it was made.
    """

    heading: str
    facts: str
    banner: str
    figures: tuple[CaseFigure, ...]
    notes: tuple[str, ...]
    tables: tuple[CaseTable, ...]
    models: tuple[tuple[str, str, str], ...]
    footer: str


@dataclass(frozen=True)
class CaseFigure:
    """A picture with its words.

    Attributes:
        heading: whose picture it is.
        detail: in small print below the heading.
        picture: H×W×3 uint8.
        alt: what it shows, for those who do not see it.
        key: class number from 1, its name, its kind of line.
        note: one line below the picture.
        light: of the model's own estimate; None where it gives none.
        estimate: the estimated Dice, 0–1, beside the light.
        heat: the picture's colours are those of `draw_heat_map`.
    """

    heading: str
    detail: str
    picture: np.ndarray
    alt: str
    key: tuple[tuple[int, str, str], ...] = ()
    note: str = ""
    light: Light | None = None
    estimate: float | None = None
    heat: bool = False


@dataclass(frozen=True)
class CaseTable:
    """A heading row, then rows.

    Attributes:
        title: above it.
        rows: of equal length; but one cell is the heading of the rows below it, and two are a label and what is true of
            all columns.
        hint: one line on what it means.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    hint: str = ""


def case_text(case: CaseView) -> CaseText:
    """Puts a case into words and pictures."""
    names = _column_heads(case.answers)
    return CaseText(
        heading=f"What the models mark in {case.name}" if case.name else "What the models mark",
        facts=" · ".join(_picture_facts(case)),
        banner=BANNER,
        figures=tuple(_case_figures(case, names)),
        notes=tuple(_case_notes(case)),
        tables=tuple(_case_tables(case, names)),
        models=tuple(
            (model_title(a.manifest), f"bundle {sha256[:16]}", short_limits(a.manifest))
            for a, sha256 in zip(case.answers, case.hashes, strict=True)
        ),
        footer=f"Made on {case.time:%Y-%m-%d %H:%M} with sam2edge {__version__}. {NOT_A_DEVICE}",
    )


def _column_heads(answers: Sequence[ModelAnswer]) -> list[str]:
    """Short headings of columns: the kind where that tells the models apart, else the name, numbered if need be."""
    for words in ([a.manifest.kind.capitalize() for a in answers], [a.manifest.name for a in answers]):
        if len(set(words)) == len(words):
            return words
    return [f"{n}. {a.manifest.name}" for n, a in enumerate(answers, start=1)]


def _picture_facts(case: CaseView) -> list[str]:
    height, width = case.image.shape[:2]
    found = [f"{case.time:%Y-%m-%d %H:%M}"]
    if case.slices > 1:
        found.append(f"slice {case.slice_index + 1} of {case.slices}")
    found.append(f"{width} × {height} pixels")
    if case.spacing_mm is None:
        found.append("size of a pixel unknown, so sizes are in pixels (px)")
    else:
        found.append(f"pixel {case.spacing_mm[0]:.4g} × {case.spacing_mm[1]:.4g} mm (height × width)")
    return found


def _case_figures(case: CaseView, names: Sequence[str]) -> list[CaseFigure]:
    found = [_answer_figure(case.image, a, name) for a, name in zip(case.answers, names, strict=True)]
    first = case.answers[0]
    for other, name in zip(case.answers[1:], names[1:], strict=True):
        if have_same_classes(first, other):
            gap = draw_heat_map(case.image, probability_gap(first.foreground, other.foreground))
            found.append(
                CaseFigure(
                    heading="Where they differ",
                    detail=f"{names[0]} and {name}",
                    picture=shrink_picture(gap, HEAT_SIDE_PX),
                    alt=f"Map of where {names[0]} and {name} differ: dark where they agree, bright where they do not.",
                    note=apart_words(first, other),
                    heat=True,
                )
            )
    if case.truth is not None:
        found.append(
            CaseFigure(
                heading="Reference mask",
                detail="given by the reader",
                picture=draw_outlines(case.image, case.truth),
                alt="The reference mask.",
                key=_class_key(first.manifest.classes),
            )
        )
    return found


def _answer_figure(image: np.ndarray, answer: ModelAnswer, name: str) -> CaseFigure:
    classes, judged = answer.manifest.classes, answer.manifest.quality is not None
    marked = [c for k, c in enumerate(classes, start=1) if (answer.mask == k).any()]
    estimate = answer.quality if judged else None
    picture, summary = draw_outlines(image, answer.mask), answer.prompt_summary
    if summary is not None:
        picture = draw_prompt(picture, summary.prompt, (image.shape[0], image.shape[1]))
    note = "" if marked else "Nothing was marked."
    if summary is not None:
        note = f"{note} Answers the reader's prompt.".strip()
    return CaseFigure(
        heading=name,
        detail=answer.manifest.name if answer.manifest.name != name else answer.manifest.kind,
        picture=picture,
        alt=f"The picture with what {model_title(answer.manifest)} marks: {', '.join(marked) or 'nothing'}.",
        key=_class_key(classes),
        note=note,
        light=None if estimate is None else light_of(estimate),
        estimate=estimate,
    )


def _class_key(classes: Sequence[str]) -> tuple[tuple[int, str, str], ...]:
    return tuple((k, name, line_kind(k)) for k, name in enumerate(classes, start=1))


def _case_notes(case: CaseView) -> list[str]:
    notes = []
    for answer in case.answers:
        quality = answer.manifest.quality
        if answer.prompt_summary is not None:
            notes.append(f"{model_title(answer.manifest)}: {_prompt_note(answer)}")
        elif quality is not None and answer.quality is not None:
            notes.append(f"Light of {model_title(answer.manifest)}: {light_limits(quality)}")
        else:
            notes.append(f"{model_title(answer.manifest)} does not judge its own mask: it has no light.")
    if case.threshold is not None:
        words = f"Pixels are marked from a probability of {case.threshold:.2f} on, which the reader chose"
        lit = any(a.quality is not None for a in case.answers)
        notes.append(
            f"{words}; a light judges the mask at the model's own threshold." if lit else f"{words}."
        )
    first, others = case.answers[0], case.answers[1:]
    if any(not have_same_classes(first, other) for other in others):
        notes.append("Models that look for different things are not compared.")
    return notes


def _prompt_note(answer: ModelAnswer) -> str:
    assert answer.prompt_summary is not None
    words = prompt_sentence(answer.prompt_summary, len(answer.manifest.classes)).replace(
        "your", "the reader's"
    )
    estimate = iou_sentence(answer.prompt_summary).replace("you meant", "the reader meant")
    return f"{words} In the picture, + is a point on it, − one beside it. {estimate}"


def _case_tables(case: CaseView, names: Sequence[str]) -> list[CaseTable]:
    found = []
    where = f", slice {case.slice_index + 1}" if case.slices > 1 else ""
    if case.measurements:
        columns, heads = list(case.measurements), list(names)
        classes = case.answers[0].manifest.classes
        if case.truth is not None and case.truth.max(initial=0) <= len(classes):
            columns.append(measure_mask(case.truth, classes, spacing_mm=case.spacing_mm))
            heads.append("Reference")
        found.append(CaseTable(f"Measurements{where}", _measurement_rows(columns, heads)))
    if case.volume:
        found.append(
            CaseTable(f"Measurements of all {case.slices} slices", _measurement_rows(case.volume, names))
        )
    if case.truth is not None:
        found.append(CaseTable(f"Fit to the reference mask{where}", _score_rows(case, names), SCORE_HINT))
    head, *speed = speed_rows(names, case.answers)
    if case.answers[1:]:
        own_ms = case.answers[0].times.total_ms
        words = (speed_words(own_ms, a.times.total_ms) for a in case.answers[1:])
        speed.insert(0, ["Speed", "compared with", *words])
    rows = tuple(tuple(row) for row in [head, *speed])
    found.append(CaseTable("Time and size", rows, timing_note(case.answers)))
    return found


def _measurement_rows(
    columns: Sequence[Sequence[ClassMeasurements | VolumeMeasurements]], names: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Rows of each class under its name, a column a model."""
    found = []
    for column in columns:
        cells: dict[tuple[str, str], str] = {}
        for one in column:
            for label, text in describe(one):
                key = one.name, label
                cells[key] = f"{cells[key]}; {text}" if key in cells else text
        found.append(cells)
    return _section_rows(names, found)


def _score_rows(case: CaseView, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    assert case.truth is not None
    columns = []
    for answer in case.answers:
        head, *rows = against_truth(answer.mask, case.truth, answer.manifest.classes, case.spacing_mm)
        columns.append(
            {(row[0], label): cell for row in rows for label, cell in zip(head[1:], row[1:], strict=True)}
        )
    return _section_rows(names, columns)


def _section_rows(
    names: Sequence[str], columns: Sequence[dict[tuple[str, str], str]]
) -> tuple[tuple[str, ...], ...]:
    """Cells by (section, label) to rows; models that lack one get a dash."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows: list[tuple[str, ...]] = [("", *names)]
    for section in dict.fromkeys(section for section, _ in keys):
        rows.append((section,))
        for key in keys:
            if key[0] == section:
                cells = [column.get(key, "–") for column in columns]
                same = len(set(cells)) == 1 and len(cells[0]) > _LONG_CELL
                rows.append((key[1], *(cells[:1] if same else cells)))
    return tuple(rows)


# The pictures: outlines that are told apart without their colour, what was asked, and where two models differ.

OUTLINE_SIDE_PX = 640
"""Longest side of a printed picture: 60 mm at 270 dots an inch."""
HEAT_SIDE_PX = 768
"""Longest side of the map of where two models differ."""
LINES = ("solid", "dashed", "dotted")
_DASH_PX = (0, 16, 6)  # length of a dash and of a gap, of each of `LINES`
_WIDTH_PX = 3
INSIDE, BESIDE = (0, 114, 178), (213, 94, 0)
"""Colours of a prompt's points, as the viewer's (`prompts.js`); their shapes and signs tell them apart alone."""
_MARK_PX = 11
# Black, orange, yellow, white: brightness alone carries the order, for colour-blind eyes and grey prints.
_HEAT_LEVELS = np.array([0.0, 0.35, 0.75, 1.0])
_HEAT_COLOURS = np.array([[0, 0, 0], [213, 94, 0], [240, 228, 66], [255, 255, 255]], float)


def draw_outlines(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with each class outlined in its colour and its kind of line, H×W×3 uint8.

    Its longest side is at most `OUTLINE_SIDE_PX`. A small picture is enlarged first, so that the line is as thin
    in print.

    Args:
        image: H×W or H×W×3 uint8.
        mask: class indices H×W.
    """
    shown = shrink_picture(image, OUTLINE_SIDE_PX)
    scale = OUTLINE_SIDE_PX // max(shown.shape[:2])
    picture = np.repeat(np.repeat(shown, scale, 0), scale, 1) if scale > 1 else shown.copy()
    size = (picture.shape[0], picture.shape[1])
    drawn = resize_mask(mask, size)
    y, x = np.ogrid[: size[0], : size[1]]
    for k in np.unique(drawn[drawn > 0]):
        line = _border_pixels(drawn == k)
        if dash := _DASH_PX[(k - 1) % len(LINES)]:
            # Slanted stripes: no edge of an organ runs along them for long.
            line &= ((2 * x + 3 * y) // (2 * dash)) % 2 == 0
        picture[line] = COLOURS[(k - 1) % len(COLOURS)]
    return picture


def _border_pixels(area: np.ndarray) -> np.ndarray:
    """The outermost `_WIDTH_PX` pixels of an area H×W; the picture's own edge counts as outside."""
    inner = np.pad(area, 1)
    for _ in range(_WIDTH_PX):
        shrunk = inner.copy()
        for axis in (0, 1):
            for step in (1, -1):
                shrunk &= np.roll(inner, step, axis)
        inner = shrunk
    return np.asarray(area & ~inner[1:-1, 1:-1])


def line_kind(k: int) -> str:
    """The kind of line of class k, 1 the first."""
    return LINES[(k - 1) % len(LINES)]


def draw_prompt(picture: np.ndarray, prompt: Prompt, image_px: tuple[int, int]) -> np.ndarray:
    """What was asked, over a picture H×W×3 uint8: a disc with + on the thing, a diamond with − beside it, the box.

    Args:
        picture: as `draw_outlines` gives it.
        prompt: in the pixels of the image.
        image_px: the image's height and width.
    """
    drawn = Image.fromarray(picture)
    pen, white = ImageDraw.Draw(drawn), (255, 255, 255)
    scale = np.array([picture.shape[1] / image_px[1], picture.shape[0] / image_px[0]])
    if prompt.box is not None:
        corners = (np.array(prompt.box).reshape(2, 2) + np.array([[0, 0], [1, 1]])) * scale
        for colour, width in ((white, 4), (INSIDE, 2)):
            pen.rectangle(tuple(corners.round().ravel()), outline=colour, width=width)
    for column, row, inside in prompt.points:
        (x, y), r = (np.array([column, row]) + 0.5) * scale, _MARK_PX
        if inside:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=INSIDE, outline=white, width=2)
            pen.line((x, y - r / 2, x, y + r / 2), fill=white, width=3)
        else:
            pen.polygon(((x - r, y), (x, y - r), (x + r, y), (x, y + r)), fill=BESIDE, outline=white, width=2)
        pen.line((x - r / 2, y, x + r / 2, y), fill=white, width=3)
    return np.asarray(drawn)


def probability_gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far two models are apart, H×W, 0–1: the largest difference in probability over the classes.

    Args:
        a: foreground probabilities, K×H×W.
        b: the same of the other model.
    """
    return np.asarray(np.abs(a - b).max(axis=0))


def draw_heat_map(image: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """The picture, dimmed, under the heat; H×W×3 uint8, dark where the models agree."""
    picture = as_rgb(image).astype(float) * 0.45
    levels = [np.interp(apart, _HEAT_LEVELS, _HEAT_COLOURS[:, c]) for c in range(3)]
    opacity = np.clip(apart * 2.5, 0, 1)[..., None]
    return np.round(picture * (1 - opacity) + np.stack(levels, axis=-1) * opacity).astype(np.uint8)


def shrink_picture(picture: np.ndarray, side_px: int) -> np.ndarray:
    """A picture as H×W×3 uint8, shrunk where it is longer than `side_px`."""
    picture = as_rgb(picture)
    if max(picture.shape[:2]) <= side_px:
        return picture
    shown = Image.fromarray(picture)
    shown.thumbnail((side_px, side_px))
    return np.asarray(shown)
