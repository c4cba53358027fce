"""The device kit: what it holds, what it refuses, and its script run from end to end in a fresh environment."""

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from export.kit.__main__ import KitSettings, kit_engines, make_kit, readme_text, trtexec_lines
from export.kit.wheel import edge_modules, heavy_import, imports_at_top
from export.kit_requirements import BASE, OF_ENGINE, PLATFORMS, list_requirements, resolve_wheels
from runtime.device.report import read_report
from segcore.bundle.folder import open_bundle
from segcore.bundle.manifest import Variant
from segcore.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def kit(exported, tmp_path_factory) -> Path:
    pytest.importorskip("setuptools")
    out = tmp_path_factory.mktemp("kit") / "kit"
    make_kit(KitSettings(bundle=exported("onnx", "fp32"), out=out))
    return out


# --- what it holds ---


def test_a_kit_holds_the_bundle_the_wheel_and_the_script(kit, exported):
    assert sorted(p.name for p in kit.iterdir() if p.suffix != ".whl") == [
        "README.txt", "bundle", "requirements-onnxruntime.txt", "requirements-openvino.txt",
        "requirements-tensorrt.txt", "run_on_device.sh",
    ]  # fmt: skip
    assert open_bundle(kit / "bundle").sha256 == open_bundle(exported("onnx", "fp32")).sha256
    assert (kit / "run_on_device.sh").stat().st_mode & stat.S_IXUSR
    filled = [(kit / name).read_text() for name in ("README.txt", "run_on_device.sh")]
    assert not any(
        f"@{name}@" in text for text in filled for name in ("ENGINE", "ENGINES", "NAME", "TRTEXEC", "TIME")
    )


def test_the_archive_holds_the_same_files_and_nobodys_name(kit):
    with tarfile.open(kit.with_name("kit.tar")) as archive:
        members = archive.getmembers()
    files = {f"kit/{p.relative_to(kit)}" for p in kit.rglob("*") if p.is_file()}
    assert {m.name for m in members if m.isfile()} == files
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}


def test_the_wheel_holds_the_edge_part_only(kit):
    (wheel,) = kit.glob("sam2edge_edge-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "runtime/device/__main__.py",
        "runtime/trt/build.py",
        "segcore/phantom/cxr.py",
        "export/__main__.py",
    } <= names
    tops = {name.partition("/")[0] for name in names if not name.startswith("sam2edge_edge")}
    assert tops == {"segcore", "runtime", "export"}
    assert not any(name.startswith(("segcore/learn", "export/kit", "export/gate")) for name in names)


def test_what_travels_imports_nothing_that_a_device_lacks():
    modules = edge_modules()
    assert {"export.__main__", "runtime.device.__main__", "segcore.phantom.cxr"} <= set(modules)
    assert [name for name in modules if heavy_import(name, modules)] == []
    for name in modules:
        assert not {i.partition(".")[0] for i in imports_at_top(modules[name])} & {"torch", "onnx", "nncf"}, (
            name
        )


def test_a_heavy_import_is_found_through_other_modules(tmp_path):
    texts = {
        "a": "from a.b import f\n",
        "a.b": "try:\n    import a.c\nexcept ImportError:\n    pass\nelse:\n    x = 1\n",
        "a.c": "import numpy, torch.nn\n",
        "a.light": "import json\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import onnx\n",
        "b": "class C:\n    import nncf\n",
        "c": "from d import thing\n",
        "d": "thing = 1\n",
    }  # fmt: skip
    sources = {}
    for name, text in texts.items():
        sources[name] = tmp_path / f"{name}.py"
        sources[name].write_text(text)
    assert heavy_import("a", sources) == "a.b, which imports a.c, which imports torch.nn"
    assert heavy_import("b", sources) == "nncf"
    assert heavy_import("c", sources) == ""
    # Importing a.light imports its package first.
    assert heavy_import("a.light", sources).startswith("a, which imports")
    assert heavy_import("a.light", {"a.light": sources["a.light"]}) == ""


def test_requirements_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(BASE) == project["dependencies"]
    extras = project["optional-dependencies"]
    assert list(OF_ENGINE["openvino"]) == extras["openvino"]
    assert list(OF_ENGINE["onnxruntime"]) == extras["onnx"]
    assert any(line.startswith("cuda-python") for line in extras["tensorrt"])


