"""The page's pieces as HTML with their pictures inside: no file is fetched, no text is taken for markup."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from demo.compare import Answer, apart_words, comparable, fit, heat, heat_map, summary, table, title
from demo.traffic_light import light_card, limits
from segcore.bundle import Manifest
from segcore.host import Made
from segcore.overlay import COLOURS, overlay
from segcore.preprocess import resize_mask

NO_WEIGHTS = "no pretrained weights"
WAITING = '<p class="hint">Working …</p>'
EMPTY = '<p class="hint">Choose an example or upload a picture: what the models mark appears here.</p>'
BANNER = (
    '<p class="banner" role="note"><strong>Research use only.</strong> '
    "Not a medical device: do not use it for diagnosis or treatment.</p>"
)
INTRO = (
    "<h1>sam2edge: what the models see</h1><p>The picture stays on this computer. "
    "It is deleted when the program that shows this page ends.</p>"
)


def problem(text: str) -> str:
    """One line on why there is no answer, read out by screen readers."""
    return f'<p class="problem" role="alert"><strong>This picture cannot be used.</strong> {escape(text)}</p>'


def results(
    image: np.ndarray, answers: Sequence[Answer], *, name: str, truth: np.ndarray | None = None
) -> str:
    """Masks side by side, where they differ, and the table.

    Args:
        image: H×W or H×W×3.
        answers: one or more; every other is compared with the first.
        name: what the picture is called.
        truth: the reference mask H×W of an example.
    """
    figures = [_answer_figure(image, answer, name) for answer in answers]
    figures += [_difference_figure(image, answers[0], other, name) for other in answers[1:]]
    heading = f'<h2>{escape(name)} <span class="hint">{image.shape[1]} × {image.shape[0]} pixels</span></h2>'
    heading += "".join(f"<p>{escape(summary(answers[0], other))}</p>" for other in answers[1:])
    runs = min(a.times.runs for a in answers)
    note = f"Times: median of {runs} run{'s' * (runs > 1)} on this computer, opening the file not counted."
    numbers = _table(table(answers, truth))
    return f'{heading}<div class="figures">{"".join(figures)}</div>{numbers}<p class="hint">{note}</p>'


def how_made(manifest: Manifest) -> str:
    """Where a model comes from, in plain words, from its manifest."""
    facts = [
        ("Starting weights", _start_words(manifest)),
        ("Trained on", f"{manifest.data.name} ({_counts(manifest.data.counts)})"),
        ("Looks for", ", ".join(manifest.classes)),
        ("Takes", f"{manifest.input.width_px} × {manifest.input.height_px} pixels, {manifest.input.depth}"),
        ("Measured", _metrics(manifest)),
        ("Judges its own mask", limits(manifest.quality) if manifest.quality else "no, it gives no estimate"),
        (
            "Checked after export",
            _gate(manifest) or "not recorded",
        ),
        (
            "Made from",
            f"bundle {manifest.parent[:12]}" if manifest.parent else "training, not from another bundle",
        ),
        ("Learned from", f"teacher {manifest.teacher[:12]}" if manifest.teacher else "no teacher"),
    ]
    rows = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts)
    steps = "".join(f"<li>{_step(made)}</li>" for made in (*manifest.lineage, manifest.made))
    return (
        f"<h3>{escape(title(manifest))}</h3><table>{rows}</table>"
        f"<p>Steps, oldest first:</p><ol class='steps'>{steps}</ol>"
    )


def _answer_figure(image: np.ndarray, answer: Answer, name: str) -> str:
    classes = answer.manifest.classes
    what = ", ".join(classes) if answer.mask.any() else "nothing"
    caption = " ".join(_chip(k, class_name) for k, class_name in enumerate(classes))
    if not answer.mask.any():
        caption += " <strong>nothing found</strong>"
    quality = answer.manifest.quality
    if quality is not None and answer.quality is not None:
        caption += light_card(answer.quality, quality)
    shown = fit(image)  # before the outline is drawn, or shrinking would wash it out
    return _figure(
        overlay(shown, resize_mask(answer.mask, (shown.shape[0], shown.shape[1]))),
        answer.manifest.kind.capitalize(),
        answer.manifest.name,
        caption,
        f"{name}: {title(answer.manifest)} marks {what}",
    )


def _difference_figure(image: np.ndarray, first: Answer, other: Answer, name: str) -> str:
    kinds = first.manifest.kind, other.manifest.kind
    names = " and ".join(kinds if kinds[0] != kinds[1] else (first.manifest.name, other.manifest.name))
    heading = "Where they differ"
    if not comparable(first, other):
        words = (
            f"{', '.join(first.manifest.classes)} and {', '.join(other.manifest.classes)} "
            "cannot be compared: the models look for different things."
        )
        return f'<figure><h3>{heading}</h3><p class="hint">{escape(words)}</p></figure>'
    picture = heat_map(image, heat(first.foreground, other.foreground))
    words = apart_words(first, other)
    legend = 'agree <span class="scale" aria-hidden="true"></span> opposite'
    return _figure(fit(picture), heading, names, legend, f"{name}: map of where the models differ. {words}")


def _figure(picture: np.ndarray, heading: str, subheading: str, caption: str, alt: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return (
        f"<figure><h3>{escape(heading)}</h3>"
        f'<p class="hint name" title="{escape(subheading)}">{escape(subheading)}</p>'
        f'<img src="{source}" alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _chip(k: int, name: str) -> str:
    red, green, blue = COLOURS[k % len(COLOURS)]
    return f'<span class="chip"><i style="background:rgb({red},{green},{blue})"></i>{escape(name)}</span>'


def _table(rows: list[list[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    body = ""
    for label, *cells in rows[1:]:
        part = ' class="part"' if label.startswith(" ") else ""
        body += f"<tr{part}><th scope='row'>{escape(label.strip())}</th>"
        body += "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _start_words(manifest: Manifest) -> str:
    if manifest.pretrained == NO_WEIGHTS:
        return "no pretrained weights: it learned from nothing but the data below"
    return manifest.pretrained


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {split}" for split, n in counts.items()) or "case counts not recorded"


def _metrics(manifest: Manifest) -> str:
    shown = (
        f"{m.name.replace('_', ' ')} {m.value:.4f} on {m.cases} {m.split} cases" for m in manifest.metrics
    )
    return ", ".join(shown) or "nothing, in this form of the model"


def _gate(manifest: Manifest) -> str:
    return ", ".join(
        f"{name.removesuffix('_share').replace('_', ' ')} "
        + (f"{100 * value:.3g} % of pixels" if name.endswith("_share") else f"{value:.4g}")
        for name, value in manifest.gate.items()
    )


def _step(made: Made) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in made.versions.items())
    return (
        f"<code>{escape(made.command)}</code><br>"
        f"<span class='hint'>{escape(made.time)}, {escape(made.host)}, "
        f"code {escape(made.commit)}, {escape(versions)}</span>"
    )
