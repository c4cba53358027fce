"""Asks several teachers, and their answer to the mirrored picture, and averages the probabilities.

A teacher is a torch bundle of `teacher.train`, or any exported bundle, which an inference engine runs: a large student
can teach too, and OpenVINO labels faster than torch on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from runtime.pipeline import check_numbers
from runtime.predictor import Predictor
from segcore.bundle.folder import Bundle
from segcore.dataset.case import Case
from segcore.picture.preprocess import Activation, mask_of_logits, prepare, resize_logits

Tta = Literal["none", "flips"]
TeacherFunction = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""(pictures N×H×W×C uint8, class masks N×H×W to make prompts of, or None) → logits N×K×h×w float32."""
_LARGEST = 6e4  # float16's largest number is 65504


def label_size(bundles: Sequence[Bundle]) -> tuple[int, int]:
    """Height and width of the labels: the largest of the teachers' input sizes."""
    specs = [bundle.manifest.input for bundle in bundles]
    return max(spec.height_px for spec in specs), max(spec.width_px for spec in specs)


def open_ensemble(
    bundles: Sequence[Bundle], *, tta: Tta, device: str, prompter: Bundle | None = None
) -> Callable[[Sequence[Case]], np.ndarray]:
    """A function from cases to logits N×K×H×W float16 at `label_size`.

    Args:
        bundles: teachers of the same classes; their input sizes may differ.
        tta: flips asks each of them for the mirrored picture too.
        device: where a torch teacher runs; engines run on the CPU.
        prompter: a model of the same classes, whose masks the teachers are asked with; they must be promptable. None
            leaves promptable teachers to the prompts of their own.

    Raises:
        InputError: a torch bundle that is not a teacher, or an engine that is not installed. The function raises it
            for a case of which a teacher gives NaN or infinity.
    """
    asks, size_px = [_open_teacher(bundle, device) for bundle in bundles], label_size(bundles)
    first_ask = _open_teacher(prompter, device) if prompter else None
    activation = bundles[0].manifest.output.activation

    def label(cases: Sequence[Case]) -> np.ndarray:
        images = [case.image() for case in cases]
        views = []
        for bundle, ask in zip(bundles, asks, strict=True):
            pictures, masks = _prepare_pictures(cases, images, bundle), None
            if prompter and first_ask:
                guessed = first_ask(_prepare_pictures(cases, images, prompter), None)
                _check_each(cases, guessed)
                output, asked_px = prompter.manifest.output, bundle.manifest.input.size_px
                masks = np.stack([mask_of_logits(one, output, asked_px) for one in guessed])
            logits = ask(pictures, masks)
            _check_each(cases, logits)
            views.append(_resize_each(logits, size_px))
            if tta == "flips":
                mirrored = ask(_mirror_pictures(pictures), None if masks is None else _mirror_pictures(masks))
                _check_each(cases, mirrored)
                views.append(_resize_each(mirrored[..., ::-1], size_px))
        mean = mean_logits(np.stack(views), activation) if len(views) > 1 else views[0]
        return mean.clip(-_LARGEST, _LARGEST).astype(np.float16)

    return label


def mean_logits(views: np.ndarray, activation: Activation) -> np.ndarray:
    """Logits whose probabilities are the mean of the views' probabilities.

    For sigmoid log(p / (1 − p)), for softmax log p; taken from logits, so that a certain view gives no logarithm
    of 0.

    Args:
        views: V×N×K×H×W logits.
        activation: sigmoid (K = 1) or softmax over K.

    Returns:
        N×K×H×W float32.
    """
    views = views.astype(np.float32, copy=False)
    if activation == "sigmoid":
        yes, no = -np.logaddexp(0, -views), -np.logaddexp(0, views)  # log σ(z), log (1 − σ(z))
        return _log_mean(yes) - _log_mean(no)
    return _log_mean(views - np.logaddexp.reduce(views, axis=2, keepdims=True))


def _log_mean(logs: np.ndarray) -> np.ndarray:
    """log(mean(exp(logs))) over the first axis."""
    return np.asarray(np.logaddexp.reduce(logs, axis=0) - np.float32(np.log(len(logs))))


def _check_each(cases: Sequence[Case], logits: np.ndarray) -> None:
    """Before they are clipped to what 16 bits hold, which would make a number of infinity."""
    for case, one in zip(cases, logits, strict=True):
        check_numbers(one, f"image {case.id}")


def _resize_each(logits: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    return np.stack([resize_logits(one, size_px) for one in logits])


def _prepare_pictures(cases: Sequence[Case], images: Sequence[np.ndarray], bundle: Bundle) -> np.ndarray:
    """N×H×W×C uint8 as a bundle takes them."""
    spec = bundle.manifest.input
    return np.stack([prepare(i, spec, name=f"image {c.id}") for c, i in zip(cases, images, strict=True)])


def _mirror_pictures(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures[:, :, ::-1])


def _open_teacher(bundle: Bundle, device: str) -> TeacherFunction:
    manifest = bundle.manifest
    if manifest.kind != "teacher" or manifest.format != "torch":
        predictor = Predictor.open(bundle)
        model = predictor.files[0]
        return lambda pictures, _: predictor.run_file(model, pictures)
    import torch

    from segcore.learn.network import DeployGraph
    from teacher.memory.slice_memory import VolumeSam2
    from teacher.memory.volumes import label_volume
    from teacher.system import load_teacher

    network = load_teacher(bundle).to(device)
    graph = DeployGraph(network, manifest.input).to(device).eval()

    def ask(pictures: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        with torch.inference_mode():
            given = torch.from_numpy(pictures).to(device)
            if isinstance(network, VolumeSam2):  # the pictures are the slices of one volume
                guess = None if masks is None else torch.from_numpy(masks)
                logits = label_volume(network, manifest, given, guess)
            elif masks is None:
                logits = graph(given)
            else:
                from teacher.promptable import ask_with_masks

                logits = ask_with_masks(network, manifest, given, torch.from_numpy(masks))
            return logits.float().cpu().numpy()  # type: ignore[no-any-return]

    return ask
