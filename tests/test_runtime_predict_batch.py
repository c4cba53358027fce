"""A folder tree of an archive's files: what fails is a line, what is killed goes on, several processes give the same."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.predict.__main__ import PredictSettings, main
from runtime.predict.files import PredictorOptions, predict_files, predict_input
from runtime.predict.inputs import PredictionInput, list_inputs
from runtime.predict.parallel import predict_in_processes
from runtime.predict.write import Outputs, open_records
from runtime.predictor import Predictor
from segcore.errors import InputError
from segcore.phantom import phantom_case


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Pictures in two folders, a text file, and two files that are no pictures."""
    folder = tmp_path_factory.mktemp("tree")
    for i in range(6):
        path = folder / ("ward", "ward/left")[i % 2] / f"p{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom_case("cxr", 40 + i, size_px=96)[0]).save(path)
    (folder / "README.txt").write_text("chest films")
    (folder / "ward" / "cut.png").write_bytes((folder / "ward" / "p0.png").read_bytes()[:200])
    (folder / "deep.png").write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")
    return folder


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def files(folder) -> dict[str, bytes]:
    """Of masks and overlays, by their place."""
    found = sorted(p for name in ("masks", "overlays") for p in (folder / name).rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def untimed(records) -> list[dict]:
    return sorted(
        ({k: v for k, v in r.items() if not k.endswith("_ms")} for r in records), key=lambda r: r["case"]
    )


def command(*words) -> list[str]:
    return [sys.executable, "-m", "runtime.predict", *map(str, words), "--threads", "2"]


def settings(exported, image, out, **more) -> PredictSettings:
    return PredictSettings(bundle=exported("openvino", "fp32"), image=image, out=out, threads=1, **more)


@pytest.fixture(scope="module")
def done(exported, tree, tmp_path_factory):
    """The tree's folder as one process makes it."""
    out = tmp_path_factory.mktemp("done") / "out"
    with pytest.raises(InputError):
        main(settings(exported, tree, out, overwrite=True))
    return out


def test_every_input_has_one_line(done, tree):
    records = {record["case"]: record for record in lines(done)}
    assert len(lines(done)) == len(records) == 8
    assert set(records["ward/cut"]) == {"case", "error"}
    assert records["ward/cut"]["error"].startswith(f"image {tree / 'ward' / 'cut.png'}: must be ")
    assert records["deep"]["error"] == (
        f"image {tree / 'deep.png'}: must be uint8 as the model was trained on (window 0 to 255), got uint16; "
        "convert it the way the training images were"
    )
    good = records["ward/left/p1"]
    assert (good["mask"], good["files"]) == ("masks/ward/left/p1.png", {"png": "masks/ward/left/p1.png"})
    assert (good["slices"], good["overlay"]) == (1, "overlays/ward/left/p1.png")
    (lung,) = good["measurements"]
    assert (lung["pixels"], lung["unit"]) == (good["area_px"]["lung"], "px")
    assert {p.name for p in done.iterdir()} == {"masks", "overlays", "predictions.jsonl"}
    assert len(files(done)) == 12


def test_one_by_one_and_overlapping_give_the_same(exported, tree, done, tmp_path):
    inputs = list_inputs(tree).inputs
    with Predictor.open(exported("openvino", "fp32"), threads=1) as predictor:
        one_by_one = [predict_input(predictor, item, tmp_path / "a", Outputs()) for item in inputs]
        overlapping = list(predict_files(predictor, inputs, tmp_path / "b"))
    assert [record["case"] for record in overlapping] == [item.case for item in inputs]
    assert untimed(one_by_one) == untimed(overlapping) == untimed(lines(done))
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(done)


def test_workers_give_the_same(exported, tree, done, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=r": 2 of 8 images could not be used, each is named in predictions.jsonl"
    ):
        main(settings(exported, tree, out, workers=2, overlays=False, measurements=False))
    assert [r["case"] for r in untimed(lines(out))] == [r["case"] for r in untimed(lines(done))]
    assert all(r["measurements"] == [] and r["area_px"]["lung"] > 0 for r in lines(out) if "error" not in r)
    assert files(out) == {k: v for k, v in files(done).items() if k.startswith("masks")}


def test_ray_gives_the_same(exported, tree, done, tmp_path):
    """Takes about 15 s: most of it, Ray's start."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    out = tmp_path / "out"
    words = ["--bundle", exported("openvino", "fp32"), "--image", tree, "--out", out, "--ray", "--workers", 2]
    ended = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert untimed(lines(out)) == untimed(lines(done))
    assert files(out) == files(done)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, 1), (signal.SIGINT, 1), (signal.SIGKILL, 2)])
def test_what_is_killed_goes_on(exported, tmp_path, how, workers):
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    picture = Image.fromarray(phantom_case("cxr", 40, size_px=256)[0])
    picture.save(folder / "p00.png")
    for i in range(1, 60):
        os.link(folder / "p00.png", folder / f"p{i:02d}.png")
    words = command(
        "--bundle", exported("openvino", "fp32"), "--image", folder, "--out", out, "--workers", workers
    )
    stored = Path(f"{out}.partial") / "predictions.jsonl"
    with subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as CI may be, hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        deadline = time.monotonic() + 60
        while not (stored.exists() and stored.read_bytes().count(b"\n") >= 3):
            assert time.monotonic() < deadline
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.005)
        running.send_signal(how)
        said = running.stderr.read()
    if how == signal.SIGINT:
        assert running.returncode == 130
        assert said.endswith("interrupted; run the same command again to go on\n")
    before = stored.read_bytes().split(b"\n")[:-1]
    assert 3 <= len(before) < 60
    with stored.open("ab") as file:
        file.write(b'{"case": "p59", "ma')  # a line that was cut off
    first = json.loads(before[0])["mask"]
    os.utime(Path(f"{out}.partial") / first, ns=(1, 1))
    (Path(f"{out}.partial") / "masks" / "p59.png").write_bytes(b"half a ma")
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    after = (out / "predictions.jsonl").read_bytes().split(b"\n")[:-1]
    assert after[: len(before)] == before
    assert sorted(json.loads(line)["case"] for line in after) == [f"p{i:02d}" for i in range(60)]
    assert (out / first).stat().st_mtime_ns == 1  # not done again
    assert len({path.read_bytes() for path in (out / "masks").iterdir()}) == 1
    assert len(again.stdout.splitlines()) == 60


def test_a_full_disk_ends_the_run_and_another_list_does_not_go_on_with_it(exported, tree, tmp_path):
    """A limit on the size of files stands for the disk; the first picture's are small enough."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(images / "a.png")
    (images / "b.png").write_bytes((tree / "ward" / "p0.png").read_bytes())
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); "
        "from runtime.predict.__main__ import *; run_command(main, PredictSettings, 'predict', sys.argv[1:])"
    )
    words = ["--bundle", str(exported("openvino", "fp32")), "--image", str(images), "--out", str(out)]
    for more in (["--workers", "1"], ["--workers", "2"]):
        ended = subprocess.run(
            [sys.executable, "-c", limited, *words, *more], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 2
        assert "cannot be written, File too large" in ended.stderr.splitlines()[-1]
    partial = Path(f"{out}.partial")
    assert [record["case"] for record in lines(partial)] == ["a"]
    (images / "c.png").write_bytes((tree / "ward" / "p2.png").read_bytes())
    with pytest.raises(InputError) as error:
        main(settings(exported, images, out))
    assert str(error.value) == (
        f"--out {out}: {partial} was made with other settings (the files of --image); "
        "use the same settings to resume it, or remove it"
    )
    (images / "c.png").unlink()
    main(settings(exported, images, out, workers=2))  # how many work at it may change
    assert [record["case"] for record in lines(out)] == ["a", "b"]


def test_two_runs_do_not_write_one_folder(tmp_path):
    with open_records(tmp_path) as records:
        records.add({"case": "a"})
        with pytest.raises(InputError) as error, open_records(tmp_path):
            pass
    assert str(error.value) == (
        f"{tmp_path / 'predictions.jsonl'}: must be written by one run, another is at it; wait for it or end it"
    )
    with open_records(tmp_path) as records:
        assert records.done == {"a"}
        with pytest.raises(ValueError, match=r"^a case must have one record, got another of a$"):
            records.add({"case": "a"})


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"case": "a"}\nnothing\n')
    with pytest.raises(InputError) as error, open_records(tmp_path):
        pass
    assert str(error.value) == (
        f"{tmp_path / 'predictions.jsonl'}: must be one with records of this command, is damaged; remove {tmp_path}"
    )


