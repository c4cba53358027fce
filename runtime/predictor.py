"""An image in, a mask out: what an application uses of an exported bundle.

with Predictor.open("runs/student-int8") as predictor:
    prediction = predictor.predict(read_image("chest.png"))
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from time import perf_counter

import numpy as np

from runtime.buckets import FileEngines, Size, choose_size, model_files, select_files
from runtime.engines.probe import ensure_opens
from runtime.engines.seam import (
    ON_GPU,
    Engine,
    available_threads,
    check_graph,
    choose_engine,
    choose_threads,
    open_engine,
)
from runtime.pipeline import ImageLogits, PredictionStream, PreparedImage, check_numbers, predict_all, running
from segcore.bundle.folder import Bundle, open_bundle
from segcore.bundle.manifest import Manifest, Variant
from segcore.errors import InputError
from segcore.picture.preprocess import InputSpec, OutputSpec, mask_of_logits, prepare, probabilities
from segcore.picture.quality import quality_of

_MOST_WORKERS = 4
"""Threads that prepare images and finish masks; more than the engine's few milliseconds can keep busy."""


@dataclass(frozen=True)
class Timings:
    """Where the time of one prediction went, in milliseconds.

    From `Predictor.map` they overlap with those of other images: `engine_ms` runs from when the image's batch was
    handed to the engine until its logits were taken, and so holds the wait for others, the caller too.
    """

    pre_ms: float
    engine_ms: float
    post_ms: float

    @property
    def total_ms(self) -> float:
        return self.pre_ms + self.engine_ms + self.post_ms


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, at the image's own size.

    Attributes:
        mask: H×W uint8; 0 background, k the manifest's k-th class.
        logits: K×h×w float32 at the head's stride.
        output: what they mean.
        timings: of this call.
        quality: the Dice, 0–1, that the model expects of this mask; None where it was not fitted to estimate it.
        first_quality: what the quicker model expected of its own mask, where it passed the image on and this is
            the second model's answer (`runtime.deferral`); else None.
    """

    mask: np.ndarray
    logits: np.ndarray
    output: OutputSpec
    timings: Timings
    quality: float | None = None
    first_quality: float | None = None

    @cached_property
    def probabilities(self) -> np.ndarray:
        """K×H×W float32; one sigmoid channel for one class, background first for several. Computed when asked for."""
        height, width = self.mask.shape
        return probabilities(self.logits, self.output, (height, width))


class Predictor:
    """An opened bundle with its engine. Use as a context manager, or call `close`.

    A bundle can hold its network at several sizes. Each image then goes to the smallest that is at least as large as
    the image in both sides, else to the largest, unless one size is asked for.

    Attributes:
        bundle: the opened bundle.
        engine_name: a key of `runtime.engines.seam.ENGINES`.
        engine_version: of its library.
        threads: CPU threads of the engine.
        streams: batches that the engine works on at once.
        batch: images a call in `map`, where the bundle holds a file for so many.
    """

    def __init__(
        self, bundle: Bundle, files: FileEngines, *, engine_name: str, threads: int, streams: int, batch: int
    ) -> None:
        self.bundle = bundle
        self.engine_name = engine_name
        self.threads = threads
        self.streams = streams
        self.batch = batch
        self._files = files
        self._inputs = {size_px: self.input_at(size_px) for size_px in files.sizes}
        # This opens the first file, so that errors come now.
        self.engine_version = self._engine_for(files.sizes[0]).version

    @classmethod
    def open(
        cls,
        bundle: Path | str | Bundle,
        *,
        engine: str | None = None,
        threads: int | None = None,
        streams: int | None = 1,
        cache: Path | None = None,
        size_px: Size | None = None,
        batch: int = 1,
    ) -> Predictor:
        """Opens a bundle.

        Args:
            bundle: its folder, or what `open_bundle` gave.
            engine: a key of `runtime.engines.seam.ENGINES`; by default openvino where it is installed and can open
                the bundle, else onnxruntime.
            threads: CPU threads of the engine; by default all that this process may use.
            streams: batches that the engine works on at once, in `map` and for `predict` called from several threads,
                sharing the threads. More than one gives more images a second and makes each wait longer. None for one
                a thread, on a GPU for 1.
            cache: folder where OpenVINO keeps what it compiled, so that it opens faster the next time.
            size_px: height and width, to use only the bundle's file of this size.
            batch: images a call in `map`; the bundle must hold a file for so many.

        Raises:
            InputError: a damaged or unexported bundle, an engine that is unknown, unable or not installed, more
                streams than threads, or a size or batch that the bundle does not hold.
        """
        if not isinstance(bundle, Bundle):
            bundle = open_bundle(bundle)
        manifest = bundle.manifest
        threads = choose_threads(threads)
        name = choose_engine(bundle, engine)
        if streams is None:
            streams = 1 if name in ON_GPU else threads
        most = streams if name in ON_GPU else threads  # a GPU's streams need no CPU threads
        if not 1 <= streams <= most:
            raise InputError(f"--streams: must be 1 to {threads}, the number of threads, got {streams}")
        files = select_files(bundle, model_files(manifest), size_px=size_px, batch=batch)

        def open_file(variant: Variant) -> Engine:
            ensure_opens(name, bundle, variant.file, threads=threads)
            path = bundle.path(variant.file)
            opened = open_engine(
                name,
                path,
                precision=manifest.precision,
                threads=threads,
                streams=streams,
                target=manifest.engine_target,
                cache=cache,
            )
            try:
                check_graph(opened, path, manifest, variant)
            except InputError:
                opened.close()
                raise
            return opened

        opened = FileEngines(files, open_file)
        return cls(bundle, opened, engine_name=name, threads=threads, streams=streams, batch=batch)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def engine_names(self) -> tuple[str, ...]:
        """Of all engines that may run: the one."""
        return (self.engine_name,)

    def input_at(self, size_px: Size) -> InputSpec:
        """What the network takes at one of its sizes."""
        height, width = size_px
        return self.manifest.input.model_copy(update={"height_px": height, "width_px": width})

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Raw logits.

        Args:
            batch: N×H×W×C uint8 of the manifest's input size, or another that the bundle holds, as
                `segcore.picture.preprocess.prepare` gives it.

        Returns:
            N×K×h×w float32 at the head's stride.

        Raises:
            InputError: the model gave NaN or infinity.
        """
        channels, sizes = self.manifest.input.channels, self._files.sizes
        shapes = [(*size, channels) for size in sizes]
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] not in shapes:
            expected = " or ".join(f"N×{'×'.join(map(str, shape))}" for shape in shapes)
            raise ValueError(f"batch must be uint8 {expected}, got {batch.dtype} {batch.shape}")
        logits = self._engine_for((batch.shape[1], batch.shape[2])).run(batch)
        check_numbers(logits, "batch")
        return logits

    @property
    def files(self) -> tuple[Variant, ...]:
        """The bundle's files that this predictor may open, its model first."""
        return self._files.files

    def run_file(self, variant: Variant, batch: np.ndarray) -> np.ndarray:
        """`run` with one of `files`, whatever its batch and whatever it gives: `runtime.verify` says what is wrong."""
        return self._files.engine(variant).run(batch)

    def predict(self, image: np.ndarray, *, name: str = "image") -> Prediction:
        """Segments one image; with an engine on the CPU, for any number of threads at once.

        Args:
            image: H×W or H×W×3, of the depth that the model was trained on, as `read_image` gives it.
            name: what an error calls the image.

        Raises:
            InputError: another depth or shape.
        """
        prepared = self._prepare_image(image, name)
        engine = self._engine_for(prepared.size_px)
        start = perf_counter()
        with running(lambda: name):
            logits = engine.run(prepared.image[None])[0]
        return self._finish_image(ImageLogits(prepared, logits, 1e3 * (perf_counter() - start)))

    def map(
        self,
        images: Iterable[np.ndarray],
        *,
        in_flight: int | None = None,
        names: Iterable[str] | None = None,
    ) -> PredictionStream[Prediction]:
        """Segments images one after another, preparing some and finishing others while the engine works.

        Args:
            images: as `predict` takes them; pulled as they are needed, in the caller's thread.
            in_flight: batches under way in each of the three stages; by default one more than `streams`.
            names: what errors call the images, pulled one after each image; by default "image 1" and so on.

        Returns:
            Predictions in the order of the images, with `images_per_s`. An image that cannot be used raises its
            `InputError` in its turn, after the predictions of those before it, and ends the call; so does an error of
            `images` itself.
        """

        def predictions() -> Generator[Prediction, None, None]:
            for answer in attempts:
                if isinstance(answer, InputError):
                    raise answer
                yield answer

        attempts = self.try_map(images, in_flight=in_flight, names=names)
        return PredictionStream(predictions())

    def try_map(
        self,
        images: Iterable[np.ndarray],
        *,
        in_flight: int | None = None,
        names: Iterable[str] | None = None,
    ) -> PredictionStream[Prediction | InputError]:
        """`map` that goes on: in place of an image that cannot be used comes its `InputError`."""
        if in_flight is not None and in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, got {in_flight}")
        return PredictionStream(
            predict_all(
                _with_names(images, names),
                self._files,
                self._prepare_image,
                self._finish_image,
                batch=self.batch,
                in_flight=in_flight or self.streams + 1,
                workers=min(available_threads(), _MOST_WORKERS),
            )
        )

    def _prepare_image(self, image: np.ndarray, name: str) -> PreparedImage:
        start = perf_counter()
        size_px = choose_size(self._files.sizes, image.shape[:2])
        resized = prepare(image, self._inputs[size_px], name=name)
        pre_ms = 1e3 * (perf_counter() - start)
        return PreparedImage((image.shape[0], image.shape[1]), size_px, resized, pre_ms, name)

    def _finish_image(self, computed: ImageLogits) -> Prediction:
        start = perf_counter()
        logits, prepared, output = computed.logits, computed.prepared, self.manifest.output
        check_numbers(logits, prepared.name)
        mask = mask_of_logits(logits, output, prepared.original_px)
        model = self.manifest.quality
        quality = quality_of(logits, output, model) if model else None
        post_ms = 1e3 * (perf_counter() - start)
        return Prediction(
            mask, logits, output, Timings(prepared.pre_ms, computed.engine_ms, post_ms), quality
        )

    def _engine_for(self, size_px: Size) -> Engine:
        return self._files.engine(self._files.file(size_px))

    def close(self) -> None:
        """Lets go of every file of the model that was opened."""
        self._files.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_names(
    images: Iterable[np.ndarray], names: Iterable[str] | None
) -> Generator[tuple[np.ndarray, str], None, None]:
    left = iter((f"image {n}" for n in count(1)) if names is None else names)
    for n, image in enumerate(images):  # the image first: a caller may learn its name while reading it
        name = next(left, None)
        if name is None:
            raise ValueError(f"names must be as many as the images, got {n}")
        yield image, name
