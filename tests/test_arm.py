"""A Jetson's processor, emulated (tests/arm_machine.sh): what of ours runs there, and are its masks those of here?

Needs Linux 6.7 or newer on x86-64, mmdebstrap, and a Debian mirror and a package index the first time; skipped with the
reason elsewhere. The machine is kept in SYS_PREFIX/arm-machine. An emulator says nothing of speed.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from export.kit.__main__ import KitSettings, make_kit
from export.kit.wheel import build_wheel
from runtime.device.report import read_report
from runtime.predictor import Predictor
from segcore.bundle.folder import open_bundle
from segcore.bundle.golden import golden_inputs

MACHINE = Path(sys.prefix) / "arm-machine"
SCRIPT = Path(__file__).with_name("arm_machine.sh")
CPUS = {"cortex-a72": "ARM Cortex-A72", "neoverse-n1": "ARM Neoverse-N1"}
BUNDLES = {
    # name → (target, precision, engine, largest logit difference, share of mask pixels)
    "onnx-fp32 in onnxruntime": ("onnx", "fp32", "onnxruntime", 1e-4, 0.0),
    "onnx-fp32 in openvino": ("onnx", "fp32", "openvino", 1e-3, 0.0005),
    "openvino-fp16 in openvino": ("openvino", "fp16", "openvino", 1e-2, 0.001),
    "openvino-int8 in openvino": ("openvino", "int8", "openvino", None, 0.005),  # it computes in FP32 there
    "tensorrt-int8 in onnxruntime": ("tensorrt", "int8", "onnxruntime", 1e-4, 0.0),
}
PICTURES = 4
EDGE_TESTS = (
    "runtime_engine",
    "runtime_parity",
    "runtime_stream",
    "segcore_host",
    "segcore_metrics",
    "segcore_preprocess",
    "segcore_medical_dicom",
)
COMPARE = """
import json, sys
import numpy as np
from runtime.engines.seam import choose_engine
from runtime.predictor import Predictor
from segcore.bundle.folder import open_bundle

asked, found = json.load(open("/app/shared/asked.json")), {}
for name, (folder, engine) in asked.items():
    bundle = open_bundle("/app/shared/" + folder)
    with np.load("/app/shared/" + name + ".npz") as x86, Predictor.open(bundle, engine=engine, threads=1) as predictor:
        logits = predictor.run(x86["pictures"])
        found[name] = {
            "difference": float(np.abs(logits - x86["logits"]).max()),
            "share": float(((logits > 0) != (x86["logits"] > 0)).mean()),
            "version": predictor.engine_version,
            "default": choose_engine(bundle),
        }
