"""What is told of a model, from its manifest alone: facts that several readers tell, its limits, its model card.

The page, the report and the card ask the same functions here, so that they cannot contradict each other. What is told
in one place only is put into words there.

Source: Mitchell et al., Model Cards for Model Reporting, FAT* 2019 (the card's sections).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import PurePosixPath

from segcore.bundle.guard_record import GuardRecord, SpeedRatio, points_text
from segcore.bundle.manifest import CompiledGraph, Manifest, Metric
from segcore.host import Made
from segcore.picture.preprocess import CT_WINDOWS, InputSpec, OutputSpec
from segcore.words import bounded_ratio, plural

NO_WEIGHTS = "no pretrained weights"
"""What `Manifest.pretrained` says where training started from random weights."""
MODEL_CARD = "MODEL_CARD.md"
FORMAT_NAMES = {
    "torch": "PyTorch",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "tensorrt-onnx": "ONNX for TensorRT",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
}
_FORMAT_USES = {
    "torch": "weights in safetensors, to be exported before use",
    "onnx": "for onnxruntime or OpenVINO",
    "openvino": "as its intermediate representation (IR)",
    "tensorrt-onnx": "which builds an engine from it, on the device itself",
    "tensorrt": "an engine for one device only",
    "tensorrt-rtx": "an engine for NVIDIA's RTX cards, on Linux and Windows",
}
PRECISION_WORDS = {
    "fp32": "FP32 (full)",
    "fp16": "FP16 (half)",
    "int8": "INT8 (8-bit whole numbers)",
}
SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}
UNMEASURED_SPEED = "unmeasured, the engine is on another device"
AS_NAMED = "as far as the data names them"
"""Of patients: where the data name none, each case counts as a patient of its own."""
_METRICS = {
    "dice_mean": "Dice, mean over cases",
    "dice_p05": "Dice, 5th percentile (one case in twenty is worse)",
}
FEW_CASES = 200
"""Training cases below which the card warns. Our own measure: what one patient in a hundred has is hardly seen then."""
FEW_MEASURED = 50
"""Cases below which the mean of a measured figure is called unsure."""


def is_procedural(data: str) -> bool:
    """Whether a data set of this name is drawn by a program, so that no patient is in it."""
    return data.startswith("phantom:")


def has_random_start(manifest: Manifest) -> bool:
    """Whether all of the network started from random weights; of one whose parts differ, `pretrained` tells each."""
    return manifest.pretrained.lower() == NO_WEIGHTS


def count_training_cases(manifest: Manifest) -> int | None:
    """Cases that training took, which `--limit` may have made fewer than there are; None where nobody counted."""
    count, limit = manifest.data.counts.get("train"), manifest.settings.get("limit")
    return min(count, limit) if count is not None and isinstance(limit, int) else count


def labelled_share(manifest: Manifest) -> float:
    """Share of the training patients whose masks were used, 0–1."""
    share = manifest.settings.get("labelled_share")
    return float(share) if isinstance(share, int | float) else 1.0


def has_test_figure(manifest: Manifest) -> bool:
    """Whether any figure in the manifest is of test cases."""
    return any(metric.split == "test" for metric in manifest.metrics)


def ct_window_name(spec: InputSpec) -> str:
    """What radiologists call the input's window; "" for another one, and where values are no Hounsfield units."""
    if spec.depth != "float32":
        return ""
    return spec.window_name or next((w.name for w in CT_WINDOWS if (w.low, w.high) == spec.window), "")


def data_name(manifest: Manifest) -> str:
    """The data set's own name: of a folder its last part, for a path of the maker's machine tells others nothing."""
    return _last_part(manifest.data.name)


