"""Asks a promptable bundle: the image is looked at once, then each click or box costs the small decoder alone.

with PromptPredictor.open("runs/promptable") as predictor:
    encoded = predictor.look(read_image("chest.png"))
    first = predictor.answer(encoded, Prompt(points=((120, 80, True),)))
    better = predictor.answer(encoded, Prompt(points=((120, 80, True), (40, 60, False))), before=first)

It answers for one thing at a time, whatever the classes of the bundle's automatic model, which `Predictor` opens.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from runtime.engines.probe import ensure_opens
from runtime.engines.seam import GraphTensor, check_tensors, choose_engine, choose_threads
from runtime.engines.tensor_session import Tensors, TensorSession, open_session
from runtime.pipeline import check_numbers, running
from segcore.bundle.folder import Bundle, open_bundle
from segcore.bundle.manifest import Manifest
from segcore.errors import InputError
from segcore.picture.preprocess import decide, prepare, probabilities
from segcore.picture.prompts import (
    MASK_CLIP,
    Prompt,
    PromptSpec,
    answer_spec,
    check_prompt,
    choose_candidate,
    prompt_arrays,
)
from segcore.words import printable

QUESTION = ("points", "labels", "mask", "has_mask")
"""What the decoder takes beside the encoder's features."""


@dataclass(frozen=True)
class PromptTimings:
    """Where the time of an answer went, in milliseconds.

    Attributes:
        pre_ms: windowing and resizing the image, once an image.
        encoder_ms: the encoder, once an image.
        decoder_ms: the decoder, once a question.
        post_ms: resizing the mask to the image's size, once a question.
    """

    pre_ms: float
    encoder_ms: float
    decoder_ms: float = 0.0
    post_ms: float = 0.0


@dataclass(frozen=True)
class EncodedImage:
    """An image that the encoder has seen; about 4 MB at 512 px.

    Attributes:
        image_px: height and width of the image.
        features: what the encoder gives and the decoder takes, by name.
        timings: of looking.
    """

    image_px: tuple[int, int]
    features: dict[str, np.ndarray]
    timings: PromptTimings


@dataclass(frozen=True)
class PromptAnswer:
    """The mask of what was asked for, at the image's own size.

    Attributes:
        mask: H×W uint8, 1 on the thing.
        probability: 1×H×W float32.
        estimated_iou: what the model expects of this mask, 0–1.
        candidate: which of the model's candidates this is, 0 its answer to clear prompts.
        logits: h×w float32, as the network gives them; part of the next question.
        timings: of looking, and of this answer.
    """

    mask: np.ndarray
    probability: np.ndarray
    estimated_iou: float
    candidate: int
    logits: np.ndarray
    timings: PromptTimings


