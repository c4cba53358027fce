"""What is run: every stage of every share of the labels and seed, as a command and the folder that it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from benchmarks.distillation.settings import DistillationSettings
from benchmarks.distillation.trainers import (
    CONTROLS,
    DISTILL,
    EXPORT,
    LABEL,
    TEACHER,
    check_command,
    flag_names,
    needs_package,
)
from benchmarks.study.settings import parse_grid, words_of
from segcore.errors import InputError

Kind = Literal["teacher", "alone", "distilled"]
Values = tuple[tuple[str, float], ...]
"""What the grid chose: (flag, value)."""
_GIVEN = frozenset(
    {
        "data", "out", "overwrite", "labelled_share", "seed", "split_seed", "fold", "system", "encoder", "design",
        "soft", "teacher", "bundle", "limit", "to", "precision", "tta",
    }
)  # fmt: skip
"""Flags that the command sets itself, or that must be the same for all."""


@dataclass(frozen=True)
class Teacher:
    """A system of teacher.train, with an encoder where it takes one."""

    system: str
    encoder: str = ""

    @property
    def label(self) -> str:
        return ":".join(filter(None, (self.system, self.encoder)))

    @property
    def slug(self) -> str:
        """In names of folders."""
        return self.label.replace(":", "-")


@dataclass(frozen=True)
class Arm:
    """What is compared, a row of the table: a network with a share of the labels.

    Attributes:
        teacher: itself, or whom a student is distilled from; empty for a student alone.
        design: of a student.
        share: of the training patients whose masks are used.
    """

    kind: Kind
    share: float
    teacher: str = ""
    design: str = ""

    @property
    def label(self) -> str:
        return f"{self.what}, {share_words(self.share)}"

    @property
    def what(self) -> str:
        """Without the share: "teacher unet", "small alone", "small from unet"."""
        if self.kind == "teacher":
            return f"teacher {self.teacher}"
        design = design_slug(self.design)
        return f"{design} alone" if self.kind == "alone" else f"{design} from {self.teacher}"


@dataclass(frozen=True)
class Stage:
    """A command, its folder, and how what it made is tested.

    Attributes:
        module: of `python -m`.
        flags: of the command, without --out.
        folder: that it leaves behind.
        after: names of the stages whose folders it reads.
        arm: that its bundle belongs to; None for soft labels.
        engine: that tests the bundle.
        keeps_masks: the masks of the test images are kept for the pictures.
        values: what the grid chose.
    """

    module: str
    flags: Mapping[str, Any]
    folder: Path
    share: float
    seed: int
    label: str
    after: tuple[str, ...] = ()
    arm: Arm | None = None
    engine: Literal["torch", "openvino"] = "torch"
    keeps_masks: bool = False
    values: Values = field(default=())

    @property
    def name(self) -> str:
        """Unique: share0.1-seed0-alone-small."""
        return "-".join((self.folder.parent.parent.name, self.folder.parent.name, self.folder.name))

    @property
    def words(self) -> tuple[str, ...]:
        """Of the command, with --out."""
        listed = [word for bundle in self.flags.get("bundles", ()) for word in (f"--bundle={bundle}",)]
        flags = {name: value for name, value in self.flags.items() if name != "bundles"}
        return (*listed, *words_of({**flags, "out": self.folder}))

    @property
    def line(self) -> str:
        """As a user types it."""
        return " ".join(("python -m", self.module, *self.words))

    def beside(self, kind: str) -> Path:
        """A file that the comparison keeps about the stage: "tests/….json", "usage/….json"."""
        folder, _, suffix = kind.partition("/")
        return self.folder.parent / folder / f"{self.folder.name}{suffix}"

    @property
    def scores(self) -> Path:
        return self.beside("tests/.json")

    @property
    def refused(self) -> Path:
        """Says why the INT8 guard wrote no bundle."""
        return self.beside("tests/.refused")

    @property
    def usage(self) -> Path:
        return self.beside("usage/.json")

    @property
    def masks(self) -> Path:
        return self.beside("tests/.npz")


@dataclass(frozen=True)
class Plan:
    """Everything but what the grid has yet to choose.

    Attributes:
        teachers: in the order of --systems.
        designs: of the students.
        shares: of the labels, the smallest first.
        seeds: of the trainings.
        grid: flag → values, of the student alone.
    """

    settings: DistillationSettings
    teachers: tuple[Teacher, ...]
    designs: tuple[str, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    grid: Mapping[str, tuple[float, ...]]

    @property
    def arms(self) -> list[Arm]:
        """The rows, share by share: teachers, students alone, students distilled."""
        found = []
        for share in self.shares:
            found += [Arm("teacher", share, one.label) for one in self.teachers]
            found += [Arm("alone", share, "", design) for design in self.designs]
            found += [
                Arm("distilled", share, one.label, design)
                for design, one in product(self.designs, self.teachers)
            ]
        return found

    def grid_stages(self) -> list[Stage]:
        """The student alone with every value, for each share, with the first seed."""
        if not self.grid:
            return []
        values = [tuple(zip(self.grid, one, strict=True)) for one in product(*self.grid.values())]
        return [
            self._alone(share, self.seeds[0], design, one)
            for share, design, one in product(self.shares, self.designs, values)
        ]

    def stages(self, chosen: Mapping[tuple[float, str], Values]) -> list[Stage]:
        """Every stage, none before what it reads; a seed's are together, so that a first answer comes early.

        Args:
            chosen: by (share, design), what the grid found best; a student that has none is left out.
        """
        found = list[Stage]()
        for seed, share in product(self.seeds, self.shares):
            teachers = [self._teacher(share, seed, one) for one in self.teachers]
            if self.settings.ensemble:
                found += [stage for stage in teachers if stage not in found]
                if seed != self.seeds[-1]:
                    found += self._students(share, seed, chosen, distilled=False)
                    continue
                for earlier in self.seeds:
                    found += self._students(share, earlier, chosen, distilled=True)
            else:
                found += teachers
                found += self._students(share, seed, chosen, distilled=True)
        return list({stage.name: stage for stage in found}.values())

    def _students(
        self, share: float, seed: int, chosen: Mapping[tuple[float, str], Values], *, distilled: bool
    ) -> Iterator[Stage]:
        for design in self.designs:
            if self.grid and (share, design) not in chosen:
                continue
            alone = self._alone(share, seed, design, chosen.get((share, design), ()))
            yield from self._with_int8(alone)
        for teacher in self.teachers if distilled else ():
            labels = self._labels(share, seed, teacher)
            yield labels
            for design in self.designs:
                yield from self._with_int8(self._distilled(share, seed, design, teacher, labels))

    def _folder(self, share: float, seed: int, name: str) -> Path:
        return self.settings.out / f"share{share:g}" / f"seed{seed}" / name

    def _teacher(self, share: float, seed: int, teacher: Teacher) -> Stage:
        return Stage(
            TEACHER,
            teacher_flags(self.settings, teacher, share) | {"seed": seed},
            self._folder(share, seed, f"teacher-{teacher.slug}"),
            share,
            seed,
            f"teacher {teacher.label}, {share_words(share)}, seed {seed}",
            arm=Arm("teacher", share, teacher.label),
            keeps_masks=seed == self.seeds[0],
        )

    def _alone(self, share: float, seed: int, design: str, values: Values) -> Stage:
        told = "".join(f", {name.replace('_', '-')} {value:g}" for name, value in values)
        tag = "".join(f"-{name.replace('_', '-')}{value:g}" for name, value in values)
        return Stage(
            DISTILL,
            student_flags(self.settings, "alone", design, share) | dict(values) | {"seed": seed},
            self._folder(share, seed, f"alone-{design_slug(design)}{tag}"),
            share,
            seed,
            f"{design_slug(design)} alone{told}, {share_words(share)}, seed {seed}",
            arm=Arm("alone", share, "", design),
            keeps_masks=seed == self.seeds[0],
            values=values,
        )

    def _labels(self, share: float, seed: int, teacher: Teacher) -> Stage:
        """The soft labels that a seed's student learns from: its own teacher's, or the mean of all seeds'."""
        seeds = self.seeds if self.settings.ensemble else (seed,)
        teachers = [self._teacher(share, one, teacher) for one in seeds]
        name, where = f"soft-{teacher.slug}", seed
        if self.settings.ensemble:
            name, where = f"soft-{teacher.slug}-of-{len(seeds)}", self.seeds[0]
        return Stage(
            LABEL,
            label_flags(self.settings) | {"bundles": tuple(one.folder for one in teachers)},
            self._folder(share, where, name),
            share,
            where,
            f"soft labels of {teacher.label}, {share_words(share)}, "
            + (f"mean of {len(seeds)} seeds" if self.settings.ensemble else f"seed {seed}"),
            after=tuple(one.name for one in teachers),
        )

    def _distilled(self, share: float, seed: int, design: str, teacher: Teacher, labels: Stage) -> Stage:
        tag = f"-of-{len(self.seeds)}" if self.settings.ensemble else ""
        return Stage(
            DISTILL,
            student_flags(self.settings, "distilled", design, share) | {"soft": labels.folder, "seed": seed},
            self._folder(share, seed, f"distilled-{design_slug(design)}-{teacher.slug}{tag}"),
            share,
            seed,
            f"{design_slug(design)} from {teacher.label}, {share_words(share)}, seed {seed}",
            after=(labels.name,),
            arm=Arm("distilled", share, teacher.label, design),
            keeps_masks=seed == self.seeds[0],
        )

    def _with_int8(self, stage: Stage) -> list[Stage]:
        if not self.settings.int8:
            return [stage]
        return [
            stage,
            replace(
                stage,
                module=EXPORT,
                flags=export_flags(self.settings) | {"bundle": stage.folder},
                folder=stage.folder.with_name(f"{stage.folder.name}-int8"),
                label=f"INT8 of {stage.label}",
                after=(stage.name,),
                engine="openvino",
                keeps_masks=False,
            ),
        ]


