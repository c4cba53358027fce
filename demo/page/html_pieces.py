"""The page's pieces as HTML: cards of a case, tables, the story of a model.

No file is fetched, and no text is taken for markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from demo.session.answers import (
    ModelAnswer,
    apart_words,
    have_same_classes,
    model_title,
    speed_rows,
    speed_words,
    timing_note,
)
from demo.session.model_story import (
    input_words,
    known_limits,
    measured_figures,
    story_of,
)
from demo.session.prompt_summary import iou_sentence, prompt_sentence
from demo.session.reader_session import ReaderSession
from demo.session.trust import AMBER, GREEN, RED, SCORE_HINT, against_truth, light_limits, light_of
from demo.viewer.scene import SHOWN_SIDE_PX
from runtime.promptable import is_promptable
from segcore.bundle.manifest import Manifest
from segcore.bundle.story import (
    FORMAT_NAMES,
    PRECISION_WORDS,
    SPLIT_WORDS,
    data_name,
    gate_words,
    short_command,
)
from segcore.host import Made
from segcore.measure.masks import ClassMeasurements, VolumeMeasurements, describe, measure_mask
from segcore.picture.quality import QualityModel
from segcore.picture.scan import Scan

BANNER = (
    '<p class="banner" role="note"><strong>Research use only.</strong> '
    "Not a medical device: not for diagnosis or treatment.</p>"
)
INTRO = (
    "<h1>sam2edge: what the models see <span class='hint'>Pictures stay on this computer and are deleted when the "
    "page is closed.</span></h1>"
)
_UNKNOWN = " (spacing unknown)"


def problem_line(text: str) -> str:
    """One line on why there is no answer, read out by screen readers."""
    return f'<p class="problem" role="alert"><strong>This cannot be shown.</strong> {escape(text)}</p>'


def case_heading(scan: Scan) -> str:
    """What is shown: name, size, spacing, what is to be known of it; nothing from a header that names a patient."""
    height, width = scan.size_px
    facts = [f"{width} × {height} pixels"]
    if scan.slices > 1:
        facts.append(f"{scan.slices} slices")
    if scan.spacing_mm is None:
        facts.append("spacing unknown, so sizes are in pixels")
    else:
        facts.append(f"{scan.spacing_mm[0]:.3g} × {scan.spacing_mm[1]:.3g} mm a pixel")
    if scan.modality:
        facts.append(scan.modality)
    if max(scan.size_px) > SHOWN_SIDE_PX:
        facts.append(f"shown reduced to {SHOWN_SIDE_PX} pixels, measured in full")
    if scan.uneven:
        facts.append(f"no volume, as slices are not evenly spaced ({scan.uneven})")
    facts += scan.remarks()
    return f"<h2>{escape(scan.name)} <span class='hint'>{escape(', '.join(facts))}</span></h2>"


def trust_card(session: ReaderSession) -> str:
    """Whether to trust the masks: each model's light, and how far the models agree."""
    parts = []
    for name, answer in zip(session.model_names, session.current_answers, strict=True):
        quality = answer.manifest.quality
        if answer.prompt_summary is not None:
            words, estimate = _prompt_of_answer(answer), iou_sentence(answer.prompt_summary)
            said = f"<p>{escape(words)}</p><p class='hint'>{escape(estimate)}</p>"
        elif quality is None or answer.quality is None:
            said = (
                '<p class="hint">This model does not judge its own mask. Look at the outline with care.</p>'
            )
        else:
            said = light_card(answer.quality, quality)
        parts.append(f"<h3>{escape(name)}</h3>{said}")
    first, *others = session.shown_answers
    for other in others:
        if have_same_classes(first, other):
            parts.append(f"<p>{escape(apart_words(first, other))}</p>")
        else:
            parts.append("<p>These models look for different things, so their masks are not compared.</p>")
    if session.threshold is not None and any(a.quality is not None for a in session.current_answers):
        parts.append('<p class="hint">The lights judge the masks at the models’ own thresholds.</p>')
    return "".join(parts)


def light_card(quality: float, model: QualityModel) -> str:
    """The light as HTML: lamp, word, number, meaning, and its limits.

    Args:
        quality: expected Dice, 0–1.
        model: what estimated it; its error is shown.
    """
    light = light_of(quality)
    lamps = "".join("<i class='on'></i>" if lamp is light else "<i></i>" for lamp in (RED, AMBER, GREEN))
    return (
        f"<div class='light {light.colour}'><span class='lamps' aria-hidden='true'>{lamps}</span><div>"
        f"<p><strong>{light.colour.capitalize()}: {escape(light.word)}</strong></p>"
        f"<p>Expected overlap with a careful reader (Dice): <strong>{quality:.2f}</strong></p>"
        f"<p>{escape(light.advice)}</p>"
        f"<p class='hint'>{escape(light_limits(model))}</p></div></div>"
    )


