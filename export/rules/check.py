"""Checks a graph against what TensorRT asks of it; all rules are on this page, as `FILE_RULES` and `RULES`.

A rule has an id, the function that looks, what it asks, and where TensorRT says so. E: the parser or builder refuses,
or the engine computes something else. W: a fusion or speed is lost. Where a release is named, the rule is for it alone.
Last in a rule: what NVIDIA's newest compiler does with a graph that breaks it. That it takes one does not make the rule
wrong: the source speaks of the releases of `VERSIONS`, and what is compiled may compute something else.
P12, an engine built without REFIT, shows in no graph: the builder keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import onnx

from export.graph.view import Graph, view_graph
from export.rules import placement, quantisation, structure, weights
from export.rules.finding import Breach, Finding, Release, release_of
from segcore.errors import GateError

Subject = TypeVar("Subject")
"""What a rule looks at."""

VERSIONS = ("8.6", "10.3", "10.13", "10.16", "11.4")
"""TensorRT of JetPack 6.0, 6.1 to 6.2.2, 7.0 and 7.1, 7.2, and 7.2.2 on with 11.4."""
NEWEST = "TensorRT for RTX 1.7"
_PARSER, _HEADER, _DOCS = "onnx-tensorrt parser", "NvInfer.h", "docs, Explicit Quantization"
_MODELOPT = "Model-Optimizer onnx/quantization"


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """A rule about the model as the file holds it, or about the view of its graph."""

    id: str
    check: Callable[[Subject, Release], Iterator[Breach]]
    says: str
    source: str
    newest: Literal["refuses", "some", "takes"]
    """What `NEWEST` does with the tests' graphs that break the rule; tests/test_export_rules.py holds it to that."""


FILE_RULES: tuple[Rule[onnx.ModelProto], ...] = (
    Rule("G1", structure.opset_is_read, "E: opset ≤ 17 (8.6), 9–20 (10), 9–24 (11)", "operators.md", "takes"),
    Rule("G3", structure.operators_are_onnx_own, "E: ONNX's own operators only", "operators.md", "some"),
    Rule(
        "G4", structure.quantisation_is_explicit, "E: Q/DQ, no integer operators", "operators.md", "refuses"
    ),
    Rule("G5", structure.weights_are_inside, "E: no external data", "ours; CVE-2026-27489", "refuses"),
)

RULES: tuple[Rule[Graph], ...] = (
    Rule(
        "G2",
        structure.opset_has_the_types,
        "E: opset ≥ 13 with Q/DQ, ≥ 19 if of float16",
        "ONNX spec",
        "some",
    ),
    Rule("G6", structure.sizes_are_static, "E: static shapes, no control flow", "ours", "refuses"),
    Rule("Q1", quantisation.scale_is_constant, "E < 10.13, else W: scale is a constant", _HEADER, "takes"),
    Rule("Q2", quantisation.scale_is_positive, "E: scales above 0 and finite", _PARSER, "some"),
    Rule("Q3", quantisation.scale_is_float32, "E 8.6: scales are float32", _PARSER, "refuses"),
    Rule("Q4", quantisation.zero_point_is_given, "E 8.6: three inputs", _PARSER, "takes"),
    Rule("Q5", quantisation.zero_point_is_constant, "E: zero point is a constant", _HEADER, "takes"),
    Rule("Q6", quantisation.values_are_int8, "E: int8; uint8 is read as int8", _PARSER, "takes"),
    Rule("Q7", quantisation.zero_point_is_zero, "E: zero point 0", _PARSER, "refuses"),
    Rule("Q8", quantisation.zero_points_match_scales, "E: as many zero points as scales", _PARSER, "refuses"),
    Rule("Q9", quantisation.activations_have_one_scale, "E: activations per tensor", _HEADER, "takes"),
    Rule("Q10", quantisation.axis_is_given, "E: axis written where per channel", _PARSER, "takes"),
    Rule(
        "Q11", quantisation.scales_fit_the_axis, "E: a scale for each entry of the axis", _PARSER, "refuses"
    ),
    Rule(
        "Q12",
        quantisation.eight_bits_feed_dequantise,
        "E: int8 feeds DequantizeLinear only",
        "operators.md",
        "takes",
    ),
    Rule("Q13", quantisation.outputs_are_float, "E: no int8 output", "operators.md", "takes"),
    Rule("Q14", quantisation.nothing_is_int32, "E: no int32 Q/DQ", _HEADER, "refuses"),
    Rule(
        "Q15", quantisation.weights_are_stored_in_float, "E 8.6: weight float32 → Q → DQ", "docs 8.x", "takes"
    ),
    Rule("Q16", quantisation.data_have_axes, "E: no scalar is quantised", _HEADER, "takes"),
    Rule("W1", weights.conv_scales_run_over_outputs, "E/W: Conv per channel, axis 0", _HEADER, "takes"),
    Rule("W2", weights.matrix_scales_run_over_outputs, "E/W: Gemm transB 0, MatMul 1", _DOCS, "takes"),
    Rule(
        "W3",
        weights.transposed_conv_has_one_scale,
        "E/W: ConvTranspose per tensor",
        "TensorRT#1694, #2380",
        "takes",
    ),
    Rule("W4", weights.transposed_conv_has_one_group, "E: ConvTranspose ungrouped", "TensorRT#1934", "takes"),
    Rule(
        "W5",
        weights.weights_leave_out_the_lowest,
        "W: weights in −127…127",
        "docs, quantisation range",
        "takes",
    ),
    Rule("C1", weights.channels_fill_a_kernel, "W: 16 channels in and out", _MODELOPT, "takes"),
    Rule("C2", weights.groups_are_whole_vectors, "E/W: channels a group in fours", _HEADER, "takes"),
    Rule("P1", placement.nothing_before_the_activation, "W: Q/DQ behind the activation", _DOCS, "takes"),
    Rule("P2", placement.both_inputs_or_none, "E/W: both inputs from DQ, or none", _DOCS, "takes"),
    Rule("P3", placement.biases_are_float, "E: no Q/DQ on a bias", _MODELOPT, "takes"),
    Rule("P4", placement.skips_are_quantised, "W: Add's skip has Q/DQ", _DOCS, "takes"),
    Rule("P5", placement.convolutions_add_in_float, "W: Add's convolution has none", _DOCS, "takes"),
    Rule("P6", placement.concat_has_one_scale, "W: one scale around a Concat", _MODELOPT, "takes"),
    Rule("P7", placement.no_pair_meets_a_pair, "W: no DQ → Q", _DOCS, "takes"),
    Rule("P8", placement.int8_in_int8_out, "W: unweighted operators: int8 in, int8 out", _DOCS, "takes"),
    Rule("P9", placement.pooling_has_the_pairs_it_needs, "W: MaxPool one pair, averages two", _DOCS, "takes"),
    Rule(
        "P10",
        placement.nearest_resize_is_quantised_behind,
        "W: Q/DQ behind nearest Resize",
        "TensorRT#2976",
        "takes",
    ),
    Rule("P11", placement.one_tensor_one_quantiser, "W: one tensor, one Q", _DOCS, "takes"),
    Rule("R1", structure.resize_is_nearest_or_linear, "E: Resize nearest or linear", "operators.md", "takes"),
    Rule("R2", structure.resize_maps_pixels_as_known, "E: Resize's coordinates", "operators.md", "refuses"),
    Rule(
        "R3", structure.resize_is_plain, "E: Resize stretches, without antialias", "operators.md", "refuses"
    ),
    Rule("U1", structure.picture_is_cast_first, "E: uint8 input is cast first", _HEADER, "some"),
)


