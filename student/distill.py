"""Trains a student, from a teacher's soft labels where there are any.

`python -m student.distill --data D [--soft S | --teacher T] --out O`; without a teacher it is plain training, the
control of every claim about distillation. With one, every batch holds pictures with and without masks by a ratio, and
each picture has one target, mixed of its mask and the teacher's answer (`segcore.learn.losses.taught_loss`):

    L = a·CE(y, student) + (1−a)·T²·KL(σ(teacher/T) ‖ σ(student/T)) + Dice(a·y + (1−a)·σ(teacher), student)

with a = α where there is a mask y, else 0. docs/results.md has what the defaults rest on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from segcore.bundle.folder import Bundle, open_and_tell
from segcore.command import log, print_result, run_command
from segcore.dataset.dataset import Dataset, check_agreement, check_bundle_agreement, open_dataset
from segcore.dataset.soft_labels import SoftLabels, open_soft_labels
from segcore.errors import InputError, reading
from segcore.host import Made
from segcore.learn.settings import TrainSettings
from segcore.outfolder import out_folder, scratch_beside, write_text
from student.design import check_size, find_design, title_of

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from segcore.dataset.case import Case
    from segcore.learn.augment import Sample
    from segcore.learn.evaluate import Validator
    from segcore.learn.loop import Epoch
    from segcore.picture.preprocess import InputSpec
    from student.design import Design
    from student.network import Student


DEFAULT_STEPS, DEFAULT_EPOCHS = 5000, 50
CHECK = "teacher-check.json"


class DistillSettings(TrainSettings):
    """Train a student, with the help of a teacher or without."""

    soft: Path | None = None
    """Soft labels that teacher.label wrote; the quick way."""
    teacher: Path | None = None
    """A teacher bundle to run in every step; slow, but it sees each augmented image itself."""
    design: str | dict[str, Any] = "base"
    """nano, small, base, lightunet, unet16, unet64, or a YAML file that student.search wrote."""
    steps: int | None = Field(None, ge=1)
    """Steps of the optimiser in all, however many images there are, in the place of passes; rounded up to equally many
    an epoch. By default 5000 in 50 epochs where neither --epochs nor --passes is given: a student learns long from a
    teacher."""
    lr: float = Field(3e-3, gt=0)
    """Highest learning rate of AdamW; it warms up linearly and falls along a cosine to 1 % of it."""
    batch_labelled: float = Field(0.25, gt=0, lt=1)
    """With a teacher, share of each batch that has masks, where some images have none."""
    alpha: float = Field(0.5, ge=0, le=1)
    """With a teacher, the mask's share of a labelled image's target; the rest is the teacher's."""
    temperature: float = Field(1.0, gt=0)
    """With a teacher, softens both distributions of the KL term."""
    dice_weight: float = Field(1.0, ge=0)
    """Weight of the Dice loss."""
    teacher_check: bool = True
    """Before the training, compare the teacher with the student alone on the validation cases, and say both figures:
    --baseline's, or those of a short training on the masks alone (a tenth of the steps)."""
    baseline: Path | None = None
    """A student's bundle that was trained without a teacher, for that comparison."""


@dataclass(frozen=True)
class TeacherSource:
    """Where a teacher's answers come from: soft labels, or its bundle, which is run in every step."""

    soft: SoftLabels | None = None
    bundle: Bundle | None = None

    @property
    def sha256(self) -> str:
        """What the student's manifest names as its teacher."""
        return self.soft.record.teacher if self.soft else self.opened.sha256

    @property
    def name(self) -> str:
        """For tables."""
        return self.soft.record.teacher_name if self.soft else self.opened.manifest.name

    @property
    def dice_val(self) -> float | None:
        """Mean Dice on the validation cases; of several teachers the mean; None where the labels do not know it."""
        if self.bundle:
            return self.bundle.manifest.metric("dice_mean", "val")
        known = [t.dice_val for t in self.soft.record.teachers] if self.soft else []
        return sum(d for d in known if d) / len(known) if known and all(known) else None

    @property
    def lineage(self) -> tuple[Made, ...]:
        """How the teacher came to be."""
        if self.soft:
            return (*self.soft.record.lineage, self.soft.record.made)
        return (*self.opened.manifest.lineage, self.opened.manifest.made)

    @property
    def opened(self) -> Bundle:
        """The bundle that is run in every step."""
        assert self.bundle
        return self.bundle


