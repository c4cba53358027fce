"""Trains a LightUNet, from a teacher's soft labels where there are any.

`python -m student.distill --data D [--soft S | --teacher T] --out O`; without a teacher it is plain training, the
control of every claim about distillation. The loss is the paper's plus Dice:

    L = α·CE(y, student) + Dice(y, student) + (1−α)·T²·KL(σ(teacher/T) ‖ σ(student/T))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from segcore.agreement import check_agreement
from segcore.bundle import Bundle, open_bundle
from segcore.command import log, print_result, run_command
from segcore.dataset import Dataset, open_dataset
from segcore.errors import InputError
from segcore.host import Made
from segcore.learn.settings import TrainSettings
from segcore.outfolder import out_folder
from segcore.soft_labels import SoftLabels, open_soft_labels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from segcore.learn.augment import Sample
    from segcore.preprocess import InputSpec


class DistillSettings(TrainSettings):
    """Train a student, with the help of a teacher or without."""

    soft: Path | None = None
    """Soft labels that teacher.label wrote; the quick way."""
    teacher: Path | None = None
    """A teacher bundle to run in every step; slow, but it sees each augmented image itself."""
    base: int = Field(8, ge=4)
    """Channels at full resolution: 8 is LightUNet (0.49 M parameters), 64 the classic U-Net."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of the true masks' cross-entropy; the rest is the teacher's."""
    temperature: float = Field(2.0, gt=0)
    """Softens both distributions."""
    dice_weight: float = Field(1.0, ge=0)
    """Weight of the Dice loss on the true masks."""


def main(settings: DistillSettings) -> None:
    """Runs the stage; see the module."""
    if settings.soft and settings.teacher:
        raise InputError("--soft, --teacher: must be one of the two, got both; soft labels are the quick way")
    dataset = open_dataset(settings.data, seed=settings.split_seed)
    soft = open_soft_labels(settings.soft) if settings.soft else None
    teacher = open_bundle(settings.teacher) if settings.teacher else None
    _check_match(dataset, soft, teacher)
    teacher_sha256 = soft.record.teacher if soft else teacher.sha256 if teacher else None
    recipe = {**settings.recipe(), "data_sha256": dataset.sha256, "teacher_sha256": teacher_sha256}
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        dice, parameters = _train(settings, dataset, soft, teacher, teacher_sha256, folder)
    log(f"wrote {settings.out}")
    print_result(bundle=str(settings.out), dice_val=dice, parameters=parameters)


