"""The batch command is timed as a user runs it, and killed as a machine does."""

import json

import pytest
from PIL import Image

from benchmarks.checks.throughput_batch import BatchSettings, kill_and_resume, main
from segcore.errors import InputError
from segcore.phantom import phantom_case


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    picture = Image.fromarray(phantom_case("cxr", 40, size_px=256)[0])
    for i in range(40):
        picture.save(folder / f"p{i:02d}.png")
    return folder


def test_rows_and_the_kill_are_recorded(exported, folder, tmp_path, capsys):
    out, bundle = tmp_path / "out", exported("openvino", "fp32")
    main(BatchSettings(bundle=bundle, image=folder, images=36, workers=(1,), threads=1, rounds=1, out=out))
    printed = capsys.readouterr().out.splitlines()
    record = json.loads((out / "record.json").read_text())
    assert json.loads(printed[-1])["rows"] == record["rows"]
    engine, mapped, *batches = record["rows"]
    assert (engine["way"], engine["of_engine"], mapped["way"]) == ("engine", 1.0, "map")
    assert [row["way"] for row in batches] == [
        "batch, workers 1, masks",
        "batch, workers 1, masks, measurements",
        "batch, workers 1, masks, measurements, overlays",
    ]
    for row in (mapped, *batches):
        assert row["of_engine"] == pytest.approx(row["images_s"] / engine["images_s"])
        assert 0 < row["images_s_low"] <= row["images_s"] <= row["images_s_high"]
    (killed,) = record["resumed"]
    assert 18 <= killed.pop("lines_at_kill") <= 36
    assert killed == {
        "way": "batch, workers 1", "inputs": 36, "lines": 36, "twice": 0, "missing": 0, "failed": 0,
        "changed": 0, "masks": 36,
    }  # fmt: skip
    assert (record["images"], record["size_px"], record["ray_images_s"]) == (36, [256, 256], None)


def test_what_ends_before_it_is_killed_is_an_error(tmp_path):
    words = ["--bundle", tmp_path / "none", "--image", tmp_path]
    with pytest.raises(InputError) as error:
        kill_and_resume("batch", words, ["a"], tmp_path / "out")
    assert str(error.value) == "batch: must be killed at half, ended before that; give more --images"