def main(settings: DistillSettings) -> None:
    """Runs the stage; see the module."""
    settings = with_steps(settings)
    settings.check_tracking()
    design = find_design(settings.design)
    check_size(design, settings.size)
    if settings.soft and settings.teacher:
        raise InputError("--soft, --teacher: must be one of the two, got both; soft labels are the quick way")
    dataset = open_dataset(settings.data, seed=settings.split_seed, fold=settings.fold)
    teacher = _open_teacher(settings, dataset)
    baseline = _open_baseline(settings, teacher, dataset)
    recipe = {**settings.recipe(), "data_sha256": dataset.sha256, "teacher_sha256": teacher and teacher.sha256,
              "tta": teacher.soft.record.tta if teacher and teacher.soft else None}  # fmt: skip
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        from segcore.learn.seal import sealed_before

        if sealed := sealed_before(folder):
            dice, parameters = sealed.metric("dice_mean", "val"), sealed.parameters
        else:
            if teacher and teacher.bundle:
                _check_live_window(settings, dataset, teacher)
            if teacher and settings.teacher_check:
                check_teacher(settings, design, dataset, teacher, baseline, folder)
            dice, parameters = _train_student(settings, design, dataset, teacher, folder)
    log(f"wrote {settings.out}")
    print_result(bundle=str(settings.out), dice_val=dice, parameters=parameters)


def with_steps(settings: DistillSettings) -> DistillSettings:
    """The settings with the default number of steps, where no flag says how long to train."""
    if settings.steps is not None or settings.model_fields_set & {"epochs", "passes"}:
        return settings
    return settings.model_copy(update={"steps": DEFAULT_STEPS, "epochs": DEFAULT_EPOCHS})


class _TeacherCheck(BaseModel):
    """What CHECK holds: validation Dice of both, and how the student's came about."""

    student: float | None
    how: str
    teacher: float | None = None


def check_teacher(
    settings: DistillSettings,
    design: Design,
    dataset: Dataset,
    teacher: TeacherSource,
    baseline: Bundle | None,
    folder: Path,
) -> None:
    """Says, before the hours are spent, whether the teacher is better than the student is by itself.

    Both figures are of the validation cases. The student's is the baseline's, or that of a short training on the masks
    alone, a tenth of the steps; what was found stays in OUT, so that a resumed run does not do it again.

    Args:
        settings: of the training.
        design: the student.
        dataset: the data.
        teacher: the teacher.
        baseline: a student without a teacher; None trains one.
        folder: OUT.partial.
    """
    if teacher.dice_val is None:
        log(
            "teacher check: the soft labels do not know the teacher's validation Dice; label anew, or give --teacher"
        )
        return
    if (folder / CHECK).is_file():
        with reading(str(folder / CHECK), "what the teacher check found", remedy="remove it to check again"):
            found = dict(_TeacherCheck.model_validate_json((folder / CHECK).read_bytes()))
    elif baseline:
        found = {"student": baseline.manifest.metric("dice_mean", "val"), "how": f"{settings.baseline}"}
    else:
        found = _train_without(settings, design, dataset, folder)
    if found["student"] is None:
        log(f"teacher check: --baseline {settings.baseline} does not know its validation Dice")
        return
    found["teacher"] = teacher.dice_val
    write_text(folder / CHECK, json.dumps(found, indent=2) + "\n")
    gap = found["teacher"] - found["student"]
    verdict = (
        f"the teacher is {100 * gap:.1f} points better"
        if gap > 0
        else "the teacher is NO better: expect nothing from it; train it longer, take a better one, or omit it"
    )
    log(
        f"teacher check: validation Dice {found['teacher']:.4f} of the teacher, {found['student']:.4f} of the student "
        f"alone ({found['how']}): {verdict}"
    )


