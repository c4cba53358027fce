"""The edge part of sam2edge as a wheel: what a device needs to build, verify, run and measure a bundle.

Built from the packages as they are installed here, with setuptools, in a temporary folder, without a network.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from export.kit_requirements import BASE
from segcore import __version__
from segcore.errors import need
from segcore.host import made_now

NAME = "sam2edge-edge"
PACKAGES = ("segcore", "runtime", "export")
# What a module may import when it is imported itself: Python's own, the base requirements, and an engine, whose
# module is imported only where that engine was chosen.
_BASE_MODULES = {"numpy", "PIL", "pydantic", "pydantic_settings", "yaml", "tqdm"}
_ENGINE_MODULES = {"openvino", "onnxruntime", "tensorrt", "cuda", "pycuda"}
_LIGHT = {*sys.stdlib_module_names, *_BASE_MODULES, *_ENGINE_MODULES}


def edge_modules() -> dict[str, Path]:
    """The modules that travel, by name: all of segcore (without learn), runtime, and what of export is light.

    Modules of export that need torch, onnx or nncf to be imported stay here, and so does the kit's own.

    Raises:
        RuntimeError: a module that must travel cannot be imported without them.
    """
    sources = {name: path for package in PACKAGES for name, path in _package_modules(package)}
    heavy = {name: why for name in sources if (why := heavy_import(name, sources))}
    must = [name for name in sources if not name.startswith("export.") or name == "export.__main__"]
    if stuck := [f"{name} imports {heavy[name]}" for name in must if name in heavy]:
        raise RuntimeError(f"the edge wheel's modules must be light at module level: {'; '.join(stuck)}")
    return {n: p for n, p in sources.items() if n not in heavy and not n.startswith("export.kit")}


def heavy_import(module: str, sources: Mapping[str, Path]) -> str:
    """The first thing that importing a module imports, itself or by way of another, and a device does not have.

    Args:
        module: a key of `sources`.
        sources: modules that travel, or may.

    Returns:
        "torch", or "export.gate, which imports torch"; empty if there is nothing.
    """

    def visit(name: str) -> str:
        parts = name.split(".")
        # A module's packages are imported before it.
        packages = (".".join(parts[:i]) for i in range(1, len(parts)))
        for imported in (*(p for p in packages if p in sources), *imports_at_top(sources[name])):
            if imported in sources:
                if imported not in seen:
                    seen.add(imported)
                    if why := visit(imported):
                        return f"{imported}, which imports {why}"
            elif imported.partition(".")[0] not in _LIGHT and not _is_attribute(imported, sources):
                return imported
        return ""

    seen = {module}
    return visit(module)


def _is_attribute(imported: str, sources: Mapping[str, Path]) -> bool:
    """Whether `from a import b` names something in a module, and not a module."""
    return imported.rpartition(".")[0] in sources


def imports_at_top(path: Path) -> Iterator[str]:
    """What a module imports when it is imported: `a.b` for `import a.b`, `a` and `a.b` for `from a import b`."""

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "orelse", "finalbody"):
                    yield from walk(getattr(node, field, []))
                for handler in getattr(node, "handlers", []):
                    yield from walk(handler.body)

    yield from walk(ast.parse(path.read_text(), str(path)).body)


def _package_modules(package: str) -> Iterator[tuple[str, Path]]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    yield package, folder / "__init__.py"
    for path in sorted(folder.glob("*.py")):
        if path.stem != "__init__":
            yield f"{package}.{path.stem}", path
    for inner in sorted(folder.glob("*/__init__.py")):
        if f"{package}.{inner.parent.name}" != "segcore.learn":
            yield from _package_modules(f"{package}.{inner.parent.name}")


def build_wheel(out: Path) -> Path:
    """Writes the wheel into `out`.

    Raises:
        InputError: setuptools is not installed.
    """
    if find_spec("setuptools") is None:
        raise need("setuptools", "export")
    modules = edge_modules()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for module, path in modules.items():
            parts = module.split(".")
            target = folder.joinpath(*parts, path.name) if path.stem == "__init__" else None
            target = target or folder.joinpath(*parts[:-1], path.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        packages = sorted(n for n, p in modules.items() if p.stem == "__init__")
        (folder / "pyproject.toml").write_text(_pyproject_text(packages))
        build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
        command = [sys.executable, "-c", build, str(out.resolve())]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"setuptools could not build the wheel:\n{done.stdout}{done.stderr}")
    return next(out.glob(f"{NAME.replace('-', '_')}-*.whl"))


def wheel_version() -> str:
    """The release and the commit, as PEP 440 has it: "0.1.0+4bce4ac.dirty"."""
    commit = re.sub(r"[^A-Za-z0-9]+", ".", made_now().commit).strip(".")
    return f"{__version__}+{commit}"


def _pyproject_text(packages: list[str]) -> str:
    return f"""[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{NAME}"
version = "{wheel_version()}"
description = "sam2edge on the device: builds, verifies, runs and measures exported bundles"
requires-python = ">=3.10"
dependencies = {list(BASE)}
[tool.setuptools]
packages = {packages}
"""
