"""The cases an export needs: train cases to calibrate INT8, validation cases for the parity gate and the guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segcore.bundle.manifest import DataRecord, Manifest
from segcore.dataset.case import Case
from segcore.dataset.dataset import is_resplit, open_dataset, tested_among
from segcore.errors import InputError

GATE_CASES = 32
MIN_CALIBRATION = 2
"""One picture's ranges are no ranges: whatever is brighter in the next one is cut off."""


@dataclass(frozen=True)
class ExportData:
    """What an export takes from a dataset, and how it is recorded.

    Attributes:
        record: for the manifest.
        calibration: of the train split.
        validation: of the validation split, for the parity gate.
        guard: of the validation split, for the INT8 guard.
    """

    record: DataRecord
    calibration: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    guard: tuple[Case, ...] = ()


def open_export_data(
    data: str, manifest: Manifest, *, calibration_cases: int, guard_cases: int, split_seed: int | None = None
) -> ExportData:
    """Opens `--data` and checks that it is fit for the model.

    Another dataset with the same classes may calibrate (a site's own images, say): its cases are recorded as
    NAME/CASE, and the record of the training data stays. The data that the model was trained on must come
    with the split it was trained on, else "validation" cases would be training cases.

    Args:
        data: as every `--data`.
        manifest: of the bundle that is exported.
        calibration_cases: at most so many of the train split, spread evenly; 0 for none.
        guard_cases: at most so many of the validation split for the guard; 0 for none.
        split_seed: of the split; the training's by default.

    Raises:
        InputError: unreadable data, other classes, the training data with another split, or calibration on too few
            images or on images that the model is tested on.
    """
    seed = manifest.data.split_seed if split_seed is None else split_seed
    dataset = open_dataset(data, seed=seed, fold=manifest.data.fold)
    if dataset.classes != manifest.classes:
        raise InputError(
            f"--data {data}: classes must be {', '.join(manifest.classes)} as in the bundle, "
            f"got {', '.join(dataset.classes)}; name the data the model was made for"
        )
    if is_resplit(dataset, manifest.data.sha256, manifest.data.split_sha256):
        raise InputError(
            f"--data {data}: must be split as the model was trained (split seed {manifest.data.split_seed}), "
            f"got another split (seed {seed}); leave --split-seed out"
        )
    same = dataset.sha256 == manifest.data.sha256
    calibration = dataset.split("train", limit=calibration_cases) if calibration_cases else ()
    if calibration_cases:
        _check_calibration(data, calibration, manifest)
    names = tuple(case.id if same else f"{dataset.name}/{case.id}" for case in calibration)
    record = manifest.data.model_copy(update={"calibration_cases": names})
    return ExportData(
        record,
        calibration=calibration,
        validation=dataset.split("val", limit=GATE_CASES),
        guard=dataset.split("val", limit=guard_cases) if guard_cases else (),
    )


def _check_calibration(data: str, cases: Sequence[Case], manifest: Manifest) -> None:
    if len(cases) < MIN_CALIBRATION:
        raise InputError(
            f"--data {data}: must have at least {MIN_CALIBRATION} labelled images in its train split to calibrate "
            f"int8, got {len(cases)}; add images, or export fp32"
        )
    if seen := tested_among(cases, manifest.data):
        raise InputError(
            f"--data {data}: must calibrate on other images than the model is tested on, got {len(seen)} of them "
            f"({seen[0]}); name data without the test images"
        )
