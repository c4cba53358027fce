"""What is measured: a bundle on an engine, PyTorch among them. Chooses them and checks that comparing them is fair."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.engines.seam import engines_for
from runtime.pipeline import check_numbers
from runtime.predictor import Prediction, Predictor, Timings
from segcore.bundle.folder import Bundle, open_and_tell
from segcore.bundle.manifest import Manifest
from segcore.dataset.case import Case
from segcore.dataset.dataset import Dataset, is_resplit, open_dataset
from segcore.errors import InputError, need
from segcore.picture.preprocess import mask_of_logits, prepare

TORCH = "torch"


class SubjectPredictor(Protocol):
    """What is used of an opened predictor, whichever engine runs it."""

    @property
    def engine_version(self) -> str: ...

    def run(self, batch: np.ndarray) -> np.ndarray: ...

    def predict(self, image: np.ndarray, *, name: str = "image") -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Subject:
    """A bundle on an engine.

    Attributes:
        name: what tables and plots call it; unique.
        bundle: opened and checked.
        engine: its name, `torch` for the PyTorch baseline.
    """

    name: str
    bundle: Bundle
    engine: str

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def size_bytes(self) -> int:
        """Bytes of the files of the model that is measured, see `Manifest.model_bytes`."""
        return self.manifest.model_bytes


def open_subject(bundle: Bundle, engine: str, threads: int | None) -> SubjectPredictor:
    """Opens a bundle with an engine.

    Raises:
        InputError: the engine is not installed or does not open this bundle.
    """
    if engine == TORCH:
        return TorchPredictor(bundle, threads=threads)
    # One size, that of the manifest, which the record names; not each picture's own.
    size_px = bundle.manifest.input.size_px
    return Predictor.open(bundle, engine=engine, threads=threads, size_px=size_px)


def open_bundles(folders: Sequence[Path], expect: Sequence[str] = ()) -> list[Bundle]:
    """Opens every bundle, and says which it is.

    Raises:
        InputError: none, one twice, or one that is not whole.
    """
    if not folders:
        raise InputError("--bundle: must be given at least once, got none; add --bundle FOLDER")
    bundles: dict[str, Bundle] = {}
    for folder in folders:
        bundle = open_and_tell(folder, expect)
        if bundle.sha256 in bundles:
            first = bundles[bundle.sha256].folder
            raise InputError(
                f"--bundle {folder}: must be given once, is the same bundle as {first}; remove one"
            )
        bundles[bundle.sha256] = bundle
    return list(bundles.values())


def choose_reference(
    bundles: Sequence[Bundle], reference: str | None, *, flag: str = "--reference"
) -> Bundle:
    """The bundle that the others are compared with: the named one, else the first teacher, else the first.

    Raises:
        InputError: no bundle, or several, answer to `reference`.
    """
    if reference is None:
        return next((b for b in bundles if b.manifest.kind == "teacher"), bundles[0])
    if reference.isdigit() and 1 <= int(reference) <= len(bundles):
        return bundles[int(reference) - 1]
    found = [b for b in bundles if reference in (b.manifest.name, b.folder.name, str(b.folder))]
    if len(found) != 1:
        names = ", ".join(b.manifest.name for b in bundles)
        raise InputError(
            f"{flag} {reference}: must name one bundle or be 1 to {len(bundles)}, "
            f"got {len(found)} of that name; the bundles are {names}"
        )
    return found[0]


def engines_of(bundles: Sequence[Bundle], wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which engines to measure each bundle (by sha256) on; torch bundles run on PyTorch only.

    Raises:
        InputError: a wanted engine opens no bundle, or a bundle is opened by none of the wanted engines.
    """
    able = {b.sha256: (TORCH,) if b.manifest.format == "torch" else tuple(engines_for(b)) for b in bundles}
    for engine in wanted:
        if not any(engine in engines for engines in able.values()):
            known = ", ".join(sorted({e for engines in able.values() for e in engines}))
            raise InputError(
                f"--engine {engine}: must open one of the bundles, opens none; "
                f"these bundles open with {known}"
            )
    if not wanted:
        return able
    chosen = {}
    for bundle in bundles:
        mine = able[bundle.sha256]
        chosen[bundle.sha256] = mine if mine == (TORCH,) else tuple(e for e in mine if e in wanted)
        if not chosen[bundle.sha256]:
            raise InputError(
                f"--bundle {bundle.folder}: must open with {' or '.join(wanted)}, is "
                f"{bundle.manifest.format}; "
                f"add --engine {mine[0]}, or leave the bundle out"
            )
    return chosen


