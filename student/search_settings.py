"""The settings of `python -m student.search`; the command line is generated from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from segcore.command import Settings


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
