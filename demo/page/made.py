"""The tab "how was this model made" as HTML: story, measured figures, limits; technical details are folded."""

from __future__ import annotations

import re
from html import escape

from demo.session.answers import PRECISION_WORDS, title
from demo.session.model_story import (
    FORMATS,
    SPLITS,
    data_name,
    input_words,
    known_limits,
    measured,
    short_command,
    story_of,
)
from demo.session.traffic_light import limits as quality_limits
from runtime.promptable import is_promptable
from segcore.bundle.manifest import Manifest
from segcore.host import Made


def how_made(manifest: Manifest) -> str:
    """The tab of one model as HTML: story, measured figures, limits; technical details are folded."""
    story = "".join(f"<p>{escape(words)}</p>" for words in story_of(manifest))
    rows = "".join(
        f"<tr><th scope='row'>{escape(what)}</th><td>{escape(on)}</td><td>{escape(value)}</td></tr>"
        for what, on, value in measured(manifest)
    )
    table = (
        "<table class='numbers'><thead><tr><th scope='col'>Figure</th><th scope='col'>Measured on</th>"
        f"<th scope='col'>Value</th></tr></thead><tbody>{rows}</tbody></table>"
        if rows
        else "<p>Nothing was measured on this form of the model.</p>"
    )
    known = "".join(f"<li>{_with_code(words)}</li>" for words in known_limits(manifest))
    return (
        f"<section class='made'><h2>{escape(title(manifest))}</h2>{story}"
        f"<h3>What was measured</h3>{table}"
        f"<h3>What it cannot promise</h3><ul>{known}</ul>{_details(manifest)}</section>"
    )


def _details(manifest: Manifest) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in _facts(manifest)
    )
    steps = "".join(f"<li>{_step(made)}</li>" for made in (*manifest.lineage, manifest.made))
    return (
        f"<details><summary>Technical details</summary><table>{rows}</table>"
        f"<p>Steps, oldest first:</p><ol class='steps'>{steps}</ol></details>"
    )


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    counts = ", ".join(f"{n} {SPLITS.get(split, split)}" for split, n in manifest.data.counts.items())
    return [
        ("Network", f"{manifest.architecture}, {manifest.parameters:,} parameters"),
        ("Form", f"{FORMATS[manifest.format]}, {PRECISION_WORDS[manifest.precision]}"),
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
            quality_limits(manifest.quality) if manifest.quality else "no, it gives no estimate",
        ),
        ("Takes clicks and boxes", _prompts(manifest)),
        ("Checked after export", _gate(manifest) or "not recorded"),
        (
            "Made from",
            f"bundle {manifest.parent[:12]}" if manifest.parent else "training, not from another bundle",
        ),
        ("Learned from", f"teacher {manifest.teacher[:12]}" if manifest.teacher else "no teacher"),
    ]


def _prompts(manifest: Manifest) -> str:
    if not is_promptable(manifest) or manifest.prompt is None:
        return "no"
    learnt = " and ".join(
        {"point": "points", "box": "boxes"}[k] for k in manifest.prompt.kinds if k != "mask"
    )
    return f"yes, it was trained with {learnt}; up to {manifest.prompt.slots} points, a box is two"


def _gate(manifest: Manifest) -> str:
    return ", ".join(
        f"{name.removesuffix('_share').replace('_', ' ')} "
        + (f"{100 * value:.3g} % of pixels" if name.endswith("_share") else f"{value:.4g}")
        for name, value in manifest.gate.items()
    )


def _step(made: Made) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in made.versions.items())
    return (
        f"<code>{escape(short_command(made.command))}</code><br>"
        f"<span class='hint'>{escape(made.time)}, {escape(made.host)}, "
        f"code {escape(made.commit)}, {escape(versions)}</span>"
    )


def _with_code(words: str) -> str:
    """Escaped, and a command between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(words))
