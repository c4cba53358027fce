"""Training data: which cases, decoded and resized once, held as bytes, augmented anew in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from segcore.command import Progress
from segcore.dataset.case import Case
from segcore.dataset.dataset import Dataset, training_cases
from segcore.dataset.soft_labels import SoftLabels
from segcore.errors import InputError
from segcore.learn.augment import Sample, sample_seed
from segcore.learn.pixel_weights import WeighedMasks, weigh_masks
from segcore.learn.settings import TrainSettings, Weighing
from segcore.picture.preprocess import (
    InputSpec,
    ResizeFilter,
    prepare,
    resize_mask,
    training_window,
    window_named,
)

_WINDOW_CASES = 64


def choose_cases(dataset: Dataset, settings: TrainSettings) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """The training cases, some of whose masks may be hidden, and the validation cases, as the flags say.

    Raises:
        InputError: --limit leaves no image with a mask.
    """
    limit = settings.limit
    cases = training_cases(
        dataset, labelled_share=settings.labelled_share, seed=settings.split_seed, limit=limit
    )
    return cases, dataset.split("val", limit=limit and max(1, limit // 3))


def training_input(
    cases: Sequence[Case],
    size_px: tuple[int, int],
    mean_std: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]],
    *,
    window: str | None = None,
    resize_filter: ResizeFilter = "bilinear",
) -> InputSpec:
    """The input a network will be trained on: channels, depth and window are read off some training images.

    Args:
        cases: the training cases.
        size_px: height and width of the network's input.
        mean_std: normalisation for 1 and for 3 channels.
        window: `TrainSettings.window`; read off the images where it is None.
        resize_filter: `TrainSettings.resize_filter`.

    Raises:
        InputError: the images differ in depth, or the window is none for them.
    """
    picked = [
        cases[i]
        for i in np.unique(np.linspace(0, len(cases) - 1, min(len(cases), _WINDOW_CASES)).astype(int))
    ]
    images = [(case.id, case.image()) for case in picked]
    shown = (
        (case.id, _without_padding(image, case)) for case, (_, image) in zip(picked, images, strict=True)
    )
    depth, values, name = training_window(shown, window_named(window) if window else None)
    channels: Literal[1, 3] = 3 if any(image.ndim == 3 for _, image in images) else 1
    mean, std = mean_std[channels]
    return InputSpec(
        height_px=size_px[0],
        width_px=size_px[1],
        channels=channels,
        depth=depth,
        window=values,
        window_name=name,
        resize_filter=resize_filter,
        mean=mean,
        std=std,
    )


def _without_padding(image: np.ndarray, case: Case) -> np.ndarray:
    padding = case.source.padding()
    return image if padding is None else image[~padding]


class TrainingSet(torch.utils.data.Dataset[Sample]):
    """Images and masks at the network's size as uint8, and soft labels where they are given.

    An item is asked for by (epoch, index) and holds `image` C×H×W float 0–1, `mask` H×W uint8, `labelled` bool, and
    `soft` K×H×W float32 if there are soft labels.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        spec: InputSpec,
        *,
        classes: int,
        seed: int,
        augment: Callable[[Sample, int], Sample] | None,
        soft: SoftLabels | None = None,
    ) -> None:
        self.cases, self.spec, self.seed, self.augment, self.soft = tuple(cases), spec, seed, augment, soft
        missing = [case.id for case in cases if soft is not None and case.id not in soft]
        if missing:
            raise InputError(
                f"--soft {soft.folder if soft else ''}: must hold every training image, "
                f"{len(missing)} of {len(cases)} are missing (first: {missing[0]}); run teacher.label on this --data"
            )
        height, width = spec.size_px
        self.images = np.zeros((len(cases), height, width, spec.channels), np.uint8)
        self.masks = np.zeros((len(cases), height, width), np.uint8)
        self._shown = np.zeros((len(cases), classes), bool)
        self._weighed: WeighedMasks | None = None

        def read(i: int) -> None:
            case = self.cases[i]
            self.images[i] = prepare(case.image(), spec, name=f"image {case.id}")
            if case.labelled:
                mask = case.mask()
                if mask.max() > classes:
                    raise InputError(
                        f"mask of case {case.id}: must hold classes 0 to {classes}, got {mask.max()}"
                    )
                self.masks[i] = resize_mask(mask, spec.size_px)
                # Counted after resizing, in which a small thing can vanish.
                self._shown[i] = np.bincount(self.masks[i].ravel(), minlength=classes + 1)[1:] > 0

        with ThreadPoolExecutor() as pool:
            done = pool.map(read, range(len(cases)))
            list(Progress(done, "reading", total=len(cases), unit="image", leave=False))

    @property
    def classes_shown(self) -> list[bool]:
        """For each foreground class, whether a mask holds it at the network's size."""
        return [bool(masks.any()) for masks in self._shown.T]

    def weigh(self, classes: Sequence[str], weighing: Weighing) -> None:
        """Gives every item a `weight` H×W float32, too: what its pixels weigh in the cross-entropy.

        Args:
            classes: names of the foreground classes.
            weighing: the flags.
        """
        self._weighed = weigh_masks(self.masks, [case.labelled for case in self.cases], classes, weighing)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, i = item
        augment, seed = self.augment, sample_seed(self.seed, epoch, i)
        return self.varied(i, None if augment is None else lambda sample: augment(sample, seed))

    def varied(self, i: int, vary: Callable[[Sample], Sample] | None) -> Sample:
        """The item of image `i`, varied by something else than `augment`."""
        sample: Sample = {
            "image": torch.from_numpy(self.images[i]).permute(2, 0, 1).float() / 255,
            "mask": torch.from_numpy(self.masks[i] if self._weighed is None else self._weighed.codes[i]),
            "labelled": torch.tensor(self.cases[i].labelled),
        }
        if self.soft is not None:
            soft = torch.from_numpy(np.array(self.soft.of(self.cases[i].id))).float()
            if soft.shape[1:] != self.spec.size_px:
                soft = F.interpolate(soft[None], self.spec.size_px, mode="bilinear", align_corners=False)[0]
            sample["soft"] = soft
        if vary:
            sample = vary(sample)
        if self._weighed is not None:
            # After the augmentation, which moved the codes as it moves masks.
            sample["mask"], sample["weight"] = self._weighed.decode(sample["mask"])
        return sample