def measurement_card(session: ReaderSession) -> str:
    """Measurements of each model's mask, and of the reference, side by side; of the volume where it was measured."""
    scan = session.scan
    assert scan is not None
    names, classes = _column_heads(session), [answer.manifest.classes for answer in session.automatic_answers]
    masks = [answer.mask for answer in session.shown_answers]
    stacks = [session.volume_masks[name] for name in session.model_names if name in session.volume_masks]
    scores = [_scores_by_class(mask, session, k) for mask, k in zip(masks, classes, strict=True)]
    if session.truth is not None and session.truth_slice is not None:
        names, classes = [*names, "Reference"], [*classes, classes[0]]
        masks, scores = [*masks, session.truth_slice], [*scores, {}]
        stacks = [*stacks, session.truth] if stacks else []
    reference = session.models.reference_for
    slices = [
        measure_mask(mask, k, spacing_mm=scan.spacing_mm, reference=reference(k))
        for mask, k in zip(masks, classes, strict=True)
    ]
    text = _measurement_table(names, slices, "This slice" if scan.slices > 1 else "", scores)
    text += "".join(
        f'<p class="hint">{escape(name)}: {escape(_prompt_of_answer(answer))}</p>'
        for name, answer in zip(_column_heads(session), session.shown_answers, strict=True)
        if answer.prompt_summary is not None
    )
    if session.truth is not None:
        text += f'<p class="hint">{escape(SCORE_HINT)}</p>'
    if stacks:
        volumes = [session.measured_volume(stack, k) for stack, k in zip(stacks, classes, strict=True)]
        text += _measurement_table(names, volumes, "All slices")
    return text


def speed_card(session: ReaderSession) -> str:
    """Time by stage, size, precision, against the first model."""
    names, answers = _column_heads(session), session.automatic_answers
    text = ""
    for name, answer in zip(names[1:], answers[1:], strict=True):
        words = speed_words(answers[0].times.total_ms, answer.times.total_ms)
        than = "as" if words == "as fast" else "than"
        text += f"<p>{escape(name)} was <strong>{words}</strong> {than} {escape(names[0])}.</p>"
    note = timing_note(answers) + "".join(
        f" {name} looked at the slice in {p.look_ms:.0f} ms, once, and answered the prompt in {p.answer_ms:.0f} ms."
        for name, answer in zip(names, session.current_answers, strict=True)
        if (p := answer.prompt_summary) is not None
    )
    return f'{text}{plain_table(speed_rows(names, answers))}<p class="hint">{escape(note)}</p>'


def _prompt_of_answer(answer: ModelAnswer) -> str:
    assert answer.prompt_summary is not None
    return prompt_sentence(answer.prompt_summary, len(answer.manifest.classes))


def _column_heads(session: ReaderSession) -> list[str]:
    """ "Teacher" and "Student" where that tells them apart, else the models' names."""
    kinds = [answer.manifest.kind.capitalize() for answer in session.automatic_answers]
    return kinds if len(set(kinds)) == len(kinds) else list(session.model_names)


