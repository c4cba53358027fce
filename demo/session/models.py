"""The models that the page offers: each opened once an engine, on first use, and asked by one reader at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from demo.session.answers import MAX_RUNS, ModelAnswer, ask_model, model_title
from runtime.engines.seam import choose_engine, engines_for, installed
from runtime.predictor import Predictor
from runtime.promptable import PromptPredictor, is_promptable
from runtime.verify import prove
from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import Manifest
from segcore.errors import GateError, InputError

P = TypeVar("P", Predictor, PromptPredictor)
LARGE_PX = 20_000_000
"""Pixels from which a picture is large: it takes seconds, and waits for its turn. A mammogram has some 14 million."""
MOST_WAITING = 3
"""Large pictures that wait for their turn; the next is told to come back."""
PLACES = 1 + MOST_WAITING + 2
"""Calls that are worked on at once, of readers and again of programs: a large one, those that wait, two small ones."""
TURN_WAIT_S = 120.0
"""How long one waits at most."""
_DEPTHS = {"uint8": "8 bits a pixel", "uint16": "16 bits a pixel", "float32": "numbers with a fraction"}


class Models:
    """The served bundles. Close it, or use it as a context manager.

    Attributes:
        bundles: in the order of the command line; the first is the one compared with.
        names: of the bundles, all different.
        reference: name of the class that the others are told as a share of, or None.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        *,
        engine: str | None = None,
        threads: int | None = None,
        reference: str | None = None,
    ) -> None:
        self.bundles = tuple(bundles)
        self.names = tuple(_number_duplicates([model_title(bundle.manifest) for bundle in bundles]))
        self.reference = reference
        if reference is not None and not any(reference in b.manifest.classes for b in bundles):
            known = ", ".join(dict.fromkeys(k for b in bundles for k in b.manifest.classes))
            raise InputError(f"--reference-class: must be one of {known}, got {reference}")
        self._engine = engine
        self._threads = threads
        self._open: dict[tuple[int, str, bool], tuple[Predictor, Lock]] = {}
        self._turn = Lock()
        self._waiting, self._counting = 0, Lock()
        self._turn_wait_s = TURN_WAIT_S
        self._open_promptable: dict[tuple[int, str], tuple[PromptPredictor, Lock]] = {}
        self._opening = Lock()
        self._stack = ExitStack()

    @property
    def engines(self) -> tuple[str, ...]:
        """Installed engines that can open at least one of the bundles."""
        able = dict.fromkeys(e for b in self.bundles for e in engines_for(b) if installed(e))
        return tuple(able)

    def manifest(self, name: str) -> Manifest:
        """Of the model of that name."""
        return self.bundles[self._index(name)].manifest

    def reference_for(self, classes: Sequence[str]) -> str | None:
        """The reference class, where a model of these classes marks it."""
        return self.reference if self.reference in classes else None

    def sha256(self, name: str) -> str:
        """Of its bundle."""
        return self.bundles[self._index(name)].sha256

    def is_large(self, pixels: int) -> bool:
        """Whether so many pixels take seconds."""
        return pixels > LARGE_PX

    @contextmanager
    def turn(self, pixels: int) -> Iterator[None]:
        """To be held while something of so many pixels is worked on: of large ones, one at a time.

        A small picture waits for nobody here.

        Raises:
            InputError: too many large ones wait already, or this one waited too long.
        """
        if not self.is_large(pixels):
            yield
            return
        self._wait_for_turn()
        try:
            yield
        finally:
            self._turn.release()

    def _wait_for_turn(self) -> None:
        later = "must wait for other large pictures; try again in a few minutes"
        with self._counting:
            if self._waiting >= MOST_WAITING and self._turn.locked():
                raise InputError(f"the picture: {later}")
            self._waiting += 1
        try:
            if not self._turn.acquire(timeout=self._turn_wait_s):
                raise InputError(f"the picture: {later}, {self._turn_wait_s:.0f} seconds were not enough")
        finally:
            with self._counting:
                self._waiting -= 1

    def predictor(
        self, name: str, engine: str | None = None, *, large: bool = False
    ) -> tuple[Predictor, Lock]:
        """The opened model, and the lock to hold while it is asked.

        Args:
            name: one of `names`.
            engine: to run it; None for the command line's, or the bundle's own.
            large: the one that large pictures are asked of, so that small ones do not wait for its lock.

        Raises:
            InputError: no such model, or an engine that cannot open it.
        """
        index, chosen = self._index(name), self._engine_of(name, engine)
        bundle = self.bundles[index]
        with self._opening:
            if (index, chosen, large) not in self._open:
                opened = self._stack.enter_context(
                    _proved(Predictor.open(bundle, engine=chosen, threads=self._threads))
                )
                self._open[index, chosen, large] = opened, Lock()
            return self._open[index, chosen, large]

    def promptable(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the models that take a click or a box."""
        return tuple(name for name in names if is_promptable(self.manifest(name)))

    def prompt_predictor(self, name: str, engine: str | None = None) -> tuple[PromptPredictor, Lock]:
        """A promptable model's encoder and decoder, opened, and the lock to hold while they are asked.

        Args:
            name: one of `names`.
            engine: as for `predictor`.

        Raises:
            InputError: no such model, one that takes no prompts, or an engine that cannot open it.
        """
        index, chosen = self._index(name), self._engine_of(name, engine)
        if not is_promptable(self.manifest(name)):
            able = " or ".join(self.promptable(self.names)) or "a bundle of a promptable teacher"
            raise InputError(
                f"prompt: must go to a model that takes clicks, {name} takes none; choose {able}"
            )
        with self._opening:
            if (index, chosen) not in self._open_promptable:
                opened = self._stack.enter_context(
                    _proved(PromptPredictor.open(self.bundles[index], engine=chosen, threads=self._threads))
                )
                self._open_promptable[index, chosen] = opened, Lock()
            return self._open_promptable[index, chosen]

    def ask(
        self,
        name: str,
        image: np.ndarray,
        *,
        picture_name: str,
        engine: str | None = None,
        runs: int = MAX_RUNS,
    ) -> ModelAnswer:
        """What one model says about one picture.

        Raises:
            InputError: it cannot take the picture, or the engine cannot open it.
        """
        predictor, lock = self.predictor(name, engine, large=self.is_large(image.shape[0] * image.shape[1]))
        depth = predictor.manifest.input.depth
        if image.dtype.name != depth:
            raise InputError(
                f"{picture_name}: must hold {_DEPTHS[depth]} as {name} was trained on, "
                f"got {_DEPTHS[image.dtype.name]}; save it as the training pictures were saved, or send the DICOM"
            )
        with lock:
            return ask_model(predictor, image, name=picture_name, max_runs=runs)

    def describe(self, name: str) -> dict[str, Any]:
        """One model's facts, for programs."""
        bundle = self.bundles[self._index(name)]
        manifest = bundle.manifest
        return {
            "name": name,
            "kind": manifest.kind,
            "classes": list(manifest.classes),
            "precision": manifest.precision,
            "parameters": manifest.parameters,
            "input_px": list(manifest.input.size_px),
            "depth": manifest.input.depth,
            "threshold": manifest.output.threshold,
            "engines": [e for e in engines_for(bundle) if installed(e)],
            "prompt": self._prompt_facts(name),
        }

    def open_another(self, name: str) -> Predictor:
        """A predictor of its own, for a batch that would keep the readers of single cases waiting; close it."""
        return Predictor.open(self.bundles[self._index(name)], engine=self._engine, threads=self._threads)

    def close(self) -> None:
        """Lets go of every opened model."""
        self._stack.close()

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _engine_of(self, name: str, engine: str | None) -> str:
        bundle = self.bundles[self._index(name)]
        if engine is not None and engine not in (able := engines_for(bundle)):
            raise InputError(
                f"engine {engine}: must be able to open {name}, is not; choose {' or '.join(able)}"
            )
        return choose_engine(bundle, engine or self._engine)

    def _prompt_facts(self, name: str) -> dict[str, Any] | None:
        spec = self.manifest(name).prompt
        if spec is None or not self.promptable([name]):
            return None
        return {"kinds": list(spec.kinds), "most_points": spec.slots}

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise InputError(f"model: must be one of {', '.join(self.names)}, got {name}")
        return self.names.index(name)


def _proved(opened: P) -> P:
    """A model whose golden cases come out on this machine as they should; another is closed and refused.

    Raises:
        InputError: they do not.
    """
    try:
        prove(opened)
    except BaseException as error:
        opened.close()
        if isinstance(error, GateError):
            raise InputError(str(error)) from None
        raise
    return opened


def _number_duplicates(names: Sequence[str]) -> list[str]:
    """Numbers what is said twice: "Student: small", "Student: small (2)"."""
    return [
        name if (before := names[:i].count(name)) == 0 else f"{name} ({before + 1})"
        for i, name in enumerate(names)
    ]
