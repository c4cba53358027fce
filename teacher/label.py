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

from segcore.agreement import check_agreement
from segcore.bundle import Bundle, open_bundle
from segcore.case import Case
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset import Dataset, open_dataset
from segcore.errors import InputError
from segcore.host import Made, made_now
from segcore.outfolder import out_folder
from segcore.soft_labels import (
    LabelRecord,
    TeacherRecord,
    finished_shards,
    seal_labels,
    shard_name,
    write_shard,
)
from teacher.ensemble import label_size, open_ensemble

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    Label = Callable[[Sequence[Case]], np.ndarray]


class LabelSettings(Settings):
    """Write soft labels: a teacher's, or the mean probability of several."""

    bundle: tuple[Path, ...] = Field(min_length=1)
    """A teacher: what teacher.train wrote, or any exported bundle. Give --bundle again to average several; labels are
    then at the largest input size."""
    data: str
    """The data set that the student will be trained on: its training split and its images without masks."""
    out: Path
    """The folder of soft labels to write."""
    tta: Literal["none", "flips"] = "none"
    """flips averages over the picture and its left-right mirror image. Wrong for classes that have a side (left lung,
    tooth 36): the mirror image of one is the other."""
    batch_size: int = Field(8, ge=1)
    """Images a forward pass."""
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
    bundles = [open_bundle(folder) for folder in settings.bundle]
    dataset = open_dataset(settings.data, seed=settings.split_seed, need_masks=False)
    for bundle in bundles:
        trained_on = bundle.manifest.data
        check_agreement(
            f"bundle {bundle.folder}",
            classes=bundle.manifest.classes,
            data_sha256=trained_on.sha256,
            split_sha256=trained_on.split_sha256,
            dataset=dataset,
        )
    _check_alike(bundles)
    if settings.tta == "flips":
        _check_no_sides(bundles[0].manifest.classes)
    cases = dataset.split("train") + dataset.unlabelled
    teacher = teacher_hash([bundle.sha256 for bundle in bundles])
    recipe = {"teacher": teacher, "tta": settings.tta, "data_sha256": dataset.sha256,
              "split_sha256": dataset.split_sha256, "shard_images": settings.shard_images}  # fmt: skip
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        _label(settings, bundles, dataset, cases, folder)
    log(f"wrote {settings.out}")
    print_result(soft=str(settings.out), images=len(cases), teacher=teacher)


def teacher_hash(hashes: Sequence[str]) -> str:
    """What a student's manifest names as its teacher: a bundle's hash, or for several a hash of them in any order."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def teacher_name(names: Sequence[str]) -> str:
    """What tables call the teachers: "S2AgScUNet tiny", "2 × U-Net 16 + S2AgScUNet tiny"."""
    return " + ".join(f"{n} × {name}" if n > 1 else name for name, n in Counter(names).items())


def _label(
    settings: LabelSettings,
    bundles: Sequence[Bundle],
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
) -> None:
    from accelerate import PartialState
    from tqdm import tqdm

    state = PartialState(cpu=settings.device == "cpu")
    mine = cases[state.process_index :: state.num_processes]
    done = finished_shards(folder)
    label = open_ensemble(bundles, tta=settings.tta, device=str(state.device))
    bar = tqdm(total=len(mine), desc="labelling", unit="image", disable=not state.is_main_process)
    for number, start in enumerate(range(0, len(mine), settings.shard_images)):
        part = mine[start : start + settings.shard_images]
        name, ids = shard_name(state.process_index, number), tuple(case.id for case in part)
        if done.get(name) != ids:
            write_shard(folder, name, ids, _run(label, part, settings.batch_size, bar))
        else:
            bar.update(len(part))
    bar.close()
    state.wait_for_everyone()
    if state.is_main_process:
        seal_labels(folder, _record(settings, bundles, dataset, finished_shards(folder)))
    state.wait_for_everyone()


def _run(label: Label, cases: Sequence[Case], batch: int, bar: tqdm[None]) -> np.ndarray:
    import numpy as np

    parts = []
    for start in range(0, len(cases), batch):
        parts.append(label(cases[start : start + batch]))
        bar.update(len(parts[-1]))
    return np.concatenate(parts)


def _record(
    settings: LabelSettings, bundles: Sequence[Bundle], dataset: Dataset, shards: dict[str, tuple[str, ...]]
) -> LabelRecord:
    manifests = [bundle.manifest for bundle in bundles]
    height_px, width_px = label_size(bundles)
    lineage: list[Made] = []
    for made in (made for m in manifests for made in (*m.lineage, m.made)):
        if made not in lineage:  # teachers may share ancestors
            lineage.append(made)
    return LabelRecord(
        teacher=teacher_hash([bundle.sha256 for bundle in bundles]),
        teacher_name=teacher_name([manifest.name for manifest in manifests]),
        teachers=tuple(TeacherRecord(name=b.manifest.name, sha256=b.sha256) for b in bundles),
        tta=settings.tta,
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


def _check_no_sides(classes: Sequence[str]) -> None:
    for name in classes:
        if re.search(r"(?<![a-z])(left|right)(?![a-z])", name.lower()):
            raise InputError(
                f"--tta flips: classes must not have a side, got {name}, whose mirror image is the other side's; "
                "leave --tta away"
            )


if __name__ == "__main__":
    run_command(main, LabelSettings, "python -m teacher.label")