def check_classes(shown: Sequence[bool], classes: Sequence[str], masks: int, settings: TrainSettings) -> None:
    """Checks that nothing is to be learnt that no mask shows.

    Args:
        shown: as `TrainingSet.classes_shown`.
        classes: their names.
        masks: how many there are.
        settings: the flags, of which some leave masks away.

    Raises:
        InputError: a class never occurs.
    """
    for name, there in zip(classes, shown, strict=True):
        if not there:
            given = {"--limit": settings.limit is not None, "--labelled-share": settings.labelled_share < 1}
            flags = " or ".join(flag for flag, used in given.items() if used)
            todo = f"raise {flags}" if flags else "add masks of it, raise --size"
            raise InputError(
                f"--data {settings.data}: class {name} must occur in the training masks, is in none of {masks} at "
                f"{settings.size}×{settings.size} pixels; {todo}, or take it out of the data"
            )


class EpochOrder(Sampler[tuple[int, int]]):
    """Yields (pass, index) in an order that depends on seed and pass only; each process takes its share.

    An epoch is one pass over the images, or several, or a number of batches; passes are counted over the epochs. With
    `skip`, that many of its first images are left out, though `len` still counts them: an epoch that was begun. With
    `batch`, every batch holds so many images of each of its groups, in their order: streams that are each passed over
    at their own pace.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        passes: int = 1,
        batches: int | None = None,
        batch: BatchShares | None = None,
    ) -> None:
        self.length, self.seed, self.rank, self.processes = length, seed, rank, processes
        self.passes, self.epoch, self.skip = passes, 0, 0
        self._batch = batch or BatchShares((range(length), 1))
        self._batches = (
            batches if batches is not None or batch is None else max(1, passes * self._share // batch.size)
        )

    def __len__(self) -> int:
        return self.passes * self._share if self._batches is None else self._batches * self._batch.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return islice(self._whole_epoch(), self.skip, None)

    def _whole_epoch(self) -> Iterator[tuple[int, int]]:
        if self._batches is not None:
            yield from self._stream(self._batches)
            return
        for number in range(self.epoch * self.passes, (self.epoch + 1) * self.passes):
            order = np.random.default_rng([self.seed, number]).permutation(self.length)
            # Equally many in each process, because they agree on the gradient of every step.
            for i in order[self.rank :: self.processes][: self._share]:
                yield number, int(i)

    def _stream(self, batches: int) -> Iterator[tuple[int, int]]:
        """The epoch's part of endless passes over each group of images."""
        orders: dict[int, tuple[int, np.ndarray]] = {}  # the pass that each group is in
        for number in range(self.epoch * batches, (self.epoch + 1) * batches):
            for group, (members, count) in enumerate(self._batch.groups):
                first = (number * self.processes + self.rank) * count
                for place in range(first, first + count):
                    turn, k = divmod(place, len(members))
                    if group not in orders or orders[group][0] != turn:
                        shuffled = np.random.default_rng([self.seed, turn, group]).permutation(len(members))
                        orders[group] = turn, shuffled
                    yield turn, int(members[orders[group][1][k]])

    @property
    def _share(self) -> int:
        """Images a process and pass."""
        return self.length // self.processes if self.length >= self.processes else self.length


