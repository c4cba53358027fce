"""Quantisation-aware fine-tuning: a student trains on, briefly, with the rounding of INT8 in its forward pass.

`finetune` is the training, `fake_quantise` makes the network that it trains. What comes out is a plain FP32 student of
the same design, whose weights tolerate INT8; it is calibrated and quantised like any other. The ranges learnt here are
not exported: for every student that INT8 could use in the end, calibration found ranges as good, to 0.01 points of Dice
(docs/int8.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, fx, nn

from export.int8.equalise import equalise
from export.int8.traced import (
    WEIGHTED,
    fold_norms,
    is_add,
    is_concat,
    is_copy,
    layer_of,
    norms_behind_convolutions,
    trace,
)
from export.job import Finetuning
from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import Manifest
from segcore.command import log
from segcore.dataset.dataset import Dataset, check_bundle_agreement, open_dataset, tested_among
from segcore.errors import InputError
from segcore.learn.augment import Augmentation, Sample
from segcore.learn.evaluate import Validator
from segcore.learn.loader import TrainingSet, choose_cases
from segcore.learn.loop import Epoch, fit, open_accelerator
from segcore.learn.network import normalise_pictures
from segcore.picture.preprocess import InputSpec
from student.distill import DistillSettings, loss_function, open_fitting_labels
from student.live_teacher import open_live_teacher
from student.network import Student, load_student

_RANGE_CASES, _RANGE_BATCH = 64, 8
_FOLLOWED = 0.5
"""Share of the steps in which ranges follow the activations; in the rest the weights settle on frozen ones."""
_OF_THE_STUDENT = (
    "alpha",
    "temperature",
    "dice_weight",
    "augment",
    "flip",
    "batch_size",
    "class_weight",
    "small_lesion_weight",
    "labelled_share",
    "limit",
)
_DECAY = 0.99
"""What remains of a range's maximum from one batch to the next that does not reach it."""
_SMALLEST = 1e-8
"""Of a range: a tensor of zeros has a scale too."""


@dataclass(frozen=True)
class TunedStudent:
    """What quantisation-aware fine-tuning made, and the validation Dice on its way.

    Attributes:
        network: plain, FP32, in eval mode; batch norms folded into the convolutions.
        levelled: whether its channels' ranges were levelled before training (`export.int8.equalise`).
        dice_float: of the source, without rounding.
        dice_before: under fake quantisation, before training.
        epochs: of the training; `dice_val` is under fake quantisation.
        best_epoch: whose weights `network` has; 0 where no epoch was better than none.
        seconds: of the training and its validation.
    """

    network: Student
    levelled: bool
    dice_float: float
    dice_before: float
    epochs: tuple[Epoch, ...]
    best_epoch: int
    seconds: float

    @property
    def dice_after(self) -> float:
        """Of `network`, under fake quantisation."""
        return self.epochs[self.best_epoch - 1].dice_val if self.best_epoch else self.dice_before


