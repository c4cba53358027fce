"""Type-checks modules against a stub of TensorRT and lists every name of TensorRT's that they use.

Where a module is handed the library (`library.X`, `self._library.X`), the stub's module is taken for it.

Run by tests/test_runtime_tensorrt_api.py: `python tests/tensorrt_names.py STUBS SOURCES MODULE...` with modules as names
("runtime.trt.plan") below the folder SOURCES. Prints JSON: {"errors": [...], "names": [...]}. mypy does the work: it
follows types through calls, so `config.set_flag` is looked up in the class that `builder.create_builder_config()` gives.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

# What is not listed on the command line is not looked at: TensorRT's types pass between these modules only.
CONFIG = """
[mypy]
python_version = 3.10
ignore_missing_imports = true
follow_imports = skip
disallow_untyped_defs = true
[mypy-numpy.*]
follow_imports = skip
follow_imports_for_stubs = true
[mypy-tensorrt]
follow_imports = normal
ignore_errors = true
"""


def over_library(sources, scratch):
    """A copy of runtime/trt in which what is handed in is imported; the folder above it."""
    for path in sorted((Path(sources) / "runtime" / "trt").glob("*.py")):
        text, count = re.subn(r"\b(self\._)?library\.(?=[A-Za-z_])", "trt.", path.read_text())
        if count:
            text = re.sub(r"(from __future__ import annotations\n)", r"\1import tensorrt as trt\n", text)
        copy = Path(scratch) / "runtime" / "trt" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    (Path(scratch) / "runtime" / "__init__.py").touch()
    return scratch


def check(stubs, sources, modules):
    with tempfile.TemporaryDirectory() as scratch:
        return check_copy(stubs, over_library(sources, scratch), modules)


def check_copy(stubs, sources, modules):
    os.environ["MYPYPATH"] = os.pathsep.join((stubs, sources))
    os.chdir(sources)
    from mypy.build import build
    from mypy.main import process_options

    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "mypy.ini"
        config.write_text(CONFIG)
        words = ["--config-file", str(config), "--cache-dir", os.devnull]
        words += [word for module in modules for word in ("-m", module)]
        found, options = process_options(words)
    options.export_types = True
    options.preserve_asts = True
    errors = []
    result = build(found, options, flush_errors=lambda _, lines, __: errors.extend(lines))
    names = set()
    for module in modules:
        overrides(result.files[module], names, errors)
    names |= set(used(result.types))
    return {"errors": [line for line in errors if ": note:" not in line], "names": sorted(names)}


def used(types):
    """Names of TensorRT's in attributes and in keywords of calls, from mypy's map of expressions to types."""
    from mypy.nodes import CallExpr, MemberExpr

    for node in types:
        if isinstance(node, MemberExpr):
            yield from name_of(node, types)
        elif isinstance(node, CallExpr) and isinstance(node.callee, MemberExpr):
            for name in name_of(node.callee, types):
                yield from (f"{name}({argument}=)" for argument in node.arg_names if argument)


def name_of(node, types):
    """["BuilderFlag.TF32"], or nothing for what is not TensorRT's."""
    from mypy.types import FunctionLike, Instance, get_proper_type

    if (node.fullname or "").startswith("tensorrt."):
        return [node.fullname.removeprefix("tensorrt.")]
    kind = get_proper_type(types.get(node.expr))
    if isinstance(kind, FunctionLike) and kind.is_type_obj():
        return owner(kind.type_object(), node.name)
    return owner(kind.type, node.name) if isinstance(kind, Instance) else []


def owner(info, name):
    for base in info.mro:
        if base.fullname.startswith("tensorrt.") and name in base.names:
            return [f"{base.fullname.removeprefix('tensorrt.')}.{name}"]
    return []


def overrides(tree, names, errors):
    """Mypy itself does not ask whether a method that should override one does; TensorRT would never call it."""
    from mypy.nodes import ClassDef, FuncDef

    inside = [n for f in tree.defs if isinstance(f, FuncDef) for n in f.body.body]
    for node in [*tree.defs, *inside]:
        theirs = (
            [b for b in node.info.mro[1:] if b.fullname.startswith("tensorrt.")]
            if isinstance(node, ClassDef)
            else []
        )
        names |= {base.fullname.removeprefix("tensorrt.") for base in theirs}
        for statement in node.defs.body if theirs else []:
            if isinstance(statement, FuncDef) and not statement.name.startswith("_"):
                found = owner(theirs[0], statement.name)
                names |= set(found)
                if not found:
                    errors.append(
                        f"{node.fullname}: {statement.name} overrides nothing of {theirs[0].fullname}"
                    )


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1], sys.argv[2], sys.argv[3:])))