def _train(
    settings: DistillSettings,
    dataset: Dataset,
    soft: SoftLabels | None,
    teacher: Bundle | None,
    teacher_sha256: str | None,
    folder: Path,
) -> tuple[float, int]:
    import torch

    from segcore.learn.augment import Augmentation
    from segcore.learn.evaluate import Validator
    from segcore.learn.loader import TrainingSet, training_input
    from segcore.learn.loop import fit, open_accelerator
    from segcore.learn.seal import seal_trained
    from segcore.preprocess import output_spec
    from student.network import GREY_MEAN_STD, RGB_MEAN_STD, build_unet

    cases = dataset.split("train", limit=settings.limit)
    if soft or teacher:
        cases += tuple(c for c in dataset.unlabelled if teacher or (soft and c.id in soft))
    held = dataset.split("val", limit=settings.limit and max(1, settings.limit // 3))
    size = (settings.size, settings.size)
    spec = training_input(cases, size, {1: GREY_MEAN_STD, 3: RGB_MEAN_STD})
    output = output_spec(dataset.classes, stride=1)
    augment = Augmentation(size, with_soft=soft is not None, flip=settings.flip)
    data = TrainingSet(
        cases, spec, classes=len(dataset.classes), seed=settings.seed, augment=augment, soft=soft
    )
    validator = Validator(held, spec, output, len(dataset.classes), batch=settings.batch_size)
    torch.manual_seed(settings.seed)
    network = build_unet(channels=spec.channels, outputs=output.channels, base=settings.base)
    parameters = sum(p.numel() for p in network.parameters())
    accelerator = open_accelerator(settings)
    help_from = "soft labels" if soft else "a live teacher" if teacher else "no teacher"
    log(
        f"U-Net base {settings.base}: {parameters:,} parameters; {len(cases)} training and "
        f"{len(held)} validation images; {help_from}; {accelerator.device}"
    )
    fit(
        network,
        data,
        loss_of=_loss(settings, spec, teacher, accelerator.device),
        validate=validator.dice,
        settings=settings,
        folder=folder,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        manifest = seal_trained(
            folder,
            network,
            kind="student",
            architecture="unet",
            architecture_settings={"base": settings.base},
            name=_name(
                settings, soft.record.teacher_name if soft else teacher.manifest.name if teacher else None
            ),
            pretrained="no pretrained weights",
            trained_parameters=parameters,
            dataset=dataset,
            validator=validator,
            settings=settings,
            teacher=teacher_sha256,
            lineage=_lineage(soft, teacher),
        )
        dice = manifest.metric("dice_mean", "val") or 0.0
    else:
        dice = 0.0
    accelerator.wait_for_everyone()
    return dice, parameters


def _loss(
    settings: DistillSettings, spec: InputSpec, teacher: Bundle | None, device: torch.device
) -> Callable[[nn.Module, Sample], Tensor]:

    from segcore.learn.deploy import normaliser
    from segcore.learn.losses import cross_entropy, dice_loss, distillation_loss

    normalised = normaliser(spec, device)
    ask = _live_teacher(teacher, device) if teacher else None

    def loss(network: nn.Module, batch: Sample) -> Tensor:
        logits = network(normalised(batch["image"]))
        target, labelled = batch["mask"], batch["labelled"]
        truth = settings.dice_weight * dice_loss(logits, target, labelled)
        soft = ask(batch["image"]) if ask else batch.get("soft")
        if soft is None:
            return truth + cross_entropy(logits, target, labelled)
        truth = truth + settings.alpha * cross_entropy(logits, target, labelled)
        return truth + (1 - settings.alpha) * distillation_loss(logits, soft, settings.temperature)

    return loss


def _live_teacher(bundle: Bundle, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from images N×C×H×W, 0–1, to the teacher's logits at the images' size."""
    import torch
    import torch.nn.functional as F

    from segcore.learn.deploy import normaliser
    from teacher.network import load_teacher

    spec = bundle.manifest.input
    network = load_teacher(bundle).to(device)
    normalised = normaliser(spec, device)

    def ask(image: Tensor) -> Tensor:
        with torch.no_grad():
            resized = F.interpolate(image, spec.size_px, mode="bilinear", antialias=True, align_corners=False)
            logits = network(normalised(resized)).float()
            return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)

    return ask


def _name(settings: DistillSettings, teacher_name: str | None) -> str:
    """For tables: what it is, whose pupil, and whether it saw only some of the images."""
    name = f"{'LightUNet' if settings.base <= 8 else 'U-Net'} {settings.base}"
    name += f" from {teacher_name}" if teacher_name else ""
    return name + (f", {settings.limit} images" if settings.limit else "")


def _lineage(soft: SoftLabels | None, teacher: Bundle | None) -> tuple[Made, ...]:
    if soft:
        return (*soft.record.lineage, soft.record.made)
    return (*teacher.manifest.lineage, teacher.manifest.made) if teacher else ()


def _check_match(dataset: Dataset, soft: SoftLabels | None, teacher: Bundle | None) -> None:
    if soft:
        check_agreement(
            f"--soft {soft.folder}",
            classes=soft.record.classes,
            data_sha256=soft.record.data_sha256,
            split_sha256=soft.record.split_sha256,
            dataset=dataset,
        )
    if teacher:
        check_agreement(
            f"--teacher {teacher.folder}",
            classes=teacher.manifest.classes,
            data_sha256=teacher.manifest.data.sha256,
            split_sha256=teacher.manifest.data.split_sha256,
            dataset=dataset,
        )


if __name__ == "__main__":
    run_command(main, DistillSettings, "python -m student.distill")
