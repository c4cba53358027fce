"""Finds the largest student that keeps a latency budget on the machine that runs the command.

`python -m student.search --budget-ms 2 --out O`. Latency does not depend on what the weights are, so candidates are
built with random weights, exported, quantised and timed through the runtime; `student.search.plan` says in which
order, so that a bounded time is spent near the budget. Every batch is timed in interleaved rounds together with one
anchor, and the best are timed once more at the end, freshly opened: the latency that is promised is the median of
that last run.

Until something is trained, capacity (√(MACs · parameters)) stands in for accuracy: within one kind of design more of
both is better, between kinds it says little. `--data D` trains the best of a few kinds briefly and chooses by
validation Dice.

It writes search.csv (every measured candidate), search.png, distill.yaml for `student.distill --config`, record.json.
What was measured is kept in O.partial: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from runtime.engines.seam import ENGINES, EXTRAS, OPENED_BY, installed
from runtime.timing.latency import BUSY_SHARE
from runtime.timing.roofline import Roofline, measure_roofline, share_of_peak
from segcore.bundle.folder import open_bundle
from segcore.command import Progress, Settings, log, print_result, run_command
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError, need, reading
from segcore.host import describe_host, library_versions, made_now
from segcore.outfolder import out_folder, write_text
from segcore.picture.preprocess import InputSpec, output_spec
from student.distill import DistillSettings
from student.distill import main as distill
from student.search.candidates import Candidate, draw_candidates
from student.search.measure import MEASURED, MODELS, Bench, FinalRun, draw_pictures, explore, final_run
from student.search.output import (
    CONFIG,
    PICTURE,
    RECORD,
    TABLE,
    SearchRow,
    draw_search,
    write_config,
    write_table,
)
from student.search.plan import front_of, on_one_scale, proxies

FINAL_SHARE, FINAL_MIN_S = 0.1, 8.0
"""Of the search's time, for the last run of the finalists; and at least so long."""
CANDIDATES_A_MINUTE, MIN_CANDIDATES, MAX_CANDIDATES = 300, 20, 2000
"""On paper; some 30 a minute can be measured, so there are several of each size to choose from."""
ROOFLINE = "roofline.json"


class SearchSettings(Settings):
    """Find the largest student that keeps a latency budget on this machine."""

    budget_ms: float = Field(gt=0)
    """Milliseconds a picture may take, in the engine: picture of the network's size in, logits out."""
    out: Path
    """New folder for search.csv, search.png, distill.yaml and record.json."""
    engine: str = "openvino"
    """What will run the student: openvino or onnxruntime."""
    precision: Literal["int8", "fp32"] = "int8"
    """int8, or fp32 (what fp16 files compute in on a CPU)."""
    threads: int = Field(1, ge=1)
    """CPU threads of the engine."""
    size: int = Field(256, ge=32, multiple_of=32)
    """Height and width of the network's input, in pixels."""
    channels: Literal[1, 3] = 1
    """1 for grey pictures, 3 for colour."""
    classes: int = Field(1, ge=1)
    """Classes to tell apart, besides the background."""
    max_parameters: int = Field(500_000, ge=1)
    """Leave out designs with more."""
    budget_minutes: float = Field(10.0, gt=0)
    """Longest time for measuring, the last run included; proxy trainings come on top."""
    rounds: int = Field(5, ge=1)
    """Rounds of a batch's interleaved timing; the last run has twice as many."""
    data: str | None = None
    """Dataset for short proxy trainings: then the best validation Dice is chosen, not the highest capacity."""
    proxy_epochs: int = Field(5, ge=1)
    """Epochs of a proxy training."""
    proxy_candidates: int = Field(4, ge=1)
    """How many are trained, of different kinds."""
    proxy_images: int | None = Field(None, ge=1)
    """Train proxies on at most so many images."""
    seed: int = 0
    """Of the list of candidates and of their weights."""
    overwrite: bool = False
    """Replace a complete --out."""


