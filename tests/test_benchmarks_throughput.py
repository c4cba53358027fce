"""The command measures what it says, in a folder that holds all of it."""

import json

import numpy as np
import pytest

from benchmarks.checks.throughput import ThroughputSettings, main
from benchmarks.measuring import resident_mib
from segcore.errors import InputError


def test_throughput_and_memory_are_recorded(exported, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    settings = {"bundle": exported("onnx", "fp32"), "data": "phantom:cxr:24", "threads": 2, "pictures": 2}
    main(ThroughputSettings(**settings, rounds=3, images=1000, engine=("openvino",), out=tmp_path / "out"))
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["rows"] == result["rows"]
    one_by_one, *mapped = record["rows"]
    assert (one_by_one["streams"], one_by_one["times_more"]) == (0, 1.0)
    assert [row["streams"] for row in mapped] == [1, 2]
    for row in mapped:
        assert 0 < row["times_more_low"] <= row["times_more"] <= row["times_more_high"]
        assert row["images_s"] > 0
    (memory,) = record["memory"]
    assert memory["images"] == [500, 1000]
    first, last = memory["resident_mib"]
    assert memory["growth_mib"] == pytest.approx(last - first)
    assert abs(last - first) < 30  # the probabilities of 500 pictures are 125 MiB
    assert (tmp_path / "out" / "memory.png").stat().st_size > 5000
    assert lines[-2].startswith("openvino: resident memory ")


def test_resident_memory_sees_what_is_held():
    before = resident_mib()
    held = np.ones(8 * 2**20)  # 64 MiB
    assert resident_mib() - before == pytest.approx(64, abs=8)
    del held


def test_streams_beyond_the_threads_are_refused(exported, tmp_path):
    pytest.importorskip("matplotlib")
    settings = ThroughputSettings(
        bundle=exported("onnx", "fp32"), data="phantom:cxr:24", threads=1, streams=(2,), out=tmp_path / "out"
    )
    with pytest.raises(InputError) as error:
        main(settings)
    assert str(error.value) == "--streams: must hold a number of 1 to 1, the threads, got (2,)"
    assert not (tmp_path / "out").exists()
