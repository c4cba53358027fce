"""Segments pictures with an exported bundle: `python -m runtime.predict --bundle B --image I --out O`.

O/masks/CASE.png       0/255 for a model of one class, class indices (0 background) for several
O/overlays/CASE.png    the picture with the mask drawn over it
O/predictions.jsonl    a line a picture: sizes, areas, expected quality, timings

Pictures of a folder overlap: while the engine works on some, others are prepared, finished and written. `engine_ms`
then runs from when a picture was handed to the engine until its logits were taken, waits included; for the latency of a
picture give one file. With `--defer-to B2`, B2 draws the masks of the pictures that B is unsure of, one by one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from runtime.apart import check_apart
from runtime.deferral import BELOW, DeferringPredictor
from runtime.predict_files import predict_files
from runtime.predictor import Predictor
from segcore.bundle import Bundle, open_bundle
from segcore.command import Settings, log, run_command
from segcore.errors import InputError
from segcore.image import IMAGE_SUFFIXES
from segcore.outfolder import out_folder

PREDICTIONS_FILE = "predictions.jsonl"


class PredictSettings(Settings):
    """Segments pictures. Masks are PNG: 0/255 for a model of one class, class indices for one of several.

    Files that cannot be used are named on stderr and the others go on; the exit status is then 2. stdout has
    one JSON line a picture.
    """

    bundle: Path
    """Folder of an exported bundle."""
    image: Path
    """A PNG, JPEG or TIFF file, or a folder of them (not of folders)."""
    out: Path
    """Folder to write: masks/, overlays/ and predictions.jsonl."""
    defer_to: Path | None = None
    """Folder of a better, slower exported bundle: it segments the pictures whose quality is below --below."""
    below: float = Field(BELOW, ge=0, le=1)
    """Expected Dice below which a picture goes to --defer-to."""
    engine: str | None = None
    """openvino, onnxruntime or tensorrt; by default openvino where it is installed and can open the bundle."""
    threads: int | None = None
    """CPU threads of the engine; by default all that this process may use."""
    streams: int = Field(1, ge=1)
    """Pictures that the engine works on at once, sharing --threads: more a second, each later."""
    batch: int = Field(1, ge=1)
    """Pictures a call of the engine; the bundle must hold a file for so many."""
    cache: Path | None = None
    """Folder where OpenVINO keeps what it compiled, to open faster the next time."""
    overwrite: bool = False
    """Replace OUT if it is there."""


def list_images(path: Path) -> list[Path]:
    """The image files that `--image` names, sorted.

    Raises:
        InputError: no such file or folder, no image in it, or two whose masks would have one name.
    """
    if not path.exists():
        raise InputError(f"--image {path}: must be an image or a folder of images, no such file or folder")
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"--image {path}: must hold {', '.join(IMAGE_SUFFIXES)} files, got none")
    by_stem: dict[str, Path] = {}
    for image in found:
        if by_stem.setdefault(image.stem, image) != image:
            raise InputError(
                f"--image {path}: {by_stem[image.stem].name} and {image.name} must differ in more than the "
                f"suffix, both would be {image.stem}.png; rename one"
            )
    return found


def _open(settings: PredictSettings, bundle: Bundle) -> Predictor | DeferringPredictor:
    if settings.defer_to is None:
        return Predictor.open(
            bundle,
            engine=settings.engine,
            threads=settings.threads,
            streams=settings.streams,
            batch=settings.batch,
            cache=settings.cache,
        )
    for name, number in (("streams", settings.streams), ("batch", settings.batch)):
        if number > 1:
            raise InputError(
                f"--{name}: must be 1 with --defer-to, got {number}; it takes pictures one by one"
            )
    return DeferringPredictor.open(
        bundle,
        settings.defer_to,
        below=settings.below,
        engine=settings.engine,
        threads=settings.threads,
        cache=settings.cache,
    )


def main(settings: PredictSettings) -> None:
    """Writes OUT, then prints a JSON line a picture.

    Raises:
        InputError: a file could not be used; the results of the others are in OUT. Or the bundles do not go together.
    """
    check_apart(settings.out, settings.image, "--image")
    check_apart(settings.out, settings.bundle, "--bundle")
    if settings.defer_to is not None:
        check_apart(settings.out, settings.defer_to, "--defer-to")
    bundle = open_bundle(settings.bundle)
    images = list_images(settings.image)
    failed: list[str] = []
    made_from = {
        "bundle": bundle.sha256,
        "defer_to": str(settings.defer_to),
        "image": str(settings.image),
        "names": [path.name for path in images],
    }
    with (
        _open(settings, bundle) as predictor,
        out_folder(settings.out, made_from, overwrite=settings.overwrite, keep_on_error=False) as folder,
    ):
        for name in ("masks", "overlays"):
            (folder / name).mkdir(exist_ok=True)
        with (folder / PREDICTIONS_FILE).open("w") as file:
            begin = time.perf_counter()
            for record in tqdm(
                predict_files(predictor, images, folder, failed),
                total=len(images),
                unit="image",
                disable=None,
            ):
                file.write(json.dumps(record) + "\n")
            seconds = time.perf_counter() - begin
        if len(failed) == len(images):
            raise InputError(failed[0] if len(images) == 1 else _summary(settings, failed, len(images)))
    if len(images) > 1:
        done = len(images) - len(failed)
        log(f"{done} images in {seconds:.1f} s, {done / seconds:.1f} images/s with reading and writing")
    for line in (settings.out / PREDICTIONS_FILE).read_text().splitlines():
        record = json.loads(line)
        paths = {name: str(settings.out / record[name]) for name in ("mask", "overlay")}
        print(json.dumps({**record, **paths}), flush=True)
    if failed:
        raise InputError(_summary(settings, failed, len(images)))


def _summary(settings: PredictSettings, failed: list[str], total: int) -> str:
    kept = f"the masks of the others are in {settings.out}" if len(failed) < total else "nothing was written"
    counts = f"{len(failed)} of {total} images could not be used"
    return f"--image {settings.image}: {counts}, each is named above; {kept}"


if __name__ == "__main__":
    run_command(main, PredictSettings, "python -m runtime.predict")
