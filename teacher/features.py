"""Features of a frozen encoder, computed once a picture and read from the cache while the decoder is trained.

Where nothing of the encoder is tuned it gives a picture the same maps in every epoch. So each training picture is taken
as it is and in a few augmented views, fixed once and for all; each view's maps are kept as 16-bit floats; and every
pass draws one view of each picture. While the decoder trains, `PackedMaps` stands where the encoder was and takes maps
in the place of pictures, so that networks, losses and the loop know nothing of it.

Features are of the data, not of the training: what has another seed, decoder, fold or share of labels reads the same.
Views are computed and not mirrored maps, because an encoder's maps of a mirrored picture are not the mirrored maps.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segcore.cache import GIB, RowFile, disk_bytes, open_entry, shrink_cache, user_cache
from segcore.command import Progress, log
from segcore.dataset.case import Case
from segcore.dataset.dataset import Dataset
from segcore.errors import InputError
from segcore.learn.augment import Augmentation, Sample, random_warp, sample_seed
from segcore.learn.evaluate import Validator
from segcore.learn.loader import TrainingSet
from segcore.learn.network import normaliser
from segcore.learn.transforms import as_entries
from segcore.picture.preprocess import InputSpec
from segcore.words import plural
from teacher.encoder import costly_maps, pyramid_of
from teacher.settings import TeacherSettings
from teacher.system import System

_MOST_VIEWS = 8
"""By default, the picture as it is among them."""
_VIEW_SEED = 0
"""Of the views; not the training's own, so that trainings share them."""
_KIND = "features"
_FORMAT = 1
"""Raise it when what is computed of a picture changes."""
_PROBE_PX = 64


class PackedMaps(nn.Module):
    """Stands in an encoder's place: maps as `FrozenEncoder` packs them, N×F×1×1 float16 → the encoder's output."""

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], pyramid: Callable[[list[Tensor]], list[Tensor]]
    ) -> None:
        super().__init__()
        self.shapes, self.pyramid = tuple(shapes), pyramid

    def forward(self, packed: Tensor) -> list[Tensor]:
        sizes = [channels * height * width for channels, height, width in self.shapes]
        maps = []
        for part, (channels, height, width) in zip(
            packed.flatten(1).split(sizes, 1), self.shapes, strict=True
        ):
            # N h w C in memory, which is what channels-last is.
            found = part.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
            maps.append(found.to(torch.float32, memory_format=torch.channels_last))
        return self.pyramid(maps)


class FrozenEncoder:
    """An encoder of which nothing is trained: pictures → packed maps.

    Attributes:
        shapes: C×h×w of each map that is kept, for pictures of the size that the network takes.
        width: F, the numbers of a picture's maps.
    """

    def __init__(self, encoder: nn.Module, spec: InputSpec, device: torch.device) -> None:
        self.encoder = encoder.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec, self.device = spec, device
        self._normalised = normaliser(spec, device)
        maps = self._maps(torch.zeros(1, spec.channels, *spec.size_px))
        self.shapes = [(found.shape[1], found.shape[2], found.shape[3]) for found in maps]
        self.width = sum(channels * height * width for channels, height, width in self.shapes)

    def _maps(self, images: Tensor) -> list[Tensor]:
        # In 32 bits whatever the training computes in: what is kept must not depend on --amp.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return costly_maps(self.encoder, self._normalised(images.to(self.device)))

    def pack(self, images: Tensor) -> Tensor:
        """Images N×C×H×W, 0–1 → N×F×1×1 float16, each map's rows, columns and then channels, the finest map first.

        Raises:
            InputError: a value is beyond what 16 bits hold.
        """
        flat = [found.permute(0, 2, 3, 1).flatten(1) for found in self._maps(images)]
        packed = torch.cat(flat, 1).half()
        if not packed.isfinite().all():
            raise InputError(
                "--cached-views: features must be within ±65504 to be kept in 16 bits, are not; use --cached-views 0"
            )
        return packed[..., None, None]

    def stand_in(self) -> PackedMaps:
        """What takes packed maps and gives what the encoder would have given."""
        return PackedMaps(self.shapes, pyramid_of(self.encoder))

    def identity(self) -> dict[str, Any]:
        """What its maps depend on beside the picture, as JSON values: weights, code and input."""
        digest = hashlib.sha256()
        for name, tensor in self.encoder.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        probe = torch.linspace(0, 1, self.spec.channels * _PROBE_PX**2).view(1, -1, _PROBE_PX, _PROBE_PX)
        return {
            "format": _FORMAT,
            "encoder": type(self.encoder).__qualname__,
            "weights_sha256": digest.hexdigest(),
            # Changes with the encoder's code; few digits, because other machines round otherwise.
            "probe": [f"{found.abs().mean():.3g}" for found in self._maps(probe)],
            "input": self.spec.model_dump(mode="json"),
        }


