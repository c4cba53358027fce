"""How a predictor is opened, as plain values that go to other processes and hosts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.deferral import BELOW, DeferringPredictor
from runtime.predictor import Predictor
from segcore.errors import InputError


@dataclass(frozen=True)
class Opening:
    """What `Predictor.open` and `DeferringPredictor.open` take; the names are those of the flags.

    Attributes:
        bundle: folder of an exported bundle.
        defer_to: folder of the second model, or None.
        below: expected Dice below which a picture goes to the second.
        engine: of both; None for what suits the bundle.
        threads: CPU threads of the engine; None for all.
        streams: batches that the engine works on at once.
        batch: pictures a call.
        cache: folder where OpenVINO keeps what it compiled.
    """

    bundle: Path
    defer_to: Path | None = None
    below: float = BELOW
    engine: str | None = None
    threads: int | None = None
    streams: int = 1
    batch: int = 1
    cache: Path | None = None


def open_predictor(opening: Opening) -> Predictor | DeferringPredictor:
    """Opens the model, or the pair.

    Raises:
        InputError: as `Predictor.open` and `DeferringPredictor.open`.
    """
    if opening.defer_to is None:
        return Predictor.open(
            opening.bundle,
            engine=opening.engine,
            threads=opening.threads,
            streams=opening.streams,
            batch=opening.batch,
            cache=opening.cache,
        )
    for name, number in (("streams", opening.streams), ("batch", opening.batch)):
        if number > 1:
            raise InputError(
                f"--{name}: must be 1 with --defer-to, got {number}; it takes pictures one by one"
            )
    return DeferringPredictor.open(
        opening.bundle,
        opening.defer_to,
        below=opening.below,
        engine=opening.engine,
        threads=opening.threads,
        cache=opening.cache,
    )
