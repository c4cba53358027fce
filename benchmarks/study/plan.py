"""What a study runs: every system, split, seed and ablation, as flags of teacher.train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from benchmarks.study.settings import EQUAL, StudySettings, parse_grid
from benchmarks.study.teachers import (
    AUTOMATIC_SYSTEMS,
    CONTROLS,
    SYSTEMS,
    TUNINGS,
    UNTRAINED,
    EffectiveTuning,
    flag_names,
    resolve_tuning,
)
from segcore.dataset.dataset import Dataset
from segcore.errors import InputError

Values = tuple[tuple[str, float], ...]
"""What a grid chose: (flag, value)."""
EVERY = "all"


@dataclass(frozen=True)
class Arm:
    """What is compared: a system, tuned in one way, with one share of the labels.

    Attributes:
        system: of teacher.train.
        tune: another tuning than the system's own; None for that one.
        rank: another rank than the study's; None for that one.
        share: of the training patients whose masks are used.
        resolved: what tuning and rank come to.
    """

    system: str
    tune: str | None = None
    rank: int | None = None
    share: float = 1.0
    resolved: EffectiveTuning = field(default=EffectiveTuning(), compare=False)

    @property
    def label(self) -> str:
        parts = [self.system, self.tune or "", f"rank {self.rank}" if self.rank else ""]
        return ", ".join(filter(None, (*parts, f"{100 * self.share:g} % labelled" if self.share < 1 else "")))

    @property
    def trains(self) -> bool:
        """Whether anything of it is trained; else it runs once a split."""
        return self.system not in UNTRAINED

    def with_share(self, share: float) -> Arm:
        return replace(self, share=share)


@dataclass(frozen=True)
class Split:
    """Who trains, validates and tests: a fold such as "1/5" or, where it is empty, 60/20/20; by a seed."""

    fold: str = ""
    seed: int = 0

    @property
    def label(self) -> str:
        return f"fold {self.fold}, split {self.seed}" if self.fold else f"split {self.seed}"


@dataclass(frozen=True)
class Run:
    """One training and its tests."""

    arm: Arm
    split: Split
    seed: int
    values: Values = ()

    @property
    def name(self) -> str:
        """Of its folder; says all that differs between the runs of a study."""
        arm = self.arm
        parts = [arm.system, arm.tune or "", f"r{arm.rank}" if arm.rank else ""]
        parts += [
            f"share{arm.share:g}" if arm.share < 1 else "",
            *(f"{k.replace('_', '-')}{v:g}" for k, v in self.values),
        ]
        parts += [f"fold{self.split.fold.replace('/', 'of')}" if self.split.fold else ""]
        return "-".join(filter(None, (*parts, f"split{self.split.seed}", f"seed{self.seed}")))

    @property
    def label(self) -> str:
        values = "".join(f", {k.replace('_', '-')} {v:g}" for k, v in self.values)
        return f"{self.arm.label}{values}, {self.split.label}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Everything but what a grid has yet to choose.

    Attributes:
        main: the systems as they are compared, each with its own tuning and the largest share of labels.
        ablations: the other arms.
        splits: of the data.
        seeds: of the trainings.
        grid: flag → values.
        skipped: systems and arms that were left out, and why.
    """

    main: tuple[Arm, ...]
    ablations: tuple[Arm, ...]
    splits: tuple[Split, ...]
    seeds: tuple[int, ...]
    grid: Mapping[str, tuple[float, ...]]
    skipped: tuple[str, ...] = ()

    def grid_runs(self) -> list[Run]:
        """Every combination of the grid, for each system that is trained and each split, with the first seed."""
        if not self.grid:
            return []
        values = [tuple(zip(self.grid, one, strict=True)) for one in product(*self.grid.values())]
        main = [arm for arm in self.main if arm.trains]
        return [Run(a, s, self.seeds[0], v) for s in self.splits for a in main for v in values]

    def runs(self, chosen: Mapping[tuple[str, Split], Values]) -> list[Run]:
        """Split by split, so that a study that is cut short holds whole comparisons.

        Args:
            chosen: by (system, split), what the grid found best; a system that is trained and has none is left out.
        """
        runs = []
        for split, seed, arm in product(self.splits, self.seeds, (*self.main, *self.ablations)):
            if not arm.trains:
                runs += [Run(arm, split, seed)] if seed == self.seeds[0] else []
            elif not self.grid:
                runs.append(Run(arm, split, seed))
            elif (arm.system, split) in chosen:
                runs.append(Run(arm, split, seed, chosen[arm.system, split]))
        return runs


def make_plan(settings: StudySettings, dataset: Dataset) -> Plan:
    """Checks every run's flags before the first one starts.

    Raises:
        InputError: a system that is none, or does not fit the data or the flags; a setting that must be equal.
    """
    _check_own(settings)
    grid = parse_grid(settings.grid)
    _check_flags(grid, "--grid")
    main, skipped = _system_arms(settings, dataset)
    share = settings.labelled_share[-1]
    main = [arm.with_share(share) for arm in main]
    tuned = _tuned_arms(settings, main, skipped)
    ranked = list(_ranked_arms(settings, main))
    if settings.rank and not any(arm.resolved.rank for arm in main):
        raise InputError(
            f"--rank: must have a system that LoRA tunes, got {', '.join(a.system for a in main)}"
        )
    shared = [arm.with_share(s) for s in settings.labelled_share[:-1] for arm in (*main, *tuned)]
    for values in product(*grid.values()):
        for arm in main:
            resolve_tuning(flags_of(settings, arm, tuple(zip(grid, values, strict=True))))
    folds = [f"{k + 1}/{settings.folds}" for k in range(settings.folds)] if settings.folds > 1 else [""]
    return Plan(
        main=tuple(main),
        ablations=tuple(dict.fromkeys((*tuned, *ranked, *shared))),
        splits=tuple(Split(fold, seed) for seed in range(settings.repeats) for fold in folds),
        seeds=tuple(range(settings.seeds)),
        grid=grid,
        skipped=tuple(skipped),
    )