def chosen_views(
    settings: TeacherSettings,
    *,
    augmented: bool,
    training: int,
    validation: int,
    passes: float,
    picture_bytes: int,
) -> int:
    """How many views of each training picture are kept; 0 where features are not kept.

    Args:
        settings: the flags.
        augmented: whether training pictures are varied at all.
        training: pictures.
        validation: pictures, one view of each.
        passes: over the training pictures, all in all.
        picture_bytes: of one view's maps.

    Raises:
        InputError: more views were asked for than fit.
    """
    bound = int(settings.cache_gib * GIB)
    fitting = (bound // picture_bytes - validation) // training
    asked = settings.cached_views
    if asked is not None:
        if asked > fitting:
            needed = (asked * training + validation) * picture_bytes / GIB
            todo = f"use at most {fitting}, or raise --cache-gib" if fitting > 0 else "raise --cache-gib"
            raise InputError(
                f"--cached-views {asked}: must fit in --cache-gib {settings.cache_gib:g}, takes {needed:.2f}; {todo}"
            )
        return asked
    # With half as many views as passes the encoder runs half as often; with fewer than two, nothing would vary.
    wanted, least = (min(_MOST_VIEWS, int(passes / 2)), 2) if augmented else (min(1, int(passes / 2)), 1)
    if wanted < least:
        return 0
    if fitting < least:
        needed = (least * training + validation) * picture_bytes / GIB
        log(
            f"features are not kept: {plural(least, 'view')} of each picture would take {needed:.1f} GiB, more than "
            f"--cache-gib {settings.cache_gib:g}"
        )
        return 0
    if fitting < wanted:
        log(
            f"{fitting} in the place of {wanted} views of each picture are kept, which is what --cache-gib holds"
        )
    return min(wanted, fitting)


def frozen_encoder(
    system: System,
    spec: InputSpec,
    settings: TeacherSettings,
    device: torch.device,
    *,
    training: int,
    validation: int,
    processes: int,
) -> tuple[FrozenEncoder | None, int | None]:
    """The encoder of which features are kept, and how many views; None and `cached_views` of others.

    Args:
        system: to be trained.
        spec: the network's input.
        settings: the flags.
        device: of the training.
        training: pictures.
        validation: pictures.
        processes: that train together.

    Raises:
        InputError: more views were asked for than fit.
    """
    if settings.cached_views == 0 or not has_frozen_encoder(system):
        return None, settings.cached_views
    assert system.encoder is not None
    frozen = FrozenEncoder(system.encoder, spec, device)
    passes: float = settings.epochs * settings.passes
    if settings.batches_an_epoch is not None:
        passes = settings.epochs * settings.batches_an_epoch * settings.batch_size * processes / training
    views = chosen_views(
        settings,
        augmented=bool(settings.transforms(spec.channels)),
        training=training,
        validation=validation,
        passes=passes,
        picture_bytes=2 * frozen.width,
    )
    return frozen if views else None, views


@dataclass(frozen=True)
class ViewSet:
    """Fixed views of pictures; the first is the picture as it is.

    Attributes:
        pictures: unvaried, from `TrainingSet`.
        rows: of each picture, its place in the data, whatever part of the data this is.
        augment: what makes the other views.
    """

    pictures: TrainingSet
    rows: tuple[int, ...]
    augment: Augmentation

    def view(self, index: int, view: int) -> Sample:
        """A view of a picture with its mask."""
        seed = sample_seed(_VIEW_SEED, view, self.rows[index])
        return self.pictures.varied(index, (lambda sample: self.augment(sample, seed)) if view else None)

    def mask_view(self, index: int, view: int) -> Sample:
        """The same without the picture's intensities, which take most of the time; its `image` is of no use."""
        random = np.random.default_rng(sample_seed(_VIEW_SEED, view, self.rows[index]))

        def move(sample: Sample) -> Sample:
            # Geometry is drawn first, so that it is the view's; one channel of the picture comes along for nothing.
            _, mask, _ = random_warp(
                sample["image"][:1], sample["mask"], None, self.augment.transforms, random
            )
            return {**sample, "mask": mask}

        return self.pictures.varied(index, move if view else None)

    def identity(self, view: int) -> dict[str, Any]:
        """What a view depends on beside the picture, as JSON values: the transforms, and the code that draws them."""
        if not view:
            return {"view": 0}
        image = torch.linspace(0, 1, self.pictures.spec.channels * _PROBE_PX**2).view(
            -1, _PROBE_PX, _PROBE_PX
        )
        mask = (torch.arange(_PROBE_PX**2) // 100 % 2).to(torch.uint8).view(_PROBE_PX, _PROBE_PX)
        # Several, because a transform may be done to few pictures.
        probes = [
            self.augment({"image": image, "mask": mask}, sample_seed(_VIEW_SEED, view, i)) for i in range(8)
        ]
        masks = torch.stack([probe["mask"] for probe in probes]).numpy().tobytes()
        return {
            "view": view,
            "seed": _VIEW_SEED,
            "transforms": as_entries(self.augment.transforms),
            "probe": [f"{probe['image'].mean():.3g}" for probe in probes],
            "probe_masks_sha256": hashlib.sha256(masks).hexdigest(),
        }


class FeatureSet(torch.utils.data.Dataset[Sample]):
    """What `fit` needs of a `TrainingSet`: an item, asked for by (pass, index), is a view drawn anew in each pass.

    Its `image` is the view's packed maps, F×1×1 float16, where they are kept, else the view, C×H×W float32.
    """

    def __init__(self, views: ViewSet, count: int, seed: int, stored: Sequence[RowFile] | None) -> None:
        self.views, self.count, self.seed, self.stored = views, count, seed, stored
        self.cases = views.pictures.cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        number, index = item
        view = sample_seed(self.seed, number, index) % self.count
        if self.stored is None:
            return self.views.view(index, view)
        sample = self.views.mask_view(index, view)
        packed = torch.from_numpy(np.array(self.stored[view][self.views.rows[index]]))
        return {**sample, "image": packed[:, None, None]}


@dataclass(frozen=True)
class FrozenTraining:
    """A training whose encoder is run outside of it: what `fit` takes, with packed maps in the place of pictures.

    Where the cache cannot hold the maps, the same views go through the encoder in every step.

    Attributes:
        system: what is trained.
        frozen: its encoder.
        data: the training pictures' views.
        validator: of the validation cases.
        validation: their maps and rows; None where they are not kept.
    """

    system: System
    frozen: FrozenEncoder
    data: FeatureSet
    validator: Validator
    validation: tuple[RowFile, tuple[int, ...]] | None

    def loss(self, network: nn.Module, sample: Sample) -> Tensor:
        """(network without its encoder, batch) → scalar."""
        image = sample["image"]
        packed = image if self.data.stored else self.frozen.pack(image)
        return self.system.loss(network, packed, sample)

    def validate(self, network: nn.Module) -> float:
        """Mean Dice of the validation cases."""
        network = self.system.view(network).eval()
        return self.validator.dice_of(self._answers(network, range(len(self.validator.cases))))

    def draw(self, network: nn.Module) -> np.ndarray:
        """Some validation cases with their borders; see `Validator.outlines`."""
        network = self.system.view(network).eval()
        return self.validator.outlines_of(self._answers(network, self.validator.outlined()))

    def _answers(self, network: nn.Module, places: Sequence[int]) -> Iterator[tuple[Case, np.ndarray]]:
        """As `Validator.logits`, of the cases at these places."""
        cases, batch = self.validator.cases, self.validator.batch
        for start in range(0, len(places), batch):
            chosen = places[start : start + batch]
            if self.validation:
                stored, rows = self.validation
                found = torch.from_numpy(np.stack([stored[rows[i]] for i in chosen]))[..., None, None]
            else:
                found = self.frozen.pack(torch.stack([_as_image(self.validator.pictures[i]) for i in chosen]))
            with torch.inference_mode():
                logits = network(found.to(self.frozen.device)).float().cpu().numpy()
            yield from zip((cases[i] for i in chosen), logits, strict=True)

    @contextmanager
    def without_encoder(self) -> Iterator[None]:
        """Within it the system's network has `PackedMaps` where its encoder is."""
        place, name = _place_of(self.system.network, self.frozen.encoder)
        setattr(place, name, self.frozen.stand_in())
        try:
            yield
        finally:
            setattr(place, name, self.frozen.encoder)


def has_frozen_encoder(system: System) -> bool:
    """Whether a system learns from single pictures through an encoder of which nothing is trained."""
    if system.encoder is None or system.training_set or system.validate:
        return False
    return not any(p.requires_grad for p in system.encoder.parameters())


def open_features(
    system: System,
    frozen: FrozenEncoder,
    dataset: Dataset,
    views: ViewSet,
    validator: Validator,
    settings: TeacherSettings,
) -> FrozenTraining:
    """Computes the features that the cache does not hold, and makes ready to train on them.

    Args:
        system: see `has_frozen_encoder`.
        frozen: its encoder.
        dataset: the whole data.
        views: of the training pictures.
        validator: of the validation pictures.
        settings: the flags, with `cached_views` chosen.
    """
    held = data_rows(dataset, validator.cases)
    cache, count = user_cache(settings.cache), settings.cached_views or 1
    wanted = [
        _Wanted(view, row, partial(_view_image, views, i, view))
        for view in range(count)
        for i, row in enumerate(views.rows)
    ]
    wanted += [_Wanted(0, row, partial(_as_image, validator.pictures[i])) for i, row in enumerate(held)]
    of_data = {**frozen.identity(), "data_sha256": dataset.sha256}
    keys = [of_data | views.identity(v) for v in range(count)]
    stored = None
    try:
        stored = _fill_cache(cache, keys, len(dataset.cases), frozen, wanted, settings)
    except OSError as error:
        log(
            f"features cannot be kept, so the encoder runs in every step: --cache {cache}: {error.strerror or error}"
        )
    data = FeatureSet(views, count, settings.seed, stored)
    return FrozenTraining(system, frozen, data, validator, (stored[0], held) if stored else None)


def data_rows(dataset: Dataset, cases: Sequence[Case]) -> tuple[int, ...]:
    """The place of each case in the whole data, whatever its split."""
    row_of = {name: i for i, name in enumerate(sorted(case.id for case in dataset.cases))}
    return tuple(row_of[case.id] for case in cases)


class _Wanted(NamedTuple):
    """A row that a training reads: of which view, and how its image C×H×W, 0–1, is made."""

    view: int
    row: int
    image: Callable[[], Tensor]


def _view_image(views: ViewSet, index: int, view: int) -> Tensor:
    return views.view(index, view)["image"]


def _as_image(picture: np.ndarray) -> Tensor:
    """H×W×C uint8 → C×H×W float, 0–1, as `TrainingSet` gives it."""
    return (
        torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    )  # a copy: pictures are read-only


def _fill_cache(
    cache: Path,
    keys: Sequence[dict[str, Any]],
    rows: int,
    frozen: FrozenEncoder,
    wanted: Sequence[_Wanted],
    settings: TeacherSettings,
) -> list[RowFile]:
    """The files of every view, with all wanted rows in them.

    Raises:
        OSError: the cache cannot be written.
    """
    bound, row_bytes = int(settings.cache_gib * GIB), 2 * frozen.width

    def open_all() -> tuple[list[Path], list[RowFile], list[_Wanted]]:
        entries = [open_entry(cache, _KIND, key) for key in keys]
        stored = [RowFile(entry, rows, frozen.width, np.float16) for entry in entries]
        return entries, stored, _missing_rows(stored, wanted)

    entries, stored, missing = open_all()
    if sum(map(disk_bytes, entries)) + len(missing) * row_bytes > bound:
        # With what other parts of the data left in these very entries: begin again.
        for entry in entries:
            shutil.rmtree(entry)
        entries, stored, missing = open_all()
    shrink_cache(cache, bound - len(missing) * row_bytes, keep=entries)
    needed, free = len(missing) * row_bytes, shutil.disk_usage(cache).free
    if needed > free:
        raise OSError(f"{needed / GIB:.1f} GiB are needed, {free / GIB:.1f} are free")
    total = len(wanted) * row_bytes / GIB
    log(
        f"features of {len(wanted)} pictures and views of them ({plural(len(keys), 'view')} of a training picture), "
        f"{total:.2f} GiB in {cache}: {len(missing)} are computed now, once"
    )
    if missing:
        started = time.perf_counter()
        _compute_rows(stored, missing, frozen, settings.batch_size)
        if _missing_rows(stored, missing):
            raise OSError("what was written is not read back")
        seconds = time.perf_counter() - started
        log(f"features computed in {seconds:.0f} s, {seconds / len(missing):.3g} s each")
    return stored


def _missing_rows(stored: Sequence[RowFile], wanted: Sequence[_Wanted]) -> list[_Wanted]:
    """Those that are not there, or are damaged. Every row is read, once a training."""
    with ThreadPoolExecutor() as pool:
        there = list(pool.map(lambda w: stored[w.view].holds(w.row), wanted))
    return [w for w, found in zip(wanted, there, strict=True) if not found]


def _compute_rows(
    stored: Sequence[RowFile], missing: Sequence[_Wanted], frozen: FrozenEncoder, batch: int
) -> None:
    with Progress[None](label="features", total=len(missing), unit="picture", leave=False) as bar:
        for start in range(0, len(missing), batch):
            chosen = missing[start : start + batch]
            packed = frozen.pack(torch.stack([w.image() for w in chosen])).flatten(1).cpu().numpy()
            for w, numbers in zip(chosen, packed, strict=True):
                stored[w.view].write(w.row, numbers)
            bar.update(len(chosen))


def _place_of(network: nn.Module, part: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds a part of a network, and the part's name there."""
    for module in network.modules():
        for name, child in module.named_children():
            if child is part:
                return module, name
    raise LookupError("the encoder is no part of the network")