def short_command(command: str) -> str:
    """A command whose paths keep only their last part."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark that is not closed
        words = command.split()
    parts = [word.partition("=") if word.startswith("-") else ("", "", word) for word in words]
    return " ".join(f"{flag}{equals}{_last_part(path)}" for flag, equals, path in parts)


def _last_part(path: str) -> str:
    if not re.search(r"[/\\]", path):
        return path
    return PurePosixPath(path.replace("\\", "/")).name or "…"


def decision_words(output: OutputSpec) -> str:
    """How a pixel gets its class, as the part of a sentence that its reader begins or ends."""
    if output.activation == "softmax":
        return "a pixel gets the most probable class"
    return f"a pixel is marked from a probability of {output.threshold:g} on"


def loss_words(before: float, after: float) -> str:
    """0.06 points lost, or 0.12 points gained: by how much Dice changed, in points of 0.01."""
    lost = points_text(100 * (before - after))
    return f"{lost[1:]} points gained" if lost.startswith("-") else f"{lost} points lost"


def faster_words(ratio: SpeedRatio) -> str:
    """1.62 times as fast as FP32."""
    return f"{bounded_ratio(ratio.speedup)} times as fast as {ratio.against.upper()}"


def speedup_words(ratio: SpeedRatio) -> str:
    """1.62 times as fast as FP32 (1.55–1.70 over 7 rounds) in openvino 2026.4.1, 2 threads."""
    span = f"{bounded_ratio(ratio.low)}–{bounded_ratio(ratio.high)} over {plural(ratio.rounds, 'round')}"
    engine = f"{ratio.engine} {ratio.engine_version}, {plural(ratio.threads, 'thread')}"
    return f"{faster_words(ratio)} ({span}) in {engine}"


def speeds_words(guard: GuardRecord) -> str:
    """Every measured speed of a guard, or that there is none."""
    return "; ".join(speedup_words(ratio) for ratio in guard.speeds) or UNMEASURED_SPEED


def guard_source(guard: GuardRecord) -> str:
    """On 128 validation cases, in openvino 2026.4.1: what a guard's Dice was measured on."""
    return f"on {plural(guard.cases, 'validation case')}, in {guard.engine} {guard.engine_version}"


def layer_words(guard: GuardRecord) -> str:
    """22 of 23 are in INT8, 1 stayed in float."""
    floats = len(guard.float_layers)
    if not floats:
        return f"all {guard.layers} that can be are in INT8"
    return f"{guard.layers - floats} of {guard.layers} are in INT8, {floats} stayed in float"


def compiled_words(found: CompiledGraph) -> str:
    """Compiled: 286 layers to 49 kernels, 19 of 19 in INT8, engine 3.5 MB, activations 8.4 MB, 1.5 s."""
    if found.refused:
        return f"refused: {found.refused}"
    plan, activations = found.plan_bytes / 1e6, found.activation_bytes / 1e6
    int8 = f", {found.int8_found} of {found.int8_expected} in INT8" if found.int8_expected else ""
    return (
        f"compiled: {plural(found.layers, 'layer')} to {plural(found.kernels, 'kernel')}{int8}, engine {plan:.1f} MB, "
        f"activations {activations:.1f} MB, {found.seconds:.1f} s"
    )


def gate_words(name: str) -> str:
    """ "openvino_real_mean_share" → "share of pixels that differ, mean over real cases, in openvino"."""
    if share := re.fullmatch(r"(\w+)_(golden|real|prompts)_(mean|worst)_share", name):
        engine, cases, which = share.groups()
        what = "answers to golden prompts" if cases == "prompts" else f"{cases} cases"
        over = f"mean over {what}" if which == "mean" else f"worst of the {what}"
        return f"share of pixels that differ, {over}, in {engine}"
    if name == "dice_change_points":
        return "change of Dice in points of 0.01"
    return f"Dice in {name.removeprefix('dice_')}" if name.startswith("dice_") else name.replace("_", " ")


# What the manifest says against the model.


def limits(manifest: Manifest) -> tuple[str, ...]:
    """What the manifest itself says against the model, the gravest first; one sentence or two each."""
    return tuple(
        text
        for found in (_training_limits(manifest), _measuring_limits(manifest), _running_limits(manifest))
        for text in found
    )


def _training_limits(m: Manifest) -> list[str]:
    found, settings = [], m.settings
    if is_procedural(m.data.name):
        found.append(
            "Trained on procedural phantoms, drawn by a program. It has seen no patient, and its figures say nothing "
            "about a clinic."
        )  # fmt: skip
    if has_random_start(m):
        found.append("No pretrained weights: training started from random weights.")
    train, share = count_training_cases(m), labelled_share(m)
    if share < 1:
        found.append(f"Only the masks of {100 * share:g} % of the training patients were used.")
    if train is not None and train < FEW_CASES:
        found.append(f"Few cases: {train} to train on. What is rare among patients is missing among them.")
    if "seed" in settings:
        found.append(
            f"Trained once, with seed {settings['seed']}. Another seed gives another model; by how much its figures "
            "would differ is not known from this bundle."
        )  # fmt: skip
    if m.teacher:
        found.append("It learned from a teacher's masks as well, and with them from the teacher's mistakes.")
    return found


