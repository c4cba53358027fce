"""A batch of uploads: rows in words, one ZIP, and nothing that a spreadsheet would compute."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from demo.session.batch import csv_table, page_row, run_batch, safe_cell
from segcore.errors import InputError
from segcore.measure.masks import measure_mask, measure_volume
from segcore.phantom import phantom_case


@pytest.fixture(scope="module")
def predictor(exported):
    from runtime.predictor import Predictor

    with Predictor.open(exported("openvino", "fp32"), threads=1) as opened:
        yield opened


def png(path, patient=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantom_case("cxr", patient)[0]).save(path)
    return path


def rows_of(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read("table.csv").decode("utf-8-sig"), newline="")))


def test_masks_are_the_predictors_own_and_a_bad_file_is_a_row(predictor, tmp_path):
    first, second = png(tmp_path / "a" / "chest.png"), png(tmp_path / "b" / "chest.png", 4)
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"not a picture")
    *_, last = run_batch(predictor, [first, bad, second, tmp_path / "gone.png"], tmp_path / "made")
    assert (last.done, last.total, last.failed, last.name) == (4, 4, 2, "gone.png")
    head, *rows = last.table
    assert head == ["File", "Slices", "Size", "Light", "lung", "Problem"]
    # In the order in which they were sent.
    assert [row[0] for row in rows] == ["chest.png", "broken.png", "chest.png", "gone.png"]
    assert rows[0][1:4] == ["1", "256 × 256", "–"]  # trained too briefly to judge itself
    assert rows[0][4].endswith(" px (spacing unknown)")
    assert rows[1][1:5] == ["–"] * 4
    assert rows[1][5].startswith("image broken.png: must be PNG")
    assert str(tmp_path) not in str(last.table)
    with zipfile.ZipFile(last.zip_path) as archive:
        names = archive.namelist()
        assert names == ["table.csv", "predictions.jsonl", "masks/chest (2).png", "masks/chest.png"]
        stored = np.asarray(Image.open(io.BytesIO(archive.read("masks/chest (2).png"))))
        expected = predictor.predict(np.asarray(Image.open(second))).mask
        np.testing.assert_array_equal(stored, expected * 255)
        lines = [json.loads(line) for line in archive.read("predictions.jsonl").splitlines()]
        assert [line["case"] for line in lines] == ["chest", "broken", "chest (2)", "gone"]
        table = rows_of(archive)
        assert table[0]["lung unit"] == "px"
        assert float(table[2]["lung extent"]) == expected.sum()
        assert table[1]["error"] == rows[1][5]
        assert str(tmp_path) not in "".join(archive.read(name).decode("latin-1") for name in names)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["sam2edge-masks.zip"]


@pytest.fixture
def every_file(monkeypatch):
    """Progress after every file, however quick it is."""
    monkeypatch.setattr("demo.session.batch._EVERY_S", -1.0)


def test_progress_after_every_file_and_once_with_the_zip(predictor, tmp_path, every_file):
    files = [png(tmp_path / f"{n}.png", n) for n in range(3)]
    found = list(run_batch(predictor, files, tmp_path / "made"))
    assert [(one.done, one.total, one.name) for one in found] == [
        (0, 3, ""), (1, 3, "0.png"), (2, 3, "1.png"), (3, 3, "2.png"), (3, 3, "2.png"),
    ]  # fmt: skip
    assert [len(one.table) for one in found] == [1, 2, 3, 4, 4]
    assert [one.zip_path is None for one in found] == [True] * 4 + [False]


def test_only_the_newest_rows_are_shown_while_it_runs(predictor, tmp_path, every_file, monkeypatch):
    monkeypatch.setattr("demo.session.batch.SHOWN_ROWS", 2)
    files = [png(tmp_path / f"{n}.png", n) for n in range(4)]
    *_, before, last = run_batch(predictor, files, tmp_path / "made")
    assert [row[0] for row in before.table[1:]] == ["2.png", "3.png"]
    assert [row[0] for row in last.table[1:]] == ["0.png", "1.png", "2.png", "3.png"]


def test_a_batch_that_is_left_lets_the_model_go(predictor, tmp_path, every_file):
    running = run_batch(predictor, [png(tmp_path / f"{n}.png", n) for n in range(4)], tmp_path / "made")
    assert [next(running).done for _ in range(2)] == [0, 1]
    running.close()
    assert not (tmp_path / "made" / "sam2edge-masks.zip").exists()
    assert predictor.predict(phantom_case("cxr", 1)[0]).mask.shape == (256, 256)


def test_dicom_segmentations_of_dicom_files_and_the_other_formats_of_the_others(
    predictor, tmp_path, dicom_files
):
    pytest.importorskip("highdicom")
    image = phantom_case("cxr", 3)[0]
    dicom = dicom_files.make_dicom(tmp_path / "film.dcm", image, Modality="DX", PixelSpacing=[2.0, 2.0])
    series = tmp_path / "series"
    dicom_files.make_series(series, np.stack([image.astype(np.uint16)] * 2), slice_spacing_mm=5.0)
    paths = [png(tmp_path / "chest.png"), dicom, series]
    *_, last = run_batch(predictor, paths, tmp_path / "made", ["png", "dicom-seg"])
    assert [row[0] for row in last.table[1:]] == ["chest.png", "film.dcm", "series"]
    assert last.failed == 0
    assert last.table[2][4].endswith(" cm²")
    assert last.table[3][1] == "2"
    with zipfile.ZipFile(last.zip_path) as archive:
        assert sorted(archive.namelist()[2:]) == [
            "masks/chest.png", "masks/film.dcm", "masks/film.png", "masks/series.dcm", "masks/series/0001.png",
            "masks/series/0002.png",
        ]  # fmt: skip
        text = archive.read("table.csv").decode() + archive.read("predictions.jsonl").decode()
    assert [word for word in dicom_files.PATIENT.values() if word in text] == []
    *_, last = run_batch(predictor, paths, tmp_path / "again", ["dicom-seg"])
    assert last.failed == 1
    assert last.table[1][-1] == (
        "image chest.png: must be DICOM for a DICOM segmentation, is not; choose another format, too"
    )


@pytest.mark.parametrize(
    ("count", "formats", "expected"),
    [
        (0, ["png"], "files: must be at least one, got none; choose files"),
        (1, [], "masks as: must be at least one format, got none; choose one"),
        (1, ["png", "tiff"], "masks as: must be of png, nifti, dicom-seg, json, got tiff"),
    ],
)
def test_a_batch_of_nothing(predictor, tmp_path, count, formats, expected):
    with pytest.raises(InputError) as caught:
        next(run_batch(predictor, [tmp_path / "a.png"] * count, tmp_path / "made", formats))
    assert str(caught.value) == expected


def test_a_place_that_cannot_be_written_to_is_one_line(predictor, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        list(run_batch(predictor, [png(tmp_path / "a.png")], tmp_path / "file" / "made"))
    assert str(caught.value) == (
        "masks: must be written, the disk refuses (Not a directory); free some space and start again"
    )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=1"])
def test_no_cell_is_a_formula(text):
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize(("cell", "expected"), [("a=b", "a=b"), (-1.5, -1.5), (None, ""), (0, 0), ("", "")])
def test_other_cells_stay(cell, expected):
    assert safe_cell(cell) == expected


MASK = np.ones((2, 3), np.uint8)
RECORD = {
    "case": "x", "slices": 1, "height_px": 2, "width_px": 3, "spacing_mm": [2.0, 5.0], "slice_spacing_mm": None,
    "quality": 0.9, "quality_min": 0.84, "model": "-net", "engine": "e 1", "total_ms": 1.5, "mask": "masks/x.png",
    "measurements": [one.model_dump(mode="json") for one in measure_mask(MASK, ["=lung", "heart"], spacing_mm=(2.0, 5.0))],
}  # fmt: skip
VOLUME = RECORD | {
    "slices": 2,
    "slice_spacing_mm": 50.0,
    "measurements": [
        one.model_dump(mode="json")
        for one in measure_volume(
            np.stack([MASK, MASK]), ["=lung", "heart"], spacing_mm=(2.0, 5.0), slice_spacing_mm=50.0
        )
    ],
}


def test_rows_of_a_picture_and_of_a_series():
    assert page_row("x.png", RECORD, ["=lung", "heart"]) == [
        "x.png", "1", "3 × 2", "Amber: check the outline (expected Dice 0.84)", "60.0 mm²", "none found", "",
    ]  # fmt: skip
    assert page_row("x", VOLUME, ["=lung", "heart"])[3:6] == [
        "Amber: check the outline (expected Dice 0.84 in the worst slice)", "6.00 ml", "none found",
    ]  # fmt: skip


def test_csv_has_equal_columns_numbers_apart_from_units_and_no_formula():
    failed = {"case": "y", "error": "=HYPERLINK()"}
    text = csv_table(["=x.png", "series", "y"], [RECORD, VOLUME, failed], ["=lung", "heart"])
    head, one, series, broken = csv.reader(io.StringIO(text, newline=""))
    assert {len(row) for row in (one, series, broken)} == {len(head)}
    found = dict(zip(head, one, strict=True))
    assert found["file"] == "'=x.png"
    assert (found["'=lung extent"], found["'=lung unit"]) == ("60.0", "mm2")
    assert (found["heart extent"], found["heart longest diameter"]) == ("0.0", "")
    assert found["model"] == "'-net"
    assert (found["row_spacing_mm"], found["column_spacing_mm"], found["light"]) == ("2.0", "5.0", "amber")
    assert dict(zip(head, series, strict=True))["'=lung unit"] == "ml"
    assert broken[-1] == "'=HYPERLINK()"
