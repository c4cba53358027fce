"""Every stage is timed, the whole loop beside it, and two checkouts are told apart by what they write."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.checks.stages import StagesSettings, _alike, _differing, main
from segcore.phantom import phantom_case

ROOT = Path(__file__).parents[1]


def test_a_checkout_against_itself_differs_in_nothing(exported, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(4):
        Image.fromarray(phantom_case("cxr", n, size_px=150)[0]).save(folder / f"{n}.png")
    out = tmp_path / "out"
    bundle = exported("openvino", "fp32")
    main(StagesSettings(bundle=bundle, image=folder, images=4, rounds=1, against=ROOT, flags=("",), out=out))
    record = json.loads((out / "record.json").read_text())
    stages = {row["name"]: row for row in record["stages"]}
    assert list(stages)[:4] == ["open", "decode", "prepare", "engine"]
    assert stages["engine"]["of_engine"] == 1
    assert all(row["ms"] > 0 for name, row in stages.items() if name != "quality")
    assert [row["name"] for row in record["loops"]] == ["masks only", "default outputs"]
    assert 0 < record["unavoidable"] < 1.5
    (compared,) = record["commands"]
    assert (compared["files"], compared["pixels"], compared["records"]) == (8, 0, 0)
    assert "engine runs" in capsys.readouterr().out


def test_what_differs_is_counted(tmp_path):
    for name, changed in (("a.png", 0), ("b.png", 3)):
        pixels = np.zeros((4, 4), np.uint8)
        pixels.flat[:changed] = 255
        Image.fromarray(pixels).save(tmp_path / name)
    assert _differing(tmp_path / "a.png", tmp_path / "b.png") == 3
    assert _differing(tmp_path / "a.png", tmp_path / "a.png") == 0
    record = {"a": [1.0, {"b": 3}], "c": "x"}
    assert _alike(record, {"a": [1.0 + 1e-15, {"b": 3}], "c": "x"})
    assert not _alike(record, {"a": [1.0 + 1e-9, {"b": 3}], "c": "x"})
    assert not _alike(record, {"a": [1.0, {"b": 4}], "c": "x"})
    assert not _alike(record, {"a": [1.0], "c": "x"})