def finetune(source: Bundle, plan: Finetuning, *, scratch: Path | None = None) -> TunedStudent:
    """Trains the source's student under fake quantisation, on its own training split and with its own loss.

    Without soft labels the teacher is the source itself, in FP32: it is what the 8-bit student should compute, it sees
    every augmented picture, and it needs no files of a teacher that may be elsewhere.

    Args:
        source: a student in torch format.
        plan: the data, and how long.
        scratch: folder for its checkpoints; by default one of the system's.

    Raises:
        InputError: not such a bundle, or data or soft labels that do not fit it.
    """
    manifest = source.manifest
    original = load_student(source)
    seed_of_split = manifest.data.split_seed if plan.split_seed is None else plan.split_seed
    dataset = _open_training_data(plan.data, source, seed_of_split)
    labels = open_fitting_labels(plan.soft, dataset) if plan.soft else None
    with TemporaryDirectory(prefix="sam2edge-qat-", dir=scratch) as folder:
        settings = _training_settings(manifest, plan, seed_of_split, Path(folder))
        cases, held = choose_cases(dataset, settings)
        spec, classes = manifest.input, len(manifest.classes)
        augment = Augmentation(settings.transforms(spec.channels), with_soft=labels is not None)
        pictures = TrainingSet(cases, spec, classes=classes, seed=plan.seed, augment=augment, soft=labels)
        if weighing := settings.weighing(manifest.classes):
            pictures.weigh(manifest.classes, weighing)
        validator = Validator(held, spec, manifest.output, classes, batch=settings.batch_size)
        accelerator = open_accelerator(settings)
        device = accelerator.device

        dice_float = validator.dice(original.to(device))
        starts = [
            _prepare_start(original, pictures, validator, levelled=way)
            for way in (False, True)[: 1 + plan.level]
        ]
        start = max(starts, key=lambda one: one.dice)  # the first, where they are equal
        graph = start.graph
        # The graph shares the network's weights: without a copy the training would change both.
        before = {name: value.clone() for name, value in graph.state_dict().items()}
        log(
            f"fine-tuning for INT8: {len(cases)} training and {len(held)} validation images, "
            f"{'soft labels' if labels else 'taught by its own FP32'}"
            f"{', channels levelled' if start.levelled else ''}; "
            f"val Dice {dice_float:.4f}, {start.dice:.4f} with rounding; {device}"
        )
        ask = None if labels else open_live_teacher(source, device)
        learn = loss_function(settings, spec, ask, device)
        step, steps = count(), plan.epochs * max(1, len(cases) // settings.batch_size)

        def loss(network: nn.Module, batch: Sample) -> Tensor:
            follow_ranges(graph, next(step) < _FOLLOWED * steps)
            return learn(network, batch)

        started = time.perf_counter()
        history = fit(
            graph,
            pictures,
            loss_of=loss,
            validate=validator.dice,
            settings=settings,
            folder=Path(folder),
            accelerator=accelerator,
        )
        seconds = time.perf_counter() - started
    best = max(history, key=lambda epoch: epoch.dice_val)
    better = best.dice_val > start.dice
    if not better:
        graph.load_state_dict(before)
        log(f"no epoch was better than none ({start.dice:.4f}): the weights stay as they were")
    network = start.network.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    number = best.epoch if better else 0
    return TunedStudent(
        network.eval(), start.levelled, dice_float, start.dice, tuple(history), number, seconds
    )


@dataclass(frozen=True)
class _Start:
    """Where training may start: `graph` is `network` under fake quantisation, `dice` what it scores."""

    network: Student
    graph: fx.GraphModule
    levelled: bool
    dice: float


def _prepare_start(
    original: Student, pictures: TrainingSet, validator: Validator, *, levelled: bool
) -> _Start:
    device = next(original.parameters()).device
    network = (equalise if levelled else fold_norms)(original)
    graph = fake_quantise(network)
    observe_ranges(graph, _plain_batches(pictures, validator.spec, device))
    return _Start(network, graph, levelled, validator.dice(graph))


def _open_training_data(data: str, source: Bundle, split_seed: int) -> Dataset:
    trained_on = source.manifest.data
    dataset = open_dataset(data, seed=split_seed, fold=trained_on.fold)
    check_bundle_agreement(f"bundle {source.folder}", source.manifest, dataset)
    if dataset.sha256 != trained_on.sha256 and (seen := tested_among(dataset.split("train"), trained_on)):
        raise InputError(
            f"--data {data}: must train on other images than the model is tested on, got {len(seen)} of them "
            f"({seen[0]}); name data without the test images"
        )
    if not dataset.split("val"):
        raise InputError(
            f"--data {data}: must have validation cases to choose the best epoch with, has none; use data with more"
        )
    return dataset


def _training_settings(
    manifest: Manifest, plan: Finetuning, split_seed: int, folder: Path
) -> DistillSettings:
    """The student's own loss, augmentation and share of masks; a short training from where it ended."""
    own = {name: manifest.settings[name] for name in _OF_THE_STUDENT if name in manifest.settings}
    own.setdefault("augment", "film")  # what students were trained with before there was a choice
    fixed = {"amp": "fp32", "warmup_epochs": 0.1, "weight_decay": 0.0}  # 8-bit steps are finer than bf16's
    asked = {"data": plan.data, "epochs": plan.epochs, "seed": plan.seed, "lr": plan.lr}
    return DistillSettings.model_validate({**own, **fixed, **asked, "split_seed": split_seed, "out": folder})


def _plain_batches(pictures: TrainingSet, spec: InputSpec, device: torch.device) -> Iterator[Tensor]:
    """Some training pictures as they are, normalised: what calibration sees too."""
    chosen = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), _RANGE_CASES)).astype(int))
    for start in range(0, len(chosen), _RANGE_BATCH):
        batch = torch.from_numpy(pictures.images[chosen[start : start + _RANGE_BATCH]]).to(device)
        yield normalise_pictures(batch, spec)


# The network under fake quantisation: it computes as INT8 will, rounding where both of our quantisers round.
#
# * every input of a convolution, per tensor, int8 with zero point 0; nothing between a convolution and its ReLU;
# * of a sum, the skip alone: the convolution's side is added before it is rounded;
# * one scale around a Concat, and around what only copies numbers (max-pooling, nearest upsampling, pixel shuffles);
# * weights per output channel, those of a transposed convolution per tensor (TensorRT's versions disagree on its axis);
# * biases, and the head's output, in float.
#
# NNCF rounds the other side of a sum too, and has twice the steps where nothing is negative; TensorRT's graph leaves
# layers of very few channels in float. The guard measures what each of them makes of the result.
#
# Rounding has no gradient; torch's own operators pass it straight through within the range.
#
# Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
# CVPR 2018; Bengio et al., 2013, for the straight-through gradient.