class PromptPredictor:
    """An opened promptable bundle. Use as a context manager, or call `close`. One caller at a time.

    Attributes:
        bundle: the opened bundle.
        spec: what it may be asked with.
        engine_name: openvino or onnxruntime.
        engine_version: of its library.
        threads: CPU threads of the engine.
        model: the two graphs.
    """

    def __init__(
        self,
        bundle: Bundle,
        spec: PromptSpec,
        model: PromptModel,
        *,
        engine_name: str,
        threads: int,
    ) -> None:
        self.bundle = bundle
        self.spec = spec
        self.engine_name = engine_name
        self.engine_version = model.version
        self.threads = threads
        self.model = model

    @classmethod
    def open(
        cls, bundle: Path | str | Bundle, *, engine: str | None = None, threads: int | None = None
    ) -> PromptPredictor:
        """Opens encoder and decoder.

        Args:
            bundle: its folder, or what `open_bundle` gave.
            engine: openvino or onnxruntime; by default openvino where it is installed and can open the bundle.
            threads: CPU threads of the engine; by default all that this process may use.

        Raises:
            InputError: a damaged or unexported bundle, one that takes no prompts, or an engine that is unknown,
                unable or not installed.
        """
        if not isinstance(bundle, Bundle):
            bundle = open_bundle(bundle)
        threads = choose_threads(threads)
        spec = prompt_spec(bundle)
        name = choose_engine(bundle, engine)
        for file in (spec.encoder_file, spec.decoder_file):
            ensure_opens(name, bundle, file, threads=threads)
        model = open_prompt_model(
            name, bundle.path(spec.encoder_file), bundle.path(spec.decoder_file), threads=threads
        )
        try:
            model.check_parts(bundle, spec)
        except InputError:
            model.close()
            raise
        return cls(bundle, spec, model, engine_name=name, threads=threads)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def look(self, image: np.ndarray, *, name: str = "image") -> EncodedImage:
        """Runs the encoder on an image.

        Args:
            image: H×W or H×W×3, of the depth that the model was trained on, as `read_image` gives it.
            name: what an error calls the image.

        Raises:
            InputError: another depth or shape.
        """
        start = perf_counter()
        resized = prepare(image, self.manifest.input, name=name)
        prepared = perf_counter()
        features = self.model.encode(resized)
        timings = PromptTimings(1e3 * (prepared - start), 1e3 * (perf_counter() - prepared))
        return EncodedImage((image.shape[0], image.shape[1]), features, timings)

    def answer(
        self, encoded: EncodedImage, prompt: Prompt, *, before: PromptAnswer | None = None
    ) -> PromptAnswer:
        """Answers one question.

        Args:
            encoded: the image.
            prompt: all points so far, and the box, in the image's own pixels.
            before: the last answer about this image, which the model then mends. A model that takes no masks
                (`PromptSpec.mask_input`) answers from the points alone.

        Raises:
            InputError: the prompt lies outside the image, is empty, or has too many points.
        """
        check_prompt(prompt, encoded.image_px, self.spec)
        start = perf_counter()
        points, labels = prompt_arrays(
            [prompt], encoded.image_px, self.manifest.input.size_px, self.spec.slots
        )
        # A mask that the model was never trained to take would be noise to it.
        given = before.logits if before is not None and self.spec.mask_input else None
        logits, iou = self.model.decode(encoded.features, points, labels, given)
        decoded = perf_counter()
        for found in (logits, iou):
            check_numbers(found, "image")
        best = choose_candidate(iou, prompt, self.spec, again=given is not None)
        chosen = logits[best]
        mask_spec = answer_spec(self.manifest.output)
        probability = probabilities(chosen[None], mask_spec, encoded.image_px)
        mask = decide(probability, mask_spec)
        done = perf_counter()
        return PromptAnswer(
            mask=mask,
            probability=probability.astype(np.float32, copy=False),
            estimated_iou=float(iou[best]),
            candidate=best,
            logits=np.clip(chosen, -MASK_CLIP, MASK_CLIP),
            timings=PromptTimings(
                encoded.timings.pre_ms,
                encoded.timings.encoder_ms,
                1e3 * (decoded - start),
                1e3 * (done - decoded),
            ),
        )

    def close(self) -> None:
        """Lets go of encoder and decoder."""
        self.model.close()

    def __enter__(self) -> PromptPredictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_promptable(manifest: Manifest) -> bool:
    """Whether `PromptPredictor` can open such a bundle; what its automatic model does is no matter."""
    spec = manifest.prompt
    return spec is not None and {spec.encoder_file, spec.decoder_file} <= set(manifest.files)


def prompt_spec(bundle: Bundle) -> PromptSpec:
    """What an exported bundle may be asked with.

    Raises:
        InputError: it takes no prompts, or holds no encoder and decoder.
    """
    spec, manifest = bundle.manifest.prompt, bundle.manifest
    if spec is None:
        raise InputError(
            f"bundle {bundle.folder}: must take prompts, {manifest.architecture} takes none; "
            "leave --point and --box away, or use a bundle of a promptable teacher"
        )
    if manifest.format != "torch" and not is_promptable(manifest):
        raise InputError(
            f"bundle {bundle.folder}: must hold an encoder and a decoder to take prompts, {manifest.format} holds "
            "none; export the teacher with --to onnx or --to openvino"
        )
    return spec