def _train_without(
    settings: DistillSettings, design: Design, dataset: Dataset, folder: Path
) -> dict[str, Any]:
    """The short training of `check_teacher`, in a folder beside OUT.partial."""
    started = time.perf_counter()
    labelled = sum(case.labelled for case in dataset.split("train"))
    a_pass = max(1, labelled // settings.batch_size) * settings.passes
    steps = max(1, (settings.steps or settings.epochs * a_pass) // 10)
    short = {
        "steps": steps,
        "epochs": min(4, steps),
        "soft": None,
        "teacher": None,
        "early_stop": 0,
        "log_with": (),
    }
    with scratch_beside(folder) as scratch:
        trained = fit_student(settings.model_copy(update=short), design, dataset, None, scratch)
    took = time.perf_counter() - started
    best = max(epoch.dice_val for epoch in trained.history)
    return {"student": best, "how": f"{steps} steps on the masks alone, {took:.0f} s"}


def _open_teacher(settings: DistillSettings, dataset: Dataset) -> TeacherSource | None:
    if settings.soft:
        return TeacherSource(soft=open_fitting_labels(settings.soft, dataset))
    if settings.teacher is None:
        return None
    bundle = open_and_tell(settings.teacher)
    check_bundle_agreement(f"--teacher {bundle.folder}", bundle.manifest, dataset)
    return TeacherSource(bundle=bundle)


def _open_baseline(
    settings: DistillSettings, teacher: TeacherSource | None, dataset: Dataset
) -> Bundle | None:
    if settings.baseline is None:
        return None
    if teacher is None:
        raise InputError(
            f"--baseline {settings.baseline}: must be given with --soft or --teacher, to compare it with; omit it"
        )
    bundle = open_and_tell(settings.baseline)
    check_bundle_agreement(f"--baseline {bundle.folder}", bundle.manifest, dataset)
    return bundle


@dataclass(frozen=True)
class TrainedStudent:
    """What `fit_student` made.

    Attributes:
        network: with the weights of its best epoch, as it was trained.
        settings: with every value in full, as a bundle holds them.
        title: for tables.
        parameters: of its sealed form.
        validator: of the validation cases.
        history: its epochs.
        accelerator: whose processes trained it.
    """

    network: Student
    settings: DistillSettings
    title: str
    parameters: int
    validator: Validator
    history: list[Epoch]
    accelerator: Accelerator


def fit_student(
    settings: DistillSettings, design: Design, dataset: Dataset, teacher: TeacherSource | None, folder: Path
) -> TrainedStudent:
    """Trains a student in `folder`, where an interrupted training is taken up again."""
    import torch

    from segcore.learn.augment import Augmentation
    from segcore.learn.evaluate import Validator
    from segcore.learn.loader import TrainingSet, check_classes
    from segcore.learn.loop import fit, open_accelerator
    from segcore.picture.preprocess import output_spec
    from student.live_teacher import open_live_teacher
    from student.network import build_student, sealed_form

    soft, live = (teacher.soft, teacher.bundle) if teacher else (None, None)
    weighing = settings.weighing(dataset.classes)
    cases, held = _choose_cases(settings, dataset, teacher)
    spec = _student_input(settings, cases)
    output = output_spec(dataset.classes, stride=design.logits_stride)
    settings = settings.for_channels(spec.channels)
    augment = Augmentation(settings.transforms(spec.channels), with_soft=soft is not None)
    data = TrainingSet(
        cases, spec, classes=len(dataset.classes), seed=settings.seed, augment=augment, soft=soft
    )
    if weighing:
        data.weigh(dataset.classes, weighing)
    if not teacher:  # a teacher shows what no mask does
        check_classes(data.classes_shown, dataset.classes, len(cases), settings)
    validator = Validator(held, spec, output, len(dataset.classes), batch=settings.batch_size)
    torch.manual_seed(settings.seed)
    network = build_student(design, channels=spec.channels, outputs=output.channels)
    parameters = sum(p.numel() for p in sealed_form(network).parameters())
    title = title_of(settings.design, parameters)
    accelerator = open_accelerator(settings)
    device = accelerator.device
    ask = open_live_teacher(live, device) if live else None
    help_from = "soft labels" if soft else "a live teacher" if live else "no teacher"
    log(
        f"{title}: {parameters:,} parameters; {len(cases)} training and {len(held)} validation images, "
        f"{sum(c.labelled for c in cases)} training masks; {help_from}; {device}"
    )
    history = fit(
        network,
        data,
        loss_of=loss_function(settings, spec, ask, device),
        validate=validator.dice,
        settings=settings,
        folder=folder,
        accelerator=accelerator,
        labelled_part=settings.batch_labelled if teacher else None,
        draw=validator.outlines,
    )
    return TrainedStudent(network, settings, title, parameters, validator, history, accelerator)


def _choose_cases(
    settings: DistillSettings, dataset: Dataset, teacher: TeacherSource | None
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """What a student learns from, and the validation cases."""
    from segcore.learn.loader import choose_cases

    cases, held = choose_cases(dataset, settings)
    if teacher is None:
        return tuple(c for c in cases if c.labelled), held  # masks alone teach
    soft = teacher.soft
    return cases + tuple(c for c in dataset.unlabelled if soft is None or c.id in soft), held


def _student_input(settings: DistillSettings, cases: Sequence[Case]) -> InputSpec:
    from segcore.learn.loader import training_input
    from student.network import GREY_MEAN_STD, RGB_MEAN_STD

    size = (settings.size, settings.size)
    mean_std = {1: GREY_MEAN_STD, 3: RGB_MEAN_STD}
    return training_input(cases, size, mean_std, window=settings.window, resize_filter=settings.resize_filter)


def _train_student(
    settings: DistillSettings, design: Design, dataset: Dataset, teacher: TeacherSource | None, folder: Path
) -> tuple[float | None, int]:
    from segcore.learn.seal import Origin, seal_trained
    from segcore.learn.tracking import end_tracking
    from student.network import ARCHITECTURE, sealed_form

    if design.openvino_only:
        log(
            "--design: its depthwise convolutions are fast in OpenVINO's INT8; with TensorRT nobody has measured them"
        )
    trained = fit_student(settings, design, dataset, teacher, folder)
    dice: float | None = 0.0
    if trained.accelerator.is_main_process:
        sealed = sealed_form(trained.network)
        # For tables: what it is, whose pupil, and whether it saw only some of the images.
        name = trained.title + (f" from {teacher.name.removesuffix(settings.label_note)}" if teacher else "")
        name += (f", {settings.limit} images" if settings.limit else "") + settings.label_note
        manifest = seal_trained(
            folder,
            sealed,
            Origin(
                name=name,
                kind="student",
                architecture=ARCHITECTURE,
                architecture_settings=sealed.design.model_dump(mode="json"),
                pretrained="no pretrained weights",
                trained_parameters=trained.parameters,
                teacher=teacher.sha256 if teacher else None,
                lineage=teacher.lineage if teacher else (),
            ),
            dataset=dataset,
            validator=trained.validator,
            settings=trained.settings,
            also=(CHECK,),
        )
        end_tracking(trained.accelerator, manifest)
        dice = manifest.metric("dice_mean", "val")
    trained.accelerator.wait_for_everyone()
    return dice, trained.parameters


def loss_function(
    settings: DistillSettings, spec: InputSpec, ask: Callable[[Tensor], Tensor] | None, device: torch.device
) -> Callable[[nn.Module, Sample], Tensor]:
    """(network, batch) → the loss of a step; see the module.

    Args:
        settings: of the training.
        spec: the input that the network is trained on.
        ask: the live teacher, where there is one.
        device: of the training.
    """
    import torch.nn.functional as F

    from segcore.learn.losses import cross_entropy, dice_loss, taught_loss
    from segcore.learn.network import normaliser

    normalised = normaliser(spec, device)

    def loss(network: nn.Module, batch: Sample) -> Tensor:
        logits = network(normalised(batch["image"]))  # N K h w, at the student's own stride
        # The loss sees what a user sees: logits resized to the picture, as `segcore.picture.preprocess` does.
        # (All channels as one picture's: torch's backward of it, channels-last, takes twice as long.)
        flat, size = logits.float().flatten(0, 1)[None], batch["image"].shape[2:]  # 1 N·K h w
        flat = F.interpolate(flat, size, mode="bilinear", align_corners=False)
        logits = flat.view(*logits.shape[:2], *size)  # N K H W
        target, labelled = batch["mask"], batch["labelled"]
        soft = ask(batch["image"]) if ask else batch.get("soft")
        if soft is None:
            truth = settings.dice_weight * dice_loss(logits, target, labelled)
            return truth + cross_entropy(logits, target, labelled, batch.get("weight"))
        return taught_loss(
            logits,
            target,
            labelled,
            soft,
            alpha=settings.alpha,
            temperature=settings.temperature,
            dice_weight=settings.dice_weight,
            weights=batch.get("weight"),
        )

    return loss


def open_fitting_labels(folder: Path, dataset: Dataset) -> SoftLabels:
    """Opens what `--soft` names.

    Raises:
        InputError: no soft labels, or those of other classes or of another split of this data.
    """
    labels = open_soft_labels(folder)
    check_agreement(
        f"--soft {labels.folder}",
        classes=labels.record.classes,
        data_sha256=labels.record.data_sha256,
        split_sha256=labels.record.split_sha256,
        dataset=dataset,
    )
    return labels


def _check_live_window(settings: DistillSettings, dataset: Dataset, teacher: TeacherSource) -> None:
    """A live teacher sees the student's pictures, so both must have been windowed alike.

    Two measured windows may differ a little: each comes from its own training's images.
    """
    spec = _student_input(settings, _choose_cases(settings, dataset, teacher)[0])
    manifest = teacher.opened.manifest
    given, theirs = settings.window is not None, manifest.settings.get("window") is not None
    if (given or theirs) and spec.window != manifest.input.window:
        low, high = manifest.input.window
        raise InputError(
            f"--window: must be the teacher's, {low:g},{high:g}, with --teacher, who sees the student's pictures, got "
            f"{spec.window[0]:g},{spec.window[1]:g}; give that window, or use --soft"
        )


if __name__ == "__main__":
    run_command(main, DistillSettings, "python -m student.distill")