def _measuring_limits(m: Manifest) -> list[str]:
    found = []
    few = sorted({metric.cases for metric in m.metrics if metric.cases < FEW_MEASURED})
    if few:
        found.append(f"Measured on few cases ({', '.join(map(str, few))}): the figures above are unsure.")
    if not has_test_figure(m):
        found.append("No figure above is of test cases that were kept out of training and of its steering.")
    found.append(
        "Other hospitals, scanners, protocols, ages and illnesses than those in its data have not been tested."
    )
    return found


def _running_limits(m: Manifest) -> list[str]:
    if m.engine_target and m.format == "tensorrt-rtx":
        target = m.engine_target
        return [
            f"Runs only on NVIDIA GPUs of compute capability {target.compute_capability}, with TensorRT for RTX "
            f"{target.tensorrt}. It was compiled where no GPU was asked: never run, as far as this bundle knows."
        ]
    if m.engine_target:
        target = m.engine_target
        gpu = f"{target.gpu} (compute capability {target.compute_capability})"
        return [f"Runs only on {gpu} with TensorRT {target.tensorrt}."]
    if m.format == "tensorrt-onnx":
        return [
            "Never run on the device it is meant for, as far as this bundle knows: its speed and TensorRT's own "
            "rounding are unmeasured until the device has built, verified and timed an engine."
        ]  # fmt: skip
    if m.format == "torch":
        return [
            f"Run with PyTorch only, on {_host_text(m.made)}. Export it, and verify the export, before any use."
        ]
    return [
        f"Never run, as far as this bundle knows, on another machine than {_host_text(m.made)}; "
        "`python -m runtime.verify` checks its masks on yours."
    ]  # fmt: skip


def _host_text(made: Made) -> str:
    return " ".join(made.host.split())


# The card.


def model_card(manifest: Manifest) -> str:
    """The card in Markdown, without the bundle's folder or its hash: equal manifests give equal bytes.

    Args:
        manifest: of a bundle; whether its files list the card itself changes nothing.
    """
    sections = (
        ("What it is", _identity_lines(manifest)),
        ("What it is for", _purpose_lines(manifest)),
        ("What it takes and gives", _input_output_lines(manifest)),
        ("What it was trained on", _data_lines(manifest)),
        ("What was measured", _figure_lines(manifest)),
        ("What INT8 was allowed to lose", _guard_lines(manifest)),
        ("Its own estimate of its masks", _quality_lines(manifest)),
        ("Known limits", [f"* {limit}" for limit in limits(manifest)]),
        ("How to use it", _command_lines(manifest)),
        ("How it was made", _lineage_lines(manifest)),
        ("Licence", _licence_lines()),
    )
    lines = [f"# {_without_markup(manifest.name)}", "", "**Research use only. Not a medical device.**"]
    for title, text in sections:
        if text:
            lines += ["", f"## {title}", "", *text]
    return "\n".join(lines) + "\n"


def _identity_lines(m: Manifest) -> list[str]:
    share = "" if m.trained_parameters == m.parameters else f", {m.trained_parameters:,} of them trained"
    files = [entry for name, entry in m.files.items() if name != MODEL_CARD]
    many = f"{len(files)} files" if len(files) > 1 else "1 file"
    size = f"{sum(entry.bytes for entry in files):,}"
    facts = {
        "Task": f"marks {_names_text(m.classes)} in a picture",
        "Kind": f"{m.kind} ({_without_markup(m.architecture)})",
        "Numbers": f"{m.parameters:,} parameters{share}; {m.macs:,} multiply-accumulates a picture",
        "Format": f"{FORMAT_NAMES[m.format]}, {_FORMAT_USES[m.format]}; numbers in {PRECISION_WORDS[m.precision]}",
        "Model file": f"`{m.model_file}`, of {many} and {size} bytes in all, without this card",
        "Starting weights": _without_markup(m.pretrained),
        "Training": f"stopped after epoch {m.stopped_epoch} of {m.settings.get('epochs', 'more')}, as the validation "
        "Dice no longer rose"
        if m.stopped_epoch
        else None,
        "Parent": f"bundle {_hash_text(m.parent)}" if m.parent else None,
        "Teacher": f"bundle {_hash_text(m.teacher)}" if m.teacher else None,
        "Made": f"{m.made.time[:10]} with sam2edge {_without_markup(m.made.commit)}",
    }
    return _fact_lines(facts.items())


