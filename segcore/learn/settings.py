"""The settings that teacher and student trainings share; their docstrings are `--help`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from segcore.command import Settings
from segcore.dataset.split import parse_fold
from segcore.errors import InputError, need
from segcore.learn.transforms import AUTO, Transform, as_entries, read_augment, transforms_of
from segcore.outfolder import check_apart
from segcore.picture.preprocess import ResizeFilter, window_named

if TYPE_CHECKING:
    from typing_extensions import Self

_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy"), "wandb": ("wandb",)}
"""What each tracker needs; mlflow-skinny is mlflow without a database."""
AUTO_WEIGHTS, BACKGROUND = "auto", "background"
"""Words of `--class-weight`."""


@dataclass(frozen=True)
class Weighing:
    """What `--class-weight` and `--small-lesion-weight` ask for.

    Attributes:
        of_classes: of background and each class, or `AUTO_WEIGHTS`; None where all weigh 1.
        small_parts: the most that a pixel of a small part may weigh, in times of its class's weight; 1 is off.
    """

    of_classes: tuple[float, ...] | str | None
    small_parts: float


class TrainSettings(Settings):
    """What every training takes."""

    data: str
    """A folder with images/ and masks/, an index.csv, or phantom:cxr, phantom:ct, phantom:dental, phantom:volume."""
    out: Path
    """The bundle to write; OUT.partial while it is not finished, and the place to resume from."""
    size: int = Field(256, ge=32, multiple_of=32)
    """Height and width of the network's input, in pixels."""
    window: str | None = None
    """Values from black to white: lung, soft-tissue or bone (CT in Hounsfield units), or LOW,HIGH in the images' own
    values (write --window=-1350,150); by default what the training images span. It travels in the bundle. A student
    has its own window, whatever its teacher's is; only under --teacher, who sees the student's pictures, both must be
    the same."""
    resize_filter: ResizeFilter = "bilinear"
    """How pictures are brought to --size: bilinear, or area, which shrinks them several times as fast on the device. It
    travels in the bundle."""
    epochs: int = Field(50, ge=1)
    """Passes over the training images, with a validation after each; with --steps, how many validations."""
    steps: int | None = Field(None, ge=1)
    """Steps of the optimiser in all, however many images there are, in the place of passes; rounded up to equally many
    an epoch."""
    early_stop: int = Field(0, ge=0)
    """Stop when the validation Dice has not risen for so many epochs; 0 never stops. The learning rate falls as if all
    epochs came, so allow enough of them."""
    passes: int = Field(1, ge=1)
    """Passes an epoch: with few images more than one, so that validation takes no longer than training."""
    batch_size: int = Field(8, ge=1)
    """Images a step and process."""
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate of AdamW; it warms up linearly and falls along a cosine to 1 % of it."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's weight decay."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs of warm-up."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    accumulate: int = Field(1, ge=1)
    """Batches summed before a step."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is kept; 0 is off."""
    amp: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the training; auto is bf16 on a GPU that has it, else fp32."""
    augment: str | Any = AUTO
    """How training images are varied: film (exposures of one patient), colour (endoscopy, skin: any angle, both flips,
    colours), scan (slices of CT and MR, slightly bent), none, or a YAML file with a list of transforms; auto is colour
    for images in colour and film for grey ones. python -m segcore.dataset --augment shows what it does."""
    flip: bool = True
    """Mirror images at random, where --augment does; --no-flip for classes that have a side."""
    class_weight: tuple[str, ...] = ()
    """What pixels of a class weigh in the cross-entropy, CLASS=WEIGHT, once for each (background is one, too; 1 where
    none is given), or auto: 1/√(share of the training masks' pixels), in mean 1. For several classes."""
    small_lesion_weight: float = Field(1.0, ge=1, allow_inf_nan=False)
    """Pixels of separate parts that are smaller than the mean part of their class weigh as many times as much as they
    are smaller, in the cross-entropy, but at most so many times; 1 is off."""
    workers: int = Field(0, ge=0)
    """Loader processes; 0 reads in the training process."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many training images (and a third as many for validation)."""
    calibrate: Literal["none", "threshold", "temperature"] = "threshold"
    """On validation cases: threshold chooses from which probability on a pixel of a one-class model is marked;
    temperature first scales the probabilities so that they mean what they say."""
    labelled_share: float = Field(1.0, gt=0, le=1)
    """Share of the training patients whose masks are used, at least one; the others' images count as unlabelled."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    split_seed: int = 0
    """Of the 60/20/20 split by patient, where the data does not give one."""
    fold: str = ""
    """Split of a cross-validation in the place of 60/20/20, by patient: 2/5 tests the second of five folds, validates
    on the third and trains on the others."""
    checkpoint_minutes: float = Field(10.0, ge=0)
    """Save what a killed run goes on from every so many minutes, also in the middle of an epoch; 0 saves after epochs
    only."""
    log_with: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Also note settings, curves and some validation pictures for this tracker, once for each. Nothing leaves the
    machine unless the tracker's own variables say so: MLFLOW_TRACKING_URI, WANDB_MODE=online."""
    log_dir: Path = Path("runs/logs")
    """Where trackers write: in a folder named as --out is below runs/."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto is what Accelerate finds."""
    overwrite: bool = False
    """Replace a complete --out."""

    @field_validator("augment", mode="before")
    @classmethod
    def _augment_is_one(cls, value: object) -> object:
        return read_augment(value)

    @field_validator("window")
    @classmethod
    def _window_is_one(cls, value: str | None) -> str | None:
        if value is not None:
            window_named(value)
        return value

    @field_validator("fold")
    @classmethod
    def _fold_is_one(cls, value: str) -> str:
        if value:
            parse_fold(value)
        return value

    def transforms(self, channels: int) -> tuple[Transform, ...]:
        """What is done to training images of so many channels.

        Raises:
            InputError: --augment lists changes of colour, and the images are grey.
        """
        return transforms_of(self.augment, channels=channels, flip=self.flip)

    def for_channels(self, channels: int) -> Self:
        """The same settings, with every value of `augment` in full: what a bundle holds."""
        chosen = as_entries(transforms_of(self.augment, channels=channels, flip=True))
        return self.model_copy(update={"augment": chosen})

    def weighing(self, classes: Sequence[str]) -> Weighing | None:
        """What pixels of training masks of these foreground classes weigh; None where all weigh the same.

        Raises:
            InputError: --class-weight does not fit the classes.
        """
        of_classes = parse_class_weights(self.class_weight, classes)
        if of_classes is None and self.small_lesion_weight == 1:
            return None
        return Weighing(of_classes, self.small_lesion_weight)

    def check_tracking(self) -> None:
        """Checks what `--log-with` and `--log-dir` ask for.

        Raises:
            InputError: a tracker is not installed, or its files would lie in the bundle.
        """
        for name in self.log_with:
            # A folder of that name, such as the one that wandb makes, is found too, but has no origin.
            missing = [p for p in _PACKAGES[name] if (found := find_spec(p)) is None or found.origin is None]
            if missing and name == "tensorboard":
                raise need(name, "track")
            if missing:
                raise InputError(
                    f"--log-with {name}: {missing[0]} must be installed, is not; run: pip install {name}"
                )
        if self.log_with:
            check_apart(self.out, self.log_dir / run_name(self.out), "--log-dir")

    @property
    def label_note(self) -> str:
        """For the bundle's name: ", 10 % labelled", or nothing."""
        return f", {100 * self.labelled_share:g} % labelled" if self.labelled_share < 1 else ""

    @property
    def batches_an_epoch(self) -> int | None:
        """Of each process, where `steps` counts; None where passes do."""
        return None if self.steps is None else -(-self.steps // self.epochs) * self.accumulate

    def recipe(self) -> dict[str, object]:
        """What the weights depend on: everything but where they are written and how they are read."""
        apart = {"out", "overwrite", "workers", "device", "checkpoint_minutes", "log_with", "log_dir"}
        recipe = self.model_dump(mode="json", exclude=apart)
        if isinstance(self.augment, str):
            # What the name means today, so that a preset that has changed since is another recipe.
            recipe["augment_means"] = [self.for_channels(channels).augment for channels in (1, 3)]
        return recipe


def run_name(out: Path) -> str:
    """The name of a run: the folder of `--out`, with those between it and `runs/`, if it lies there."""
    parts = out.parts
    if "runs" in parts[:-1]:
        start = len(parts) - 1 - parts[-2::-1].index("runs")
        return "/".join(parts[start:])
    return out.name


def parse_class_weights(words: Sequence[str], classes: Sequence[str]) -> tuple[float, ...] | str | None:
    """The weights of background and each class, 1 where none is named; `AUTO_WEIGHTS`; or None for no words.

    Args:
        words: "auto", or "CLASS=WEIGHT" each; `background` is a class, too.
        classes: foreground classes of the data.

    Raises:
        InputError: a class that is none, twice the same, a weight that is none, or data of one class.
    """
    if not words:
        return None
    if len(classes) == 1:
        raise InputError(
            f"--class-weight: must be for data of several classes, got one ({classes[0]}), for which --calibrate "
            "chooses how readily a pixel is marked; use --small-lesion-weight where small ones are missed"
        )
    if list(words) == [AUTO_WEIGHTS]:
        return AUTO_WEIGHTS
    names, found = (BACKGROUND, *classes), dict[str, float]()
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise InputError(
                f"--class-weight {word}: must be auto, or CLASS=WEIGHT with a weight above 0; write "
                f"--class-weight {names[-1]}=2"
            )
        if name not in names or name in found:
            what = "named twice" if name in found else f"no class of the data ({', '.join(names)})"
            raise InputError(f"--class-weight {word}: must name each class once, {name} is {what}")
        found[name] = weight
    return tuple(found.get(name, 1.0) for name in names)