def _scores_by_class(
    mask: np.ndarray, session: ReaderSession, classes: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Class → score → text, against the reference; empty where there is none."""
    if session.truth_slice is None or session.scan is None:
        return {}
    head, *rows = against_truth(mask, session.truth_slice, classes, session.scan.spacing_mm)
    return {name: dict(zip(head[1:], values, strict=True)) for name, *values in rows}


def _measurement_table(
    names: Sequence[str],
    measurements: Sequence[Sequence[ClassMeasurements | VolumeMeasurements]],
    caption: str,
    scores: Sequence[Mapping[str, Mapping[str, str]]] = (),
) -> str:
    """One section a class, one column a model; models of other classes have their own rows."""
    sections: dict[str, dict[str, dict[int, str]]] = {}
    for column, of_classes in enumerate(measurements):
        for one in of_classes:
            rows = sections.setdefault(one.name, {})
            for label, text in describe(one):
                rows.setdefault(label, {})[column] = text.replace(_UNKNOWN, "")  # the heading says it once
    for column, of_scores in enumerate(scores):
        for class_name, by_label in of_scores.items():
            for label, text in by_label.items():
                sections.setdefault(class_name, {}).setdefault(f"{label} to the reference", {})[column] = text
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    body = ""
    for class_name, rows in sections.items():
        wide = len(names) + 1
        body += f"<tr class='class'><th scope='colgroup' colspan='{wide}'>{escape(class_name)}</th></tr>"
        for label, cells in rows.items():
            texts = "".join(f"<td>{escape(cells.get(column, '–'))}</td>" for column in range(len(names)))
            body += f"<tr><th scope='row'>{escape(label)}</th>{texts}</tr>"
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<table class="numbers">{said}<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table: the first row is the heading, a label with a leading space is part of the row above."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" if cell else "<td></td>" for cell in rows[0])
    body = ""
    for label, *cells in rows[1:]:
        part = ' class="part"' if label.startswith(" ") else ""
        body += f"<tr{part}><th scope='row'>{escape(label.strip())}</th>"
        body += "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


# The tab of the models: how each was made.


def model_section(manifest: Manifest) -> str:
    """One model's part of the tab: story, measured figures, limits; technical details are folded."""
    story = "".join(f"<p>{escape(words)}</p>" for words in story_of(manifest))
    rows = "".join(
        f"<tr><th scope='row'>{escape(what)}</th><td>{escape(on)}</td><td>{escape(value)}</td></tr>"
        for what, on, value in measured_figures(manifest)
    )
    table = (
        "<table class='numbers'><thead><tr><th scope='col'>Figure</th><th scope='col'>Measured on</th>"
        f"<th scope='col'>Value</th></tr></thead><tbody>{rows}</tbody></table>"
        if rows
        else "<p>Nothing was measured on this form of the model.</p>"
    )
    known = "".join(f"<li>{_escape_with_code(words)}</li>" for words in known_limits(manifest))
    return (
        f"<section class='made'><h2>{escape(model_title(manifest))}</h2>{story}"
        f"<h3>What was measured</h3>{table}"
        f"<h3>What it cannot promise</h3><ul>{known}</ul>{_technical_details(manifest)}</section>"
    )


def _technical_details(manifest: Manifest) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>"
        for k, v in _technical_facts(manifest)
    )
    steps = "".join(f"<li>{_lineage_step(step)}</li>" for step in (*manifest.lineage, manifest.made))
    return (
        f"<details><summary>Technical details</summary><table>{rows}</table>"
        f"<p>Steps, oldest first:</p><ol class='steps'>{steps}</ol></details>"
    )


def _technical_facts(manifest: Manifest) -> list[tuple[str, str]]:
    counts = ", ".join(f"{n} {SPLIT_WORDS.get(split, split)}" for split, n in manifest.data.counts.items())
    return [
        ("Network", f"{manifest.architecture}, {manifest.parameters:,} parameters"),
        ("Form", f"{FORMAT_NAMES[manifest.format]}, {PRECISION_WORDS[manifest.precision]}"),
        ("Starting weights", manifest.pretrained),
        ("Data", f"{data_name(manifest)} ({counts or 'case counts not recorded'})"),
        ("Data sha256", manifest.data.sha256[:12]),
        ("Looks for", ", ".join(manifest.classes)),
        (
            "Takes",
            f"{manifest.input.width_px} × {manifest.input.height_px} pixels, {input_words(manifest.input)}",
        ),
        (
            "Judges its own mask",
            light_limits(manifest.quality) if manifest.quality else "no, it gives no estimate",
        ),
        ("Takes clicks and boxes", _prompts_taken(manifest)),
        ("Checked after export", _gate_results(manifest) or "not recorded"),
        (
            "Made from",
            f"bundle {manifest.parent[:12]}" if manifest.parent else "training, not from another bundle",
        ),
        ("Learned from", f"teacher {manifest.teacher[:12]}" if manifest.teacher else "no teacher"),
    ]


def _prompts_taken(manifest: Manifest) -> str:
    if not is_promptable(manifest) or manifest.prompt is None:
        return "no"
    known = " and ".join({"point": "points", "box": "boxes"}[k] for k in manifest.prompt.kinds if k != "mask")
    return f"yes, it answers {known}; up to {manifest.prompt.slots} points, a box is two"


def _gate_results(manifest: Manifest) -> str:
    return "; ".join(
        f"{gate_words(name)}: " + (f"{100 * value:.3g} %" if name.endswith("_share") else f"{value:.4g}")
        for name, value in manifest.gate.items()
    )


def _lineage_step(step: Made) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in step.versions.items())
    return (
        f"<code>{escape(short_command(step.command))}</code><br>"
        f"<span class='hint'>{escape(step.time)}, {escape(step.host)}, "
        f"code {escape(step.commit)}, {escape(versions)}</span>"
    )


def _escape_with_code(words: str) -> str:
    """Escaped, and a command between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(words))
