"""The architecture's import table, that no imports go in a circle, and what git may hold."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.checks.house import circles, import_graph, imports_of, module_files

ROOT = Path(__file__).parents[1]
OURS = ("segcore", "teacher", "student", "export", "runtime", "benchmarks", "demo")
ENGINES = {"onnxruntime", "openvino", "tensorrt", "pycuda"}
TORCH = {"torch", "torchvision", "monai", "accelerate", "safetensors", "sam2", "peft"}
EXPORTERS = {"onnx", "onnxscript", "nncf", "modelopt"}
MEDICAL = {"pydicom", "highdicom", "nibabel", "ray"}
MAX_BYTES = 1_000_000
BY_NAME = {
    "segcore/dataset/__main__.py": "import_module",  # the augmentation, which needs torch
    "runtime/engines/seam.py": "import_module",  # the engine that was chosen
    "runtime/trt/cuda_runtime.py": "import_module",  # the CUDA library that was chosen
    "runtime/trt/rtx.py": "import_module",  # TensorRT for RTX, under one of its two names
    "teacher/system.py": "import_module",  # the system that was chosen
    "teacher/encoder.py": "import_module",  # the encoder that was chosen
    "teacher/sam2_model.py": "import_module",  # the classes that sam2's own configurations name
    "benchmarks/study/job.py": "runpy.run_module",  # teacher.train, in a process of its own
    "benchmarks/distillation/job.py": "runpy.run_module",  # the command of a stage, likewise
    "benchmarks/checks/kills.py": "runpy.run_module",  # the commands that it kills, and what they import
    "benchmarks/measuring.py": "__import__",  # libraries, to see that they are there
    "demo/__main__.py": "__import__",
}
"""File → the function by which it imports what it knows by name only at run time."""

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
    """ "segcore.learn.loop" → "segcore.learn", "student.search.plan" → "student.search",
    "runtime.engines.seam" → "runtime"."""
    # Rooms within a package, with lines of their own in the tables.
    rooms = ("segcore.learn", "student.search", "teacher.systems.unet")
    return next((room for room in rooms if module.startswith(room)), module.split(".")[0])


def modules() -> list[Path]:
    return list(module_files(ROOT).values())


def imports(path: Path, *, top_level: bool) -> Iterator[str]:
    """Names of imported modules, at the top alone or wherever they are imported."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    yield from (found.module for found in imports_of(path, module) if found.at_top or not top_level)


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
            and not named(path).startswith("runtime/trt/")  # TensorRT's own room
        )
    ]
    assert wrong == []


def test_benchmarks_touch_the_trainers_in_few_files_only():
    trainers = (
        "benchmarks/report/subject.py",
        "benchmarks/checks/training.py",
        "benchmarks/checks/gpu.py",
        "benchmarks/study/teachers.py",
        "benchmarks/distillation/trainers.py",
    )
    wrong = [
        f"{named(path)} imports {module}"
        for path in modules()
        if named(path).startswith("benchmarks/") and named(path) not in trainers
        for module in imports(path, top_level=False)
        if package_of(module) in ("teacher", "student", "segcore.learn")
    ]
    assert wrong == []


def test_folders_of_a_package_import_each_other_one_way():
    """Each folder beside another is above it or below it; the package's own modules may use all of them."""
    graph = import_graph(module_files(ROOT))
    folders: dict[str, set[str]] = {}
    for module, targets in graph.items():
        for target in targets:
            here, there = (".".join(name.split(".")[:2]) for name in (module, target))
            nested = [(ROOT / name.replace(".", "/")).is_dir() for name in (here, there)]
            if here.split(".")[0] == there.split(".")[0] and all(nested):
                folders.setdefault(here, set()).add(there)
                folders.setdefault(there, set())
    assert circles({name: targets - {name} for name, targets in folders.items()}) == []


def test_gradio_is_in_the_modules_of_the_page_only():
    users = {named(p) for p in modules() for m in imports(p, top_level=True) if m.split(".")[0] == "gradio"}
    assert all(name.startswith("demo/page/") for name in users), users


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


def test_no_module_imports_itself_by_way_of_others():
    """Circles within a room, too, and those that functions and TYPE_CHECKING hide."""
    assert circles(import_graph(module_files(ROOT))) == []


def test_a_circle_is_found_wherever_its_imports_hide(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/__init__.py").write_text('"""A package."""\n')
    (tmp_path / "demo/a.py").write_text("from demo import b\n")
    (tmp_path / "demo/b.py").write_text("def later():\n    from .c import x\n")
    (tmp_path / "demo/c.py").write_text("if TYPE_CHECKING:\n    import demo.a\n")
    (tmp_path / "demo/d.py").write_text("import demo.a\n")
    assert circles(import_graph(module_files(tmp_path))) == [["demo.a", "demo.b", "demo.c"]]
    (tmp_path / "demo/c.py").write_text("x = 1\n")
    assert circles(import_graph(module_files(tmp_path))) == []


def test_imports_by_name_are_known():
    """The graph does not see them, so each has to be here, with what it opens."""
    users = {
        named(path): ast.unparse(node.func)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__", "run_module", "run_path")
    }
    assert users == BY_NAME


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
