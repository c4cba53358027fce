"""Golden cases: procedural pictures and the reference logits for them, in every exported bundle.

They let a device without a dataset prove that its engine computes the masks that the network computes. Beside them
lies the whole way: pictures as a file holds them, before window and resizing, and masks as a user gets them, after the
threshold; and a digest of every field of the manifest that changes a mask. A promptable bundle has golden prompts as
well: questions about such pictures and the reference answers, so that its encoder and decoder are proved, too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segcore.bundle.manifest import FileEntry, Manifest
from segcore.errors import reading
from segcore.phantom import PHANTOM_CLASSES, phantom_case
from segcore.picture.preprocess import InputSpec, OutputSpec, mask_of_logits, prepare
from segcore.picture.prompts import MASK_CLIP, Prompt, PromptSpec, prompt_arrays

GOLDEN_FILE = "golden.npz"
GOLDEN_PROMPTS = "golden_prompts.npz"
CASES_A_KIND = 4
_MOST_BYTES = 2**31
GRAPH_SUFFIXES = (".onnx", ".xml", ".bin")
WHOLE_WAY_PX = (120, 160)
"""Height and width of its pictures, which no network takes."""


# Golden cases.


def golden_inputs(spec: InputSpec) -> np.ndarray:
    """Phantoms of every kind as the network takes them, N×H×W×C uint8; the same bytes everywhere."""
    byte_spec = spec.model_copy(update={"depth": "uint8", "window": (0.0, 255.0)})
    pictures = [phantom_case(kind, i, seed=7)[0] for kind in PHANTOM_CLASSES for i in range(CASES_A_KIND)]
    return np.stack([prepare(picture, byte_spec) for picture in pictures])


@dataclass(frozen=True)
class WholeWay:
    """Pictures as files hold them, and their masks.

    Attributes:
        pictures: P×H×W of the model's depth, of another size than its input.
        masks: P×H×W uint8 class indices.
        digest: `mask_digest` of the manifest that they were made under.
        graphs: `graphs_digest` of the graphs that they were made with.
    """

    pictures: np.ndarray
    masks: np.ndarray
    digest: str
    graphs: str


def golden_pictures(spec: InputSpec) -> np.ndarray:
    """A phantom of each kind as a file would hold it, within the model's window, P×H×W; the same bytes everywhere."""
    height, width = WHOLE_WAY_PX
    grey = np.stack(
        [phantom_case(kind, 1, seed=11, size_px=width)[0][:height] for kind in PHANTOM_CLASSES]
    ).astype(np.float64)
    low, high = spec.window
    values = low + grey * ((high - low) / 255.0)
    return values.astype(np.float32) if spec.depth == "float32" else np.round(values).astype(spec.depth)


def golden_masks(
    pictures: np.ndarray, run: Callable[[np.ndarray], np.ndarray], spec: InputSpec, output: OutputSpec
) -> np.ndarray:
    """Masks of pictures P×H×W: windowed, resized, rounded, run, resized, decided. P×H×W uint8."""
    logits = run(np.stack([prepare(picture, spec) for picture in pictures]))
    return np.stack([mask_of_logits(each, output, pictures.shape[1:3]) for each in logits])