def test_a_process_that_dies_twice_at_an_input_is_its_failure(exported, tree, tmp_path):
    """The long one is still at it when the first of the others is done; then the processes are killed."""
    nibabel = pytest.importorskip("nibabel")
    long = tmp_path / "long.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((96, 96, 4000), np.uint8), np.eye(4)), long)
    short = [one for one in list_inputs(tree).inputs if one.path.name.startswith("p")]
    options = PredictorOptions(exported("openvino", "fp32"), threads=1)
    (tmp_path / "masks").mkdir()
    kills, records = 0, []
    for record in predict_in_processes(
        options, [PredictionInput(long, "long"), *short], tmp_path, Outputs(overlays=False), workers=2
    ):
        records.append(record)
        if kills < 2:
            kills += 1
            for process in multiprocessing.active_children():
                process.kill()
    by_case = {record["case"]: record for record in records}
    assert len(records) == len(by_case) == 1 + len(short)
    assert by_case["long"] == {
        "case": "long",
        "error": f"image {long}: must be read and segmented, 2 processes died at it (signal 9); it may need more "
        "memory: use fewer --workers, or look at this file alone",
    }
    assert all("error" not in by_case[item.case] for item in short)


def test_workers_that_all_die_at_opening_end_the_run(exported, tree, tmp_path):
    """One that dies so by chance is replaced; killed are all here, as where there is too little memory for the model."""
    done = threading.Event()

    def kill_all() -> None:
        while not done.wait(0.05):
            for process in multiprocessing.active_children():
                process.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(InputError) as error:
            list(
                predict_in_processes(
                    PredictorOptions(exported("openvino", "fp32")),
                    list_inputs(tree).inputs,
                    tmp_path,
                    Outputs(),
                    workers=2,
                )
            )
    finally:
        done.set()
        killer.join()
    assert str(error.value) == (
        "--workers 2: must be so few that each can open the model, 3 in a row could not (signal 9); use fewer"
    )


def test_workers_that_cannot_open_the_model_say_why(tree, tmp_path):
    with pytest.raises(InputError) as error:
        list(
            predict_in_processes(
                PredictorOptions(tmp_path / "none"), list_inputs(tree).inputs, tmp_path, Outputs(), workers=2
            )
        )
    assert str(error.value) == f"bundle {tmp_path / 'none'}: must be a folder with manifest.json, got none"
