"""The files of a bundle: one network at fixed sizes and batches. Which of them takes an image, and its engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from threading import Lock

from runtime.engines.seam import ON_GPU, Engine
from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import Manifest, Variant
from segcore.errors import InputError

Size = tuple[int, int]
"""Height and width in pixels."""


def model_files(manifest: Manifest) -> tuple[Variant, ...]:
    """What an engine may open: the bundle's model, and its variants but those that only TensorRT's builder takes."""
    built = manifest.format in ON_GPU  # a plan runs, whatever the types that it was built from
    return manifest.main, *(v for v in manifest.variants if built or v.typing == "fp32")


def select_files(
    bundle: Bundle, files: Sequence[Variant], *, size_px: Size | None, batch: int
) -> tuple[Variant, ...]:
    """The files that are left when a user has chosen.

    Args:
        bundle: whose they are.
        files: all that an engine may open.
        size_px: the one size to use; None for all.
        batch: images a call where several are at hand.

    Raises:
        InputError: the bundle has no file of this size, or of this batch.
    """
    if size_px is not None:
        held = ", ".join(sorted({_size_text(file.size_px) for file in files}))
        files = [file for file in files if file.size_px == size_px]
        if not files:
            raise InputError(
                f"bundle {bundle.folder}: must hold the size {_size_text(size_px)}, holds {held}; use one of these, or "
                "export the model at that size"
            )
    # One image fits every file: the rest of a larger batch is left empty.
    if batch not in (1, *(file.batch for file in files)):
        held = ", ".join(map(str, sorted({1, *(file.batch for file in files)})))
        raise InputError(
            f"--batch {batch}: must be one that bundle {bundle.folder} holds, {held}, got {batch}; "
            "use one of these, or export the model with that batch"
        )
    return tuple(files)


def choose_size(sizes: Sequence[Size], image_px: tuple[int, ...]) -> Size:
    """The smallest size that is at least as large as the image in both sides; where there is none, the largest.

    Args:
        sizes: heights and widths, at least one.
        image_px: the image's height and width (a shape that is none is for `prepare` to refuse).
    """
    by_area = sorted(sizes, key=lambda size: (prod(size), size))
    fits = (s for s in by_area if all(have >= need for have, need in zip(s, image_px, strict=False)))
    return next(fits, by_area[-1])


class FileEngines:
    """The engines of a bundle's files: each opened when it is first needed, all closed together.

    Attributes:
        files: that may be opened.
        sizes: of their inputs, each once.
    """

    def __init__(self, files: Sequence[Variant], open_file: Callable[[Variant], Engine]) -> None:
        self.files = tuple(files)
        self.sizes = tuple(dict.fromkeys(file.size_px for file in files))
        self._open_file = open_file
        self._engines: dict[Variant, Engine] = {}
        self._lock = Lock()

    def file(self, size_px: Size, batch: int = 1) -> Variant:
        """The file of this size for so many images a call; where there is none, for the fewest."""
        mine = [file for file in self.files if file.size_px == size_px]
        exact = (file for file in mine if file.batch == batch)
        return next(exact, min(mine, key=lambda file: file.batch))

    def engine(self, file: Variant) -> Engine:
        """The file's engine.

        Raises:
            InputError: it does not open.
        """
        with self._lock:
            if file not in self._engines:
                self._engines[file] = self._open_file(file)
            return self._engines[file]

    def close(self) -> None:
        """Lets go of every engine."""
        while self._engines:
            self._engines.popitem()[1].close()


def _size_text(size_px: Size) -> str:
    return "×".join(map(str, size_px))
