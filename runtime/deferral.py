"""Two models: a quick one answers, and passes on to a better one the images whose mask it expects to be poor.

with DeferringPredictor.open("runs/student-int8", "runs/teacher-fp32", below=0.9) as predictor:
    prediction = predictor.predict(read_image("chest.png"))
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np

from runtime.engines.seam import choose_engine
from runtime.predictor import Prediction, Predictor, Timings
from runtime.verify import prove
from segcore.bundle.folder import Bundle, open_bundle
from segcore.errors import InputError

BELOW = 0.9
"""Expected Dice below which an image is passed on."""


class DeferringPredictor:
    """An opened pair of bundles. Use as a context manager, or call `close`.

    Attributes:
        first: the quick model, opened.
        second: the bundle of the one that gets the unsure images; it is opened when the first of them comes.
        below: expected Dice below which an image is passed on.
        engine_names: of both, keys of `runtime.engines.seam.ENGINES`.
    """

    def __init__(
        self,
        first: Predictor,
        second: Bundle,
        *,
        below: float,
        engine: str | None,
        streams: int | None = 1,
        cache: Path | None = None,
        verify: bool = False,
    ) -> None:
        self.first = first
        self.second = second
        self.below = below
        self._engine = engine
        self._streams = streams
        self._cache = cache
        self._verify = verify
        self._opened: Predictor | None = None
        self._lock = Lock()
        self.engine_names = first.engine_name, choose_engine(second, engine)

    @classmethod
    def open(
        cls,
        bundle: Path | str | Bundle,
        defer_to: Path | str | Bundle,
        *,
        below: float = BELOW,
        engine: str | None = None,
        threads: int | None = None,
        streams: int | None = 1,
        cache: Path | None = None,
        verify: bool = False,
    ) -> DeferringPredictor:
        """Opens the quick model, and checks that the other can take its place.

        Args:
            bundle: of the quick model; it must estimate its quality.
            defer_to: of the better model, for the same classes.
            below: expected Dice, 0–1, below which an image is passed on.
            engine: of both; by default what suits each bundle.
            threads: CPU threads of each engine.
            streams: as for `Predictor.open`, of each.
            cache: folder where OpenVINO keeps what it compiled.
            verify: prove each model with its golden cases when it is opened (`runtime.verify.prove`).

        Raises:
            InputError: as `Predictor.open`; the bundle has no quality estimate, or the classes differ.
        """
        first = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        second = defer_to if isinstance(defer_to, Bundle) else open_bundle(defer_to)
        if first.manifest.quality is None:
            raise InputError(
                f"--bundle {first.folder}: must estimate its quality to go with --defer-to, does not; train the "
                "student with this version and at least 20 validation cases, and export it again"
            )
        if first.manifest.classes != second.manifest.classes:
            raise InputError(
                f"--defer-to {second.folder}: must mark {', '.join(first.manifest.classes)} as {first.folder} does, "
                f"got {', '.join(second.manifest.classes)}; use two models for the same classes"
            )
        choose_engine(second, engine)  # an error comes now, not at the first unsure image
        opened = Predictor.open(first, engine=engine, threads=threads, streams=streams, cache=cache)
        if verify:
            prove(opened)
        return cls(opened, second, below=below, engine=engine, streams=streams, cache=cache, verify=verify)

    def predict(self, image: np.ndarray, *, name: str = "image") -> Prediction:
        """Segments one image; the times of an image that was passed on are those of both models.

        Args:
            image: H×W or H×W×3, of the depth that both models were trained on.
            name: what an error calls the image.

        Raises:
            InputError: another depth or shape.
        """
        first = self.first.predict(image, name=name)
        assert first.quality is not None  # `open` refuses a bundle that does not estimate it
        if first.quality >= self.below:
            return first
        second = self.open_second().predict(image, name=name)
        both = Timings(
            first.timings.pre_ms + second.timings.pre_ms,
            first.timings.engine_ms + second.timings.engine_ms,
            first.timings.post_ms + second.timings.post_ms,
        )
        return replace(second, timings=both, first_quality=first.quality)

    def maker_of(self, prediction: Prediction) -> Predictor:
        """The model that drew a prediction's mask."""
        return self.first if prediction.first_quality is None else self.open_second()

    def open_second(self) -> Predictor:
        """The better model, opened once, when it is first asked for."""
        with self._lock:
            if self._opened is None:  # not before: its memory is wanted only where an image is unsure
                opened = Predictor.open(
                    self.second,
                    engine=self._engine,
                    threads=self.first.threads,
                    streams=self._streams,
                    cache=self._cache,
                )
                if self._verify:
                    prove(opened)
                self._opened = opened
            return self._opened

    def close(self) -> None:
        """Lets go of both models."""
        self.first.close()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> DeferringPredictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
