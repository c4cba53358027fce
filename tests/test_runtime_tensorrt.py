"""What of the TensorRT path runs without a GPU: choices, limits, messages, side data. The rest is not run on a device."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.engines.seam import installed
from runtime.trt.build import build_bundle, plan_files, seal_engine
from runtime.trt.cuda_runtime import GpuDevice
from runtime.trt.library import (
    STRONGLY_TYPED,
    ReleaseRange,
    build_error,
    killed_error,
    load_error,
    parse_error,
    release_of,
)
from runtime.trt.plan_request import available_mib, memory_limits
from runtime.trt.progress import PhaseBars
from runtime.trt.target import DeviceIdentity, check_target, identify_device
from segcore.bundle.folder import Bundle, open_bundle, seal_bundle
from segcore.bundle.golden import save_golden
from segcore.bundle.manifest import DataRecord, EngineTarget, Variant
from segcore.errors import InputError
from segcore.host import made_now, read_l4t
from segcore.picture.preprocess import InputSpec, output_spec

ORIN = DeviceIdentity("10.3.0", "Orin, 8 multiprocessors", "8.7", "36.4.3", "Linux aarch64")


def make_source(folder: Path, precision: str, *variants: Variant, form: str = "tensorrt-onnx") -> Bundle:
    """A bundle of graphs; the graphs are a few bytes."""
    folder.mkdir()
    for file in {"model.onnx", *(v.file for v in variants)}:
        (folder / file).write_bytes(bytes([0x12, len(file)]) + file.encode())  # ONNX by its first bytes
    save_golden(folder, np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 1, 2, 2), np.float32))
    for golden in {v.golden for v in variants} - {"golden.npz"}:
        (folder / golden).write_bytes((folder / "golden.npz").read_bytes())
    seal_bundle(
        folder,
        name=f"student, {precision.upper()}",
        kind="student",
        format=form,
        precision=precision,
        architecture="student",
        architecture_settings={},
        classes=("lung",),
        input=InputSpec(height_px=256, width_px=256, channels=1, mean=(0.5,), std=(0.25,)),
        output=output_spec(("lung",), 4),
        parameters=1,
        trained_parameters=1,
        macs=1,
        pretrained="no pretrained weights",
        data=DataRecord(name="d", sha256="0" * 64, split_sha256="0" * 64),
        gate={"onnxruntime_golden_mean_share": 0.0},
        made=made_now(),
        model_file="model.onnx",
        variants=variants,
    )
    return open_bundle(folder)


def variant(
    file: str, size: int, *, batch: int = 1, typing: str = "fp32", golden: str = "golden.npz"
) -> Variant:
    return Variant(file=file, golden=golden, height_px=size, width_px=size, batch=batch, typing=typing)


ALL = (
    variant("model-fp16.onnx", 256, typing="fp16"),
    variant("model-512x512.onnx", 512, golden="golden-512x512.npz"),
    variant("model-512x512-fp16.onnx", 512, typing="fp16", golden="golden-512x512.npz"),
    variant("model-b4.onnx", 256, batch=4),
    variant("model-b4-fp16.onnx", 256, batch=4, typing="fp16"),
)


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", "10.12.0.36"])
def test_until_10_13_the_fp32_typed_graphs_are_built(tmp_path, version):
    plans = plan_files(make_source(tmp_path / "b", "int8", *ALL), release_of(version))
    assert [(p.source.file, p.plan) for p in plans] == [
        ("model.onnx", "model.plan"),
        ("model-512x512.onnx", "model-512x512.plan"),
        ("model-b4.onnx", "model-b4.plan"),
    ]


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16.2", "11.4.0.106"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_from_10_13_on_the_strongly_typed_graphs_are_built(tmp_path, version, precision):
    plans = plan_files(make_source(tmp_path / "b", precision, *ALL), release_of(version))
    assert [(p.source.file, p.plan) for p in plans] == [
        ("model-fp16.onnx", "model.plan"),
        ("model-512x512-fp16.onnx", "model-512x512.plan"),
        ("model-b4-fp16.onnx", "model-b4.plan"),
    ]


def test_fp32_is_one_graph_for_all_versions(tmp_path):
    source = make_source(tmp_path / "b", "fp32", variant("model-512x512.onnx", 512))
    for release in ((8, 6), (10, 3), (10, 13), (11, 4)):
        assert [p.source.file for p in plan_files(source, release)] == ["model.onnx", "model-512x512.onnx"]


def test_bundles_that_no_engine_is_built_from(tmp_path):
    half = make_source(tmp_path / "half", "fp16", form="onnx")
    assert plan_files(half, (10, 3))[0].source.file == "model.onnx"
    with pytest.raises(
        InputError, match=r"must hold a graph with fp16 types for fp16 with TensorRT 11\.4, has none"
    ):
        plan_files(half, (11, 4))
    with pytest.raises(InputError, match=r"TensorRT 8.5: must be 8.6 or newer"):
        plan_files(half, (8, 5))
    unsigned = make_source(tmp_path / "unsigned", "int8", form="onnx")
    with pytest.raises(InputError, match="must be in tensorrt-onnx format for int8, got onnx"):
        build_bundle(unsigned, tmp_path / "out")
    with pytest.raises(InputError, match="must be in tensorrt-onnx format to build an engine, got torch"):
        build_bundle(make_source(tmp_path / "ov", "fp32", form="torch"), tmp_path / "out")
    with pytest.raises(InputError, match="must be apart from --bundle"):
        build_bundle(half, tmp_path / "half" / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(installed("tensorrt"), reason="TensorRT is installed")
@pytest.mark.parametrize("l4t", ["", "36.4.3"])
def test_without_tensorrt_one_line_says_what_to_install(tmp_path, monkeypatch, l4t):
    monkeypatch.setattr("runtime.engines.seam.read_l4t", lambda: l4t)
    with pytest.raises(InputError) as caught:
        build_bundle(make_source(tmp_path / "b", "fp32"), tmp_path / "out")
    how = "run: pip install 'sam2edge[tensorrt]'"
    if l4t:
        how = (
            "run: sudo apt install python3-libnvinfer, and use a virtual environment made with --system-site-packages "
            "(PyPI's tensorrt does not run on a Jetson)"
        )
    assert str(caught.value) == f"tensorrt: must be installed, is not; {how}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_a_tensorrt_whose_library_is_missing_is_named(tmp_path):
    """As the bindings from PyPI without NVIDIA's libraries: found, and not importable. In the child process too."""
    (tmp_path / "tensorrt.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    )
    make_source(tmp_path / "b", "fp32")
    code = (
        "import sys; from pathlib import Path; from segcore.bundle import open_bundle\n"
        "from runtime.trt.build import build_bundle; from segcore.errors import InputError\n"
        "if __name__ == '__main__':\n"
        "    try: build_bundle(open_bundle('b'), Path('out'))\n"
        "    except InputError as error: print(error)\n"
    )
    (tmp_path / "main.py").write_text(code)
    paths = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(
        "tensorrt: must load, does not (libnvinfer.so.10: cannot open shared object file); run: "
    )
    assert done.stderr == ""
    assert not list(tmp_path.glob("out*"))


def test_what_is_sealed(tmp_path):
    source = make_source(tmp_path / "b", "int8", *ALL)
    plans = plan_files(source, (10, 3))
    folder = tmp_path / "engine"
    folder.mkdir()
    for plan in plans:
        (folder / plan.plan).write_bytes(plan.plan.encode())
    sha256 = source.manifest.files["model.onnx"].sha256
    target = ORIN.target_for(onnx="model.onnx", onnx_sha256=sha256, flags=("FP16", "INT8"))
    seal_engine(source, folder, plans, target, made=made_now(), gate={"golden_cases": 12.0})
    manifest = open_bundle(folder).manifest
    assert manifest.format == "tensorrt"
    assert manifest.precision == "int8"
    assert manifest.parent == source.sha256
    assert manifest.engine_target == target
    assert manifest.gate == {"golden_cases": 12.0}  # not that of the graphs in onnxruntime
    assert manifest.lineage[-1] == source.manifest.made
    assert manifest.model_file == "model.plan"
    assert [(v.file, v.golden, v.size_px, v.batch) for v in manifest.variants] == [
        ("model-512x512.plan", "golden-512x512.npz", (512, 512), 1),
        ("model-b4.plan", "golden.npz", (256, 256), 4),
    ]
    assert set(manifest.files) == {p.plan for p in plans} | {
        "golden.npz",
        "golden-512x512.npz",
        "MODEL_CARD.md",
    }  # no graphs


# --- the target ---


def target(**other: str) -> EngineTarget:
    return ORIN.target_for(onnx="model.onnx", onnx_sha256="0" * 64, flags=()).model_copy(update=other)


def test_an_engine_for_this_device_is_taken():
    check_target(target(), ORIN, Path("m.plan"))
    check_target(target(l4t="36.4.7"), ORIN, Path("m.plan"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"tensorrt": "8.6.2"},
            "TensorRT 8.6.2 on Orin, 8 multiprocessors (compute capability 8.7, Linux aarch64)",
        ),
        ({"gpu": "Orin, 16 multiprocessors"}, "TensorRT 10.3.0 on Orin, 16 multiprocessors ("),
        ({"compute_capability": "11.0"}, "(compute capability 11.0, Linux aarch64)"),
        ({"platform": "Linux x86_64"}, "(compute capability 8.7, Linux x86_64)"),
    ],
)
def test_an_engine_for_another_device_is_refused(other, words):
    with pytest.raises(InputError) as caught:
        check_target(target(**other), ORIN, Path("runs/e/model.plan"))
    text = str(caught.value)
    identity = "TensorRT 10.3.0 on Orin, 8 multiprocessors (compute capability 8.7, Linux aarch64)"
    assert text.startswith(
        f"engine runs/e/model.plan: must be built for {identity}, which is here, got one for "
    )
    assert words in text
    assert "; build it here: python -m export --to tensorrt --bundle B --out OUT" in text