def mask_digest(manifest: Manifest, sizes: Iterable[tuple[int, int]]) -> str:
    """sha256 of every field of a manifest that changes a mask, whatever else is beside them.

    Args:
        manifest: of an exported bundle. Its estimate of quality counts, which decides where another model takes over,
            and its precision, which decides what verification lets pass.
        sizes: heights and widths of the bundle's files that an engine may open: one of them takes a picture.
    """
    prompt = manifest.prompt
    fields = {
        "input": manifest.input.model_dump(mode="json"),
        "output": manifest.output.model_dump(mode="json"),
        "classes": list(manifest.classes),
        "precision": manifest.precision,
        "quality": manifest.quality and manifest.quality.model_dump(mode="json"),
        "prompt": prompt and prompt.model_dump(mode="json", exclude={"encoder_file", "decoder_file"}),
        "sizes": sorted({tuple(size) for size in sizes}),
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def graphs_digest(files: Mapping[str, FileEntry]) -> str:
    """sha256 over names and hashes of a bundle's graphs and their weights; a plan is built of them on a device."""
    graphs = {name: entry.sha256 for name, entry in files.items() if name.endswith(GRAPH_SUFFIXES)}
    return hashlib.sha256(json.dumps(graphs, sort_keys=True).encode()).hexdigest()


def save_golden(
    folder: Path,
    inputs: np.ndarray,
    logits: np.ndarray,
    *,
    file: str = GOLDEN_FILE,
    whole: WholeWay | None = None,
) -> None:
    """Writes inputs N×H×W×C uint8 and the reference logits N×K×h×w float32, and the whole way where it is given."""
    more = {} if whole is None else {
        "pictures": whole.pictures, "masks": whole.masks,
        "graphs": np.array(whole.graphs), "digest": np.array(whole.digest),
    }  # fmt: skip
    np.savez_compressed(folder / file, inputs=inputs, logits=logits.astype(np.float32), **more)  # type: ignore[arg-type]


def load_whole_way(folder: Path) -> WholeWay | None:
    """The whole way of a bundle; None for one that was exported before there was any.

    Raises:
        InputError: the file is damaged.
    """
    stored = _read_arrays(
        folder / GOLDEN_FILE,
        {"pictures": (None, 3), "masks": ("uint8", 3), "graphs": ("U", 0), "digest": ("U", 0)},
    )
    if "digest" not in stored:
        return None
    return WholeWay(stored["pictures"], stored["masks"], str(stored["digest"]), str(stored["graphs"]))


def load_golden(folder: Path, *, file: str = GOLDEN_FILE) -> tuple[np.ndarray, np.ndarray]:
    """Inputs N×H×W×C uint8 and reference logits N×K×h×w float32.

    Raises:
        InputError: the file is damaged.
    """
    stored = _read_arrays(folder / file, {"inputs": ("uint8", 4), "logits": ("float32", 4)})
    return stored["inputs"], stored["logits"]


def _read_arrays(path: Path, kinds: Mapping[str, tuple[str | None, int]]) -> dict[str, np.ndarray]:
    """Arrays of a .npz by name, all or, where the last is not in it, none. No pickles are read.

    Args:
        path: of the file.
        kinds: name → type, "U" for text, None for any numbers; and number of axes.

    Raises:
        InputError: damaged: an array is missing, of another kind, or not as long as its header says.
    """
    name, wanted, remedy = f"golden file {path}", "what export wrote", "copy the bundle again"
    with reading(name, wanted, remedy=remedy), np.load(path, allow_pickle=False) as stored:
        if [*kinds][-1] not in stored:
            if "digest" in kinds:
                return {}
            raise ValueError(f"{[*kinds][-1]} is missing")
        found = {}
        for key, (kind, axes) in kinds.items():
            # What makes room for an array is its header's word, so that is held against the file's length first.
            entry = stored.zip.getinfo(f"{key}.npy")
            with stored.zip.open(entry) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
                if (
                    math.prod(shape) * dtype.itemsize + file.tell() != entry.file_size
                    or entry.file_size > _MOST_BYTES
                ):
                    raise ValueError(f"{key} has another length than its header says")
            fits = dtype.kind == kind if kind == "U" else dtype == kind if kind else dtype.kind in "uf"
            if not fits or len(shape) != axes:
                raise ValueError(f"{key} is {dtype} of {len(shape)} axes")
            found[key] = stored[key]
    return found


# Golden prompts: questions about golden pictures, and the reference answers.

Features = dict[str, np.ndarray]
Encode = Callable[[np.ndarray], Features]
"""H×W×C uint8 → what the decoder takes of a picture, by name."""
Decode = Callable[[Features, np.ndarray, np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]
"""Features, points 1×S×2, labels 1×S, earlier logits h×w or None → logits M×h×w, estimated IoU M."""


@dataclass(frozen=True)
class Questions:
    """The same questions about each picture: a point, a box, and where the model takes masks the point once more.

    Attributes:
        pictures: P×H×W×C uint8.
        points: Q×S×2 float32, in the pictures' pixels.
        labels: Q×S float32.
        again: the last question carries the first candidate's mask of the first answer.
    """

    pictures: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    again: bool


@dataclass(frozen=True)
class Replies:
    """Every candidate of every question.

    Attributes:
        logits: P×Q×M×h×w float32.
        iou: P×Q×M float32.
    """

    logits: np.ndarray
    iou: np.ndarray


def golden_questions(spec: InputSpec, prompt: PromptSpec) -> Questions:
    """One phantom of each kind; the same places in each. The same bytes everywhere."""
    height, width = spec.size_px

    def at(x: float, y: float) -> tuple[float, float]:
        return x * (width - 1), y * (height - 1)

    inside = (*at(0.35, 0.45), True)
    asked = [Prompt(points=(inside,)), Prompt(box=(*at(0.2, 0.25), *at(0.6, 0.8)))]
    if prompt.mask_input:
        asked.append(Prompt(points=(inside, (*at(0.8, 0.2), False))))
    points, labels = prompt_arrays(asked, spec.size_px, spec.size_px, prompt.slots)
    return Questions(golden_inputs(spec)[::CASES_A_KIND], points, labels, prompt.mask_input)


def ask(questions: Questions, encode: Encode, decode: Decode) -> Replies:
    """Puts every question to a model; an answer that goes back in is the model's own, as in use."""
    logits, iou = [], []
    for picture in questions.pictures:
        features, first = encode(picture), None
        for n, (points, labels) in enumerate(zip(questions.points, questions.labels, strict=True)):
            last = questions.again and n == len(questions.points) - 1
            found = decode(features, points[None], labels[None], first if last else None)
            if n == 0:
                first = np.clip(found[0][0], -MASK_CLIP, MASK_CLIP)
            logits.append(found[0])
            iou.append(found[1])
    shape = (len(questions.pictures), len(questions.points))
    stacked, estimates = np.stack(logits).astype(np.float32), np.stack(iou).astype(np.float32)
    return Replies(
        stacked.reshape(*shape, *stacked.shape[1:]), estimates.reshape(*shape, *estimates.shape[1:])
    )


def save_golden_prompts(folder: Path, questions: Questions, replies: Replies) -> None:
    """Writes questions and reference answers."""
    np.savez_compressed(
        folder / GOLDEN_PROMPTS,
        pictures=questions.pictures,
        points=questions.points,
        labels=questions.labels,
        again=np.array(questions.again),
        logits=replies.logits,
        iou=replies.iou,
    )


def load_golden_prompts(folder: Path) -> tuple[Questions, Replies]:
    """Questions and reference answers.

    Raises:
        InputError: the file is damaged.
    """
    kinds = {
        "pictures": ("uint8", 4), "points": ("float32", 3), "labels": ("float32", 2), "again": ("bool", 0),
        "logits": ("float32", 5), "iou": ("float32", 3),
    }  # fmt: skip
    stored = _read_arrays(folder / GOLDEN_PROMPTS, kinds)
    questions = Questions(stored["pictures"], stored["points"], stored["labels"], bool(stored["again"]))
    return questions, Replies(stored["logits"], stored["iou"])