def _purpose_lines(m: Manifest) -> list[str]:
    return [
        "* For research: to study how well, how fast and on how small a machine such pictures can be segmented, by "
        "people who check its masks.",
        "* Not for diagnosis, treatment, triage or any other decision about a patient. No authority has cleared it.",
        f"* Not for pictures of another kind than it was trained on. It gives a mask for every picture, also for one "
        f"without any {_names_text(m.classes, 'or')}.",
    ]  # fmt: skip


def _input_output_lines(m: Manifest) -> list[str]:
    taken, given = m.input, m.output
    sizes = [m.main.size_px, *(v.size_px for v in m.variants)]
    colour = "grey" if taken.channels == 1 else "RGB"
    decision = decision_words(given)
    if given.activation == "softmax":
        decision += "; 0 is background"
    elif m.calibration:
        decision += f", chosen on {m.calibration.cases} validation cases"
    facts = {
        "Takes": f"one picture, {colour}, {taken.depth}, of any size",
        "Window": _window_text(m),
        "Works at": " or ".join(f"{h}×{w} px" for h, w in dict.fromkeys(sizes)) + " (height×width)",
        "Gives": f"a mask and probabilities at the picture's own size; {decision}",
        "Probabilities": _probability_text(m),
        "Prompts": _prompt_text(m),
        "Classes": ", ".join(f"{i} {_without_markup(name)}" for i, name in enumerate(m.classes, start=1)),
    }
    return _fact_lines(facts.items())


def _probability_text(m: Manifest) -> str | None:
    found = m.calibration
    if found is None:
        return None
    if found.temperature == 1:
        return f"as the network gives them; expected calibration error on validation cases {found.ece:.3g}"
    return (
        f"logits are divided by {found.temperature:.3g}; expected calibration error on validation cases "
        f"{found.ece:.3g}, without {found.ece_before:.3g}"
    )


def _prompt_text(m: Manifest) -> str | None:
    if (prompt := m.prompt) is None:
        return None
    kinds = _names_text(prompt.kinds, "or")
    taken = f"{kinds}, of at most {prompt.slots} points (a box is two), for one thing at a time"
    if not prompt.encoder_file:
        return taken
    unrun = "; they were not run on a device" if m.format == "tensorrt-onnx" else ""
    return f"{taken}; `{prompt.encoder_file}` and `{prompt.decoder_file}`, in floating point{unrun}"


def _window_text(m: Manifest) -> str:
    low, high = m.input.window
    name = ct_window_name(m.input)
    if m.input.depth == "uint8" and (low, high) == (0.0, 255.0):
        return "none: 0 is black, 255 white"
    named = f" (the CT window “{name}”, in Hounsfield units)" if name else ""
    return f"{low:g} and below is black, {high:g} and above white{named}"


def _data_lines(m: Manifest) -> list[str]:
    data, counts = m.data, m.data.counts
    facts = {
        "Name": _without_markup(data_name(m)),
        "Cases": ", ".join(f"{number} {_without_markup(split)}" for split, number in counts.items())
        or "not recorded",
        "Split": f"by patient, {AS_NAMED}, seed {data.split_seed}; test cases were kept out of training",
        "Calibration of INT8": f"{len(data.calibration_cases)} train cases"
        if data.calibration_cases
        else None,
        "sha256 of the data": f"`{data.sha256}`",
        "sha256 of the split": f"`{data.split_sha256}`",
    }
    told = "The card knows the data by name, number and hash. Whom they show and how they were chosen must be asked of "
    return [*_fact_lines(facts.items()), "", told + "whoever holds them."]


def _figure_lines(m: Manifest) -> list[str]:
    if not m.metrics:
        lines = [
            "The accuracy of this bundle on test cases is not in its manifest. `python -m benchmarks` measures it."
        ]
    else:
        lines = ["| what | value | on |", "| --- | ---: | --- |", *map(_metric_row, m.metrics), ""]
        lines += ["Dice says how far two masks overlap, from 0 (nowhere) to 1 (everywhere)."]
        if {metric.split for metric in m.metrics} <= {"val"}:
            lines += [
                "Training was steered by the validation cases, so these figures flatter; `python -m benchmarks` "
                "measures on test cases."
            ]  # fmt: skip
    if m.gate:
        lines += ["", "When it was exported, its masks were compared with its parent's:", ""]
        lines += [f"* {gate_words(name)}: {value:.4g}" for name, value in m.gate.items()]
        lines += ["", "Shares are 0 to 1. Golden cases are procedural pictures, real ones validation cases."]
    if m.compiled:
        lines += [
            "",
            f"NVIDIA's own compiler ({m.compiled.compiler}) read its graphs where it was exported:",
            "",
        ]
        lines += [f"* `{graph.file}` {_without_markup(compiled_words(graph))}" for graph in m.compiled.graphs]
        lines += ["", f"For compute capability {m.compiled.compute_capability}; that engine was not run."]
    return lines


