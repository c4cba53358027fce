"""One calibration, many models: what the INT8 guard knows of a quantiser."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol


class CalibratedGraph(Protocol):
    """A graph whose ranges are known, so that any choice of its layers can be written in INT8 without new data.

    Two quantisers give one: `export.int8.qdq` for TensorRT, and OpenVINO's for its own format. The guard returns layers
    to float by their names until the masks are good enough; it knows nothing else of either.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that can be quantised, in the graph's order; each name once, the same in every run.

        A layer is an operator with weights (convolution, linear), or an Add or Concat with quantised inputs.
        """
        ...

    def write(self, path: Path, *, in_float: Collection[str] = ()) -> None:
        """Writes the model.

        The same call writes the same file. No call changes what later ones write.

        Args:
            path: file to write, in a folder that is there; what belongs to it goes beside it.
            in_float: names from `layers` that compute in float. Every other layer is quantised, as far as the
                engine's rules allow: an Add or Concat whose reader is in float needs no quantised inputs.

        Raises:
            ValueError: a name that is not in `layers`.
        """
        ...
