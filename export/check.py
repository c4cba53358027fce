"""Checks an ONNX file against what TensorRT asks of it, without TensorRT: `python -m export.check --onnx FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engines.seam import installed
from segcore.command import Settings, print_result, run_command
from segcore.errors import GateError, InputError, need, reading

if TYPE_CHECKING:
    import onnx

    from export.rules.finding import Finding


class OnnxCheckSettings(Settings):
    """Checks an ONNX file, INT8 as Q/DQ or float, against the rules of TensorRT's parser and builder.

    The rules are on one page in export/rules/check.py. Exit status 3: TensorRT would refuse the file or compute
    something else; warnings cost speed. What this passes has still to be built and timed on the device.
    """

    onnx: Path
    """The file."""
    tensorrt: tuple[str, ...] = ()
    """A version to check for, such as 10.3; repeat for several. Default: those of every JetPack since 6.0."""


def main(settings: OnnxCheckSettings) -> None:
    """Prints the findings of each version and one JSON line.

    Raises:
        InputError: not an ONNX file, or not one that these rules can judge.
        GateError: a version would refuse the file or compute something else.
    """
    if not installed("onnx"):
        raise need("onnx", "export")
    from export.rules.check import VERSIONS, check_versions

    model, versions = read_onnx(settings.onnx), settings.tensorrt or VERSIONS
    _refuse_foreign(settings.onnx, model, versions)
    found = check_versions(model, versions)
    for version, findings in found.items():
        print(_findings_table(version, findings))
    errors = {version: _count_severity(findings, "error") for version, findings in found.items()}
    print_result(
        onnx=str(settings.onnx),
        errors=errors,
        warnings={version: _count_severity(findings, "warning") for version, findings in found.items()},
        rules=sorted({finding.rule for findings in found.values() for finding in findings}),
        passed=not any(errors.values()),
    )
    if any(errors.values()):
        said = ", ".join(f"{number} for {version}" for version, number in errors.items() if number)
        raise GateError(
            f"{settings.onnx}: must keep TensorRT's rules, breaks some: {said}; see the table above"
        )


def read_onnx(path: Path) -> onnx.ModelProto:
    """Reads a model, and nothing beside it.

    Raises:
        InputError: there is no such file, or it is not ONNX.
    """
    import onnx

    if not path.is_file():
        raise InputError(f"--onnx {path}: must be an ONNX file, no such file")
    with reading(f"--onnx {path}", "an ONNX file", remedy="export it again"):
        # The format is said: onnx would else guess it from the name, and read text formats.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    if not model.graph.node or not model.opset_import:
        raise InputError(f"--onnx {path}: must be an ONNX file, holds no graph; export it again")
    return model


def _refuse_foreign(path: Path, model: onnx.ModelProto, versions: Sequence[str]) -> None:
    """A file that no export of ours could have written is bad input, not a failed gate."""
    from onnx import checker, numpy_helper

    from export.rules.check import check_file

    foreign = list(dict.fromkeys(found for version in versions for found in check_file(model, version)))
    if foreign:
        first, more = foreign[0], f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
        raise InputError(f"--onnx {path}: {first.rule}, {first.node}: {first.text}{more}")
    with reading(f"--onnx {path}", "valid ONNX", remedy="export it again"):
        checker.check_model(model)
        for tensor in model.graph.initializer:  # the checker does not count their bytes
            numpy_helper.to_array(tensor)


def _findings_table(version: str, findings: list[Finding]) -> str:
    from export.rules.check import NEWEST, taken_by_newest

    if not findings:
        return f"TensorRT {version}: keeps every rule"
    errors, warnings = _count_severity(findings, "error"), _count_severity(findings, "warning")
    lines = [f"TensorRT {version}: errors {errors}, warnings {warnings}"]
    lines += [f"  {f.severity:8}{f.rule:5}{f.node}\n{'':15}{f.text}" for f in findings]
    if taken := sorted({f.rule for f in findings if f.severity == "error"} & taken_by_newest()):
        lines.append(
            f"  {NEWEST} compiles graphs that break {', '.join(taken)}; that their masks are right it does not say"
        )
    return "\n".join(lines)


def _count_severity(findings: list[Finding], severity: str) -> int:
    return sum(finding.severity == severity for finding in findings)


if __name__ == "__main__":
    run_command(main, OnnxCheckSettings, "python -m export.check")