def make_plan(settings: DistillationSettings) -> Plan:
    """Checks every stage's flags before the first one starts.

    Raises:
        InputError: a system, design or setting that a stage would refuse.
    """
    teachers = tuple(dict.fromkeys(_parse_system(word) for word in settings.systems))
    _check_own(settings, teachers)
    grid = parse_grid(settings.grid)
    _check_flags(grid, "--grid", DISTILL)
    slugs = [design_slug(design) for design in settings.design]
    if len(set(slugs)) < len(slugs):
        raise InputError(f"--design: must be different designs, got {', '.join(settings.design)}")
    plan = Plan(
        settings=settings,
        teachers=teachers,
        designs=settings.design,
        shares=settings.shares,
        seeds=tuple(range(settings.seeds)),
        grid=grid,
    )
    first = next(iter(product(*grid.values())), ())
    values = tuple(zip(grid, first, strict=True)) if grid else ()
    every = plan.stages(dict.fromkeys(product(plan.shares, plan.designs), values))
    for stage in (*plan.grid_stages(), *every):
        if stage.seed == plan.seeds[0]:  # the others differ by the seed alone
            check_command(stage.module, stage.words)
    return plan


def teacher_flags(settings: DistillationSettings, teacher: Teacher, share: float) -> dict[str, Any]:
    """The settings of teacher.train, without seed and --out."""
    flags = _common(settings) | {
        "system": teacher.system,
        "encoder": teacher.encoder or None,
        "weights": _weights_of(settings, teacher),
        "epochs": settings.teacher_epochs,
        "steps": settings.teacher_steps,
        "lr": settings.teacher_lr,
        "batch_size": settings.teacher_batch_size,
        "labelled_share": share,
        "passes": None if settings.teacher_steps else passes_for(share),
    }
    return flags | _own(settings, "teacher", teacher.label)


