"""The round trip through DICOM and back: what passes, and that what is lost is told."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("nibabel")

from benchmarks.checks.round_trip import CT_SERIES, VARIANTS, RoundTripSettings, Variant, VariantRow, main
from segcore.errors import GateError, InputError
from segcore.medical.read import read_scan

SPACING_MM = (0.25, 0.4)


def picture(seed: int = 0) -> np.ndarray:
    """Every grey level at least once."""
    levels = np.arange(64 * 48) % 256
    return np.random.default_rng(seed).permutation(levels).reshape(64, 48).astype(np.uint8)


@pytest.mark.parametrize("variant", [*VARIANTS, CT_SERIES], ids=lambda variant: variant.name)
def test_a_variant_shows_the_picture_it_was_made_of(tmp_path, variant):
    pictures = [picture(seed) for seed in range(1 if variant.pictures == 1 else 5)]
    scan = read_scan(variant.write(tmp_path, pictures, SPACING_MM))
    shown = [scan.picture(index, "uint8") for index in range(scan.slices)]
    assert len(shown) == len(pictures)
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    for one, other in zip(shown, pictures, strict=True):
        difference = np.abs(one.astype(int) - (other[..., None] if one.ndim == 3 else other))
        assert (difference.max() == 0) == variant.lossless


def settings(bundle: Path, out: Path) -> RoundTripSettings:
    return RoundTripSettings(bundle=bundle, data="phantom:cxr:10", limit=1, ct_slices=3, out=out)


def test_masks_come_back_through_every_variant(tmp_path, exported: Callable[[str, str], Path], capsys):
    main(settings(exported("onnx", "fp32"), tmp_path / "out"))
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1])["failed"] == []
    record = json.loads((tmp_path / "out" / "round_trip.json").read_text())
    rows = {row["variant"]: VariantRow(**row) for row in record["rows"]}
    assert list(rows) == [variant.name for variant in (*VARIANTS, CT_SERIES)]
    assert all(row.passed for row in rows.values())
    series = rows[CT_SERIES.name]
    assert (series.files, series.masks, series.seg_equal, series.nifti_equal, series.png_equal) == (
        1,
        3,
        3,
        3,
        3,
    )
    table = (tmp_path / "out" / "round_trip.md").read_text().splitlines()
    assert table[0].startswith("| variant | files | masks | display = |")
    assert len(table) == 2 + len(rows)


def test_a_picture_that_changes_on_the_way_fails_the_gate(tmp_path, exported: Callable[[str, str], Path]):
    honest = VARIANTS[0]

    def brighter(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: tuple[float, float]) -> Path:
        return honest.write(folder, [np.clip(pictures[0], 0, 254) + np.uint8(1)], spacing_mm)

    def wider(folder: Path, pictures: Sequence[np.ndarray], spacing_mm: tuple[float, float]) -> Path:
        return honest.write(folder, pictures, (spacing_mm[0], spacing_mm[1] * 1.01))

    variants = (honest, Variant("brighter", brighter), Variant("wider", wider))
    out = tmp_path / "out"
    with pytest.raises(GateError) as error:
        main(settings(exported("onnx", "fp32"), out), variants)
    assert str(error.value) == f"2 of 4 variants differ: brighter; wider; see {out}"
    rows = {row["variant"]: row for row in json.loads((out / "round_trip.json").read_text())["rows"]}
    assert rows["brighter"]["display_equal"] == 0
    assert rows["wider"]["spacing_kept"] == 0


def test_colour_pictures_are_refused(tmp_path, exported: Callable[[str, str], Path]):
    from PIL import Image

    folder = tmp_path / "data"
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for name in "abc":
        Image.fromarray(colours).save(folder / f"{name}.png")
    with pytest.raises(InputError) as error:
        main(
            RoundTripSettings(
                bundle=exported("onnx", "fp32"), data=str(folder), limit=1, out=tmp_path / "out"
            )
        )
    assert str(error.value) == f"--data {folder}: must hold 8-bit grey pictures, holds others; choose another"


@pytest.mark.parametrize(
    "lost", ["seg_equal", "nifti_equal", "png_equal", "prediction_equal", "spacing_kept"]
)
def test_a_row_passes_only_whole(lost):
    whole = {"display_equal": 2, "prediction_equal": 2, "seg_equal": 2, "nifti_equal": 2, "png_equal": 2}
    row = VariantRow(variant="x", lossless=True, files=2, masks=2, spacing_kept=2, dciodvfy_errors=0, **whole)
    assert row.passed
    assert not row.model_copy(update={lost: 1}).passed
    assert not row.model_copy(update={"dciodvfy_errors": 1}).passed
    lossy = row.model_copy(update={"lossless": False, "prediction_equal": 1, "display_equal": 0})
    assert lossy.passed
