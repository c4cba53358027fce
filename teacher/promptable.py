"""SAM 2 that is asked with prompts, and asks itself where no human does: the network of the promptable systems.

Automatic form: the prompts are buffers, one question a class, which come from the mean training mask of each class.
`ask_with_masks` takes the prompts from masks that another model predicted, such as an earlier student.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.loader import check_classes
from segcore.learn.network import normalise_pictures
from segcore.picture.preprocess import output_spec
from segcore.picture.prompts import PADDING, PromptSpec
from teacher.encoder import build_image_model, load_for_system
from teacher.prompts.mean_mask import automatic_prompts, mean_masks
from teacher.sam2_model import MASKS, Answers, AnyEmbedding, ImageModel, PromptKind, map_features
from teacher.settings import AutomaticPrompt, EncoderName, TeacherSettings
from teacher.system import Loss, System, Task
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.tune import Tuning, adapted_encoder, plain_encoder, tune_encoder, tuning_of

SLOTS = 10
"""Points a question: a box and eight points."""
NECK = ("image_encoder.neck", "no_mem_embed")
"""What stands between encoder and decoder; frozen but with `--tune all`."""
Candidates = Literal["single", "three", "all"]
"""What a system answers with. single: SAM 2's single-mask answer. three: the others, of which the best by estimated IoU
counts. all: those four, of which a clear prompt takes the first and a single point the best of the others."""


class PromptedSam2(nn.Module):
    """SAM 2 with prompts of its own for each class: N×3×H×W normalised → logits N×K'×H/s×W/s.

    s is SAM's `stride`, 4 for SAM 2 and 1 for LiteMedSAM.
    K' is 1 for one class (its answer) and K+1 for several: the background's logit is 0, the others are the answers.

    Attributes:
        sam: its parts have the names of Meta's files.
        points: K×P×2, (x, y) in the input's pixels.
        labels: K×P, as `segcore.picture.prompts` numbers them.
    """

    points: Tensor
    labels: Tensor

    def __init__(self, sam: ImageModel, *, classes: int, slots: int, candidates: Candidates) -> None:
        super().__init__()
        self.sam, self.candidates = sam, candidates
        self.register_buffer("points", torch.zeros(classes, slots, 2))
        self.register_buffer("labels", torch.full((classes, slots), float(PADDING)))

    def encode(self, x: Tensor) -> AnyEmbedding:
        """N×3×H×W normalised → features."""
        return self.sam.encode(x)

    def decode(
        self,
        embedding: AnyEmbedding,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> Answers:
        """The system's candidates for one prompt a picture; see `Sam2ImageModel.decode`."""
        logits, iou = self.sam.decode(embedding, points, labels, mask, has_mask)
        kept = {"single": slice(1), "three": slice(1, None), "all": slice(None)}[self.candidates]
        return Answers(logits[:, kept], iou[:, kept])

    @property
    def slots(self) -> int | None:
        """Points a question, padded, as the network is trained; None for SAM 2 as it is, which was trained without."""
        return None if self.candidates == "all" else SLOTS

    @property
    def mends(self) -> bool:
        """Whether the last answer is part of the next question, as it was while the network was trained."""
        return self.candidates == "three" or (self.candidates == "all" and "mask" in self.sam.prompts)

    def answer(
        self, embedding: AnyEmbedding, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """As `decode`, the one candidate that counts: logits N×H/s×W/s."""
        found = self.decode(embedding, points, labels, mask)
        if self.candidates == "three":
            return best(found)
        single = found.logits[:, 0]
        if self.candidates == "single" or mask is not None:
            return single
        # Of all candidates: a single point can mean a thing or its part, a box or several points are clear.
        clear = (labels != PADDING).sum(1) > 1  # N
        return torch.where(clear[:, None, None], single, best(Answers(found.logits[:, 1:], found.iou[:, 1:])))

    def answers(self, embedding: AnyEmbedding, points: Tensor, labels: Tensor) -> Tensor:
        """Asks for every class.

        Args:
            embedding: of N pictures.
            points: N×K×P×2.
            labels: N×K×P.

        Returns:
            Logits N×K×H/s×W/s.
        """
        pictures, classes = labels.shape[:2]
        if classes > 1:  # each picture's features, once a question
            embedding = map_features(
                embedding, lambda f: f[:, None].expand(-1, classes, -1, -1, -1).flatten(0, 1)
            )
        found = self.answer(embedding, points.flatten(0, 1), labels.flatten(0, 1))
        return found.unflatten(0, (pictures, classes))

    def ask(self, x: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """The automatic form with prompts of each picture's own: N×3×H×W, N×K×P×2 and N×K×P → N×K'×H/s×W/s."""
        return compete(self.answers(self.encode(x), points, labels))

    def forward(self, x: Tensor) -> Tensor:
        pictures = x.shape[0]
        points = self.points.expand(pictures, -1, -1, -1)
        return self.ask(x, points, self.labels.expand(pictures, -1, -1))


def best(answers: Answers) -> Tensor:
    """The logits N×h×w of the candidate with the highest estimated IoU."""
    place = answers.iou.argmax(1)[:, None, None, None].expand(-1, 1, *answers.logits.shape[2:])
    return answers.logits.gather(1, place)[:, 0]


def compete(logits: Tensor) -> Tensor:
    """Answers to K questions, N×K×h×w, as a segmentation's logits: as they are for one class, else after a 0."""
    if logits.shape[1] == 1:
        return logits
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)


class PromptableParts(NamedTuple):
    """What a promptable system is made of before it says what else is trained.

    Attributes:
        network: with its weights and prompts; its encoder is tuned as `tuning` says, all else is frozen.
        tuning: of the encoder.
        means: the mean training masks, K×H×W.
        pretrained: where the weights came from.
        settings: for `open_promptable`.
    """

    network: PromptedSam2
    tuning: Tuning
    means: Tensor
    pretrained: str
    settings: dict[str, Any]


def prepare_promptable(
    settings: TeacherSettings, task: Task, *, candidates: Candidates, frozen: Sequence[str]
) -> PromptableParts:
    """Builds the network, loads its weights, and gives it the prompts of the mean training masks.

    Args:
        settings: the flags.
        task: classes, input and training cases.
        candidates: what it answers with.
        frozen: parts of SAM 2 beside the encoder that are left as they are, so that weights must hold them.

    Raises:
        InputError: unusable weights, or a class that no training mask holds.
    """
    means = mean_masks(task.cases, len(task.classes), task.spec.size_px)
    check_classes(means.flatten(1).any(1).tolist(), task.classes, len(task.cases), settings)
    sam = build_image_model(settings.encoder_name, task.spec.height_px)
    pretrained = load_for_system(sam, settings, frozen=frozen)
    network = PromptedSam2(sam, classes=len(task.classes), slots=SLOTS, candidates=candidates)
    points, labels = automatic_prompts(means, settings.automatic_prompt, settings.points, network.slots)
    network.points, network.labels = points, labels
    tuning = tuning_of(settings)
    network.requires_grad_(False)
    sam.train_encoder(tuning.kind == "all")
    sam.image_encoder.trunk = tune_encoder(sam.image_encoder.trunk, tuning)
    kept = {"encoder": settings.encoder_name, "slots": labels.shape[1], **tuning.adapter_settings}
    return PromptableParts(network, tuning, means, pretrained, kept)


def train_decoder(network: PromptedSam2, *, candidates: bool) -> None:
    """Makes the mask decoder trainable, but for what the loss does not reach; in place.

    Args:
        network: from `prepare_promptable`.
        candidates: whether the loss reaches all answers and their estimated IoU, or the single-mask answer alone.
    """
    decoder = network.sam.sam_mask_decoder
    decoder.requires_grad_(True)
    if decoder.pred_obj_scores:  # SAM 2's, whether the object is in the picture: it always is
        decoder.pred_obj_score_head.requires_grad_(False)
    if not candidates:
        decoder.iou_prediction_head.requires_grad_(False)
        for head in decoder.output_hypernetworks_mlps[1:]:
            head.requires_grad_(False)


def train_prompt_encoder(network: PromptedSam2, *, masks: bool) -> None:
    """Makes the prompt encoder trainable; in place.

    Args:
        network: from `prepare_promptable`.
        masks: whether masks are among the prompts while training.
    """
    encoder = network.sam.sam_prompt_encoder
    encoder.requires_grad_(True)
    encoder.mask_downscaling.requires_grad_(masks)


def promptable_system(
    parts: PromptableParts,
    settings: TeacherSettings,
    task: Task,
    *,
    trained: nn.Module,
    loss: Loss,
    name: str,
    prompt: PromptSpec,
    thresholds: tuple[float, float] = (0.05, 0.95),
) -> System:
    """A teacher whose bundle is the automatic form.

    Args:
        parts: from `prepare_promptable`.
        settings: the flags.
        task: as it was given there.
        trained: a module that trains `parts.network` as its `model`.
        loss: of `trained`; see `System`.
        name: for tables.
        prompt: from `prompt_spec`.
        thresholds: see `System`.
    """
    return System(
        network=trained,
        output=output_spec(task.classes, stride=parts.network.sam.stride),
        loss=loss,
        view=_automatic_form,
        plain=partial(_plain_form, tuning=parts.tuning),
        settings=parts.settings,
        title=f"{name} {settings.encoder_name}",
        pretrained=parts.pretrained,
        encoder=parts.network.sam.image_encoder.trunk,
        prompt=prompt,
        thresholds=thresholds,
        save_adapters=partial(save_adapters, parts.network.sam.image_encoder.trunk, parts.tuning),
    )


def prompt_spec(kinds: tuple[PromptKind, ...], candidates: Candidates, *, slots: int = SLOTS) -> PromptSpec:
    """What a bundle's manifest says of how it can be asked."""
    masks = {"single": 1, "three": MASKS - 1, "all": MASKS}[candidates]
    single = candidates != "three"
    return PromptSpec(kinds=kinds, slots=slots, masks=masks, single=single, mask_input="mask" in kinds)


def open_promptable(manifest: Manifest, *, candidates: Candidates) -> PromptedSam2:
    """The plain form of a bundle, with random weights and prompts."""
    settings = manifest.architecture_settings
    size: EncoderName = settings["encoder"]
    sam = build_image_model(size, manifest.input.height_px)
    sam.image_encoder.trunk = adapted_encoder(sam.image_encoder.trunk, settings)
    return PromptedSam2(sam, classes=len(manifest.classes), slots=settings["slots"], candidates=candidates)


def ask_with_masks(network: nn.Module, manifest: Manifest, pictures: Tensor, masks: Tensor) -> Tensor:
    """Asks a promptable teacher for every class, with points or a box of a mask of each picture.

    The prompts are of the kind that the teacher was trained to ask itself with. A class that a mask does not hold is
    asked for as in the automatic form, with the prompts of the mean training mask: the model may have missed it.

    Args:
        network: a `PromptedSam2` from a bundle.
        manifest: the bundle's.
        pictures: N×H×W×C uint8, on the network's device.
        masks: N×H×W class indices.

    Returns:
        Logits N×K'×h×w, as in the automatic form.
    """
    assert isinstance(network, PromptedSam2)
    points, labels = mask_prompts(network, masks, manifest.settings["prompt"], manifest.settings["points"])
    return network.ask(normalise_pictures(pictures, manifest.input), points, labels)


def mask_prompts(
    network: PromptedSam2, masks: Tensor, kind: AutomaticPrompt, count: int
) -> tuple[Tensor, Tensor]:
    """Prompts N×K×P×2 and their labels N×K×P for N masks of class indices; see `ask_with_masks`."""
    classes = len(network.points)
    points = network.points.repeat(len(masks), 1, 1, 1)
    labels = network.labels.repeat(len(masks), 1, 1)
    for n, mask in enumerate(masks):
        for k in range(classes):
            found = mask == k + 1
            if bool(found.any()):
                of_one = automatic_prompts(found[None].float(), kind, count, points.shape[2])
                points[n, k], labels[n, k] = of_one[0][0], of_one[1][0]
    return points, labels


def _automatic_form(trained: nn.Module) -> nn.Module:
    return trained.get_submodule("model")


def _plain_form(trained: nn.Module, tuning: Tuning) -> nn.Module:
    """The automatic form with updates merged into the encoder's weights; in place."""
    network = _automatic_form(trained)
    encoder = network.sam.image_encoder  # type: ignore[union-attr]
    encoder.trunk = plain_encoder(encoder.trunk, tuning)  # type: ignore[union-attr,arg-type]
    return network
