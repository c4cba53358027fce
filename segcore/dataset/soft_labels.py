"""Soft labels: one or several teachers' logits for every training image, written once, read by memory map.

labels.json          teachers, data, size, classes, and which case lies in which row of which shard
shard-00000.npy      float16 logits n×K×H×W at the (largest) teacher's input size, uncompressed
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from segcore.bundle.manifest import MAX_CLASSES
from segcore.errors import InputError, reading
from segcore.host import Made
from segcore.outfolder import write_text
from segcore.picture.preprocess import MAX_INPUT_PX, Activation, output_spec

LABELS = "labels.json"
SCHEMA_VERSION = 1
_CASES = TypeAdapter(tuple[str, ...])
_LONGEST_NAME = 255


class TeacherRecord(BaseModel):
    """One of the teachers: its bundle's name and `Bundle.sha256`, and its mean Dice on the validation cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    dice_val: float | None = None


class LabelRecord(BaseModel):
    """What `labels.json` holds.

    Attributes:
        teacher: the one teacher's `Bundle.sha256`, or for several a hash of theirs.
        teacher_name: for tables.
        teachers: each of them; empty in older folders, which had one.
        tta: whether each was asked for the mirrored picture too.
        prompt_from: the model whose masks promptable teachers were asked with; None where they asked themselves.
        height_px: of the labels, the largest of the teachers' inputs; as is width_px.
        shards: each file's cases in row order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    teacher: str
    teacher_name: str
    teachers: tuple[TeacherRecord, ...] = ()
    tta: Literal["none", "flips"] = "none"
    prompt_from: TeacherRecord | None = None
    data_sha256: str
    split_sha256: str
    classes: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    activation: Activation
    height_px: int = Field(gt=0, le=MAX_INPUT_PX)
    width_px: int = Field(gt=0, le=MAX_INPUT_PX)
    shards: dict[str, tuple[str, ...]]
    made: Made
    lineage: tuple[Made, ...] = ()


@dataclass(frozen=True)
class SoftLabels:
    """Opened soft labels; `of(case)` gives one image's logits, K×H×W float16, without reading the others."""

    folder: Path
    record: LabelRecord
    _place: dict[str, tuple[str, int]]
    _shards: dict[str, np.ndarray]

    def __contains__(self, case_id: str) -> bool:
        return case_id in self._place

    def of(self, case_id: str) -> np.ndarray:
        name, row = self._place[case_id]
        return np.asarray(self._shards[name][row])


def shard_name(rank: int, number: int) -> str:
    """File name of a process's n-th shard."""
    return f"shard-{rank:02d}-{number:05d}.npy"


def write_shard(folder: Path, name: str, cases: tuple[str, ...], logits: np.ndarray) -> None:
    """Writes one shard and, last, the list of its cases: a shard with a list is whole."""
    with (folder / name).open("wb") as file:
        np.save(file, logits.astype(np.float16))
        file.flush()
        os.fsync(file.fileno())
    write_text(folder / f"{name}.json", json.dumps(cases), durable=True)


def finished_shards(folder: Path) -> dict[str, tuple[str, ...]]:
    """The shards that are whole, with their cases; for resuming."""
    found = {}
    for path in sorted(folder.glob("shard-*.npy.json")):
        with reading(str(path), "the list of a shard's cases", remedy=f"remove {folder} and label again"):
            found[path.name.removesuffix(".json")] = _CASES.validate_json(path.read_bytes())
    return found


def seal_labels(folder: Path, record: LabelRecord) -> None:
    """Writes `labels.json`, then drops what was only needed to resume: lists, and shards of other processes."""
    write_text(folder / LABELS, record.model_dump_json(indent=2))
    for path in folder.glob("shard-*"):
        if path.name not in record.shards:
            path.unlink()


def open_soft_labels(folder: Path | str) -> SoftLabels:
    """Opens a folder that `teacher.label` wrote.

    Raises:
        InputError: not such a folder, another schema, or a missing or cut shard.
    """
    folder = Path(folder)
    if not (folder / LABELS).is_file():
        raise InputError(f"--soft {folder}: must be a folder that teacher.label wrote, has no {LABELS}")
    with reading(f"--soft {folder}", f"a folder with {LABELS} of teacher.label", remedy="label again"):
        record = LabelRecord.model_validate_json((folder / LABELS).read_bytes())
    if record.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"--soft {folder}: schema must be {SCHEMA_VERSION}, got {record.schema_version}; label again"
        )
    place, shards = {}, {}
    for name, cases in record.shards.items():
        if Path(name).name != name or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise InputError(f"--soft {folder}: shard names must stay inside the folder, got {name}")
        shards[name] = _open_shard(folder / name, len(cases), record)
        place.update({case: (name, row) for row, case in enumerate(cases)})
    return SoftLabels(folder, record, place, shards)


def _open_shard(path: Path, cases: int, record: LabelRecord) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"--soft {path}: must be a whole shard, is missing; label again")
    with reading(f"--soft {path}", "a whole shard", remedy="label again"):
        logits: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    expected = (cases, output_spec(record.classes, 1).channels, record.height_px, record.width_px)
    if logits.shape != expected or logits.dtype != np.float16:
        raise InputError(
            f"--soft {path}: must hold {cases} images, float16 {expected}, got {logits.dtype} {logits.shape}; "
            "label again"
        )
    return logits