# --- the two graphs themselves: arrays in, arrays out, in the network's own pixels ---


class PromptModel:
    """An encoder and a decoder in one engine.

    Attributes:
        version: of the engine's library.
    """

    def __init__(self, encoder: TensorSession, decoder: TensorSession) -> None:
        self.version = decoder.version
        self._encoder = encoder
        self._decoder = decoder
        self._taken = decoder.inputs.keys() - set(QUESTION)  # SAM 2 has three maps, SAM one

    def check_parts(self, bundle: Bundle, spec: PromptSpec) -> None:
        """Holds both graphs against what the manifest says of them, and against each other.

        Raises:
            InputError: one takes or gives something else.
        """
        manifest = bundle.manifest
        height, width = manifest.input.size_px
        mask_hw = height // manifest.output.stride, width // manifest.output.stride
        seen = self._encoder.outputs
        encoder, decoder = bundle.path(spec.encoder_file), bundle.path(spec.decoder_file)
        picture = {"picture": GraphTensor("uint8", (1, height, width, manifest.input.channels))}
        question = {
            **{name: seen[name] for name in sorted(self._taken) if name in seen},
            "points": GraphTensor("float32", (1, spec.slots, 2)),
            "labels": GraphTensor("float32", (1, spec.slots)),
            "mask": GraphTensor("float32", (1, 1, *mask_hw)),
            "has_mask": GraphTensor("float32", (1, 1)),
        }
        reply = {
            "logits": GraphTensor("float32", (1, spec.masks, *mask_hw)),
            "iou": GraphTensor("float32", (1, spec.masks)),
        }
        check_tensors(encoder, "take", _told_tensors(self._encoder.inputs, picture), _told_tensors(picture))
        check_tensors(decoder, "take", _told_tensors(self._decoder.inputs, question), _told_tensors(question))
        given = {name: tensor for name, tensor in self._decoder.outputs.items() if name in reply}
        check_tensors(decoder, "give", _told_tensors(given, reply), _told_tensors(reply))

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """H×W×C uint8 of the network's input size → features by name, 1×C×h×w float32."""
        with running(lambda: "picture"):
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
        shape = self._decoder.inputs["mask"].shape
        earlier = np.zeros(shape, np.float32) if mask is None else mask.reshape(shape)
        given = {
            **{name: features[name] for name in self._taken if name in features},
            "points": points,
            "labels": labels,
            "mask": earlier,
            "has_mask": np.full((1, 1), mask is not None, np.float32),
        }
        with running(lambda: "prompt"):
            found = self._decoder.run(given)
        return found["logits"][0], found["iou"][0]

    def close(self) -> None:
        """Lets go of both graphs."""
        self._encoder.close()
        self._decoder.close()


def _told_tensors(tensors: Tensors, first: Iterable[str] = ()) -> list[str]:
    """Each tensor once: by a name of `first`, in its order, then those that have none of these names."""
    names = [name for name in first if name in tensors] or list(tensors)
    told = {name for known in names for name in (known, *tensors[known].names)}
    names += sorted(name for name in tensors if name not in told)
    return [printable(f"{name} {tensors[name]}") for name in names]


def open_prompt_model(engine: str, encoder: Path, decoder: Path, *, threads: int) -> PromptModel:
    """Opens both graphs.

    Raises:
        InputError: the engine is not installed or takes no such graphs, or a file does not open.
    """
    with ExitStack() as stack:  # where the decoder does not open, the encoder is closed again
        opened_encoder = open_session(engine, encoder, threads=threads)
        stack.callback(opened_encoder.close)
        opened_decoder = open_session(engine, decoder, threads=threads)
        stack.pop_all()
    return PromptModel(opened_encoder, opened_decoder)