print(json.dumps(found))
"""


def prepare() -> None:
    """Makes the machine, and puts today's wheel into it.

    Raises:
        subprocess.CalledProcessError: no mirror, no index, or no place.
    """
    ready, recipe = MACHINE / "ready", hashlib.sha256(SCRIPT.read_bytes()).hexdigest()
    folder = MACHINE / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = build_wheel(folder)
    if not ready.exists() or ready.read_text() != recipe:
        words = ["bash", str(SCRIPT), "prepare", str(MACHINE), str(wheel)]
        subprocess.run(
            words, env={**os.environ, "PYTHON": sys.executable}, check=True, capture_output=True, text=True
        )
        ready.write_text(recipe)
    # Ours anew each time; the libraries stay.
    for package in ("segcore", "runtime", "export"):
        shutil.rmtree(MACHINE / "site" / package, ignore_errors=True)
    shutil.unpack_archive(wheel, MACHINE / "site", "zip")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Runs a command on a processor: (cpu, command) → stdout. `machine.shared` is /app/shared there."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the ARM machine is emulated on Linux on x86-64")
    if shutil.which("mmdebstrap") is None or shutil.which("unshare") is None:
        pytest.skip("the ARM machine needs mmdebstrap and unshare: sudo apt install mmdebstrap")
    try:
        prepare()
    except subprocess.CalledProcessError as error:
        pytest.skip(
            f"the ARM machine cannot be made: {(error.stderr.strip().splitlines() or ['no reason'])[-1]}"
        )
    shared = tmp_path_factory.mktemp("shared")

    def run(cpu: str, command: str) -> str:
        done = subprocess.run(
            ["bash", str(SCRIPT), "run", str(MACHINE), cpu, command],
            env={**os.environ, "ARM_SHARED": str(shared)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run.shared = shared
    try:
        assert run("neoverse-n1", "uname -m").strip() == "aarch64"
    except AssertionError as error:
        pytest.skip(f"the ARM machine does not run: {str(error).strip().splitlines()[0]}")
    return run


@pytest.fixture(scope="module")
def asked(machine, exported):
    """The bundles in the machine, with the logits that they have here."""
    asked = {}
    for name, (to, precision, engine, _, _) in BUNDLES.items():
        folder = machine.shared / f"{to}-{precision}"
        if not folder.exists():
            shutil.copytree(exported(to, precision), folder)
        bundle = open_bundle(folder)
        pictures = golden_inputs(bundle.manifest.input)[:PICTURES]
        with Predictor.open(bundle, engine=engine, threads=1) as predictor:
            np.savez(machine.shared / f"{name}.npz", pictures=pictures, logits=predictor.run(pictures))
        asked[name] = (folder.name, engine)
    (machine.shared / "asked.json").write_text(json.dumps(asked))
    (machine.shared / "compare.py").write_text(COMPARE)
    return asked


@pytest.mark.parametrize("cpu", CPUS)
def test_masks_are_those_of_this_machine(machine, asked, cpu, int8_saturates, capsys):
    found = json.loads(machine(cpu, "python3 /app/shared/compare.py 2>/dev/null").splitlines()[-1])
    assert set(found) == set(asked)
    with capsys.disabled():
        print(f"\n| {cpu} | largest logit difference | mask pixels that differ |\n|---|---|---|")
        for name, one in found.items():
            print(f"| {name} {one['version'][:9]} | {one['difference']:.1e} | {one['share']:.3%} |")
    for name, (_, precision, _, difference, share) in BUNDLES.items():
        if precision == "int8" and name.endswith("openvino") and int8_saturates:
            continue  # here it is this machine's INT8 that is off; the device refuses the bundle: runtime.verify.prove
        assert found[name]["share"] <= share, name
        assert difference is None or found[name]["difference"] <= difference, name
        if name.startswith("onnx"):  # which both engines open
            assert found[name]["default"] == ("onnxruntime" if precision == "int8" else "openvino")


def fetch_wheels(kit: Path) -> Path:
    """The wheels of the kit's onnxruntime, fetched by the command in its README.txt for this machine's Python 3.11."""
    lines = (kit / "README.txt").read_text().replace("\\\n", " ").splitlines()
    (command,) = (line for line in lines if "pip download" in line)
    command = command.replace("--python-version 3.10", "--python-version 3.11").replace(
        "-tensorrt.txt", "-onnxruntime.txt"
    )
    words = [word for word in shlex.split(command)[1:] if not word.startswith("cuda-python")]
    subprocess.run([sys.executable, *words], cwd=kit, check=True, capture_output=True, text=True)
    return kit / "wheels"


def test_the_kit_runs_from_its_script_to_its_report(machine, exported):
    kit = machine.shared / "kit"
    make_kit(KitSettings(bundle=exported("tensorrt", "int8"), out=kit))
    fetch_wheels(kit)
    measure = "--warm-up-s 0 --rounds 1 --burst-s 0.01 --threads 1"
    machine(
        "neoverse-n1",
        f"cd /app/shared/kit && env -u PYTHONPATH PIP_NO_COMPILE=1 ./run_on_device.sh --engine onnxruntime --offline-wheels wheels "
        f"--venv /tmp/venv --out /app/shared/device-report.json -- {measure}",
    )
    report = read_report(machine.shared / "device-report.json")
    assert report.verification.passed
    assert report.host.startswith(CPUS["neoverse-n1"])
    assert report.host.endswith("aarch64")


def test_the_tests_that_need_no_torch_pass_there(machine, capsys):
    tests = machine.shared / "tests"
    shutil.copytree(Path(__file__).parent, tests, ignore=shutil.ignore_patterns("__pycache__"))
    files = " ".join(f"test_{name}.py" for name in EDGE_TESTS)
    said = machine(
        "neoverse-n1",
        f"cd /app/shared/tests && python3 -m pytest -q --import-mode=importlib -p no:cacheprovider {files}",
    )
    with capsys.disabled():
        print(f"\n{said.strip().splitlines()[-1]} on an emulated Neoverse-N1")
    passed = int(said.strip().splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed > 100
