"""Graphs of strangers: what ends a process, never ends, or takes all memory does so in a child, and is one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, save_model

from runtime.engines import probe
from runtime.engines.probe import ensure_opens, remember_opened
from runtime.engines.seam import installed
from runtime.predictor import Predictor
from runtime.promptable import PromptPredictor
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.dataset.case import Case, PhantomSource
from segcore.errors import InputError
from segcore.picture.preprocess import output_spec
from segcore.picture.prompts import Prompt
from teacher.ensemble import open_ensemble

TOLD = "in a process of its own, once on this machine"
needs_openvino = pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
ENGINES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def number(name, value, kind=TensorProto.INT64):
    shape = [len(value)] if isinstance(value, list) else []
    return helper.make_tensor(name, kind, shape, value if shape else [value])


def tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def sealed(folder, manifest, nodes, constants=()):
    """A bundle of 64 px whose graph takes a picture, has `x` 1×1×16×16 of it, and goes on with `nodes` to logits."""
    start = [
        node("Cast", ["picture"], "numbers", to=TensorProto.FLOAT),
        node("Transpose", ["numbers"], "planes", perm=[0, 3, 1, 2]),
        node("AveragePool", ["planes"], "x", kernel_shape=[4, 4], strides=[4, 4]),
    ]
    logits = tensor("logits", TensorProto.FLOAT, [1, 1, 16, 16])
    picture = tensor("picture", TensorProto.UINT8, [1, 64, 64, 1])
    graph = helper.make_graph([*start, *nodes], "graph", [picture], [logits], list(constants))
    folder.mkdir()
    save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "model.onnx",
    )
    fields = {name: value for name, value in manifest if name not in ("files", "schema_version")}
    ours = {
        "format": "onnx",
        "precision": "fp32",
        "model_file": "model.onnx",
        "output": output_spec(("lung",), 4),
    }
    seal_bundle(folder, **fields | ours)
    return open_bundle(folder)


@pytest.fixture
def good(tmp_path, manifest):
    return sealed(tmp_path / "good", manifest, [node("Neg", ["x"], "logits")])


@pytest.fixture
def killer(tmp_path, manifest):
    """A convolution without weights: OpenVINO 2026.4.1 reads the input that is not there."""
    return sealed(tmp_path / "killer", manifest, [node("Conv", ["x"], "logits")])


@pytest.fixture
def endless(tmp_path, manifest):
    """A loop of 2^62 rounds."""
    flag, place = tensor("on", TensorProto.BOOL, []), tensor("v", TensorProto.FLOAT, [1, 1, 16, 16])
    body = helper.make_graph(
        [node("Identity", ["on"], "still_on"), node("Sin", ["v"], "next")],
        "round",
        [tensor("n", TensorProto.INT64, []), flag, place],
        [tensor("still_on", TensorProto.BOOL, []), tensor("next", TensorProto.FLOAT, [1, 1, 16, 16])],
    )
    constants = [number("rounds", 2**62), number("yes", True, TensorProto.BOOL)]
    return sealed(
        tmp_path / "endless", manifest, [node("Loop", ["rounds", "yes", "x"], "logits", body=body)], constants
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches/sam2edge"


@needs_openvino
def test_a_graph_that_ends_the_process_is_one_line(killer):
    words = (
        rf"^model {killer.model_path}: must open in openvino \d+\.\d+\.\d+, ended the process \(SIGSEGV\); "
        r"do not use this bundle: export it again$"
    )
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(InputError, match=words):
            Predictor.open(killer, engine="openvino", threads=1)


@needs_openvino
def test_a_command_says_so_and_ends_with_2(killer):
    done = subprocess.run(
        [sys.executable, "-m", "runtime.verify", "--bundle", killer.folder, "--engine", "openvino"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "SIGSEGV" in line] == done.stderr.splitlines()[-1:]
    assert "Traceback" not in done.stderr


@needs_openvino
def test_the_graphs_of_a_promptable_bundle_are_tried_too(killer, prompted_discs, tmp_path):
    folder = prompted_discs.write_bundle(tmp_path / "discs")
    fields = {name: value for name, value in open_bundle(folder).manifest if name != "files"}
    shutil.copy(killer.model_path, folder / "decoder.onnx")
    seal_bundle(folder, **fields)
    with pytest.raises(InputError, match=r"^model .*decoder\.onnx: .* ended the process \(SIGSEGV\)"):
        PromptPredictor.open(folder, engine="openvino", threads=1)


def test_a_graph_that_onnxruntime_refuses_is_named_as_the_user_named_it(killer, monkeypatch):
    monkeypatch.chdir(killer.folder.parent)
    with pytest.raises(
        InputError, match=r"^model killer/model\.onnx: must open in onnxruntime \S+, does not \("
    ):
        Predictor.open("killer", engine="onnxruntime", threads=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_never_ends_is_ended(endless, engine):
    with pytest.raises(InputError) as error:
        ensure_opens(engine, endless, "model.onnx", threads=1, deadline_s=12.5)
    version = str(error.value).split()[6]
    assert str(error.value) == (
        f"model {endless.model_path}: must open in {engine} {version} and run within 12.5 s, did not; "
        "do not use this bundle: export it again"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_child_goes_with_its_parent(endless):
    code = (
        "import sys; from segcore.bundle.folder import open_bundle; from runtime.engines.probe import ensure_opens\n"
        "ensure_opens('onnxruntime', open_bundle(sys.argv[1]), 'model.onnx', threads=1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, endless.folder], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    (child,) = wait_for(lambda: children.read_text().split())
    # In the library's hands: it has used a second of the processor since it was bound to its parent.
    wait_for(lambda: sum(map(int, Path(f"/proc/{child}/stat").read_text().split()[13:15])) > 400)
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text())


def wait_for(found, seconds=60.0):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_bounded(tmp_path, manifest, monkeypatch, engine):
    nodes = [
        node("Tile", ["x", "times"], "large"),  # 4 GiB of float32
        node("ReduceMean", ["large"], "mean", axes=[0, 1], keepdims=1),
        node("Add", ["x", "mean"], "logits"),
    ]
    bundle = sealed(tmp_path / "large", manifest, nodes, [number("times", [4096, 1024, 1, 1])])
    monkeypatch.setattr(probe, "_MEMORY_SHARE", 2**31 / probe._free_memory())
    with pytest.raises(
        InputError, match=rf"^model {bundle.model_path}: must (open|run|open and run) in {engine}"
    ):
        Predictor.open(bundle, engine=engine, threads=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_first_open_of_a_file_pays(good, engine, capsys, monkeypatch):
    def opened(bundle):
        Predictor.open(bundle, engine=engine, threads=1).close()
        return TOLD in capsys.readouterr().err

    assert [opened(good), opened(good.folder)] == [True, False]
    copy = good.folder.with_name("copy")
    shutil.copytree(good.folder, copy)
    assert not opened(copy)  # the file counts, not where it lies
    monkeypatch.setattr(probe, "describe_host", lambda: "another processor")
    assert [opened(good), opened(good)] == [True, False]


def test_a_verdict_is_of_one_engine(good, capsys):
    ensure_opens("onnxruntime", good, "model.onnx", threads=1)
    assert TOLD in capsys.readouterr().err
    if installed("openvino"):
        ensure_opens("openvino", good, "model.onnx", threads=1)
        assert TOLD in capsys.readouterr().err


@pytest.mark.parametrize("change", ["of another file", "of another user", "by hand", "in a shared folder"])
def test_a_verdict_that_is_not_ours_is_not_believed(good, killer, own_cache, capsys, change):
    ensure_opens("onnxruntime", good, "model.onnx", threads=1)
    (verdict,) = own_cache.glob("opened/*/verdict")
    with pytest.raises(InputError):  # its entry is there now, and holds nothing
        ensure_opens("onnxruntime", killer, "model.onnx", threads=1)
    (theirs,) = {path for path in own_cache.glob("opened/*") if path != verdict.parent}
    if change == "of another file":
        shutil.copy(verdict, theirs / "verdict")
    elif change == "of another user":
        remember_opened("onnxruntime", killer, "model.onnx")
        (own_cache / "secret").unlink()
    elif change == "by hand":
        (theirs / "verdict").write_bytes(bytes(32))
    else:
        remember_opened("onnxruntime", killer, "model.onnx")
        own_cache.chmod(0o770)
    with pytest.raises(InputError, match="must open in onnxruntime"):
        ensure_opens("onnxruntime", killer, "model.onnx", threads=1)


def test_without_a_cache_every_open_pays(good, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        Predictor.open(good, engine="onnxruntime", threads=1).close()
        assert TOLD in capsys.readouterr().err


@needs_openvino
def test_what_this_process_has_run_is_not_tried_again(killer, capsys):
    remember_opened("openvino", killer, "model.onnx")
    ensure_opens("openvino", killer, "model.onnx", threads=1)
    assert TOLD not in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_plans_are_not_tried(killer, engine, capsys):
    ensure_opens(engine, killer, "model.onnx", threads=1)
    assert capsys.readouterr().err == ""


def test_nothing_is_imported_from_the_folder_one_is_in(good, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "segcore").mkdir(parents=True)
    for name in ("runtime.py", "numpy.py", "segcore/__init__.py"):
        (here / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(str(here))  # as `python -m` does
    ensure_opens("onnxruntime", good, "model.onnx", threads=1)
    assert not (tmp_path / "imported").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_how_a_process_ended_is_said_by_name():
    assert probe._how_it_ended(-signal.SIGABRT) == "SIGABRT"
    assert probe._how_it_ended(3) == "exit status 3"


# What a graph gives that opens: on zeros it gives numbers, and on pictures none.


@pytest.fixture(params=["Log", "Sqrt"])
def speechless(request, tmp_path, manifest):
    """Minus infinity (Log) or NaN (Sqrt) where a picture is brighter than 100."""
    nodes = [
        node("Sub", ["hundred", "x"], "left"),
        node("Clip", ["left", "least"], "part"),
        node(request.param, ["part"], "logits"),
    ]
    constants = [
        number("hundred", 100.0, TensorProto.FLOAT),
        number("least", 0.0 if request.param == "Log" else -1e9, TensorProto.FLOAT),
    ]
    what = "infinity" if request.param == "Log" else "NaN"
    return sealed(tmp_path / "speechless", manifest, nodes, constants), what


@pytest.mark.parametrize("engine", ENGINES)
def test_no_way_to_logits_leaves_out_whether_they_are_numbers(speechless, engine):
    bundle, what = speechless
    dark, bright = np.zeros((64, 64), np.uint8), np.full((64, 64), 200, np.uint8)
    words = rf"must be segmented, the model gave {what}; its weights or this engine are at fault"
    with Predictor.open(bundle, engine=engine, threads=1) as predictor:
        assert predictor.predict(dark).mask.all()
        with pytest.raises(InputError, match=rf"^b\.png: {words}"):
            predictor.predict(bright, name="b.png")
        with pytest.raises(InputError, match=rf"^batch: {words}"):
            predictor.run(np.stack([dark, bright])[..., None])
        answers = list(predictor.try_map([dark, bright, dark], names=["a", "b", "c"]))
    assert [isinstance(answer, InputError) for answer in answers] == [False, True, False]
    case = Case(id="7", patient="7", source=PhantomSource("cxr", 0, 0), split="train")
    with pytest.raises(InputError, match=rf"^image 7: {words}"):
        open_ensemble([bundle], tta="none", device="cpu")([case])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_estimate_that_is_no_number_is_an_error_too(prompted_discs, tmp_path, monkeypatch, engine):
    odd = "odd = Sqrt (never)\n  iou = Add (bright, odd)"
    monkeypatch.setattr(
        prompted_discs, "DECODER", prompted_discs.DECODER.replace("iou = Add (bright, tenth)", odd)
    )
    bundle = prompted_discs.write_bundle(tmp_path / "discs")
    with PromptPredictor.open(bundle, engine=engine, threads=1) as predictor:
        encoded = predictor.look(np.zeros((64, 64), np.uint8))
        with pytest.raises(InputError, match=r"^image: must be segmented, the model gave NaN; "):
            predictor.answer(encoded, Prompt(points=((20, 20, True),)))
