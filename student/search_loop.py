"""The measuring of a search: batch after batch while there is time, then the finalists together.

All that was measured is in a file, so that an interrupted search goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from runtime.load import others_share, read_clock
from segcore.outfolder import write_text
from student.candidates import Candidate
from student.presets import PRESETS
from student.search_measure import Bench, time_models, write_model
from student.search_plan import (
    BATCH,
    FINALISTS,
    REACH,
    Measured,
    front_of,
    next_batch,
    on_one_scale,
    spread_sample,
)

SPREAD_SHARE = 1 / 3
"""Of the time, at most, for the first sample."""
MEASURED, MODELS = "measured.json", "models"


@dataclass(frozen=True)
class Final:
    """The last run.

    Attributes:
        ms: median milliseconds by name, the anchor's included.
        other_load_share: of processor time that other programs took meanwhile, 0–1; None where unknown.
    """

    ms: dict[str, float]
    other_load_share: float | None


def explore(
    candidates: Sequence[Candidate],
    bench: Bench,
    folder: Path,
    *,
    budget_ms: float,
    rounds: int,
    seconds: float,
    used: Callable[[], float],
) -> list[Measured]:
    """Measures candidates until time is up or nothing is left that could be better; at least one batch.

    Args:
        candidates: the first is the anchor.
        bench: how they are measured.
        folder: keeps what was measured, and the models.
        budget_ms: where to look.
        rounds: of each batch's timing.
        seconds: for all of it.
        used: seconds that went by in this process.
    """
    measured = read_measured(folder)
    before = sum(one.took_s for one in measured)  # by a search that was interrupted
    presets = [c for c in candidates if c.name in PRESETS]
    sample: list[Candidate] | None = None
    with tqdm(initial=len(measured), desc="measured", unit="design") as bar:
        while True:
            ms = on_one_scale(measured)
            gone = before + used()
            if not ms:
                batch = presets or list(candidates[:BATCH])
            else:
                if sample is None:
                    sample = spread_sample(candidates, ms, budget_ms)
                left = [c for c in sample if c.name not in ms] if gone < SPREAD_SHARE * seconds else []
                batch = left[:BATCH] or next_batch(candidates, ms, budget_ms)
            each_s = sum(one.took_s for one in measured) / max(len(measured), 1)
            if not batch or (measured and gone + len(batch) * each_s > seconds):
                return measured
            measured += _measure(batch, candidates[0], bench, folder, rounds=rounds, first=not measured)
            write_text(folder / MEASURED, json.dumps([asdict(one) for one in measured]))
            kept = sum(t <= budget_ms for t in on_one_scale(measured).values())
            bar.set_postfix_str(f"{kept} within {budget_ms:g} ms")
            bar.update(len(measured) - bar.n)


def read_measured(folder: Path) -> list[Measured]:
    """What an interrupted search has measured."""
    path = folder / MEASURED
    return [Measured(**one) for one in json.loads(path.read_text())] if path.is_file() else []


def _measure(
    batch: Sequence[Candidate], anchor: Candidate, bench: Bench, folder: Path, *, rounds: int, first: bool
) -> list[Measured]:
    begin = time.monotonic()
    others = [c for c in batch if c != anchor]
    ms = _timed([anchor, *others], bench, folder, rounds=rounds)
    took_s = (time.monotonic() - begin) / len(batch)
    return [
        Measured(c.name, ms[c.name], ms[anchor.name], took_s) for c in ([anchor] if first else []) + others
    ]


def final_run(
    wanted: Sequence[Candidate],
    candidates: Sequence[Candidate],
    ms: dict[str, float],
    bench: Bench,
    folder: Path,
    *,
    budget_ms: float,
    rounds: int,
) -> Final:
    """Times the finalists together, freshly opened; if none keeps the budget, the next ones down the front.

    Args:
        wanted: finalists in any case (proxies that were trained); without them the front near the budget.
        candidates: all; the first is the anchor.
        ms: what was measured so far.
        bench: how they are measured.
        folder: of the search.
        budget_ms: what one of them should keep.
        rounds: of the timing.
    """
    front = [c for c in front_of(candidates, ms) if ms[c.name] <= REACH * budget_ms and c not in wanted]
    groups = [list(wanted)] if wanted else []
    while front:
        groups.append(front[-FINALISTS:])
        front = front[:-FINALISTS]
    found: dict[str, float] = {}
    before = read_clock()
    for group in groups:
        anchor = candidates[0]
        found |= _timed(list(dict.fromkeys([anchor, *group])), bench, folder, rounds=rounds)
        if any(found[c.name] <= budget_ms for c in group):
            break
    return Final(found, others_share(before, read_clock()))


def _timed(group: Sequence[Candidate], bench: Bench, folder: Path, *, rounds: int) -> dict[str, float]:
    paths = [_model_of(candidate, bench, folder / MODELS) for candidate in group]
    times = time_models(paths, bench, rounds=rounds)
    return {candidate.name: ms for candidate, ms in zip(group, times, strict=True)}


def _model_of(candidate: Candidate, bench: Bench, models: Path) -> Path:
    """The candidate's model file, made where there is none yet; never a half one."""
    folder = models / candidate.name
    if not folder.exists():
        partial = models / f"{candidate.name}.partial"
        write_model(candidate.design, bench, partial)
        partial.rename(folder)
    return folder / bench.model_file