def student_flags(
    settings: DistillationSettings, kind: Literal["alone", "distilled"], design: str, share: float
) -> dict[str, Any]:
    """The settings of student.distill, without seed, --soft and --out.

    A student alone sees its few labelled pictures more often an epoch; a distilled one has all pictures to learn from.
    """
    own_length = settings.steps or not settings.epochs  # else student.distill says how many steps there are
    passes = None if own_length or kind == "distilled" else passes_for(share)
    flags = _common(settings) | {
        "design": design,
        "epochs": settings.epochs,
        "steps": settings.steps,
        "lr": settings.lr,
        "batch_size": settings.batch_size,
        "labelled_share": share,
        "passes": passes,
        # What the check would find is what is measured here.
        "teacher_check": False if kind == "distilled" and "teacher_check" in flag_names(DISTILL) else None,
    }
    return flags | _own(settings, "student", kind)


def label_flags(settings: DistillationSettings) -> dict[str, Any]:
    """The settings of teacher.label, without --bundle and --out."""
    flags = {
        "data": settings.data,
        "tta": settings.tta,
        "split_seed": settings.split_seed,
        "device": settings.device,
    }
    return flags | _own(settings, "label")


def export_flags(settings: DistillationSettings) -> dict[str, Any]:
    """The settings of the INT8 export, without --bundle and --out.

    It is not asked how fast INT8 is: several stages may share the processor, and the report measures it in peace.
    """
    return {"data": settings.data, "to": "openvino", "precision": "int8", "min_speedup": 0}


