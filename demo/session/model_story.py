"""A model's story in plain words, from its manifest: what it learned from, what was measured, what it cannot do."""

from __future__ import annotations

from segcore.bundle.guard_record import GuardRecord
from segcore.bundle.manifest import Manifest
from segcore.bundle.story import (
    AS_NAMED,
    FORMAT_NAMES,
    PRECISION_WORDS,
    SPLIT_WORDS,
    count_training_cases,
    ct_window_name,
    data_name,
    decision_words,
    faster_words,
    has_random_start,
    has_test_figure,
    is_procedural,
    labelled_share,
    limits,
    loss_words,
)
from segcore.picture.preprocess import InputSpec
from segcore.words import bounded_ratio

_ADDITIONS = {
    "lora": "LoRA",
    "dora": "DoRA",
    "rslora": "LoRA",
    "ia3": "IA³",
    "adapter": "adapters",
    "adapter-parallel": "adapters",
    "adapter-channel-space": "adapters",
}
_TUNED = {
    **{
        k: f"Of the starting weights, small additions ({v}) and the decoder were trained."
        for k, v in _ADDITIONS.items()
    },
    "bitfit": "Of the starting weights, the biases and the decoder were trained.",
    "decoder": "The starting weights stayed as they were; only the decoder was trained.",
    "all": "Every weight was trained.",
}
_NOT_FORMS = {"torch", "change_points"}  # of the gate's dice_…: not this form of the model
_UNNAMED = {"foreground", "class1", "mask", "object"}


def story_of(manifest: Manifest) -> list[str]:
    """What it learned from, who taught it, and how it became the file that runs here; a sentence or more each."""
    found = [f"{_learned_words(manifest)} {_start_words(manifest)}"]
    if manifest.kind == "student":
        found.append(
            "A larger model, its teacher, took part: beside the reference masks, it saw how sure the teacher is of "
            "every pixel."
            if manifest.teacher
            else "No larger model taught it: it learned from the reference masks alone."
        )
    if manifest.parent:
        form, numbers = FORMAT_NAMES[manifest.format], PRECISION_WORDS[manifest.precision]
        verdict = f" {guard_words(manifest.guard)}" if manifest.guard else ""
        found.append(f"It was then converted to {form} with numbers in {numbers}.{verdict}")
    return found


def guard_words(guard: GuardRecord) -> str:
    """The INT8 guard's verdict in one sentence."""
    words = (
        f"A guard compared it with its full-precision form on {guard.cases} validation cases: mean overlap (Dice) is "
        f"{guard.int8.mean:.3f} against {guard.fp32.mean:.3f} "
        f"({loss_words(guard.fp32.mean, guard.int8.mean)}; it may lose at most {guard.max_drop_points:g}; "
        "a point is 0.01)"
    )
    kept = len(guard.float_layers)
    if kept:
        words += f", with {kept} of {guard.layers} layers left in full precision"
    if guard.qat_epochs:
        words += f", after {guard.qat_epochs} epoch{'s' * (guard.qat_epochs > 1)} of fine-tuning"
    if not guard.speeds:
        return f"{words}; its speed was not measured there."
    speed = min(guard.speeds, key=lambda s: s.speedup)
    return f"{words}, and it is {faster_words(speed)}."


