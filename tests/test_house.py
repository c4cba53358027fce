"""The architecture's import table, the size of modules, and what git may hold."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("segcore", "teacher", "student", "export", "runtime", "benchmarks", "demo")
ENGINES = {"onnxruntime", "openvino", "tensorrt", "pycuda"}
TORCH = {"torch", "torchvision", "monai", "accelerate", "safetensors", "sam2", "peft"}
EXPORTERS = {"onnx", "onnxscript", "nncf", "modelopt"}
MEDICAL = {"pydicom", "highdicom", "nibabel", "ray"}
MAX_LINES, MAX_BYTES = 700, 1_000_000

# Who may import whom of ours, wherever in the file; and what a package must not import at module level.
MAY_IMPORT = {
    "segcore": set(),
    "segcore.learn": {"segcore"},
    "runtime": {"segcore"},
    "teacher": {"segcore", "segcore.learn", "runtime"},
    "teacher.systems.unet": {
        "segcore",
        "segcore.learn",
        "teacher",
        "student",
    },  # a control, by the student's builder
    "student": {"segcore", "segcore.learn", "teacher"},
    "student.search": {"segcore", "segcore.learn", "student", "export", "runtime", "benchmarks"},
    "export": {"segcore", "segcore.learn", "teacher", "student", "runtime"},
    "benchmarks": {"segcore", "segcore.learn", "runtime", "teacher", "student"},
    "demo": {"segcore", "runtime"},
}
NOT_AT_TOP = {
    "segcore": TORCH | ENGINES | EXPORTERS | MEDICAL | {"gradio", "matplotlib"},
    "segcore.learn": ENGINES | EXPORTERS | {"gradio", "sam2", "peft"},
    "runtime": TORCH | EXPORTERS | MEDICAL | {"gradio", "matplotlib"},
    "teacher": ENGINES | EXPORTERS | {"gradio", "sam2"},
    "teacher.systems.unet": ENGINES | EXPORTERS | {"gradio", "sam2", "peft"},
    "student": ENGINES | EXPORTERS | {"gradio", "sam2", "peft"},
    "student.search": TORCH | ENGINES | EXPORTERS | {"gradio", "matplotlib"},
    "export": {"gradio", "sam2", "peft"},
    "benchmarks": EXPORTERS | {"gradio", "sam2", "peft"},
    "demo": TORCH | ENGINES | EXPORTERS | MEDICAL | {"matplotlib", "reportlab"},
}


def package_of(module: str) -> str:
    """ "segcore.learn.loop" → "segcore.learn", "student.search_plan" → "student.search", "runtime.engine" → "runtime"."""
    # Rooms within a package, with lines of their own in the tables.
    rooms = ("segcore.learn", "student.search", "teacher.systems.unet")
    return next((room for room in rooms if module.startswith(room)), module.split(".")[0])


def modules() -> list[Path]:
    return sorted(p for package in OURS for p in (ROOT / package).rglob("*.py"))


def imports(path: Path, *, top_level: bool) -> Iterator[str]:
    """Names of imported modules; relative imports and those for type checkers alone are left out."""
    tree = ast.parse(path.read_text(), str(path))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    functions = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if top_level and (id(node) in typing_only or id(node) in functions):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_who_imports_whom(package):
    wrong = [
        f"{named(path)} imports {module}"
        for path in modules()
        if package_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) == package
        for module in imports(path, top_level=False)
        if module.split(".")[0] in OURS and package_of(module) not in MAY_IMPORT[package] | {package}
    ]
    assert wrong == []


@pytest.mark.parametrize("package", NOT_AT_TOP)
def test_heavy_imports_stay_behind_the_command_that_needs_them(package):
    own_engine = {f"{engine}_engine.py": engine for engine in ENGINES}
    wrong = [
        f"{named(path)} imports {module} at module level"
        for path in modules()
        if package_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) == package
        for module in imports(path, top_level=True)
        if module.split(".")[0] in NOT_AT_TOP[package]
        or (
            package in ("runtime", "benchmarks", "export")
            and module.split(".")[0] in ENGINES
            and own_engine.get(path.name) is None
            and path.parent.name != "trt"  # TensorRT's own room
        )
    ]
    assert wrong == []


def test_benchmarks_touch_the_trainers_in_three_files_only():
    wrong = [
        f"{named(path)} imports {module}"
        for path in modules()
        if path.parent.name == "benchmarks"
        and path.name not in ("torch_baseline.py", "training.py", "study_test.py")
        for module in imports(path, top_level=False)
        if package_of(module) in ("teacher", "student", "segcore.learn")
    ]
    assert wrong == []


def test_gradio_is_in_the_modules_of_the_page_only():
    users = {named(p) for p in modules() for m in imports(p, top_level=True) if m.split(".")[0] == "gradio"}
    assert all(name.startswith("demo/page") for name in users), users


@pytest.mark.parametrize("library", ["sam2", "peft"])
def test_one_file_imports(library):
    users = {named(p) for p in modules() for m in imports(p, top_level=False) if m.split(".")[0] == library}
    assert len(users) <= 1, users


def test_no_pickle_is_executed():
    """Weights are safetensors; SAM 2's own checkpoint is read with weights_only."""
    wrong = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function, keywords = (
                    ast.unparse(node.func),
                    {k.arg: ast.unparse(k.value) for k in node.keywords},
                )
                if function in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
                    wrong.append(f"{named(path)}:{node.lineno} {function}")
                if function == "torch.load" and keywords.get("weights_only") != "True":
                    wrong.append(f"{named(path)}:{node.lineno} torch.load without weights_only=True")
                if keywords.get("allow_pickle") == "True":
                    wrong.append(f"{named(path)}:{node.lineno} allow_pickle=True")
    assert wrong == []


def test_modules_are_short():
    long = [
        f"{named(p)} has {n} lines" for p in modules() if (n := len(p.read_text().splitlines())) > MAX_LINES
    ]
    assert long == []


def test_no_module_is_named_like_a_dependency_or_a_drawer():
    names = TORCH | ENGINES | EXPORTERS | {"types", "utils", "helpers", "common", "misc", "gradio", "numpy"}
    assert [named(p) for p in modules() if p.stem in names] == []


def test_tests_are_flat_and_no_package():
    assert not (ROOT / "tests" / "__init__.py").exists()
    assert [p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name != "__pycache__"] == []


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_git_holds_no_large_file():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    files = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    assert [named(f) for f in files if f.is_file() and f.stat().st_size > MAX_BYTES] == []
