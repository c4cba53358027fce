"""Writes soft labels for all training images, with or without masks, once: one teacher's or the mean of several.

`python -m teacher.label --bundle T [--bundle T2 …] --data D --out S`; under `accelerate launch` each process writes its
own shards.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from segcore.bundle.folder import Bundle, open_and_tell
from segcore.command import Progress, Settings, log, print_result, run_command
from segcore.dataset.case import Case, volumes_of
from segcore.dataset.dataset import Dataset, check_bundle_agreement, open_dataset
from segcore.dataset.soft_labels import (
    LABELS,
    LabelRecord,
    TeacherRecord,
    finished_shards,
    open_soft_labels,
    seal_labels,
    shard_name,
    write_shard,
)
from segcore.errors import InputError
from segcore.host import Made, made_now
from segcore.learn.transforms import was_mirrored
from segcore.outfolder import out_folder
from teacher.ensemble import label_size, open_ensemble
from teacher.settings import PROMPTED_SYSTEMS, REMEMBERS

if TYPE_CHECKING:
    import numpy as np

    Labeller = Callable[[Sequence[Case]], np.ndarray]

MEAN = "mean"
Batch = tuple[Case, ...]


class LabelSettings(Settings):
    """Write soft labels: a teacher's, or the mean probability of several."""

    bundle: tuple[Path, ...] = Field(min_length=1)
    """A teacher: what teacher.train wrote, or any exported bundle. Give --bundle again to average several; labels are
    then at the largest input size."""
    data: str
    """The data set that the student will be trained on: its training split and its images without masks."""
    out: Path
    """The folder of soft labels to write."""
    tta: Literal["auto", "none", "flips"] = "auto"
    """flips averages over the picture and its left-right mirror image: twice the time, better labels. Wrong for classes
    that have a side (left lung, tooth 36): the mirror image of one is the other's. auto flips where no class is named
    after a side, every teacher was trained on mirrored pictures, too, and none asks itself with prompts."""
    prompt_from: str = "mean"
    """What promptable teachers (sam2-med2d, sam2-points, sam2-zeroshot, sam2-memory, in torch format) are asked with:
    mean is their own, from the mean training mask; or a bundle, such as an earlier student's export, whose mask of each
    image gives the points or the box. sam2-memory takes such masks as a guess at a volume, asks on the slice where the
    guess is largest, and follows from there."""
    batch_size: int = Field(8, ge=1)
    """Images a forward pass; for sam2-memory it is a volume."""
    shard_images: int = Field(256, ge=1)
    """Images a shard; an interrupted run repeats at most one shard."""
    split_seed: int = 0
    """As for teacher.train."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run a torch teacher; exported ones run on the CPU."""
    overwrite: bool = False
    """Replace a complete --out."""

    @field_validator("bundle", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


def main(settings: LabelSettings) -> None:
    """Runs the stage; see the module."""
    bundles = [open_and_tell(folder) for folder in settings.bundle]
    dataset = open_dataset(
        settings.data, seed=settings.split_seed, need_masks=False, fold=bundles[0].manifest.data.fold
    )
    for bundle in bundles:
        check_bundle_agreement(f"bundle {bundle.folder}", bundle.manifest, dataset)
    _check_alike(bundles)
    prompter = None if settings.prompt_from == MEAN else open_and_tell(settings.prompt_from)
    if prompter:
        _check_promptable(settings, bundles)
        check_bundle_agreement(f"--prompt-from {prompter.folder}", prompter.manifest, dataset)
    settings = settings.model_copy(update={"tta": _resolve_tta(settings.tta, bundles)})
    cases = dataset.split("train") + dataset.unlabelled
    teacher = teacher_hash([bundle.sha256 for bundle in bundles])
    recipe = {"teacher": teacher, "tta": settings.tta, "data_sha256": dataset.sha256,
              "split_sha256": dataset.split_sha256, "shard_images": settings.shard_images}  # fmt: skip
    if prompter:
        recipe["prompt_from"] = prompter.sha256
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        _write_labels(settings, bundles, prompter, dataset, cases, folder)
    log(f"wrote {settings.out}")
    print_result(soft=str(settings.out), images=len(cases), teacher=teacher)


def teacher_hash(hashes: Sequence[str]) -> str:
    """What a student's manifest names as its teacher: a bundle's hash, or for several a hash of them in any order."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def teacher_name(names: Sequence[str]) -> str:
    """What tables call the teachers: "S2AgScUNet tiny", "2 × U-Net 16 + S2AgScUNet tiny"."""
    return " + ".join(f"{n} × {name}" if n > 1 else name for name, n in Counter(names).items())


def label_parts(
    cases: Sequence[Case], *, rank: int, processes: int, shard_images: int, batch_size: int, by_volume: bool
) -> list[list[Batch]]:
    """How the images are divided: a process's shards, each a list of batches.

    Args:
        cases: of all processes.
        rank: of this process.
        processes: how many there are.
        shard_images: images a shard; by volume a shard ends with the volume that fills it.
        batch_size: images a batch, unless `by_volume`.
        by_volume: a batch is a whole volume, in the order of its slices, for a teacher that remembers neighbours.
    """
    if not by_volume:
        mine = tuple(cases[rank::processes])
        shards = [mine[i : i + shard_images] for i in range(0, len(mine), shard_images)]
        return [[s[i : i + batch_size] for i in range(0, len(s), batch_size)] for s in shards]
    parts: list[list[Batch]] = [[]]
    for places in volumes_of(cases)[rank::processes]:
        if sum(map(len, parts[-1])) >= shard_images:
            parts.append([])
        parts[-1].append(tuple(cases[i] for i in places))
    return [part for part in parts if part]


def _write_labels(
    settings: LabelSettings,
    bundles: Sequence[Bundle],
    prompter: Bundle | None,
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
) -> None:
    from accelerate import PartialState

    assert settings.tta != "auto"  # `main` has resolved it
    state = PartialState(cpu=settings.device == "cpu")
    if (folder / LABELS).is_file():  # a run was killed between sealing and renaming
        if state.is_main_process:
            seal_labels(folder, open_soft_labels(folder).record)
        return
    by_process = [
        label_parts(
            cases,
            rank=rank,
            processes=state.num_processes,
            shard_images=settings.shard_images,
            batch_size=settings.batch_size,
            by_volume=any(
                b.manifest.architecture == REMEMBERS and b.manifest.format == "torch" for b in bundles
            ),
        )
        for rank in range(state.num_processes)
    ]
    parts = by_process[state.process_index]
    done = finished_shards(folder)
    label = open_ensemble(bundles, tta=settings.tta, device=str(state.device), prompter=prompter)
    images = sum(len(batch) for part in parts for batch in part)
    bar = Progress[None](label="labelling", total=images, unit="image")
    for number, part in enumerate(parts):
        name = shard_name(state.process_index, number)
        ids = tuple(case.id for batch in part for case in batch)
        if done.get(name) != ids:
            write_shard(folder, name, ids, _label_shard(label, part, bar))
        else:
            bar.update(len(ids))
    bar.close()
    state.wait_for_everyone()
    if state.is_main_process:
        whole = finished_shards(folder)
        # Not those of a run that was killed and had another number of processes: they hold the same images again.
        names = [shard_name(rank, n) for rank, parts in enumerate(by_process) for n in range(len(parts))]
        shards = {name: whole[name] for name in names}
        seal_labels(folder, _label_record(settings, bundles, prompter, dataset, shards))
    state.wait_for_everyone()


def _label_shard(label: Labeller, batches: Sequence[Batch], bar: Progress[None]) -> np.ndarray:
    import numpy as np

    logits = []
    for batch in batches:
        logits.append(label(batch))
        bar.update(len(batch))
    return np.concatenate(logits)


def _label_record(
    settings: LabelSettings,
    bundles: Sequence[Bundle],
    prompter: Bundle | None,
    dataset: Dataset,
    shards: dict[str, tuple[str, ...]],
) -> LabelRecord:
    assert settings.tta != "auto"
    manifests = [bundle.manifest for bundle in bundles]
    height_px, width_px = label_size(bundles)
    used = [*manifests, *([prompter.manifest] if prompter else [])]
    lineage: list[Made] = []
    for made in (made for m in used for made in (*m.lineage, m.made)):
        if made not in lineage:  # teachers may share ancestors
            lineage.append(made)
    return LabelRecord(
        teacher=teacher_hash([bundle.sha256 for bundle in bundles]),
        teacher_name=teacher_name([manifest.name for manifest in manifests]),
        teachers=tuple(
            TeacherRecord(
                name=b.manifest.name, sha256=b.sha256, dice_val=b.manifest.metric("dice_mean", "val")
            )
            for b in bundles
        ),
        tta=settings.tta,
        prompt_from=TeacherRecord(name=prompter.manifest.name, sha256=prompter.sha256) if prompter else None,
        data_sha256=dataset.sha256,
        split_sha256=dataset.split_sha256,
        classes=manifests[0].classes,
        activation=manifests[0].output.activation,
        height_px=height_px,
        width_px=width_px,
        shards=shards,
        made=made_now(),
        lineage=tuple(lineage),
    )


def _check_promptable(settings: LabelSettings, bundles: Sequence[Bundle]) -> None:
    for bundle in bundles:
        manifest = bundle.manifest
        if manifest.format != "torch" or manifest.architecture not in PROMPTED_SYSTEMS:
            got = f"a {manifest.architecture} in {manifest.format} format"
            raise InputError(
                f"--prompt-from {settings.prompt_from}: must be {MEAN} for {bundle.folder}, got {got}, which takes no "
                f"prompts here; give a teacher in torch format of --system {' or '.join(PROMPTED_SYSTEMS)}"
            )


def _check_alike(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    for other in bundles[1:]:
        a, b = first.manifest, other.manifest
        same = {
            "classes": a.classes == b.classes,
            "data": a.data.sha256 == b.data.sha256,
            "split": a.data.split_sha256 == b.data.split_sha256,
        }
        for what, equal in same.items():
            if not equal:
                raise InputError(
                    f"--bundle {other.folder}: must have the {what} of {first.folder}, has other; "
                    "average teachers that were trained alike"
                )


def _resolve_tta(
    tta: Literal["auto", "none", "flips"], bundles: Sequence[Bundle]
) -> Literal["none", "flips"]:
    """What `--tta` comes to for these teachers.

    Raises:
        InputError: flips was asked for, and a class has a side.
    """
    sided = [
        name
        for name in bundles[0].manifest.classes
        if re.search(r"(?<![a-z])(left|right)(?![a-z])", name.lower())
    ]
    if tta == "flips" and sided:
        raise InputError(
            f"--tta flips: classes must not have a side, got {sided[0]}, whose mirror image is the other side's; "
            "leave --tta away"
        )
    if tta != "auto":
        return tta
    # A promptable teacher asks itself at places that are not mirrored with the picture.
    asked = any(bundle.manifest.architecture in PROMPTED_SYSTEMS for bundle in bundles)
    mirrored = all(was_mirrored(bundle.manifest.settings) for bundle in bundles)
    return "flips" if mirrored and not sided and not asked else "none"


if __name__ == "__main__":
    run_command(main, LabelSettings, "python -m teacher.label")
