"""Golden cases: procedural pictures and the reference logits for them, in every exported bundle.

They let a device without a dataset prove that its engine computes the masks that the network computes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segcore.phantom import PHANTOM_CLASSES, phantom_case
from segcore.picture.preprocess import InputSpec, prepare

GOLDEN_FILE = "golden.npz"
CASES_A_KIND = 4


def golden_inputs(spec: InputSpec) -> np.ndarray:
    """Phantoms of every kind as the network takes them, N×H×W×C uint8; the same bytes everywhere."""
    byte_spec = spec.model_copy(update={"depth": "uint8", "window": (0.0, 255.0)})
    pictures = [phantom_case(kind, i, seed=7)[0] for kind in PHANTOM_CLASSES for i in range(CASES_A_KIND)]
    return np.stack([prepare(picture, byte_spec) for picture in pictures])


def save_golden(folder: Path, inputs: np.ndarray, logits: np.ndarray, *, file: str = GOLDEN_FILE) -> None:
    """Writes inputs N×H×W×C uint8 and the reference logits N×K×h×w float32."""
    np.savez_compressed(folder / file, inputs=inputs, logits=logits.astype(np.float32))


def load_golden(folder: Path, *, file: str = GOLDEN_FILE) -> tuple[np.ndarray, np.ndarray]:
    """Inputs N×H×W×C uint8 and reference logits N×K×h×w float32. No pickles are read."""
    with np.load(folder / file, allow_pickle=False) as stored:
        return stored["inputs"], stored["logits"]
