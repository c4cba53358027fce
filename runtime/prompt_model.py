"""The two graphs of a promptable bundle, opened: arrays in, arrays out. `runtime.promptable` is what one asks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from runtime.engines.tensor_session import TensorSession, open_session

FEATURES = ("image", "middle", "fine")
"""What the encoder gives and the decoder takes, at strides 16, 8 and 4."""


class PromptModel:
    """An encoder and a decoder in one engine.

    Attributes:
        version: of the engine's library.
    """

    def __init__(self, encoder: TensorSession, decoder: TensorSession) -> None:
        self.version = decoder.version
        self._encoder = encoder
        self._decoder = decoder

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """H×W×C uint8 of the network's input size → `FEATURES`, 1×C×h×w float32."""
        return self._encoder.run({"picture": image[None]})

    def decode(
        self,
        features: dict[str, np.ndarray],
        points: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every candidate for one prompt.

        Args:
            features: of `encode`.
            points: 1×S×2 float32, in the input's pixels; `segcore.picture.prompts.prompt_arrays` makes them.
            labels: 1×S float32.
            mask: h×w float32, logits of an earlier answer; None where there is none.

        Returns:
            logits M×h×w and estimated IoU M, float32.
        """
        shape = self._decoder.inputs["mask"]
        earlier = np.zeros(shape, np.float32) if mask is None else mask.reshape(shape)
        found = self._decoder.run(
            {
                **{name: features[name] for name in FEATURES},
                "points": points,
                "labels": labels,
                "mask": earlier,
                "has_mask": np.full((1, 1), mask is not None, np.float32),
            }
        )
        return found["logits"][0], found["iou"][0]

    def close(self) -> None:
        """Lets go of both graphs."""
        self._encoder.close()
        self._decoder.close()


def open_prompt_model(engine: str, encoder: Path, decoder: Path, *, threads: int) -> PromptModel:
    """Opens both graphs.

    Raises:
        InputError: the engine is not installed or takes no such graphs, or a file does not open.
    """
    with ExitStack() as stack:
        first = open_session(engine, encoder, threads=threads)
        stack.callback(first.close)
        second = open_session(engine, decoder, threads=threads)
        stack.pop_all()
    return PromptModel(first, second)
