"""What the study knows of the teachers: which there are, what their flags come to, and how a bundle is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.report.accuracy import distance_unit, score_case
from benchmarks.study.record import CaseScore
from benchmarks.study.settings import words_of
from segcore.bundle.folder import Bundle, open_and_tell
from segcore.command import parse_settings
from segcore.dataset.case import Case, volumes_of
from segcore.dataset.dataset import Dataset, open_dataset
from segcore.errors import InputError
from teacher.settings import CONTROLS as CONTROLS
from teacher.settings import SystemName, TeacherSettings, Tune, check_settings

SYSTEMS: tuple[str, ...] = get_args(SystemName)
TUNINGS: tuple[str, ...] = get_args(Tune)
AUTOMATIC_SYSTEMS = frozenset(SYSTEMS) - {"sam2-memory"}
"""Systems that learn from single pictures; the others need scans."""
UNTRAINED = frozenset({"sam2-zeroshot"})
"""Systems of which nothing is trained: neither seed nor grid changes them, so they run once a split."""
AUTOMATIC = "automatic"
"""The protocol without help; `teacher.system.AUTOMATIC`, without torch."""
_KEPT_CASES = 32
"""Test cases whose features are kept while every protocol looks at them."""
_LOW_RANK = ("lora", "dora", "rslora")


@dataclass(frozen=True)
class EffectiveTuning:
    """What a system's flags come to.

    Attributes:
        tune: of the encoder, where it was not given the system's own.
        rank: of LoRA and its kin; None for other tunings.
    """

    tune: str = ""
    rank: int | None = None


def resolve_tuning(flags: Mapping[str, Any]) -> EffectiveTuning:
    """Parses and checks the flags of one training as teacher.train itself will.

    Raises:
        InputError: teacher.train would refuse them.
    """
    words = words_of({**flags, "out": "unused"})
    settings = parse_settings(TeacherSettings, "python -m teacher.train", words)
    check_settings(settings)
    return EffectiveTuning(settings.tuned, settings.lora_rank if settings.tuned in _LOW_RANK else None)


def flag_names() -> frozenset[str]:
    """Every setting of teacher.train."""
    return frozenset(TeacherSettings.model_fields)


def check_other(other: Dataset, dataset: Dataset) -> None:
    """Checks that other data can be a test of what was trained on a data set.

    Raises:
        InputError: other classes, or images that both hold.
    """
    if other.classes != dataset.classes:
        raise InputError(
            f"--also-test {other.name}: must have the classes of {dataset.name} ({', '.join(dataset.classes)}), got "
            f"{', '.join(other.classes)}; name them alike in classes.txt"
        )
    known = {case.source.image_fingerprint() for case in dataset.cases}
    same = [case.id for case in other.cases if case.source.image_fingerprint() in known]
    if same:
        raise InputError(
            f"--also-test {other.name}: must hold other images than {dataset.name}, {len(same)} are in both "
            f"({same[0]}); take them out"
        )


def thinned(cases: Sequence[Case], limit: int | None) -> tuple[Case, ...]:
    """At most `limit` cases, spread over them; a scan stays whole, since a memory reads its slices in a row.

    Where a single scan has more slices than that, one scan.
    """
    if limit is None or limit >= len(cases):
        return tuple(cases)
    groups = [[cases[i] for i in places] for places in volumes_of(cases)]
    for count in range(min(limit, len(groups)), 1, -1):
        chosen = [groups[i * len(groups) // count] for i in range(count)]
        if sum(map(len, chosen)) <= limit:
            return tuple(case for group in chosen for case in group)
    return tuple(groups[0])


def score_bundle(
    folder: Path,
    *,
    run: str,
    data: str,
    data_sha256: str,
    also_test: str | None,
    limit: int | None,
    device: str,
    masks: Path | None,
) -> list[CaseScore]:
    """Scores a bundle by every protocol on the test split of its own fold, and on other data.

    Args:
        folder: of the bundle.
        run: its name in the study.
        data: what it was trained on.
        data_sha256: of the data when the study began.
        also_test: other data, or None.
        limit: test cases of each, or None for all.
        device: auto, cpu or cuda.
        masks: where the automatic masks of the test split are kept for the report's pictures, or None.

    Raises:
        InputError: the data is not what the study began with.
    """
    bundle = open_and_tell(folder)
    record = bundle.manifest.data
    dataset = open_dataset(data, seed=record.split_seed, fold=record.fold)
    of_seed = data.startswith("phantom:")  # whose pictures follow the split's seed
    if record.sha256 != dataset.sha256 or not (of_seed or dataset.sha256 == data_sha256):
        raise InputError(
            f"--data {data}: must stay as it was while the study runs, has changed; begin a new study"
        )
    cases = thinned(dataset.split("test"), limit)
    scores, kept = _score_cases(bundle, cases, run=run, data=dataset.name, device=device)
    if masks is not None:
        np.savez_compressed(masks, **kept)  # type: ignore[arg-type]  # numpy's stub knows no such names
    if also_test is not None:
        other = thinned([case for case in open_dataset(also_test).cases if case.labelled], limit)
        scores += _score_cases(bundle, other, run=run, data=also_test, device=device)[0]
    return scores


def _score_cases(
    bundle: Bundle, cases: Sequence[Case], *, run: str, data: str, device: str
) -> tuple[list[CaseScore], dict[str, np.ndarray]]:
    import torch

    from segcore.learn.evaluate import Validator
    from teacher.prompts.protocols import kept_features
    from teacher.system import load_teacher, protocols

    manifest = bundle.manifest
    network = load_teacher(bundle).to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    unit, scores, kept = distance_unit(cases), list[CaseScore](), dict[str, np.ndarray]()
    # A memory reads a scan's slices in a row; what looks at single pictures gets a few at a time.
    step = _KEPT_CASES if manifest.architecture in AUTOMATIC_SYSTEMS else max(1, len(cases))
    for start in range(0, len(cases), step):
        validator = Validator(
            cases[start : start + step], manifest.input, manifest.output, len(manifest.classes),
            batch=manifest.settings["batch_size"],
        )  # fmt: skip
        with kept_features(network):
            for protocol, predict in protocols(manifest.architecture).items():
                for case, mask, _ in predict(network, validator):
                    one = score_case(mask, case, manifest.classes, name=run, engine="torch", unit=unit)
                    scores.append(
                        CaseScore(
                            run=run,
                            protocol=protocol,
                            data=data,
                            case=case.id,
                            patient=case.patient,
                            dice=one.dice_mean,
                            iou=one.iou_mean,
                            hd95=one.hd95_mean,
                            hd95_unit=unit,
                            dice_by_class=one.dice_by_class,
                        )
                    )
                    if protocol == AUTOMATIC:
                        kept[case.id] = mask.astype(np.uint8)
    return scores, kept
