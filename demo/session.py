"""What one reader is looking at, kept in memory and one folder, and gone when the reader is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import RLock

import numpy as np

from demo.compare import MAX_RUNS, Answer
from demo.models import Models
from demo.prompting import Prompting, Step
from demo.scores import as_classes
from demo.uploads import receive, without_paths
from segcore.errors import InputError
from segcore.measurements import VolumeMeasurements, measure_volume
from segcore.medical.mask_files import read_mask_file
from segcore.medical.read import read_scan
from segcore.scan import Scan

Measured = tuple[VolumeMeasurements, ...]


@dataclass
class Session:
    """One reader's case: the scan, the slice shown, what the models say of it.

    What reads or changes it holds `lock`: a browser sends events at the same time.

    Attributes:
        folder: the reader's uploads, which nobody is served; removed with the session.
        made: what the reader may take along, served by the web server; removed with the session.
        chosen: names of the models that are shown, the first is compared with.
        engine: to run them; None for each bundle's own.
        scans: what the last upload held.
        scan: the one shown.
        index: its slice, from 0.
        answers: of the shown slice, at the models' own thresholds.
        threshold: for models of one class; None for each model's own.
        prompt_class: what the reader's last prompt was for.
        truth: reference masks N×H×W, or None.
        volumes: model's name → masks of every slice N×H×W, once they were asked for.
        prompting: what the reader asks promptable models about the shown slice.
        waiting: uploads that are still in the web server's folder, until the reader starts the batch.
        version: changes with the scan and the models, not with the slice.
        closed: the reader has left; the folder is gone.
    """

    folder: Path
    made: Path
    models: Models
    chosen: tuple[str, ...]
    engine: str | None = None
    scans: tuple[Path, ...] = ()
    scan: Scan | None = None
    index: int = 0
    answers: tuple[Answer, ...] = ()
    threshold: float | None = None
    prompt_class: str = ""
    truth: np.ndarray | None = None
    volumes: dict[str, np.ndarray] = field(default_factory=dict)
    prompting: Prompting | None = None
    lock: RLock = field(default_factory=RLock, repr=False)
    seen: float = field(default_factory=time.monotonic)
    waiting: set[Path] = field(default_factory=set)
    version: int = 0
    closed: bool = False
    _uploads: int = 0
    # By the array's id, with the array, so that no other can get that id.
    _measured: dict[tuple[int, tuple[str, ...]], tuple[np.ndarray, Measured]] = field(default_factory=dict)

    def seen_now(self) -> None:
        """Something happened: the session is in use."""
        self.seen = time.monotonic()

    def upload(self, sent: Sequence[str]) -> None:
        """Takes an upload in place of what was there, and shows its first scan.

        Raises:
            InputError: it cannot be read; then nothing is shown.
        """
        if self.closed:  # the reader left while this was on its way: nothing may be written any more
            for path in sent:
                Path(path).unlink(missing_ok=True)
            raise InputError(
                "the case: must belong to an open page, this one was closed; load the page again"
            )
        self.clear()
        self._uploads += 1
        self.scans = tuple(receive(sent, self.folder / "case" / str(self._uploads)))
        self.choose(0)

    def choose(self, number: int) -> None:
        """Shows one of the upload's scans."""
        path = self.scans[number]
        with without_paths(path):
            scan = read_scan(path)
        self.show(scan)

    def show_example(self, scan: Scan, truth: np.ndarray | None) -> None:
        """Shows a picture of the page's own, with its reference mask 1×H×W."""
        self.clear()
        self.show(scan, truth)

    def show(self, scan: Scan, truth: np.ndarray | None = None) -> None:
        """Shows a scan, its middle slice first: the ends of a series show the least."""
        self.scan, self.truth, self.volumes, self.threshold = scan, truth, {}, None
        self.version += 1
        self.go_to(scan.slices // 2, runs=MAX_RUNS)

    @property
    def scan_names(self) -> list[str]:
        """What the upload's scans are called, in order."""
        return [path.name for path in self.scans]

    def go_to(self, index: int, *, runs: int = 1) -> None:
        """Shows a slice and asks the models about it, once unless the times matter."""
        scan = self._scan()
        if not 0 <= index < scan.slices:
            raise InputError(f"slice: must be 1 to {scan.slices}, got {index + 1}")
        if self.prompting is not None and self.prompting.questions:
            self.volumes = {}  # the prompt's mask was among them
        self.index, self.answers, self.prompting = index, (), None
        with without_paths(*self.scans):
            self.answers = tuple(self.ask(name, index, runs=runs) for name in self.chosen)
        self.prompting = Prompting(
            self.models,
            self.models.promptable(self.chosen),
            partial(self._picture, index=index),
            scan.slice_name(index),
            engine=self.engine,
            class_name=self.prompt_class,
        )

    def ask(self, name: str, index: int, *, runs: int = 1) -> Answer:
        """What one model says of one slice."""
        called = self._scan().slice_name(index)
        picture = self._picture(name, index=index)
        return self.models.ask(name, picture, called=called, engine=self.engine, runs=runs)

    def _picture(self, name: str, *, index: int) -> np.ndarray:
        """A slice as a model takes it."""
        return self._scan().picture(index, self.models.manifest(name).input.depth)

    def take(self, step: Step) -> None:
        """A click, a box, or taking one back: the promptable models answer about the shown slice.

        Raises:
            InputError: they cannot be asked that; then everything is as it was.
        """
        self._scan()
        assert self.prompting is not None
        before = self.prompting.questions
        with without_paths(*self.scans):
            self.prompting.take(step)
        self.prompt_class = self.prompting.class_name
        if self.prompting.questions != before:
            self.volumes = {}

    def use(self, chosen: Sequence[str], engine: str | None) -> None:
        """Changes models or engine, and asks again about what is shown."""
        if not chosen:
            raise InputError("models: must be at least one, got none; choose one")
        self.chosen, self.engine, self.volumes = tuple(chosen), engine, {}
        self.version += 1
        if self.scan is not None:
            self.go_to(self.index, runs=MAX_RUNS)

    @property
    def current(self) -> tuple[Answer, ...]:
        """The answers to the reader's prompt, or the automatic ones, at the models' own thresholds."""
        if self.prompting is None or not self.answers:
            return self.answers
        return tuple(self.prompting.shown(n, a) for n, a in zip(self.chosen, self.answers, strict=True))

    @property
    def shown(self) -> tuple[Answer, ...]:
        """The current answers at the threshold that the reader set."""
        return tuple(answer.at(self.threshold) for answer in self.current)

    @property
    def truth_slice(self) -> np.ndarray | None:
        """The reference mask of the shown slice, H×W."""
        return None if self.truth is None else self.truth[self.index]

    def set_threshold(self, threshold: float | None) -> None:
        """Draws the masks of models of one class at another threshold; None: at each model's own."""
        self.threshold, self.volumes = threshold, {}

    def measure_all(self) -> Iterator[int]:
        """Draws the masks of every slice with every chosen model; yields how many slices are done.

        Holds the lock for one slice at a time, and ends early where the reader went on to something else.
        """
        scan, wanted = self._scan(), self._asked_for()
        masks = {name: list[np.ndarray]() for name in self.chosen}
        for index in range(scan.slices):
            with self.lock:
                if self._asked_for() != wanted or self.scan is not scan:
                    return
                for name, drawn in masks.items():
                    drawn.append(self._drawn(name, index))
                if index + 1 == scan.slices:
                    self.volumes = {name: np.stack(drawn) for name, drawn in masks.items()}
                    self._measured = {}
            yield index + 1

    def _asked_for(self) -> tuple[object, ...]:
        """What the masks of all slices follow from, but for the scan."""
        questions = self.prompting.questions if self.prompting else ()
        return self.version, self.threshold, questions, self.index if questions else None

    def _drawn(self, name: str, index: int) -> np.ndarray:
        """A model's mask of a slice: where a prompt made it, the shown one."""
        if index == self.index and self.prompting is not None and self.prompting.questions:
            return self.shown[self.chosen.index(name)].mask
        return self.ask(name, index).at(self.threshold).mask

    def measured_volume(self, masks: np.ndarray, classes: Sequence[str]) -> Measured:
        """Measurements of masks N×H×W, made once: they take seconds, and are shown again with every slice."""
        key = id(masks), tuple(classes)
        if key not in self._measured:
            scan = self._scan()
            measured = measure_volume(
                masks,
                classes,
                spacing_mm=scan.spacing_mm,
                slice_spacing_mm=scan.slice_spacing_mm,
                reference=self.models.reference_for(classes),
            )
            self._measured[key] = masks, measured
        return self._measured[key][1]

    def masks(self, name: str) -> np.ndarray:
        """Masks of every slice, N×H×W, drawn now where they are not at hand."""
        scan = self._scan()
        if scan.slices == 1:
            return self.shown[self.chosen.index(name)].mask[None]
        if name not in self.volumes:
            for _ in self.measure_all():
                pass
        return self.volumes[name]

    def compare_with(self, sent: str) -> None:
        """Takes a reference mask for the scan that is shown.

        Raises:
            InputError: no scan is shown, or the mask does not fit it.
        """
        path = Path(sent)
        try:
            scan = self._scan()
            with without_paths(path):
                self.truth = as_classes(read_mask_file(path, scan), path.name, self._most_classes())
        finally:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forgets the case and removes its files."""
        self.scan, self.answers, self.truth, self.volumes, self.scans = None, (), None, {}, ()
        self.prompting = None
        self._measured = {}
        for folder in (self.folder / "case", self.made / "along"):  # and not a batch that is running
            shutil.rmtree(folder, ignore_errors=True)

    def end(self) -> None:
        """Removes all that is the reader's."""
        self.closed = True
        self.clear()
        for path in self.waiting:
            path.unlink(missing_ok=True)
        for folder in (self.folder, self.made):
            shutil.rmtree(folder, ignore_errors=True)

    def _most_classes(self) -> int:
        return max(len(self.models.manifest(name).classes) for name in self.chosen)

    def _scan(self) -> Scan:
        if self.scan is None:
            raise InputError("the case: must be chosen first, none is; choose an example or a file")
        return self.scan
