"""What one reader is looking at, kept in memory and one folder, and gone when the reader is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import RLock

import numpy as np

from demo.session.answers import MAX_RUNS, ModelAnswer
from demo.session.incoming import bytes_as_pixels, receive, without_paths
from demo.session.models import Models
from demo.session.prompt_dialogue import PromptDialogue, PromptStep
from demo.session.trust import class_indices
from segcore.errors import InputError
from segcore.measure.masks import VolumeMeasurements, measure_volume
from segcore.medical.mask_files import read_mask_file
from segcore.medical.read import read_scan
from segcore.picture.scan import Scan


@dataclass
class ReaderSession:
    """One reader's case: the scan, the slice shown, what the models say of it.

    What reads or changes it holds `lock`: a browser sends events at the same time.

    Attributes:
        uploads_folder: the reader's uploads, which nobody is served; removed with the session.
        downloads_folder: what the reader may take along, served by the web server; removed with the session.
        model_names: of the models that are shown; the others are compared with the first.
        engine: to run them; None for each bundle's own.
        scan_paths: what the last upload held.
        scan: the one shown.
        slice_index: its slice that is shown, from 0.
        automatic_answers: of the shown slice, at the models' own thresholds.
        threshold: for models of one class; None for each model's own.
        prompt_class: what the reader's last prompt was for.
        truth: reference masks N×H×W, or None.
        volume_masks: model's name → masks of every slice N×H×W, once they were asked for.
        dialogue: what the reader asks promptable models about the shown slice.
        has_batch: a batch was started; its files are the session's.
        make_room: is told how many pixels the session is about to hold, and refuses what is too much beside others.
        version: changes with the scan and the models, not with the slice.
        closed: the reader has left; the folder is gone.
    """

    uploads_folder: Path
    downloads_folder: Path
    models: Models
    model_names: tuple[str, ...]
    engine: str | None = None
    scan_paths: tuple[Path, ...] = ()
    scan: Scan | None = None
    slice_index: int = 0
    automatic_answers: tuple[ModelAnswer, ...] = ()
    threshold: float | None = None
    prompt_class: str = ""
    truth: np.ndarray | None = None
    volume_masks: dict[str, np.ndarray] = field(default_factory=dict)
    dialogue: PromptDialogue | None = None
    lock: RLock = field(default_factory=RLock, repr=False)
    last_seen_s: float = field(default_factory=time.monotonic)
    has_batch: bool = False
    make_room: Callable[[ReaderSession, int], None] = field(default=lambda *_: None, repr=False)
    version: int = 0
    closed: bool = False
    _upload_count: int = 0
    # By the array's id, with the array, so that no other can get that id.
    _volume_measurements: dict[
        tuple[int, tuple[str, ...]], tuple[np.ndarray, tuple[VolumeMeasurements, ...]]
    ] = field(default_factory=dict)

    def mark_used(self) -> None:
        """Something happened: the session is in use."""
        self.last_seen_s = time.monotonic()

    @property
    def is_untouched(self) -> bool:
        """Whether nothing is lost with the session."""
        return self.version == 0 and not self.has_batch

    @property
    def held_px(self) -> int:
        """What the case costs in memory, in pixels of one picture with its answers."""
        return 0 if self.scan is None else _held_px(self.scan)

    def take_upload(self, sent: Sequence[str]) -> None:
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
        self.clear_case()
        self._upload_count += 1
        with self.models.turn(bytes_as_pixels(sent)):
            self.scan_paths = tuple(receive(sent, self.uploads_folder / "case" / str(self._upload_count)))
        self.show_scan_of_upload(0)

    def show_scan_of_upload(self, number: int) -> None:
        """Shows one of the upload's scans.

        Raises:
            InputError: there is none of that number, or it cannot be read.
        """
        if not 0 <= number < len(self.scan_paths):
            raise InputError(f"scan: must be one of the upload's {len(self.scan_paths)}, got {number}")
        path = self.scan_paths[number]
        with without_paths(path):
            scan = read_scan(path)
        self.show_scan(scan)

    def show_example(self, scan: Scan, truth: np.ndarray | None) -> None:
        """Shows a picture of the page's own, with its reference mask 1×H×W."""
        self.clear_case()
        self.show_scan(scan, truth)

    def show_scan(self, scan: Scan, truth: np.ndarray | None = None) -> None:
        """Shows a scan, its middle slice first: the ends of a series show the least."""
        self.make_room(self, _held_px(scan))
        self.scan, self.truth, self.volume_masks, self.threshold = scan, truth, {}, None
        self.version += 1
        self.go_to(scan.slices // 2, runs=MAX_RUNS)

    @property
    def scan_names(self) -> list[str]:
        """What the upload's scans are called, in order."""
        return [path.name for path in self.scan_paths]

    def go_to(self, index: int, *, runs: int = 1) -> None:
        """Shows a slice and asks the models about it, once unless the times matter."""
        scan = self._required_scan()
        if not 0 <= index < scan.slices:
            raise InputError(f"slice: must be 1 to {scan.slices}, got {index + 1}")
        if self.dialogue is not None and self.dialogue.questions:
            self.volume_masks = {}  # the prompt's mask was among them
        self.slice_index, self.automatic_answers, self.dialogue = index, (), None
        with without_paths(*self.scan_paths), self.models.turn(scan.size_px[0] * scan.size_px[1]):
            self.automatic_answers = tuple(
                self.ask_model(name, index, runs=runs) for name in self.model_names
            )
        self.dialogue = PromptDialogue(
            self.models,
            self.models.promptable(self.model_names),
            partial(self._model_picture, index=index),
            scan.slice_name(index),
            engine=self.engine,
            class_name=self.prompt_class,
        )

    def ask_model(self, name: str, index: int, *, runs: int = 1) -> ModelAnswer:
        """What one model says of one slice."""
        picture_name = self._required_scan().slice_name(index)
        picture = self._model_picture(name, index=index)
        return self.models.ask(name, picture, picture_name=picture_name, engine=self.engine, runs=runs)

    def _model_picture(self, name: str, *, index: int) -> np.ndarray:
        """A slice as a model takes it."""
        return self._required_scan().picture(index, self.models.manifest(name).input.depth)

    def take_step(self, step: PromptStep) -> None:
        """A click, a box, or taking one back: the promptable models answer about the shown slice.

        Raises:
            InputError: they cannot be asked that; then everything is as it was.
        """
        self._required_scan()
        assert self.dialogue is not None
        before = self.dialogue.questions
        with without_paths(*self.scan_paths):
            self.dialogue.take_step(step)
        self.prompt_class = self.dialogue.class_name
        if self.dialogue.questions != before:
            self.volume_masks = {}

    def use_models(self, chosen: Sequence[str], engine: str | None) -> None:
        """Changes models or engine, and asks again about what is shown."""
        if not chosen:
            raise InputError("models: must be at least one, got none; choose one")
        for name in chosen:
            self.models.manifest(name)  # an unknown one is told before anything is changed
        self.model_names, self.engine, self.volume_masks = tuple(chosen), engine, {}
        self.version += 1
        if self.scan is not None:
            self.go_to(self.slice_index, runs=MAX_RUNS)

    @property
    def current_answers(self) -> tuple[ModelAnswer, ...]:
        """The answers to the reader's prompt, or the automatic ones, at the models' own thresholds."""
        if self.dialogue is None or not self.automatic_answers:
            return self.automatic_answers
        return tuple(
            self.dialogue.answer_of(n, a)
            for n, a in zip(self.model_names, self.automatic_answers, strict=True)
        )

    @property
    def shown_answers(self) -> tuple[ModelAnswer, ...]:
        """The current answers at the threshold that the reader set."""
        return tuple(answer.at(self.threshold) for answer in self.current_answers)

    @property
    def truth_slice(self) -> np.ndarray | None:
        """The reference mask of the shown slice, H×W."""
        return None if self.truth is None else self.truth[self.slice_index]

    def set_threshold(self, threshold: float | None) -> None:
        """Draws the masks of models of one class at another threshold; None: at each model's own."""
        self.threshold, self.volume_masks = threshold, {}

    def measure_all(self) -> Iterator[int]:
        """Draws the masks of every slice with every chosen model; yields how many slices are done.

        Holds the lock for one slice at a time, and ends early where the reader went on to something else.
        """
        scan, wanted = self._required_scan(), self._mask_origin()
        masks = {name: list[np.ndarray]() for name in self.model_names}
        # The lock is let go between two slices, so that the reader can go on; what changed meanwhile ends this run.
        for index in range(scan.slices):
            with self.lock:
                if self._mask_origin() != wanted or self.scan is not scan:
                    return
                for name, drawn in masks.items():
                    drawn.append(self._slice_mask(name, index))
                if index + 1 == scan.slices:
                    self.volume_masks = {name: np.stack(drawn) for name, drawn in masks.items()}
                    self._volume_measurements = {}
            yield index + 1

    def _mask_origin(self) -> tuple[object, ...]:
        """What the masks of all slices follow from, but for the scan: equal as long as they need not be drawn anew."""
        questions = self.dialogue.questions if self.dialogue else ()
        return self.version, self.threshold, questions, self.slice_index if questions else None

    def _slice_mask(self, name: str, index: int) -> np.ndarray:
        """A model's mask of a slice: where a prompt made it, the shown one."""
        if index == self.slice_index and self.dialogue is not None and self.dialogue.questions:
            return self.shown_answers[self.model_names.index(name)].mask
        return self.ask_model(name, index).at(self.threshold).mask

    def measured_volume(self, masks: np.ndarray, classes: Sequence[str]) -> tuple[VolumeMeasurements, ...]:
        """Measurements of masks N×H×W, made once: they take seconds, and are shown again with every slice."""
        key = id(masks), tuple(classes)
        if key not in self._volume_measurements:
            scan = self._required_scan()
            measured = measure_volume(
                masks,
                classes,
                spacing_mm=scan.spacing_mm,
                slice_spacing_mm=scan.slice_spacing_mm,
                reference=self.models.reference_for(classes),
            )
            self._volume_measurements[key] = masks, measured
        return self._volume_measurements[key][1]

    def masks_of(self, name: str) -> np.ndarray:
        """Masks of every slice, N×H×W, drawn now where they are not at hand."""
        scan = self._required_scan()
        if scan.slices == 1:
            return self.shown_answers[self.model_names.index(name)].mask[None]
        if name not in self.volume_masks:
            for _ in self.measure_all():
                pass
        return self.volume_masks[name]

    def take_reference_mask(self, sent: str) -> None:
        """Takes a reference mask for the scan that is shown.

        Raises:
            InputError: no scan is shown, or the mask does not fit it.
        """
        path = Path(sent)
        try:
            scan = self._required_scan()
            if not sent:
                raise InputError("reference mask: must be a file, got none; choose one")
            with without_paths(path), self.models.turn(scan.size_px[0] * scan.size_px[1]):
                self.truth = class_indices(read_mask_file(path, scan), path.name, self._most_classes())
        finally:
            if sent:
                path.unlink(missing_ok=True)

    def clear_case(self) -> None:
        """Forgets the case and removes its files."""
        self.scan, self.truth, self.dialogue = None, None, None
        self.scan_paths, self.automatic_answers = (), ()
        self.volume_masks = {}
        self._volume_measurements = {}
        # Not the whole folders: a batch that is running keeps its own files there.
        for folder in (self.uploads_folder / "case", self.downloads_folder / "along"):
            shutil.rmtree(folder, ignore_errors=True)

    def end(self) -> None:
        """Removes all that is the reader's."""
        self.closed = True
        self.clear_case()
        for folder in (self.uploads_folder, self.downloads_folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _most_classes(self) -> int:
        return max(len(self.models.manifest(name).classes) for name in self.model_names)

    def _required_scan(self) -> Scan:
        if self.scan is None:
            raise InputError("the case: must be chosen first, none is; choose an example or a file")
        return self.scan


def _held_px(scan: Scan) -> int:
    """One slice with its answers, and of a volume the masks: a byte a voxel and model beside some 11 a pixel."""
    area = scan.size_px[0] * scan.size_px[1]
    return area if scan.slices == 1 else area + scan.slices * area // 8
