"""The script for a quarter of an hour with a GPU, on the processor; on a GPU it runs as the command."""

import json

import pytest

pytest.importorskip("torch")

from benchmarks.checks.gpu import GpuSettings, main, run_parts
from segcore.errors import GateError, InputError


def test_every_part_runs_on_the_processor(tmp_path, capsys):
    main(GpuSettings(out=tmp_path / "gpu.json", device="cpu", minutes=60))
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["device"].startswith("no GPU asked for: ")
    assert {part["name"]: part["passed"] for part in record["parts"]} == dict.fromkeys(
        ("arithmetic", "masks", "speed", "training", "engine"), True
    )
    assert record["parts"][2]["figures"]["student small, fp32, batch 2: pictures/s"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:6]][-1] == ["engine", "PASS"]
    assert json.loads(lines[-1])["passed"] is True


def test_a_part_that_comes_out_wrong_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.checks.gpu._LEAST_COSINE", 1.1)
    settings = GpuSettings(out=tmp_path / "gpu.json", device="cpu", part=("arithmetic", "masks"))
    with pytest.raises(GateError, match=r": arithmetic must pass, did not; see "):
        main(settings)
    verdicts = [part["passed"] for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]]
    assert verdicts == [False, True]
    assert "gradients at a cosine of 1.1 or more" in capsys.readouterr().out


def test_what_does_not_fit_into_the_time_is_not_begun(tmp_path):
    settings = GpuSettings(out=tmp_path / "gpu.json", device="cpu", minutes=0.001)
    assert [part.passed for part in run_parts(settings)] == [None] * 5


def test_bad_settings_are_one_line(tmp_path):
    import torch

    (tmp_path / "there").touch()
    with pytest.raises(InputError, match="must not exist yet"):
        main(GpuSettings(out=tmp_path / "there", device="cpu"))
    with pytest.raises(InputError, match=r"^--part: must be of arithmetic, .*, got all$"):
        main(GpuSettings(out=tmp_path / "gpu.json", device="cpu", part=("all",)))
    if not torch.cuda.is_available():
        with pytest.raises(
            InputError, match=r"^--device cuda: must be a GPU that PyTorch can use, there is none; "
        ):
            main(GpuSettings(out=tmp_path / "gpu.json"))
    assert not (tmp_path / "gpu.json").exists()