def main(settings: SearchSettings) -> None:
    """Runs the search; see the module."""
    _check_flags(settings)
    if settings.data:
        check_data(settings.data, channels=settings.channels, classes=settings.classes)
    with out_folder(settings.out, kept_with(settings), overwrite=settings.overwrite) as folder:
        result = _run_search(settings, folder)
        for name in (MEASURED, ROOFLINE):
            (folder / name).unlink()
        shutil.rmtree(folder / MODELS)
    log(f"wrote {settings.out}")
    print_result(out=str(settings.out), config=str(settings.out / CONFIG), **result)


def kept_with(settings: SearchSettings) -> dict[str, Any]:
    """What an interrupted search depends on. Not the budgets: a latency holds for every one."""
    fields = settings.model_dump(mode="json", exclude={"out", "overwrite", "budget_ms", "budget_minutes"})
    versions = {name: v for name, v in library_versions().items() if name == settings.engine}
    return {**fields, **versions, "host": describe_host()}


def _check_flags(settings: SearchSettings) -> None:
    engine = settings.engine
    if engine not in ENGINES:
        raise InputError(f"--engine {engine}: must be one of {', '.join(ENGINES)}, got {engine}")
    if settings.precision == "int8" and engine not in OPENED_BY["openvino"]:
        raise InputError(
            f"--precision int8: must be fp32 with --engine {engine}, got int8 (it comes in a later version); "
            "use --engine openvino, or --precision fp32"
        )
    if not installed(engine):
        raise need(engine, EXTRAS[engine])
    for package in ("torch", "onnx", "onnxscript", *(["nncf"] if settings.precision == "int8" else [])):
        if not installed(package):
            raise need(package, "export")


def check_data(data: str, *, channels: int, classes: int) -> None:
    """Checks that the search's model is one for this data, before anything is measured.

    Raises:
        InputError: the data has other channels or classes, or cannot be read.
    """
    dataset = open_dataset(data)
    if len(dataset.classes) != classes:
        raise InputError(
            f"--classes {classes}: must be {len(dataset.classes)} for --data {data} "
            f"({', '.join(dataset.classes)}), got {classes}; add --classes {len(dataset.classes)}"
        )
    found = 3 if dataset.split("train", limit=1)[0].image().ndim == 3 else 1
    if found != channels:
        raise InputError(
            f"--channels {channels}: must be {found} for --data {data}, got {channels}; add --channels {found}"
        )


def _run_search(settings: SearchSettings, folder: Path) -> dict[str, Any]:
    begin = time.monotonic()
    bench = _open_bench(settings)
    roofline = _read_or_measure_roofline(settings, folder / ROOFLINE)
    candidates = _draw_on_paper(settings)
    seconds = 60 * settings.budget_minutes
    measured = explore(
        candidates,
        bench,
        folder,
        budget_ms=settings.budget_ms,
        rounds=settings.rounds,
        seconds=seconds - max(FINAL_SHARE * seconds, min(FINAL_MIN_S, seconds / 2)),
        used=lambda: time.monotonic() - begin,
    )
    ms = on_one_scale(measured)
    _check_met(settings, ms)
    wanted: list[Candidate] = []
    dice: dict[str, float] = {}
    if settings.data:
        wanted = proxies(candidates, ms, settings.budget_ms, settings.proxy_candidates)
        dice = train_proxies(
            wanted,
            folder / "proxies",
            data=settings.data,
            size_px=settings.size,
            epochs=settings.proxy_epochs,
            images=settings.proxy_images,
            seed=settings.seed,
        )
    log("timing the finalists together")
    final = final_run(
        wanted, candidates, ms, bench, folder, budget_ms=settings.budget_ms, rounds=2 * settings.rounds
    )
    _check_met(settings, final.ms)
    everyone = list(dict.fromkeys([*candidates, *wanted]))
    rows = _table_rows(
        settings, everyone, ms, final, dice, _peak_gmac_s(settings, roofline), anchor=candidates[0].name
    )
    return _write_results(settings, rows, final, roofline, folder, seconds=time.monotonic() - begin)


