"""Writes a promptable teacher's encoder and decoder beside its automatic model, and gates them against torch.

Both stay in float under every `--precision`: INT8 ranges are found from pictures, and nobody has calibrated prompts.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from export.graph.onnx_export import INPUT, Ends, check_ends, halve_weights, traced_model
from export.job import Job
from export.rules.check import require_clean
from export.typed_files import TYPED_8, TYPED_10
from runtime.parity import PROMPT_LIMITS, check_prompt_parity
from runtime.promptable import QUESTION, open_prompt_model
from segcore.bundle.golden import Features, Questions, Replies, ask, golden_questions, save_golden_prompts
from segcore.command import log
from segcore.errors import GateError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec
from segcore.picture.prompts import PromptSpec
from segcore.words import fixed_percent
from teacher.sam2_model import AnyEmbedding, Promptable

_DEAF = 1e-6
"""Of the logits' spread over pixels: rounding noise of a network that takes no notice of its prompt."""


class EncoderModule(nn.Module):
    """A promptable network as `DeployGraph` takes one: normalised picture in, features out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """N×3×H×W → the features, in order."""
        return tuple(self.network.encode(x))  # type: ignore[operator]


class DecoderModule(nn.Module):
    """A promptable network's decoder as a module of plain tensors.

    Args:
        network: the network.
        embedding: what its encoder gives, which is one tensor or several.
    """

    def __init__(self, network: nn.Module, embedding: type[AnyEmbedding]) -> None:
        super().__init__()
        self.network, self.embedding = network, embedding

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The features, points 1×S×2, labels 1×S, mask 1×1×h×w, has_mask 1×1 → logits 1×M×h×w, iou 1×M."""
        features, question = tensors[: -len(QUESTION)], tensors[-len(QUESTION) :]
        found = self.network.decode(self.embedding(*features), *question)  # type: ignore[operator]
        return found.logits, found.iou


class PromptParts(NamedTuple):
    """The two modules, in eval mode, with an example of each input by its name, and the features' names."""

    encoder: DeployGraph
    picture: dict[str, Tensor]
    decoder: DecoderModule
    question: dict[str, Tensor]
    features: tuple[str, ...]


def write_parts(job: Job, network: nn.Module) -> tuple[PromptSpec, dict[str, float]]:
    """Writes both graphs and the golden prompts, once the engines have answered as torch does.

    Args:
        job: of a bundle that takes prompts.
        network: `teacher.sam2_model.Promptable`, in eval mode.

    Returns:
        For the manifest: how the bundle can be asked, and the gate's figures.

    Raises:
        GateError: a graph breaks a rule of TensorRT, an engine answers otherwise than torch, or the network takes no
            notice of its prompt.
    """
    parent, prompt = job.parent, job.parent.prompt
    assert prompt is not None  # the caller asks
    assert isinstance(network, Promptable), type(network)
    log("writing encoder and decoder for prompts, in floating point")
    parts = open_parts(network, parent.input, prompt, stride=parent.output.stride)
    questions = golden_questions(parent.input, prompt)
    reference = _torch_replies(parts, questions)  # first: a network that is deaf needs no graphs
    suffix = job.model_path.suffix
    files = (job.folder / f"encoder{suffix}", job.folder / f"decoder{suffix}")
    _write_part(job, parts.encoder, parts.picture, parts.features, files[0])
    _write_part(job, parts.decoder, parts.question, ("logits", "iou"), files[1])
    figures = _gate_prompts(job, files, questions, reference)
    save_golden_prompts(job.folder, questions, reference)
    if job.target == "tensorrt":
        log("encoder and decoder keep TensorRT's rules; they were not run on a device")
    return prompt.model_copy(update={"encoder_file": files[0].name, "decoder_file": files[1].name}), figures