def flags_of(settings: StudySettings, arm: Arm, values: Values = ()) -> dict[str, Any]:
    """The settings of teacher.train for an arm, without split, seed and --out.

    Fewer labels are passed over more often, so that every share is trained for about as many steps.
    """
    passes = max(1, round(1 / arm.share))
    flags = settings.common() | {"system": arm.system, "labelled_share": arm.share, "passes": passes}
    if arm.system not in CONTROLS:
        flags |= {
            "weights": settings.weights,
            "encoder": settings.encoder,
            "checkpointing": settings.checkpointing,
        }
    for whose in (EVERY, arm.system):
        own = settings.own_settings.get(whose, {})
        flags |= {name.replace("-", "_"): value for name, value in own.items()}
    if arm.tune:
        flags["tune"] = arm.tune
    if arm.rank:
        flags["lora_rank"] = arm.rank
    return flags | dict(values)


def _system_arms(settings: StudySettings, dataset: Dataset) -> tuple[list[Arm], list[str]]:
    """The systems, and why others were left out; who is asked for by name must fit."""
    every = not settings.systems or EVERY in settings.systems
    names: Sequence[str] = SYSTEMS if every else tuple(dict.fromkeys(settings.systems))
    if every and settings.weights is None:
        names = CONTROLS
    arms, skipped = list[Arm](), list[str]()
    if every and settings.weights is None:
        skipped.append(f"{', '.join(s for s in SYSTEMS if s not in CONTROLS)}: need --weights")
    for name in names:
        try:
            if name not in SYSTEMS:
                raise InputError(f"--systems {name}: must be all or some of {', '.join(SYSTEMS)}")
            _check_fits(name, dataset)
            arms.append(_with_tuning(settings, Arm(name)))
        except InputError as error:
            if not every:
                raise
            skipped.append(f"{name}: {error}")
    if not arms:
        raise InputError(f"--systems: must be at least one that fits, got none ({'; '.join(skipped)})")
    return arms, skipped


def _check_fits(name: str, dataset: Dataset) -> None:
    volumes = [c.volume for c in dataset.cases if c.labelled and c.volume is not None]
    if name not in AUTOMATIC_SYSTEMS and len(volumes) == len(set(volumes)):
        raise InputError(
            f"--systems {name}: must have scans of several slices, {dataset.name} has single pictures; leave it away"
        )


def _tuned_arms(settings: StudySettings, main: Sequence[Arm], skipped: list[str]) -> list[Arm]:
    """Each system with each other tuning that it can do."""
    arms, refused = list[Arm](), list[InputError]()
    able = [arm for arm in main if arm.system not in CONTROLS]
    for tune in settings.tune:
        if tune not in TUNINGS:
            raise InputError(f"--tune {tune}: must be some of {', '.join(TUNINGS)}")
        if not able:
            names = ", ".join(arm.system for arm in main)
            raise InputError(f"--tune {tune}: must have a system with an encoder of SAM 2, got {names}")
    for arm, tune in product(able, dict.fromkeys(settings.tune)):
        other = Arm(arm.system, tune, None, arm.share)
        try:
            if tune != arm.resolved.tune:
                arms.append(_with_tuning(settings, other))
        except InputError as error:
            refused.append(error)
            skipped.append(f"{other.label}: {error}")
    if refused and not arms:
        raise refused[0]
    return arms


def _ranked_arms(settings: StudySettings, main: Sequence[Arm]) -> Iterator[Arm]:
    for arm, rank in product(main, settings.rank):
        if arm.resolved.rank and rank != arm.resolved.rank:
            yield _with_tuning(settings, Arm(arm.system, None, rank, arm.share))


def _with_tuning(settings: StudySettings, arm: Arm) -> Arm:
    """The arm with what its tuning and rank come to, where teacher.train takes its flags."""
    return replace(arm, resolved=resolve_tuning(flags_of(settings, arm)))


def _check_own(settings: StudySettings) -> None:
    for system, own in settings.own_settings.items():
        if system not in (*SYSTEMS, EVERY):
            raise InputError(f"own-settings {system}: must be all or one of {', '.join(SYSTEMS)}")
        _check_flags({name.replace("-", "_"): value for name, value in own.items()}, f"own-settings {system}")


def _check_flags(flags: Mapping[str, Any], where: str) -> None:
    for name in flags:
        flag = name.replace("_", "-")
        if name not in flag_names():
            raise InputError(f"{where}: {flag} must be a setting of teacher.train, is none; see its --help")
        if name in EQUAL:
            raise InputError(
                f"{where}: {flag} must be the same for every system; give the study's own setting"
            )