def fake_quantise(network: Student) -> fx.GraphModule:
    """The network with fake quantisation, whose ranges `observe_ranges` must find before it is of use.

    It shares the network's convolutions: to train it is to train them.

    Args:
        network: from `export.int8.traced.fold_norms`; its batch norms, then identities, are left out.
    """
    graph = trace(network)
    for node, _ in norms_behind_convolutions(graph):
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.graph.erase_node(node)
    shared = _shared_scales(graph)
    quantisers: dict[fx.Node, str] = {}  # of each group of nodes, by one of them
    made: dict[fx.Node, fx.Node] = {}  # a tensor is rounded once, however many read it

    def round_input(user: fx.Node, source: fx.Node) -> None:
        group = shared[source]
        if group not in quantisers:
            quantisers[group] = f"quantise_{group.name}"
            graph.add_submodule(quantisers[group], FakeQuantiser())
        if source not in made:
            with graph.graph.inserting_after(source):
                made[source] = graph.graph.call_module(quantisers[group], (source,))
        user.replace_input_with(source, made[source])

    for node in list(graph.graph.nodes):  # a copy: quantisers are inserted on the way
        layer = layer_of(graph, node)
        if isinstance(layer, WEIGHTED):
            round_input(node, node.all_input_nodes[0])
            graph.add_submodule(str(node.target), FakeQuantisedWeights(layer))
        elif is_add(node):
            round_input(node, _skip_of(graph, node))
    graph.graph.lint()
    graph.delete_all_unused_submodules()  # the batch norms
    graph.recompile()
    return graph


class FakeQuantiser(nn.Module):
    """Rounds a tensor to 255 steps of its own range, ± a moving maximum of |x| over the training batches."""

    amax: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("amax", torch.zeros(()))
        self.follows = False
        """In training mode, whether the range follows the activations; else it is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.follows:
            with torch.no_grad():
                self.amax.copy_(torch.maximum(_DECAY * self.amax, x.abs().amax()))
        scale = self.amax.clamp(min=_SMALLEST) / 127
        zero = torch.zeros((), dtype=torch.int32, device=x.device)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


class FakeQuantisedWeights(nn.Module):
    """A convolution that computes with rounded weights; the layer itself keeps, and learns, the float ones."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        rounded = {"weight": round_weight(self.layer)}
        return torch.func.functional_call(self.layer, rounded, (x,))  # type: ignore[no-any-return]


def round_weight(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The layer's weights, rounded to 255 steps between ± their largest: of each output channel, or of all."""
    weight = layer.weight
    if isinstance(layer, nn.ConvTranspose2d):
        scale = weight.detach().abs().amax().clamp(min=_SMALLEST) / 127
        zero = torch.zeros((), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -127, 127)
    scale = weight.detach().abs().amax(dim=(1, 2, 3)).clamp(min=_SMALLEST) / 127
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -127, 127)


def observe_ranges(graph: fx.GraphModule, batches: Iterable[Tensor]) -> None:
    """Finds the ranges of the activations: what calibration is to post-training quantisation.

    Args:
        graph: from `fake_quantise`; left in eval mode, its ranges frozen.
        batches: normalised pictures, N×C×H×W each.
    """
    follow_ranges(graph, True)
    graph.train()
    with torch.no_grad():
        for batch in batches:
            graph(batch)
    graph.eval()
    follow_ranges(graph, False)


def follow_ranges(graph: fx.GraphModule, follow: bool) -> None:
    """Whether ranges follow the activations of what is trained, or are frozen."""
    for layer in graph.modules():
        if isinstance(layer, FakeQuantiser):
            layer.follows = follow


def _shared_scales(graph: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Node → the node that stands for all whose tensors must have one scale."""
    group = {node: node for node in graph.graph.nodes}

    def join(a: fx.Node, b: fx.Node) -> None:
        a, b = group[a], group[b]
        if a is not b:
            group.update({node: a for node, of in group.items() if of is b})

    for node in graph.graph.nodes:
        if is_concat(node) or is_copy(graph, node):
            for source in node.all_input_nodes:
                join(source, node)
    return group


def _skip_of(graph: fx.GraphModule, add: fx.Node) -> fx.Node:
    """The input of a sum that is not straight from a convolution; the second where both or neither are."""
    first, second = add.all_input_nodes
    return first if _from_convolution(graph, second) and not _from_convolution(graph, first) else second


def _from_convolution(graph: fx.GraphModule, node: fx.Node) -> bool:
    layer = layer_of(graph, node)
    if isinstance(layer, (*WEIGHTED, FakeQuantisedWeights)):
        return True
    return (isinstance(layer, nn.Upsample) or is_copy(graph, node)) and _from_convolution(
        graph, node.all_input_nodes[0]
    )
