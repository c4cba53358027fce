"""Segments pictures with an exported bundle: `python -m runtime.predict --bundle B --image I --out O`.

O/masks/CASE.png       0/255 for a model of one class, class indices (0 background) for several
O/overlays/CASE.png    the picture with the mask drawn over it
O/predictions.jsonl    a line a picture: sizes, areas, expected quality, timings

With `--defer-to B2`, B2 draws the masks of the pictures that B is unsure of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from runtime.apart import check_apart
from runtime.deferral import BELOW, DeferringPredictor
from runtime.predictor import Prediction, Predictor
from segcore.bundle import Bundle, open_bundle
from segcore.command import Settings, log, run_command
from segcore.errors import InputError
from segcore.image import IMAGE_SUFFIXES, read_image
from segcore.outfolder import out_folder
from segcore.overlay import overlay

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
    """openvino or onnxruntime; by default openvino where it is installed and can open the bundle."""
    threads: int | None = None
    """CPU threads of the engine; by default all that this process may use."""
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


def predict_files(
    predictor: Predictor | DeferringPredictor, images: Sequence[Path], folder: Path, failed: list[str]
) -> Iterator[dict[str, Any]]:
    """Segments files one by one, writes mask and overlay, and yields the record of each.

    Args:
        predictor: the opened model, or pair of models.
        images: files with different stems.
        folder: where masks/ and overlays/ are.
        failed: gets the message of every file that could not be used.
    """
    for path in images:
        try:
            image = read_image(path)
            prediction = predictor.predict(image, name=f"image {path}")
        except InputError as error:
            failed.append(str(error))
            if len(images) > 1:
                log(f"error: {error}")
            continue
        maker = predictor.maker_of(prediction) if isinstance(predictor, DeferringPredictor) else predictor
        scale = 255 if len(maker.manifest.classes) == 1 else 1
        Image.fromarray(prediction.mask * np.uint8(scale)).save(folder / "masks" / f"{path.stem}.png")
        Image.fromarray(overlay(image, prediction.mask)).save(folder / "overlays" / f"{path.stem}.png")
        yield _record(path.stem, prediction, maker)


def _record(case: str, prediction: Prediction, maker: Predictor) -> dict[str, Any]:
    classes, timings = maker.manifest.classes, prediction.timings
    counts = np.bincount(prediction.mask.ravel(), minlength=len(classes) + 1)
    return {
        "case": case,
        "mask": f"masks/{case}.png",
        "overlay": f"overlays/{case}.png",
        "height_px": prediction.mask.shape[0],
        "width_px": prediction.mask.shape[1],
        "area_px": {name: int(counts[k]) for k, name in enumerate(classes, start=1)},
        "quality": _rounded(prediction.quality),
        "deferred": prediction.first_quality is not None,
        "first_quality": _rounded(prediction.first_quality),
        "model": maker.manifest.name,
        "pre_ms": round(timings.pre_ms, 3),
        "engine_ms": round(timings.engine_ms, 3),
        "post_ms": round(timings.post_ms, 3),
        "total_ms": round(timings.total_ms, 3),
        "engine": f"{maker.engine_name} {maker.engine_version}",
    }


def _rounded(quality: float | None) -> float | None:
    return None if quality is None else round(quality, 4)


def _open(settings: PredictSettings, bundle: Bundle) -> Predictor | DeferringPredictor:
    if settings.defer_to is None:
        return Predictor.open(bundle, engine=settings.engine, threads=settings.threads)
    return DeferringPredictor.open(
        bundle, settings.defer_to, below=settings.below, engine=settings.engine, threads=settings.threads
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
            for record in predict_files(predictor, tqdm(images, unit="image", disable=None), folder, failed):
                file.write(json.dumps(record) + "\n")
        if len(failed) == len(images):
            raise InputError(failed[0] if len(images) == 1 else _summary(settings, failed, len(images)))
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