def _open_bench(settings: SearchSettings) -> Bench:
    from student.network import GREY_MEAN_STD, RGB_MEAN_STD

    mean, std = GREY_MEAN_STD if settings.channels == 1 else RGB_MEAN_STD
    side = settings.size
    spec = InputSpec(height_px=side, width_px=side, channels=settings.channels, mean=mean, std=std)
    return Bench(
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
        spec=spec,
        classes=settings.classes,
        seed=settings.seed,
        pictures=draw_pictures(spec),
    )


def _read_or_measure_roofline(settings: SearchSettings, path: Path) -> Roofline:
    if path.is_file():
        with reading(str(path), "a machine's measured peaks", remedy="remove it to measure again"):
            return TypeAdapter(Roofline).validate_json(path.read_bytes())
    log("measuring the machine's peaks")
    roofline = measure_roofline(settings.engine, settings.threads)
    write_text(path, json.dumps(asdict(roofline)))
    return roofline


def _peak_gmac_s(settings: SearchSettings, roofline: Roofline) -> float:
    int8 = roofline.int8_gmac_s if settings.precision == "int8" else None
    return int8 or roofline.fp32_gmac_s


def _draw_on_paper(settings: SearchSettings) -> list[Candidate]:
    count = int(np.clip(CANDIDATES_A_MINUTE * settings.budget_minutes, MIN_CANDIDATES, MAX_CANDIDATES))
    with Progress[None](label="candidates", total=count, unit="design") as bar:
        found = draw_candidates(
            size_px=settings.size,
            channels=settings.channels,
            outputs=output_spec([""] * settings.classes, stride=1).channels,
            max_parameters=settings.max_parameters,
            seed=settings.seed,
            count=count,
            progress=bar.update,
        )
    if not found:
        raise InputError(
            f"--max-parameters {settings.max_parameters}: must leave a design, leaves none; allow more"
        )
    return found


def train_proxies(
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    data: str,
    size_px: int,
    epochs: int,
    images: int | None,
    seed: int,
) -> dict[str, float]:
    """Trains each candidate briefly; what was trained before, or half trained, is taken up.

    Args:
        candidates: whom to train.
        folder: each becomes a bundle of its name in it.
        data: as every `--data`.
        size_px: of the input.
        epochs: of each training.
        images: train on at most so many; None for all.
        seed: of each training.

    Returns:
        Validation Dice by name.
    """
    dice = {}
    for i, candidate in enumerate(candidates):
        out = folder / candidate.name
        if not out.exists():
            log(f"proxy training {i + 1} of {len(candidates)}: {candidate.name}")
            settings = DistillSettings.model_validate(
                {
                    "data": data,
                    "out": out,
                    "size": size_px,
                    "epochs": epochs,
                    "limit": images,
                    "seed": seed,
                    "design": candidate.design.model_dump(mode="json"),
                }
            )
            with redirect_stdout(sys.stderr):  # its result line is not this command's
                distill(settings)
        dice[candidate.name] = open_bundle(out).manifest.metric("dice_mean", "val") or 0.0
    return dice


def _check_met(settings: SearchSettings, ms: dict[str, float]) -> None:
    fastest = min(ms, key=lambda name: ms[name])
    if ms[fastest] > settings.budget_ms:
        raise InputError(
            f"--budget-ms {settings.budget_ms:g}: must be at least {ms[fastest]:.3g}, the latency of {fastest}, the "
            f"fastest of {len(ms)} measured designs, got {settings.budget_ms:g}; allow more, or use a smaller "
            "--size or more --threads"
        )