class BatchShares:
    """What a batch is made of: some images of each group.

    Attributes:
        groups: (indices of its images, how many of them a batch holds).
        size: images a batch.
    """

    def __init__(self, *groups: tuple[Sequence[int], int]) -> None:
        self.groups = tuple((members, count) for members, count in groups if members and count)
        self.size = sum(count for _, count in self.groups)


def batch_shares(labelled: Sequence[bool], batch_size: int, labelled_part: float) -> BatchShares | None:
    """Mixes labelled and unlabelled images by a ratio, at least one of each; None where there is only one kind.

    Args:
        labelled: of every image, whether it has a mask.
        batch_size: images a batch.
        labelled_part: share of a batch, 0–1, that has masks.
    """
    with_mask = [i for i, yes in enumerate(labelled) if yes]
    without = [i for i, yes in enumerate(labelled) if not yes]
    if not with_mask or not without or batch_size < 2:
        return None
    count = min(max(1, round(batch_size * labelled_part)), batch_size - 1)
    return BatchShares((with_mask, count), (without, batch_size - count))


def build_loader(
    data: TrainingSet,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    rank: int = 0,
    processes: int = 1,
    passes: int = 1,
    batches: int | None = None,
    labelled_part: float | None = None,
) -> tuple[DataLoader[Sample], EpochOrder]:
    """A loader and its order; set `order.epoch` before each epoch. A short last batch is dropped unless it is all.

    Args:
        data: the images.
        batch_size: images a batch and process.
        workers: loader processes.
        seed: of the order.
        rank: of this process.
        processes: how many there are.
        passes: over the images, an epoch.
        batches: an epoch, in the place of passes.
        labelled_part: share of each batch that has masks; None leaves it to chance.
    """
    batch = None
    if labelled_part is not None:
        batch = batch_shares([case.labelled for case in data.cases], batch_size, labelled_part)
    if batches is not None and batch is None:
        batch = BatchShares((range(len(data)), batch_size))
    order = EpochOrder(
        len(data), seed=seed, rank=rank, processes=processes, passes=passes, batches=batches, batch=batch
    )
    loader = DataLoader(
        data,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=len(order) >= batch_size,
    )
    return loader, order


def to_device(sample: Sample, device: torch.device) -> Sample:
    """Moves a batch; images become channels-last."""
    moved: dict[str, Tensor] = {k: v.to(device, non_blocking=True) for k, v in sample.items()}
    moved["image"] = moved["image"].contiguous(memory_format=torch.channels_last)
    return moved