def test_an_engine_of_unknown_origin_is_refused():
    with pytest.raises(
        InputError, match=r"must say in its manifest what it was built for, does not; build it here: "
    ):
        check_target(None, ORIN, Path("m.plan"))


def test_this_device_is_described(tmp_path):
    release = tmp_path / "nv_tegra_release"
    release.write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n"
    )
    assert read_l4t(release) == "36.4.3"
    assert read_l4t(tmp_path / "none") == ""
    identity = identify_device("10.3.0", GpuDevice("Orin", "8.7", 8, 7620, True))
    assert (identity.gpu, identity.compute_capability, identity.tensorrt) == (
        "Orin, 8 multiprocessors",
        "8.7",
        "10.3.0",
    )
    assert identity.target_for(onnx="m", onnx_sha256="1" * 64, flags=("FP16",)).flags == ("FP16",)


def test_releases():
    assert release_of("10.13.3.9") == (10, 13)
    assert (8, 6) in ReleaseRange(below=STRONGLY_TYPED)
    assert (10, 13) not in ReleaseRange(below=STRONGLY_TYPED)
    assert (10, 13) in ReleaseRange(STRONGLY_TYPED)
    assert (10, 3) not in ReleaseRange(STRONGLY_TYPED)


# --- memory ---


@pytest.mark.parametrize(
    ("free", "asked", "workspace", "trials"),
    [(6000, None, 256, 3000), (900, None, 225, 450), (6000, 64, 64, 3000), (6000, 1024, 1024, 3000)],
)
def test_memory_is_bounded_by_what_is_free(free, asked, workspace, trials):
    limits = memory_limits(free, asked)
    assert (limits.workspace_mib, limits.tactic_dram_mib, limits.free_mib) == (workspace, trials, free)


