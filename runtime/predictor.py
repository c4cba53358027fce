"""A picture in, a mask out: what an application uses of an exported bundle.

with Predictor.open("runs/student-int8") as predictor:
    prediction = predictor.predict(read_image("chest.png"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from runtime.engine import Engine, available_threads, choose_engine, open_engine
from segcore.bundle import Bundle, Manifest, open_bundle
from segcore.errors import InputError
from segcore.preprocess import decide, prepare, probabilities
from segcore.quality import quality_of


@dataclass(frozen=True)
class Timings:
    """Where the time of one prediction went, in milliseconds."""

    pre_ms: float
    engine_ms: float
    post_ms: float

    @property
    def total_ms(self) -> float:
        return self.pre_ms + self.engine_ms + self.post_ms


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture, at the picture's own size.

    Attributes:
        mask: H×W uint8; 0 background, k the manifest's k-th class.
        probabilities: K×H×W float32; one sigmoid channel for one class, background first for several.
        timings: of this call.
        quality: the Dice, 0–1, that the model expects of this mask; None where it was not fitted to estimate it.
        first_quality: what the quicker model expected of its own mask, where it passed the picture on and this is
            the second model's answer (`runtime.deferral`); else None.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    timings: Timings
    quality: float | None = None
    first_quality: float | None = None


class Predictor:
    """An opened bundle with its engine. Use as a context manager, or call `close`.

    Attributes:
        bundle: the opened bundle.
        engine_name: a key of `runtime.engine.ENGINES`.
        threads: CPU threads of the engine.
    """

    def __init__(self, bundle: Bundle, engine: Engine, *, engine_name: str, threads: int) -> None:
        self.bundle = bundle
        self.engine_name = engine_name
        self.threads = threads
        self._engine = engine

    @classmethod
    def open(
        cls, bundle: Path | str | Bundle, *, engine: str | None = None, threads: int | None = None
    ) -> Predictor:
        """Opens a bundle.

        Args:
            bundle: its folder, or what `open_bundle` gave.
            engine: a key of `runtime.engine.ENGINES`; by default openvino where it is installed and can open
                the bundle, else onnxruntime.
            threads: CPU threads of the engine; by default all that this process may use.

        Raises:
            InputError: a damaged or unexported bundle, or an engine that is unknown, unable or not installed.
        """
        if not isinstance(bundle, Bundle):
            bundle = open_bundle(bundle)
        if threads is not None and threads < 1:
            raise InputError(f"--threads: must be at least 1, got {threads}")
        name = choose_engine(bundle.manifest, engine, name=str(bundle.folder))
        count = threads or available_threads()
        opened = open_engine(name, bundle.model_path, precision=bundle.manifest.precision, threads=count)
        return cls(bundle, opened, engine_name=name, threads=count)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def engine_version(self) -> str:
        return self._engine.version

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Raw logits.

        Args:
            batch: N×H×W×C uint8 of the manifest's input size, as `segcore.preprocess.prepare` gives it.

        Returns:
            N×K×h×w float32 at the head's stride.
        """
        spec = self.manifest.input
        expected = (*spec.size_px, spec.channels)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != expected:
            raise ValueError(
                f"batch must be uint8 N×{'×'.join(map(str, expected))}, got {batch.dtype} {batch.shape}"
            )
        return self._engine.run(batch)

    def predict(self, image: np.ndarray, *, name: str = "image") -> Prediction:
        """Segments one picture.

        Args:
            image: H×W or H×W×3, of the depth that the model was trained on, as `read_image` gives it.
            name: what an error calls the picture.

        Raises:
            InputError: another depth or shape.
        """
        start = perf_counter()
        picture = prepare(image, self.manifest.input, name=name)
        prepared = perf_counter()
        logits = self._engine.run(picture[None])[0]
        ran = perf_counter()
        probability = probabilities(logits, self.manifest.output, (image.shape[0], image.shape[1]))
        mask = decide(probability, self.manifest.output)
        model = self.manifest.quality
        quality = quality_of(logits, self.manifest.output, model) if model else None
        done = perf_counter()
        timings = Timings(1e3 * (prepared - start), 1e3 * (ran - prepared), 1e3 * (done - ran))
        return Prediction(mask, probability, timings, quality)

    def close(self) -> None:
        """Lets go of the model."""
        self._engine.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