def _table_rows(
    settings: SearchSettings,
    candidates: Sequence[Candidate],
    ms: dict[str, float],
    final: FinalRun,
    dice: dict[str, float],
    peak: float,
    *,
    anchor: str,
) -> list[SearchRow]:
    """All that was measured, at the speed of the last run; the chosen one is among the finalists."""
    drift = final.ms[anchor] / ms[anchor]
    all_ms = {name: t * drift for name, t in ms.items()} | final.ms
    front = {c.name for c in front_of(candidates, all_ms)}
    kept = [c for c in candidates if final.ms.get(c.name, math.inf) <= settings.budget_ms]
    chosen = max(kept, key=lambda c: (dice.get(c.name, -1.0), c.capacity))
    return [
        SearchRow(
            candidate=c,
            ms=all_ms[c.name],
            final=c.name in final.ms,
            share_of_peak=share_of_peak(c.macs, all_ms[c.name], peak),
            within_budget=all_ms[c.name] <= settings.budget_ms,
            on_front=c.name in front,
            chosen=c is chosen,
            dice_val=dice.get(c.name),
        )
        for c in candidates
        if c.name in all_ms
    ]


def _write_results(
    settings: SearchSettings,
    rows: Sequence[SearchRow],
    final: FinalRun,
    roofline: Roofline,
    folder: Path,
    seconds: float,
) -> dict[str, Any]:
    (chosen,) = (row for row in rows if row.chosen)
    made = made_now()
    where = (
        f"{settings.engine} {roofline.engine_version}, {settings.precision}, "
        f"{settings.threads} thread{'s' * (settings.threads > 1)}, "
        f"{settings.size}×{settings.size}×{settings.channels}, {describe_host()}"
    )
    result = {
        "chosen": chosen.candidate.name,
        "promised_ms": round(chosen.ms, 4),
        "budget_ms": settings.budget_ms,
        "parameters": chosen.candidate.parameters,
        "macs": chosen.candidate.macs,
        "share_of_peak": round(chosen.share_of_peak, 4),
        "dice_val": chosen.dice_val,
        "measured": len(rows),
        "other_load_share": final.other_load_share,
    }
    write_table(folder / TABLE, rows)
    draw_search(folder / PICTURE, rows, budget_ms=settings.budget_ms, title=where)
    write_config(folder / CONFIG, chosen.candidate, settings.size, f"{chosen.ms:.3f} ms on {where}")
    record = {
        **result,
        "design": chosen.candidate.design.model_dump(mode="json"),
        "seconds": round(seconds, 1),
        "roofline": asdict(roofline),
        "settings": settings.model_dump(mode="json"),
        "made": made.model_dump(mode="json"),
    }
    write_text(folder / RECORD, json.dumps(record, indent=2))
    _print_front(rows)
    if (final.other_load_share or 0.0) > BUSY_SHARE:
        log(
            f"other programs took {final.other_load_share:.0%} of the processor in the last run: times may be too long"
        )
    if max(row.share_of_peak for row in rows) > 1:
        log(
            "the peak was measured at a busy moment: the shares of it are too high; search again when it is quiet"
        )
    return result


def _print_front(rows: Sequence[SearchRow]) -> None:
    print(f"{'':1} {'design':44} {'ms':>8} {'M params':>9} {'M MACs':>8} {'of peak':>8} {'Dice':>6}")
    for row in sorted(
        (r for r in rows if r.on_front or r.chosen or r.dice_val is not None), key=lambda r: r.ms
    ):
        c = row.candidate
        dice = "" if row.dice_val is None else f"{row.dice_val:.3f}"
        print(
            f"{'*' * row.chosen:1} {c.name:44} {row.ms:8.3f} {c.parameters / 1e6:9.3f} "
            f"{c.macs / 1e6:8.1f} {row.share_of_peak:8.0%} {dice:>6}"
        )


if __name__ == "__main__":
    run_command(main, SearchSettings, "python -m student.search")
