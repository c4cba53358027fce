"""The house in figures: its modules, who imports whom, and the import circles.

    python -m benchmarks.checks.house [CHECKOUT]

Prints one JSON line. An import counts wherever it stands: at the top, in a function, under TYPE_CHECKING, absolute or
relative. An import by name at run time (`import_module`) is not seen here; `tests/test_house.py` lists those files.
"""

from __future__ import annotations

import ast
import io
import json
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("segcore", "teacher", "student", "export", "runtime", "benchmarks", "demo")


@dataclass(frozen=True)
class Import:
    """One imported name: `from segcore.image import read_image` is of module segcore.image and name read_image.

    Attributes:
        module: what is imported, absolute.
        name: what is taken from it; None for `import module`.
        at_top: whether it is executed when its file is imported, so neither in a function nor for type checkers alone.
    """

    module: str
    name: str | None
    at_top: bool


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name of every module of ours below a checkout → its file."""
    files = sorted(p for package in PACKAGES for p in (root / package).rglob("*.py"))
    return {_dotted_name(path.relative_to(root)): path for path in files}


def _dotted_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, module: str) -> Iterator[Import]:
    """Every import of a file, in the order of the file's syntax tree."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    late = {id(child) for node in ast.walk(tree) if _is_late(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        at_top = id(node) not in late
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Each dot after the first goes one package up.
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(source, alias.name, at_top) for alias in node.names)


def _is_late(node: ast.AST) -> bool:
    """A function, or a branch that only a type checker takes."""
    for_checkers = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    return for_checkers or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module → the modules of ours that it imports."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        named = {
            target
            for found in imports_of(path, module)
            for target in (found.module, f"{found.module}.{found.name}")
        }
        # A name may be a module itself: `from runtime.trt import plan` imports runtime.trt.plan.
        graph[module] = {target for target in named if target in files} - {module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a loop: strongly connected components of two or more.

    Source: Tarjan 1972, Depth-first search and linear graph algorithms.
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in order:
                visit(target)
            if target in stack:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == order[module]:
            start = stack.index(module)
            group, stack[start:] = sorted(stack[start:]), []
            if len(group) > 1:
                found.append(group)

    for module in graph:
        if module not in order:
            visit(module)
    return sorted(found)


def describe_house(root: Path) -> dict[str, float]:
    """Figures of a checkout. Lines count blank ones and docstrings; comments are lines that hold nothing else."""
    files = module_files(root)
    graph = import_graph(files)
    lines = sorted(len(path.read_text().splitlines()) for path in files.values())
    readers = Counter(target for targets in graph.values() for target in targets)
    across = {(a.split(".")[0], b.split(".")[0]) for a, targets in graph.items() for b in targets}
    return {
        "modules": len(files),
        "lines": sum(lines),
        "lines_median": statistics.median(lines),
        "lines_p90": statistics.quantiles(lines, n=10)[8],
        "under_80_lines": sum(n < 80 for n in lines),
        "one_reader": sum(readers[module] == 1 for module in files),
        "circles": len(circles(graph)),
        "imports": sum(len(targets) for targets in graph.values()),
        "imports_across_packages": sum(
            a.split(".")[0] != b.split(".")[0] for a, targets in graph.items() for b in targets
        ),
        "arrows_between_packages": sum(a != b for a, b in across),
        "comment_lines": sum(_comment_lines(path) for path in files.values()),
    }


def _comment_lines(path: Path) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return sum(token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") for token in tokens)


def main() -> None:
    """Prints the figures of the checkout that is named, or of the one that this file is in."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2]
    for circle in circles(import_graph(module_files(root))):
        print("circle:", " ".join(circle), file=sys.stderr)
    print(json.dumps(describe_house(root)))


if __name__ == "__main__":
    main()
