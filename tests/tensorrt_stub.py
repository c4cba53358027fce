"""Writes a type stub of the TensorRT bindings that are imported here, from the signatures in their docstrings.

Run by tests/test_runtime_tensorrt_api.py, a process per version, with NVIDIA's real bindings over a library of dummies:

    LD_LIBRARY_PATH=dummies PYTHONPATH=bindings python tests/tensorrt_stub.py OUT [MODULE]

pybind11 puts every signature into the first line of a docstring, with types, names and defaults. What cannot be read as
one becomes `Any`.
"""

import keyword
import re
import sys
from importlib import import_module
from pathlib import Path

KEPT_SPECIAL = {"__init__", "__int__", "__len__", "__getitem__", "__call__"}
PLAIN = {"int", "float", "str", "bytes", "None", "object"}
CPP_NAMES = {
    "nvonnxparser::IParserError": "ParserError",
    "nvinfer1::ILogger::Severity": "ILogger.Severity",
    "nvinfer1::IRuntimeCache": "IRuntimeCache",
}


class Stub:
    """Collects lines; `names` are the classes of the module, nested ones with dots."""

    def __init__(self, module):
        self.module = module
        self.lines = ["import builtins", "import typing", "from typing import Any", ""]
        self.names = set()

    def write(self, out):
        classes = {
            n: v for n, v in vars(self.module).items() if isinstance(v, type) and "tensorrt" in v.__module__
        }
        for name, cls in classes.items():
            self._collect(name, cls)
        for name, cls in classes.items():
            if name == cls.__qualname__:
                self._class(name, cls, 0)
            else:
                self.lines.append(f"{name} = {cls.__qualname__}")
        for name, value in vars(self.module).items():
            if (
                not isinstance(value, type)
                and not name.startswith("_")
                and type(value).__qualname__ in self.names
            ):
                self.lines.append(f"{name}: {type(value).__qualname__}")
            elif callable(value) and not isinstance(value, type) and not name.startswith("_"):
                self.lines.append(f"def {name}(*args: Any, **kwargs: Any) -> Any: ...")
        self.lines.append("__version__: str")
        folder = Path(out) / "tensorrt"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.pyi").write_text("\n".join(self.lines) + "\n")

    def _collect(self, name, cls):
        self.names.add(name)
        for key, value in vars(cls).items():
            if isinstance(value, type):
                self._collect(f"{name}.{key}", value)

    def _class(self, name, cls, depth):
        pad, inner = "    " * depth, "    " * (depth + 1)
        bases = [b.__qualname__ for b in cls.__bases__ if b.__qualname__ in self.names]
        self.lines.append(f"{pad}class {name}{'(' + ', '.join(bases) + ')' if bases else ''}:")
        if name == "IHostMemory":  # it has the buffer protocol, which Python before 3.12 does not show
            self.lines.append(f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ...")
        if hasattr(cls, "__members__"):
            self.lines.append(f"{inner}__members__: dict[str, Any]")
        body = len(self.lines)
        for key, value in vars(cls).items():
            if key.startswith("_") and key not in KEPT_SPECIAL:
                continue
            if isinstance(value, type):
                self._class(key, value, depth + 1)
            elif isinstance(value, property):
                self._property(key, value, inner)
            elif type(value).__qualname__ in self.names:  # a member of an enum
                self.lines.append(f"{inner}{key}: {type(value).__qualname__}")
            elif key == "name":  # pybind11's enums: a property made in C++
                self.lines.append(f"{inner}name: str")
            elif callable(value) or isinstance(value, staticmethod):
                self._method(key, value, inner)
        if len(self.lines) == body:
            self.lines.append(f"{inner}...")

    def _property(self, name, value, pad):
        found = re.search(r"->\s*(.+?)\s*$", (value.fget.__doc__ or "").strip().split("\n")[0])
        kind = "str" if name == "name" and not found else self._type(found[1]) if found else "Any"
        self.lines += [f"{pad}@property", f"{pad}def {name}(self) -> {kind}: ..."]
        if value.fset is not None:
            self.lines += [f"{pad}@{name}.setter", f"{pad}def {name}(self, value: {kind}) -> None: ..."]

    def _method(self, name, value, pad):
        static = isinstance(value, staticmethod)
        text = (value.__func__ if static else value).__doc__ or ""
        signatures = re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", text, re.MULTILINE)
        signatures = [s for s in signatures if s[0] != "*args, **kwargs"]
        for arguments, result in signatures or [(None, "Any")]:
            if len(signatures) > 1:
                self.lines.append(f"{pad}@typing.overload")
            if static:
                self.lines.append(f"{pad}@staticmethod")
            kind = "None" if name == "__init__" else self._type(result)
            words = (
                self._arguments(arguments, static)
                if arguments is not None
                else "self, *args: Any, **kwargs: Any"
            )
            self.lines.append(f"{pad}def {name}({words}) -> {kind}: ...")

    def _arguments(self, text, static):
        words, optional = [], False
        for i, part in enumerate(split(text)):
            name, _, rest = part.partition(":")
            kind, _, default = rest.partition(" = ")
            if i == 0 and not static:
                words.append("self")
            elif not rest:
                words.append(part)  # *args, a bare star
            else:
                optional = optional or bool(default)
                none = " | None" if default.strip() == "None" else ""
                name = name.strip() + "_" * keyword.iskeyword(name.strip())  # "in": by position only
                words.append(f"{name}: {self._type(kind)}{none}{' = ...' if optional else ''}")
        return ", ".join(words)

    def _type(self, text):
        text = text.strip()
        bare = CPP_NAMES.get(text) or re.sub(
            r"^(tensorrt_bindings\.tensorrt|tensorrt_rtx_bindings\.tensorrt_rtx|tensorrt_rtx)\.", "", text
        )
        if bare in self.names or bare in PLAIN:
            return bare
        if bare == "bool":  # the module has a data type of this name
            return "builtins.bool"
        if text in (
            "typing.SupportsInt",
            "typing.SupportsFloat",
        ):  # pybind11 3's words for an int and a float
            return "int" if text.endswith("Int") else "float"
        if inner := re.fullmatch(r"(?i:list)\[(.+)\]", text):
            return f"list[{self._type(inner[1])}]"
        return "Any"


def split(text):
    """ "a: int, b: Tuple[int, str] = <X: 1>" at its own commas only."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += letter in "[(<{"
        depth -= letter in "])>}" and text[i - 1 : i + 1] != "->"
        if letter == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text.strip() else []


if __name__ == "__main__":
    bindings = import_module(sys.argv[2] if len(sys.argv) > 2 else "tensorrt_bindings")
    Stub(bindings).write(sys.argv[1])
    print(bindings.__version__)