def _metric_row(metric: Metric) -> str:
    name = _METRICS.get(metric.name, _without_markup(metric.name.replace("_", " ")))
    return f"| {name} | {metric.value:.4f} | {metric.cases} cases, {_without_markup(metric.split)} split |"


def _guard_lines(m: Manifest) -> list[str]:
    if (guard := m.guard) is None:
        return []
    facts = {
        "Dice, mean": _loss_text(guard.fp32.mean, guard.int8.mean, guard.max_drop_points),
        "Dice, 5th percentile": _loss_text(guard.fp32.p05, guard.int8.p05, guard.max_p05_drop_points),
        "Measured": guard_source(guard),
        "Speed": speeds_words(guard),
        "Layers": layer_words(guard),
        "Fine-tuned in 8 bits": plural(guard.qat_epochs, "epoch") if guard.qat_epochs else None,
    }
    return _fact_lines(facts.items())


def _loss_text(before: float, after: float, allowed: float) -> str:
    change = loss_words(before, after)
    return f"{before:.4f} in FP32, {after:.4f} in INT8: {change}, at most {allowed:g} may be lost (a point is 0.01)"


def _quality_lines(m: Manifest) -> list[str]:
    if (quality := m.quality) is None:
        return ["It has none: it does not say when a mask is doubtful."]
    return [
        "With each mask it estimates the Dice that the mask would reach, from its own logits.",
        "",
        f"* Fitted on {quality.cases} validation cases. On cases left out of the fit it was wrong by "
        f"{quality.error:.3f} on average, and by {quality.error_degraded:.3f} on degraded pictures.",
        "* It knows only what such pictures look like. On another kind of picture it may be high where the mask is "
        "wrong.",
    ]  # fmt: skip


def _command_lines(m: Manifest) -> list[str]:
    commands = {
        "torch": ("python -m export --bundle THIS_FOLDER --to openvino --precision fp32 --out EXPORTED",),
        "tensorrt-onnx": ("python -m export.kit --bundle THIS_FOLDER --out KIT",),
    }.get(m.format) or (
        "python -m runtime.verify --bundle THIS_FOLDER",
        "python -m runtime.predict --bundle THIS_FOLDER --image PICTURES --out MASKS",
        "python -m demo --bundle THIS_FOLDER",
    )
    measure = "python -m benchmarks --bundle THIS_FOLDER --data DATASET --out REPORT"
    return ["```bash", *commands, *([] if m.format == "tensorrt" else [measure]), "```"]


def _lineage_lines(m: Manifest) -> list[str]:
    lines: list[str] = []
    for number, step in enumerate((*m.lineage, m.made), start=1):
        versions = ", ".join(f"{name} {version}" for name, version in sorted(step.versions.items()))
        lines += [
            *([""] if lines else []),
            f"{number}. {_step_text(step)}",
            "",
            f"   {_code_span(short_command(step.command))}",
        ]
        lines += ["", f"   {_without_markup(versions)}"] if versions else []
    return lines


def _step_text(step: Made) -> str:
    return _without_markup(f"{step.time[:10]}, sam2edge {step.commit}, Python {step.python}, {step.host}")


def _licence_lines() -> list[str]:
    return [
        "The licence of the weights is what the training data and the pretrained weights allow; state it before you "
        "pass them on. sam2edge, which made them, is under the Apache License 2.0; that says nothing of the weights."
    ]  # fmt: skip


def _fact_lines(facts: Iterable[tuple[str, str | None]]) -> list[str]:
    return [f"* **{what}:** {text}" for what, text in facts if text is not None]


def _names_text(names: Iterable[str], word: str = "and") -> str:
    found = [_without_markup(name) for name in names]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} {word} {found[-1]}"


def _without_markup(text: str) -> str:
    """Words of a user or of a machine, so that Markdown and HTML take nothing in them for markup."""
    return re.sub(r"([\\`*_<>\[\]|#&])", r"\\\1", " ".join(text.split()))


def _code_span(text: str) -> str:
    """One line of code, whatever backticks are in it."""
    text = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"


def _hash_text(sha256: str) -> str:
    return f"`{sha256[:12]}…`"