def test_tensorrts_requirements_name_the_devices_cuda():
    assert list_requirements("tensorrt", cuda="12.6") == [*BASE, "cuda-python==12.6.*"]
    assert list_requirements("tensorrt") == list(BASE)
    assert list_requirements("openvino", cuda="12.6")[-1].startswith("openvino")
    assert {platform.python for platform in PLATFORMS} == {"3.10", "3.12"}


def test_requirements_that_do_not_resolve(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(InputError) as error:
        resolve_wheels(["numpy==0.0.1"], python="3.12")
    assert str(error.value) == (
        "requirements for Python 3.12 on aarch64: must resolve, do not (No matching distribution found for "
        "numpy==0.0.1); reach a package index, or mend the list in export/kit_requirements.py"
    )


def test_cross_checks_with_trtexec(exported):
    bundle = open_bundle(exported("onnx", "fp32"))
    typed = Variant(file="typed.onnx", height_px=64, width_px=64, typing="fp16")
    manifest = bundle.manifest.model_copy(
        update={"precision": "int8", "format": "tensorrt-onnx", "variants": (typed,)}
    )
    older, newer = (line for line in trtexec_lines(manifest).splitlines() if "trtexec" in line)
    assert " --onnx=bundle/model.onnx --int8 --fp16 " in older
    assert " --onnx=bundle/typed.onnx --stronglyTyped " in newer
    for line in (older, newer):
        assert "--useCudaGraph --noDataTransfers" in line
    page = readme_text(bundle.model_copy(update={"manifest": manifest}), ("tensorrt", "onnxruntime"))
    assert page.splitlines()[1] == "=" * len(page.splitlines()[0])
    assert "'cuda-python==12.6.*'" in page
    assert "TensorRT on a Jetson was not" in page


def test_a_kit_without_tensorrt_has_no_cross_checks(exported):
    bundle = open_bundle(exported("onnx", "fp32"))
    page = readme_text(bundle, ("openvino",))
    assert "trtexec" not in page
    assert "State of this kit" in page


@pytest.fixture(scope="module")
def compared_kit(exported, tmp_path_factory) -> Path:
    """An onnx bundle in int8 with an openvino baseline: openvino alone runs both."""
    pytest.importorskip("setuptools")
    out = tmp_path_factory.mktemp("compared") / "kit"
    bundle, baseline = exported("onnx", "int8"), exported("openvino", "fp32")
    assert kit_engines(open_bundle(bundle)) == ("onnxruntime", "openvino")
    settings = KitSettings(bundle=bundle, baseline=baseline, out=out)
    assert make_kit(settings) == ("openvino", "onnxruntime")  # what compares is the default
    return out


def test_a_kit_with_a_baseline_holds_it_and_says_what_it_is_for(compared_kit, kit, exported):
    assert open_bundle(compared_kit / "baseline").sha256 == open_bundle(exported("openvino", "fp32")).sha256
    with tarfile.open(compared_kit.with_name("kit.tar")) as archive:
        assert "kit/baseline/manifest.json" in archive.getnames()
    page = (compared_kit / "README.txt").read_text()
    assert "\n\n\nSpeed against fp32\n------------------\n\nbaseline/ holds the same network in fp32." in page
    assert "With openvino the script" in page
    assert "Below 0 the script ends with exit status 3" in page  # the fixture's guard asks for nothing
    assert "device-report-baseline-engine/" in page
    assert "baseline" not in (kit / "README.txt").read_text()
    assert not (kit / "baseline").exists()
    section = page.partition("Speed against fp32")[2].partition("State of this kit")[0]
    assert max(map(len, section.splitlines())) < 121
    assert "\n\n\n\n" not in page


def test_the_bound_in_the_readme_is_the_guards_else_the_usual(exported):
    fp32 = open_bundle(exported("onnx", "fp32"))
    int8 = fp32.model_copy(update={"manifest": fp32.manifest.model_copy(update={"precision": "int8"})})
    assert "Below 1.05 the script" in readme_text(int8, ("tensorrt",), baseline=fp32, compares=("tensorrt",))
    assert "Below" not in readme_text(fp32, ("tensorrt",), baseline=fp32, compares=("tensorrt",))


# --- what it refuses ---


def error_of(bundle: Path, out: Path, **more: object) -> str:
    with pytest.raises(InputError) as error:
        make_kit(KitSettings.model_validate({"bundle": bundle, "out": out} | more))
    return str(error.value)


def test_a_torch_bundle_must_be_exported_first(torch_bundle, tmp_path):
    assert error_of(torch_bundle, tmp_path / "kit") == (
        f"bundle {torch_bundle}: must be exported first, got torch format; "
        f"run python -m export --bundle {torch_bundle} --to openvino --precision fp32 --out OUT"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_of_another_network_or_no_higher_precision(exported, tmp_path):
    int8, out = exported("openvino", "int8"), tmp_path / "kit"
    other = tmp_path / "other"
    shutil.copytree(exported("openvino", "fp32"), other)
    manifest = json.loads((other / "manifest.json").read_text()) | {"parent": "2" * 64}
    (other / "manifest.json").write_text(json.dumps(manifest))
    parent = open_bundle(int8).manifest.parent
    assert error_of(int8, out, baseline=other) == (
        f"--baseline {other}: must be of the same network as --bundle {int8} (made from {parent[:12]}), "
        "was made from 222222222222; export both from one trained bundle"
    )
    assert error_of(exported("openvino", "fp32"), out, baseline=int8) == (
        f"--baseline {int8}: must have a higher precision than fp32, got int8; "
        "export one with --precision fp16 or fp32"
    )
    fp32 = exported("openvino", "fp32")
    assert error_of(int8, fp32 / "kit", baseline=fp32) == (
        f"--out {fp32 / 'kit'}: must be apart from --baseline {fp32}, is not; choose another folder"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_engines_of_a_kit(exported):
    bundle = open_bundle(exported("onnx", "fp32"))

    def engines_with(**changes: str) -> tuple[str, ...]:
        manifest = bundle.manifest.model_copy(update=changes)
        return kit_engines(bundle.model_copy(update={"manifest": manifest}))

    assert engines_with() == ("onnxruntime", "openvino", "tensorrt")
    assert engines_with(precision="int8") == ("onnxruntime", "openvino")
    of = {"openvino": ("openvino",), "tensorrt-onnx": ("tensorrt", "onnxruntime")}
    for name, engines in of.items():
        assert engines_with(format=name) == engines
    with pytest.raises(InputError, match="runs only where it was built; give the tensorrt-onnx bundle"):
        engines_with(format="tensorrt")


def test_a_kit_or_archive_that_is_there_is_kept(exported, tmp_path):
    bundle, out = exported("onnx", "fp32"), tmp_path / "kit"
    (tmp_path / "kit.tar").write_text("mine")
    assert error_of(bundle, out) == (
        f"--out {out}: {tmp_path / 'kit.tar'} must not exist yet, it does; add --overwrite to replace it"
    )
    assert error_of(bundle, bundle / "kit").startswith(f"--out {bundle / 'kit'}: must be apart from --bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["kit.tar"]


# --- the script ---


def script(kit: Path, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    # No index: everything must be there already. No path of the checkout: only the wheel may bring our packages.
    environment = {**os.environ, "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"} | environment
    environment.pop("PYTHONPATH", None)
    command = ["sh", str(kit / "run_on_device.sh"), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def refusal(kit: Path, *words: str, cwd: Path, **environment: str) -> str:
    done = script(kit, *words, cwd=cwd, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert not (kit / "venv").exists()
    (line,) = done.stderr.splitlines()
    return line


def fake_python(folder: Path, script_text: str) -> str:
    python = folder / "fakepython"
    python.write_text(f"#!/bin/sh\n{script_text}\n")
    python.chmod(0o755)
    return str(python)


def test_the_script_refuses_in_one_line(kit, tmp_path):
    assert refusal(kit, "--engine", "dla", cwd=tmp_path) == (
        "error: --engine dla: must be one of onnxruntime, openvino, tensorrt, got dla"
    )
    assert (
        refusal(kit, "--fast", cwd=tmp_path)
        == "error: --fast: must be an option of this script, is not; see --help"
    )
    assert refusal(kit, "--out", cwd=tmp_path) == "error: --out: must be given a value, got none; see --help"
    assert refusal(kit, "--python", "python9", cwd=tmp_path) == (
        "error: --python python9: must be a Python, there is none of that name"
    )
    assert refusal(kit, "--offline-wheels", "none", cwd=tmp_path) == (
        f"error: --offline-wheels {tmp_path}/none: must be a folder of wheels, is none"
    )
    (tmp_path / "device-report.json").touch()
    assert refusal(kit, cwd=tmp_path) == (
        f"error: --out {tmp_path}/device-report.json: must not exist yet, it does; move it away, or give another --out"
    )


def test_the_script_refuses_a_python_without_venv_or_too_old(kit, tmp_path):
    bare = fake_python(tmp_path, 'case "$3" in *ensurepip*) exit 1;; esac')
    assert refusal(kit, "--python", bare, cwd=tmp_path) == (
        "error: python3-venv: must be installed, is not; run: sudo apt install python3-venv"
    )
    old = fake_python(tmp_path, 'case "$*" in -V) echo Python 3.8.10;; *version_info*) exit 1;; esac')
    assert refusal(kit, "--python", old, cwd=tmp_path) == (
        f"error: --python {old}: must be Python 3.10 or newer, got Python 3.8.10"
    )


def test_the_script_refuses_a_device_without_tensorrt_or_cuda(kit, tmp_path):
    nothing = fake_python(tmp_path, 'case "$3" in *find_spec*|*cuda/version*) exit 1;; esac')
    assert refusal(kit, "--engine", "tensorrt", "--python", nothing, cwd=tmp_path) == (
        f"error: tensorrt: must be installed for {nothing}, is not; "
        "run: sudo apt install python3-libnvinfer (part of JetPack)"
    )
    no_cuda = fake_python(tmp_path, """case "$3" in *"'cuda."*|*"'pycuda'"*) exit 1;; esac""")
    assert refusal(
        kit, "--engine", "tensorrt", "--python", no_cuda, cwd=tmp_path, CUDA_HOME=str(tmp_path / "none")
    ) == (f"error: CUDA: must be found in {tmp_path}/none, is not; give its version, as in --cuda 12.6")


@pytest.mark.parametrize("told_by", ["version.json", "the folder's name", "--cuda"])
def test_the_script_asks_for_the_cuda_python_of_the_devices_cuda(kit, tmp_path, told_by):
    # A Python that has TensorRT and no CUDA bindings, makes an environment of itself, and writes down its calls.
    python = fake_python(
        tmp_path,
        f"""printf '%s\\n' "$*" >> {tmp_path}/calls
case "$2" in
    -m) [ "$3" != venv ] || {{ mkdir -p "$5/bin" && cp "$0" "$5/bin/python"; }} ;;
    -c) case "$3" in *"'cuda."* | *"'pycuda'"*) exit 1 ;; esac ;;
esac""",
    )
    words, home = [], tmp_path / "cuda"
    if told_by == "version.json":
        home.mkdir()
        cuda = {
            "cuda": {"name": "CUDA SDK", "version": "12.6.68"},
            "cuda_nvcc": {"name": "x", "version": "9.9.9"},
        }
        (home / "version.json").write_text(json.dumps(cuda, indent=3))
    elif told_by == "--cuda":
        words = ["--cuda", "12.6"]
    else:
        (tmp_path / "cuda-12.6").mkdir()
        home.symlink_to("cuda-12.6")
    where = ["--venv", "v", "--offline-wheels", str(tmp_path)]
    done = script(
        kit, "--engine", "tensorrt", "--python", python, *where, *words, cwd=tmp_path, CUDA_HOME=str(home)
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    (installed,) = (call for call in calls if "requirements-tensorrt.txt" in call)
    assert installed.endswith(" cuda-python==12.6.*")
    assert f"--no-index --find-links {tmp_path}" in installed
    assert calls[-1] == (
        f"-I -m runtime.device --bundle bundle --engine tensorrt --out {tmp_path}/device-report.json"
    )


@pytest.mark.parametrize("numpy", ["1", "2"])
def test_the_script_takes_pycuda_with_the_numpy_that_it_was_compiled_for(kit, tmp_path, numpy):
    python = fake_python(
        tmp_path,
        f"""printf '%s\\n' "$*" >> {tmp_path}/calls
case "$2" in
    -m) [ "$3" != venv ] || {{ mkdir -p "$5/bin" && cp "$0" "$5/bin/python"; }} ;;
    -c) case "$3" in *"'cuda."*) exit 1 ;; *numpy*) [ {numpy} = 1 ] || exit 1 ;; esac ;;
esac""",
    )
    words = ["--engine", "tensorrt", "--python", python, "--venv", "v"]
    done = script(kit, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    (installed,) = (call for call in calls if "requirements-tensorrt.txt" in call)
    assert installed.endswith("numpy<2") == (numpy == "1")
    assert "cuda-python" not in installed
    assert " --cuda-library pycuda --out " in calls[-1]
    assert all(call.startswith("-I ") or call == "-V" for call in calls)


def test_the_script_refuses_a_cuda_library_that_is_not_there(kit, tmp_path):
    assert refusal(kit, "--cuda-library", "cupy", cwd=tmp_path) == (
        "error: --cuda-library cupy: must be cuda-python or pycuda, got cupy"
    )
    python = fake_python(tmp_path, """case "$3" in *"'pycuda'"*) exit 1;; esac""")
    words = ["--engine", "tensorrt", "--python", python, "--cuda-library", "pycuda"]
    assert refusal(kit, *words, cwd=tmp_path) == (
        f"error: pycuda: must be installed for {python}, is not; build it (README.txt), or leave --cuda-library out"
    )


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_script_passes_the_baseline_to_an_engine_that_compares(compared_kit, tmp_path, engine):
    python = fake_python(
        tmp_path,
        f"""printf '%s\\n' "$*" >> {tmp_path}/calls
[ "$3" != venv ] || {{ mkdir -p "$5/bin" && cp "$0" "$5/bin/python"; }}""",
    )
    words = ["--engine", engine, "--python", python, "--venv", "v", "--out", "r.json"]
    done = script(compared_kit, *words, "--", "--threads", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    passed = "--baseline baseline " if engine == "openvino" else ""
    assert (tmp_path / "calls").read_text().splitlines()[-1] == (
        f"-I -m runtime.device --bundle bundle {passed}--engine {engine} --out {tmp_path}/r.json --threads 1"
    )
    note = "note: onnxruntime does not compare with baseline/; the report will hold no speed against it"
    assert (note in done.stderr) is (engine == "onnxruntime")


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Path:
    """A fresh environment that sees this interpreter's libraries, as one on a device sees JetPack's, and not our code."""
    folder = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "tests_interpreter.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


@pytest.mark.skipif(os.name != "posix", reason="the script is for POSIX shells")
def test_the_script_from_end_to_end(kit, venv, tmp_path):
    kit = Path(shutil.copytree(kit, tmp_path / "a place" / "kit"))
    (tmp_path / "runtime").mkdir()  # what would shadow ours, were the script not run from the kit
    (tmp_path / "runtime/__init__.py").write_text("raise SystemExit('the wrong runtime')")
    quick = ("--warm-up-s", "0", "--rounds", "1", "--burst-s", "0.01", "--threads", "1")
    for engine in ("onnxruntime", "openvino"):
        out = f"{engine}.json"
        done = script(kit, "--engine", engine, "--venv", str(venv), "--out", out, "--", *quick, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        report = read_report(tmp_path / out)
        assert report.engine == engine
        assert report.verification.passed
        assert "+" in report.sam2edge  # the wheel's version, which names the commit
        assert json.loads(done.stdout.splitlines()[-1])["report"] == str(tmp_path / out)
    found = subprocess.run(
        [venv / "bin/python", "-c", "import runtime; print(runtime.__file__); import teacher"],
        cwd=kit, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert found.stdout.startswith(str(venv))
    assert "No module named 'teacher'" in found.stderr


@pytest.mark.skipif(os.name != "posix", reason="the script is for POSIX shells")
def test_the_script_compares_and_hands_on_exit_status_3(compared_kit, venv, tmp_path):
    kit = Path(shutil.copytree(compared_kit, tmp_path / "kit"))
    quick = ("--warm-up-s", "0", "--rounds", "1", "--burst-s", "0.01", "--threads", "1", "--overwrite")
    words = ("--venv", str(venv), "--out", "r.json", "--", *quick)
    done = script(kit, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = read_report(tmp_path / "r.json")
    assert (report.engine, report.speed.against, report.fast_enough) == ("openvino", "fp32", True)

    manifest = json.loads((kit / "bundle/manifest.json").read_text())
    manifest["guard"]["min_speedup"] = 1000
    (kit / "bundle/manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "r.json").unlink()
    done = script(kit, *words, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "gate failed: int8: must be at least 1000 times as fast as fp32 on this device" in done.stderr
    assert read_report(tmp_path / "r.json").fast_enough is False


@pytest.mark.skipif(os.name != "posix", reason="the script is for POSIX shells")
def test_the_edge_wheels_export_runs_without_torch(kit, venv, tmp_path):
    (wheel,) = kit.glob("*.whl")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); sys.modules.update(torch=None, onnx=None, nncf=None)\n"
        "from export.__main__ import ExportSettings, main\nfrom segcore.command import run_command\n"
        "run_command(main, ExportSettings, 'python -m export')"
    )
    words = ["--bundle", str(kit / "bundle"), "--to", "tensorrt", "--out", str(tmp_path / "engine")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [venv / "bin/python", "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