def name_subjects(pairs: Sequence[tuple[Bundle, str]]) -> list[Subject]:
    """Names each pair by the manifest's name, adding the folder or the engine where names would be equal."""
    folders = {bundle.sha256: bundle for bundle, _ in pairs}
    names = Counter(bundle.manifest.name for bundle in folders.values())
    engines = Counter(bundle.sha256 for bundle, _ in pairs)
    subjects = []
    for bundle, engine in pairs:
        name = bundle.manifest.name
        if names[name] > 1:
            same = [b for b in folders.values() if b.manifest.name == name]
            unique = len({b.folder.name for b in same}) == len(same)
            name += f" ({bundle.folder.name if unique else bundle.folder})"
        subjects.append(Subject(f"{name} · {engine}" if engines[bundle.sha256] > 1 else name, bundle, engine))
    return subjects


def open_fair_cases(
    data: str, bundles: Sequence[Bundle], like: Bundle, *, split: str = "test", limit: int | None = None
) -> tuple[Dataset, tuple[Case, ...]]:
    """Opens a data set with the split that a bundle was made with, for bundles that may be compared on it.

    Args:
        data: as the user names it.
        bundles: that will be scored.
        like: the one of them whose split seed and fold divide the data.
        split: whose cases are scored.
        limit: at most so many of them, spread over the split.

    Raises:
        InputError: data that cannot be opened, or see `check_fair`.
    """
    made_with = like.manifest.data
    dataset = open_dataset(data, seed=made_with.split_seed, fold=made_with.fold)
    cases = dataset.split(split, limit=limit)
    check_fair(bundles, dataset, cases, split)
    return dataset, cases


def check_fair(bundles: Sequence[Bundle], dataset: Dataset, cases: Sequence[Case], split: str) -> None:
    """Checks that every bundle segments these classes, and saw none of the cases that it is scored on.

    Raises:
        InputError: other classes, another split of the same data, calibration on a scored case, or no case.
    """
    if not cases:
        raise InputError(
            f"--split {split}: must have a labelled case, got none in {dataset.name}; choose another split"
        )
    for bundle in bundles:
        manifest, data = bundle.manifest, bundle.manifest.data
        if manifest.classes != dataset.classes:
            raise InputError(
                f"--bundle {bundle.folder}: must segment {', '.join(dataset.classes)} as {dataset.name} "
                f"does, got {', '.join(manifest.classes)}; use the data it was made for, "
                "or name the classes alike in classes.txt"
            )
        if is_resplit(dataset, data.sha256, data.split_sha256):
            raise InputError(
                f"--bundle {bundle.folder}: must be made with the split of {dataset.name}, got "
                "another split of the same data, so test images may have been trained on; "
                "use the split it was made with, or train it again"
            )
        # Names of cases mean the same only where the data are the same.
        ours = {case.id for case in cases} if data.sha256 == dataset.sha256 else set()
        if split == "test" and (seen := sorted(ours & set(data.calibration_cases))):
            raise InputError(
                f"--bundle {bundle.folder}: must be calibrated on other cases than it is scored on, "
                f"got {len(seen)} of both ({seen[0]}); export it again"
            )


class TorchPredictor:
    """Runs a torch-format bundle with PyTorch: the baseline that exported bundles are compared with.

    It has the surface of `runtime.predictor.Predictor`, over the network itself.

    Attributes:
        bundle: the opened bundle.
        engine_name: always "torch".
        engine_version: PyTorch's version.
        threads: PyTorch's intra-operation threads; a setting of the whole process.
    """

    engine_name = "torch"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        try:
            import torch
        except ImportError:
            raise need("torch", "train") from None
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.threads = torch.get_num_threads()
        self.engine_version = str(torch.__version__)
        self._torch: Any = torch
        self._graph: Any = _load_graph(bundle)

    def __enter__(self) -> TorchPredictor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """1×H×W×C uint8 to logits 1×K×h×w float32."""
        with self._torch.inference_mode():
            logits: np.ndarray = self._graph(self._torch.from_numpy(batch)).numpy()
            return logits

    def predict(self, image: np.ndarray, *, name: str = "image") -> Prediction:
        """Picture H×W or H×W×3 to a mask at its own size, by the same path as every engine."""
        begin = time.perf_counter()
        # 1×H×W×C; copied, because torch wants memory that it may write to
        batch = prepare(image, self.manifest.input, name=name)[None].copy()
        ready = time.perf_counter()
        logits = self.run(batch)[0]
        ran = time.perf_counter()
        check_numbers(logits, name)
        # K×h×w at the head's stride → H×W at the picture's own size
        mask = mask_of_logits(logits, self.manifest.output, (image.shape[0], image.shape[1]))
        end = time.perf_counter()
        timings = Timings(
            pre_ms=1e3 * (ready - begin), engine_ms=1e3 * (ran - ready), post_ms=1e3 * (end - ran)
        )
        return Prediction(mask=mask, logits=logits, output=self.manifest.output, timings=timings)

    def close(self) -> None:
        self._graph = None


def _load_graph(bundle: Bundle) -> Any:
    """The network behind the graph contract, so that it takes what an exported model takes."""
    from segcore.learn.network import DeployGraph

    if bundle.manifest.kind == "teacher":
        from teacher.system import load_teacher as load
    else:
        from student.network import load_student as load
    return DeployGraph(load(bundle), bundle.manifest.input).eval()