def measured_figures(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Figure, on what, value: of the model as trained or, where it was converted, of this form."""
    rows = [
        (_metric_name(m.name), f"{m.cases} {SPLIT_WORDS.get(m.split, m.split)} cases", f"{m.value:.3f}")
        for m in manifest.metrics
    ]
    guard, gate = manifest.guard, manifest.gate
    if guard:
        on = f"{guard.cases} validation cases"
        rows.append(("Overlap (Dice), mean", on, f"{guard.int8.mean:.3f}"))
        rows.append(
            ("Overlap (Dice), 5th percentile: one case in twenty is worse", on, f"{guard.int8.p05:.3f}")
        )
    else:
        on = f"{gate.get('real_cases', 0):.0f} validation cases"
        converted = [
            value for name, value in gate.items() if name.startswith("dice_") and name[5:] not in _NOT_FORMS
        ]
        rows += [("Overlap (Dice), mean", on, f"{value:.3f}") for value in converted[:1]]
    if guard:
        rows += [
            (
                f"Speed against {speed.against.upper()}, same computer",
                f"{speed.engine} {speed.engine_version}, {speed.threads} thread{'s' * (speed.threads > 1)}",
                f"{bounded_ratio(speed.speedup)} times ({bounded_ratio(speed.low)} to {bounded_ratio(speed.high)})",
            )
            for speed in guard.speeds
        ]
    for name, value in gate.items():
        if name.endswith("_real_worst_share"):
            on = f"{gate.get('real_cases', 0):.0f} validation cases"
            rows.append(("Pixels that conversion changed, worst case", on, f"{100 * value:.2g} %"))
    if manifest.quality:
        on = f"{manifest.quality.cases} validation cases, left out of its fit"
        rows.append(("Error of its own estimate of Dice", on, f"±{manifest.quality.error:.3f}"))
    return rows


def known_limits(manifest: Manifest) -> list[str]:
    """What a reader must know before trusting a mask: the model card's limits, then those of the page; sentences."""
    spec, found = manifest.input, [*limits(manifest)]
    if _is_unnamed(manifest):
        found.append(
            f"Its data does not say what is marked; the name is only “{', '.join(manifest.classes)}”."
        )
    if manifest.precision == "int8" and manifest.guard is None:
        found.append("It computes in 8 bits, and no guard judged what that cost.")
    if manifest.quality is None:
        found.append("It does not judge its own mask, so there is no traffic light.")
    found.append(
        f"It sees every picture at {spec.width_px} × {spec.height_px} pixels, in {input_words(spec)}: "
        "what is finer is lost."
    )
    decision = decision_words(manifest.output)
    unsure = ", however unsure that is" if manifest.output.activation == "softmax" else ""
    found.append(f"{decision[0].upper()}{decision[1:]}{unsure}.")
    return found


def short_limits(manifest: Manifest) -> str:
    """The gravest of them in one line, for a printed page."""
    found = []
    if is_procedural(manifest.data.name):
        found.append("trained on drawn phantoms, never on a patient")
    if has_random_start(manifest):
        found.append("started from random weights")
    if not has_test_figure(manifest):
        found.append("its own figures are of validation cases, which flatter")
    found.append(f"one data set only ({data_name(manifest)})")
    if _is_unnamed(manifest):
        found.append("its data does not name what is marked")
    found.append(f"sees pictures at {manifest.input.width_px} × {manifest.input.height_px} pixels")
    words = "; ".join(found)
    return f"{words[0].upper()}{words[1:]}."


def _is_unnamed(manifest: Manifest) -> bool:
    return set(manifest.classes) <= _UNNAMED


def input_words(spec: InputSpec) -> str:
    """Depth and window of the pictures that a model takes; a CT window by its name."""
    low, high = spec.window
    if spec.depth == "uint8" and spec.window == (0.0, 255.0):
        return "8-bit grey values" if spec.channels == 1 else "8-bit colours"
    named = ct_window_name(spec)
    values = {"uint8": "8-bit values", "uint16": "16-bit values", "float32": "stored values"}[spec.depth]
    if named:
        return f"the {named.replace('-', ' ')} window ({low:g} to {high:g} Hounsfield units)"
    return f"{values} from {low:g} (black) to {high:g} (white)"


def _learned_words(manifest: Manifest) -> str:
    counts, used = manifest.data.counts, count_training_cases(manifest)
    what, where = ", ".join(manifest.classes), f"the data set {data_name(manifest)}"
    if used is None:
        return f"It learned to mark {what} from {where}."
    share = labelled_share(manifest)
    words = f"It learned to mark {what} from {used:,} pictures of {where}"
    if share < 1:  # without a teacher, the pictures whose masks are hidden are not used at all
        masks = f"the masks of {100 * share:g} % of the patients"
        words = f"It learned to mark {what} from {masks} behind {used:,} pictures of {where}"
    apart = [
        f"{counts[split]:,} {purpose}"
        for split, purpose in (("val", "chose the best weights"), ("test", "were kept apart for tests"))
        if split in counts and not (split == "val" and used < counts["train"])
    ]
    end = f"; {' and '.join(apart)}." if apart else "."
    return words + end + (f" The groups are split by patient, {AS_NAMED}." if apart else "")


def _start_words(manifest: Manifest) -> str:
    tuned = _TUNED.get(str(manifest.settings.get("tune")), "") if manifest.kind == "teacher" else ""
    if not manifest.trained_parameters:
        tuned = "Nothing was trained."
    if has_random_start(manifest):
        return "It started from random weights, so it learned from nothing but these pictures."
    return f"It started from {manifest.pretrained}. {tuned}".strip()


def _metric_name(name: str) -> str:
    return {"dice_mean": "Overlap (Dice), mean"}.get(name, name.replace("_", " "))