def test_too_little_memory_is_said_before_the_build():
    with pytest.raises(
        InputError, match="memory: must have 768 MiB free to build an engine, has 700; close the desktop"
    ):
        memory_limits(700)
    with pytest.raises(
        InputError, match="--workspace-mib 4096: must be 1 to 500, half of the memory free now"
    ):
        memory_limits(1000, 4096)


def test_available_memory_is_the_kernels_estimate(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal:        7802168 kB\nMemFree:          204800 kB\nMemAvailable:    3145728 kB\n"
    )
    assert available_mib(meminfo) == 3072
    assert available_mib() > 0


# --- TensorRT's words; the first three lines are quoted from ultralytics#22271, #14751 and isaac-ros-cli#22 ---

WHERE = {"version": "10.3.0", "gpu": "Orin", "file": "model.onnx", "free_mib": 900}


@pytest.mark.parametrize(
    "line",
    [
        "UNSUPPORTED_STATE: Skipping tactic 33 due to insufficient memory on requested size of 629145600 detected for "
        "tactic 0xa5a46bfbd719d757.",
        "Tactic Device request: 538MB Available: 166MB. Device memory is insufficient to use tactic.",
        "Skipping tactic 3 due to insuficient memory on requested size of 538 detected for tactic 4.",
        "[virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no further information)",
        "1: [defaultAllocator.cpp::allocate::20] Error Code 1: Cuda Runtime (out of memory)",
    ],
)
def test_out_of_memory_is_recognised(line):
    node = "10: [optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error (Could not find any implementation "
    lines = [line, f"{node}for node /stem/conv/Conv + /stem/Relu.)"]
    text = str(build_error(lines, **WHERE))
    assert text.startswith(
        "memory: must be enough to build model.onnx with TensorRT 10.3.0, was not at node /stem/conv"
    )
    assert "(900 MiB were free); close the desktop (sudo systemctl isolate multi-user.target)" in text
    assert "smaller --workspace-mib, or build the batch-1 file alone" in text
    assert "\n" not in text