def passes_for(share: float) -> int:
    """Passes an epoch over a share of the pictures, so that every share takes about as many steps."""
    return max(1, round(1 / share))


def share_words(share: float) -> str:
    """10 % labelled; all labels."""
    return "all labels" if share == 1 else f"{100 * share:g} % labelled"


def design_slug(design: str) -> str:
    """A design's name; of a YAML file its stem."""
    return Path(design).stem


def _parse_system(word: str) -> Teacher:
    system, _, encoder = word.partition(":")
    if not system or (":" in word and not encoder):
        raise InputError(
            f"--systems {word}: must be SYSTEM or SYSTEM:ENCODER, such as unet:efficientnet-lite0"
        )
    return Teacher(system, encoder)


def _weights_of(settings: DistillationSettings, teacher: Teacher) -> str | None:
    if teacher.encoder and needs_package(teacher.encoder):
        return "package"
    return None if teacher.system in CONTROLS else settings.weights


def _common(settings: DistillationSettings) -> dict[str, Any]:
    names = ("data", "size", "window", "augment", "limit", "split_seed", "workers", "device")
    return {name: getattr(settings, name) for name in names}


def _own(settings: DistillationSettings, *whose: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in whose:
        own = settings.own_settings.get(name, {})
        found |= {flag.replace("-", "_"): value for flag, value in own.items()}
    return found


def _check_own(settings: DistillationSettings, teachers: Sequence[Teacher]) -> None:
    modules = {"teacher": TEACHER, **{one.label: TEACHER for one in teachers}, "label": LABEL}
    modules |= {"student": DISTILL, "alone": DISTILL, "distilled": DISTILL}
    for whose in settings.own_settings:
        if whose not in modules:
            raise InputError(f"own-settings {whose}: must be one of {', '.join(modules)}")
        _check_flags(_own(settings, whose), f"own-settings {whose}", modules[whose])


def _check_flags(flags: Mapping[str, Any], where: str, module: str) -> None:
    for name in flags:
        flag = name.replace("_", "-")
        if name not in flag_names(module):
            raise InputError(f"{where}: {flag} must be a setting of {module}, is none; see its --help")
        if name in _GIVEN:
            raise InputError(f"{where}: {flag} must not be given here, the command sets it itself")