def open_parts(network: nn.Module, spec: InputSpec, prompt: PromptSpec, *, stride: int) -> PromptParts:
    """The two modules of a promptable network at an input size; `stride` is that of its answers."""
    height, width = spec.size_px
    with torch.inference_mode():
        seen = network.encode(torch.zeros(1, len(spec.mean), height, width))  # type: ignore[operator]
    question = {
        **{name: one.clone() for name, one in seen._asdict().items()},
        "points": torch.zeros(1, prompt.slots, 2),
        "labels": torch.ones(1, prompt.slots),
        "mask": torch.zeros(1, 1, height // stride, width // stride),
        "has_mask": torch.zeros(1, 1),
    }
    assert tuple(question)[-len(QUESTION) :] == QUESTION
    return PromptParts(
        encoder=DeployGraph(EncoderModule(network), spec).eval(),
        picture={INPUT: torch.zeros(1, height, width, spec.channels, dtype=torch.uint8)},
        decoder=DecoderModule(network, type(seen)).eval(),
        question=question,
        features=seen._fields,
    )


def _write_part(
    job: Job, module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...], path: Path
) -> None:
    """Writes one of the two graphs in the job's format; its ends are those of the module in torch."""
    half = job.precision == "fp16"
    onnx_path = job.scratch / f"{path.stem}.onnx" if job.target == "openvino" else path
    model = traced_model(module, inputs, outputs, onnx_path)
    with torch.inference_mode():
        given = dict(zip(outputs, module(*inputs.values()), strict=True))
    ends: Ends = {
        name: (TensorProto.UINT8 if one.dtype == torch.uint8 else TensorProto.FLOAT, list(one.shape))
        for name, one in {**inputs, **given}.items()
    }
    if half and job.target == "onnx":
        halve_weights(model)
    check_ends(model, ends)
    if job.target == "tensorrt":
        require_clean(model, TYPED_8 + TYPED_10, name=path.name)
    onnx.save(model, onnx_path)
    if job.target == "openvino":
        from export.graph.openvino_export import write_ir

        write_ir(onnx_path, path, half_weights=half)


def _torch_replies(parts: PromptParts, questions: Questions) -> Replies:
    """What the network itself answers.

    Raises:
        GateError: one answer to every question.
    """

    def encode(picture: np.ndarray) -> Features:
        seen = parts.encoder(torch.from_numpy(picture[None]))
        return {name: one.numpy() for name, one in zip(parts.features, seen, strict=True)}

    def decode(
        features: Features, points: np.ndarray, labels: np.ndarray, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        shape = parts.question["mask"].shape
        logits, iou = parts.decoder(
            *(torch.from_numpy(features[name]) for name in parts.features),
            torch.from_numpy(points),
            torch.from_numpy(labels),
            torch.zeros(shape) if mask is None else torch.from_numpy(mask).view(shape),
            torch.full((1, 1), float(mask is not None)),
        )
        return logits[0].numpy(), iou[0].numpy()

    with torch.inference_mode():
        replies = ask(questions, encode, decode)
    pixels, prompts = replies.logits.std(axis=(-2, -1)).max(), replies.logits.std(axis=1).max()
    if not prompts > _DEAF * pixels:
        raise GateError(
            "the network in torch: its masks must vary with the prompt, they do not; train it again"
        )
    return replies


def _gate_prompts(
    job: Job, files: tuple[Path, Path], questions: Questions, reference: Replies
) -> dict[str, float]:
    """Compares every installed engine with torch; gives the figures for the manifest."""
    figures = {"golden_prompts": float(reference.logits.shape[0] * reference.logits.shape[1])}
    failures = []
    for name in job.engines:  # one that is not installed is named where the automatic model is gated
        with closing(open_prompt_model(name, *files, threads=job.threads)) as model:
            replies = ask(questions, model.encode, model.decode)
        found = check_prompt_parity(replies, reference, job.parent.output, job.parent.input.size_px)
        log(f"prompts in {name}: {fixed_percent(found.parity.mean_share)} of pixels differ from torch")
        figures[f"{name}_prompts_mean_share"] = found.parity.mean_share
        figures[f"{name}_prompts_worst_share"] = found.parity.worst_share
        figures[f"{name}_prompts_iou_change"] = found.iou_change
        failures += [
            f"{name} against torch on golden prompts: {one}"
            for one in found.failures(PROMPT_LIMITS[job.precision])
        ]
    if failures:
        raise GateError("; ".join(failures))
    return figures