def test_other_failures_are_named():
    nowhere = str(build_error(["Could not find any implementation for node /a/Conv."], **WHERE))
    assert nowhere.startswith(
        "model.onnx: must have a kernel for every node in TensorRT 10.3.0, has none at node /a/Conv"
    )
    sm = "Target GPU SM 87 is not supported by this TensorRT release.\n(in checkCurrentSMEnabled at builderHelpers.cpp:707)"
    text = str(build_error([sm], **{**WHERE, "version": "10.13.3"}))
    assert text.startswith(
        "TensorRT 10.13.3: must support this GPU (Orin, sm_87), does not; install the TensorRT that"
    )
    old = str(build_error(["1: Unsupported SM: 0x809"], **WHERE))
    assert "sm_89" in old
    assert str(build_error(["first", "last\nline"], **WHERE)) == (
        "model.onnx: must build with TensorRT 10.3.0, does not (last line); export it again"
    )
    assert "(it did not say why)" in str(build_error([], **WHERE))
    assert str(parse_error("model.onnx", "8.6.1", "number 12", "Assertion failed: (axis)\x1e bad")) == (
        "model.onnx, node number 12: must be readable by TensorRT 8.6.1, is not (Assertion failed: (axis) bad); "
        "export the bundle again with --to tensorrt"
    )
    version = "The engine plan file is not compatible with this version of TensorRT, expecting 10.3.0.30 got 8.6.2.3"
    assert f"does not ({version}); build it on this device: " in str(
        load_error("m.plan", "10.3.0", ["x", version])
    )


def test_a_killed_builder_is_one_line():
    assert str(killed_error(-9, file="model.onnx")).startswith(
        "memory: must be enough to build model.onnx, was not (the system killed the build); close the desktop"
    )
    assert "the builder died (signal 11)" in str(killed_error(-11, file="model.onnx"))


def test_the_child_process_answers_refuses_or_dies(tmp_path):
    script = tmp_path / "children.py"  # spawn imports functions by name; this file has none that it could
    script.write_text(
        "import os, sys\n"
        "from segcore.errors import InputError\n"
        "from runtime.trt.build import run_apart\n"
        "def double(x): return 2 * x\n"
        "def refuse(x): raise InputError(x)\n"
        "def die(x): os.kill(os.getpid(), x)\n"
        "def fail(x): raise ValueError(x)\n"
        "if __name__ == '__main__':\n"
        "    print(run_apart(double, 21, what='m'))\n"
        "    for function, argument in ((refuse, 'no GPU'), (die, 9), (die, 11), (fail, 'bug')):\n"
        "        try: run_apart(function, argument, what='m.onnx')\n"
        "        except Exception as error: print(type(error).__name__, error)\n"
    )
    paths = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["42", "InputError no GPU"]
    assert lines[2].startswith(
        "InputError memory: must be enough to build m.onnx, was not (the system killed the build)"
    )
    assert lines[3].startswith("InputError m.onnx: must build with TensorRT, the builder died (signal 11)")
    assert lines[4] == "RuntimeError building m.onnx failed; the builder's traceback is above"
    assert "ValueError: bug" in done.stderr


def test_interrupting_the_parent_ends_the_child(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os, signal, time\n"
        "from runtime.trt.build import run_apart\n"
        "def sleep(x):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(x)\n"
        "if __name__ == '__main__':\n"
        # A shell's background job, as CI may be, hands down an ignored SIGINT.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    run_apart(sleep, 60, what='m')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGINT)
        parent.wait(timeout=20)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_bars_follow_the_phases(capsys):
    bars = PhaseBars()
    bars.start("Building engine", None, 3)
    bars.start("Timing", "Building engine", 2)
    bars.start("Deep", "Timing", 1000)  # below the bars that are shown
    bars.step("Deep", 0)
    bars.step("Building engine", 1)
    bars.step("unknown", 1)
    assert bars._bars["Building engine"].n in (0, 2)  # 0 where stderr is no terminal: tqdm is off then
    assert set(bars._bars) == {"Building engine", "Timing"}
    bars.finish("Timing")
    bars.close()
    assert bars._bars == {}
    assert json.dumps(capsys.readouterr().out) == '""'