def taken_by_newest() -> set[str]:
    """Ids of the rules whose breaches `NEWEST` compiles."""
    verdicts = [*((r.id, r.newest) for r in FILE_RULES), *((r.id, r.newest) for r in RULES)]
    return {rule for rule, newest in verdicts if newest == "takes"}


def check_graph(model: onnx.ModelProto, tensorrt: str) -> list[Finding]:
    """What TensorRT would refuse, compute wrongly or compute slowly, errors first.

    Args:
        model: as the file holds it. Data outside the file are not read: with G5, nothing but the file is checked.
        tensorrt: version, "8.6" or newer; `VERSIONS` are those that JetPacks have.

    Returns:
        Findings; the graph follows every rule if there is none.

    Raises:
        InputError: not a version that we know.
    """
    return check_versions(model, (tensorrt,))[tensorrt]


def check_versions(model: onnx.ModelProto, versions: Iterable[str]) -> dict[str, list[Finding]]:
    """`check_graph` for several versions, of a graph that is indexed once."""
    releases = {version: release_of(version) for version in versions}
    found = {version: check_file(model, version) for version in releases}
    if any(finding.rule in ("G3", "G5") for findings in found.values() for finding in findings):
        return found  # shapes of foreign operators, and values of foreign files, are not known
    graph = view_graph(model)
    for version, release in releases.items():
        found[version] += _find_breaches(RULES, graph, release)
        found[version].sort(key=lambda finding: finding.severity)  # stable: errors, then warnings
    return found


def check_file(model: onnx.ModelProto, tensorrt: str) -> list[Finding]:
    """What is wrong with the file as a whole (`FILE_RULES`): opset, domains, operators, external data."""
    return _find_breaches(FILE_RULES, model, release_of(tensorrt))


def require_clean(model: onnx.ModelProto, versions: Sequence[str], *, name: str) -> list[Finding]:
    """Checks a graph that is about to be shipped.

    Args:
        model: as `check_graph` takes it.
        versions: of TensorRT that the file is meant for.
        name: the user's own name for it.

    Returns:
        The warnings, each once.

    Raises:
        GateError: a version would refuse it or compute something else.
    """
    found = check_versions(model, versions)
    errors = [(version, f) for version, findings in found.items() for f in findings if f.severity == "error"]
    if errors:
        version, first = errors[0]
        others = len({finding for _, finding in errors}) - 1
        more = f"; and {others} more, which python -m export.check lists" if others else ""
        raise GateError(
            f"{name}: TensorRT {version}, rule {first.rule}, node {first.node}: {first.text}{more}"
        )
    return list(dict.fromkeys(finding for findings in found.values() for finding in findings))


def _find_breaches(rules: Iterable[Rule[Subject]], subject: Subject, release: Release) -> list[Finding]:
    return [
        Finding(rule.id, breach.severity, breach.node, breach.text)
        for rule in rules
        for breach in rule.check(subject, release)
    ]
