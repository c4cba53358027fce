"""TensorRT's rules: a good graph keeps them all; for each rule there is a graph that breaks it, and is told so."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper  # noqa: E402

from export.rules.check import FILE_RULES, RULES, VERSIONS, check_graph, require_clean  # noqa: E402  # noqa: E402
from export.rules.finding import Finding  # noqa: E402
from runtime.engines.seam import installed  # noqa: E402
from segcore.errors import GateError, InputError  # noqa: E402

WIDTH, SCALE = 16, 0.05


class Drawing:
    """A graph being drawn: each method adds nodes and returns the name of what they compute."""

    def __init__(self, number: type = np.float32) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.number = number

    def node(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: object, number: type | None = None) -> str:
        self.constants[name] = np.asarray(value, number or self.number)
        return name

    def pair(self, tensor: str, scale: object = SCALE, **axis: int) -> str:
        scales = self.constant(f"{tensor}.scale", scale)
        zeros = self.constant(f"{tensor}.zero", np.zeros_like(self.constants[scales]), np.int8)
        self.node("QuantizeLinear", f"{tensor}.q", tensor, scales, zeros, **axis)
        return self.node("DequantizeLinear", f"{tensor}.dq", f"{tensor}.q", scales, zeros, **axis)

    def layer(
        self, op: str, name: str, x: str, shape: tuple[int, ...], *, axis: int | None, **attributes: object
    ) -> str:
        rng = np.random.default_rng(len(self.nodes))
        weight = self.constant(f"{name}.w", rng.uniform(-1, 1, shape))
        if axis is None:
            inputs = [self.pair(weight, 1 / 127)]
        else:
            inputs = [self.pair(weight, np.full(shape[axis], 1 / 127), axis=axis)]
        if op != "MatMul":
            outputs = shape[0] if op == "Conv" or attributes.get("transB") else shape[1]
            inputs.append(self.constant(f"{name}.bias", np.zeros(outputs)))
        return self.node(op, name, x, *inputs, **attributes)

    def conv(self, name: str, x: str, outputs: int, inputs: int, kernel: int = 3) -> str:
        shape = (outputs, inputs, kernel, kernel)
        return self.layer("Conv", name, x, shape, axis=0, pads=[kernel // 2] * 4)

    def unit(self, name: str, x: str, outputs: int, inputs: int) -> str:
        return self.node("Relu", f"{name}.relu", self.conv(name, x, outputs, inputs))

    def model(self, opset: int, outputs: dict[str, list[int]]) -> ModelProto:
        out_type = helper.np_dtype_to_tensor_dtype(np.dtype(self.number))
        graph = helper.make_graph(
            self.nodes,
            "drawing",
            [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, 16, 16, 1])],
            [helper.make_tensor_value_info(name, out_type, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def good(number: type = np.float32, opset: int = 17) -> ModelProto:
    """Stem, residual block, MaxPool, ConvTranspose and Concat, nearest Resize, head; a pooled Gemm and MatMul."""
    d = Drawing(number)
    to = helper.np_dtype_to_tensor_dtype(np.dtype(number))
    x = d.node("Transpose", "nchw", d.node("Cast", "cast", "picture", to=to), perm=[0, 3, 1, 2])
    a = d.pair(d.unit("stem", d.pair(x), WIDTH, 1))
    y = d.conv("c2", d.pair(d.unit("c1", a, WIDTH, WIDTH)), WIDTH, WIDTH)
    b = d.pair(d.node("Relu", "sum.relu", d.node("Add", "sum", a, y)))
    pooled = d.node("MaxPool", "pool", b, kernel_shape=[2, 2], strides=[2, 2])
    deep = d.pair(d.unit("c3", pooled, 2 * WIDTH, WIDTH))
    up = d.layer("ConvTranspose", "up", deep, (2 * WIDTH, WIDTH, 2, 2), axis=None, strides=[2, 2])
    cat = d.pair(d.node("Concat", "cat", b, d.pair(up), axis=1))
    c4 = d.unit("c4", cat, WIDTH, 2 * WIDTH)
    d.constant("scales", [1, 1, 2, 2], np.float32)
    large = d.node("Resize", "resize", c4, "", "scales", mode="nearest",
                   coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    d.conv("head", d.pair(large), 1, WIDTH, kernel=1)
    mean = d.pair(d.node("GlobalAveragePool", "mean", d.pair(c4)))
    flat = d.node("Flatten", "flat", mean, axis=1)
    gemm = d.layer("Gemm", "gemm", flat, (WIDTH, WIDTH), axis=0, transB=1)
    d.layer("MatMul", "matmul", d.pair(gemm), (WIDTH, 2 * WIDTH), axis=1)
    return d.model(opset, {"head": [1, 1, 32, 32], "matmul": [1, 2 * WIDTH]})


def find(model: ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def put(model: ModelProto, name: str, value: object, dtype: object = np.float32) -> None:
    """Gives a constant another value."""
    old = next((t for t in model.graph.initializer if t.name == name), None) or model.graph.initializer.add()
    old.CopyFrom(numpy_helper.from_array(np.asarray(value, dtype), name))


def drop(model: ModelProto, name: str, attribute: str) -> None:
    node = find(model, name)
    kept = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)


def write(model: ModelProto, name: str, **attributes: object) -> None:
    for key, value in attributes.items():
        drop(model, name, key)
        find(model, name).attribute.append(helper.make_attribute(key, value))


def read(model: ModelProto, name: str, place: int, tensor: str) -> None:
    """Lets a node read another tensor; what nobody then reads is taken out."""
    find(model, name).input[place] = tensor
    outputs = {value.name for value in model.graph.output}
    while True:
        used = outputs | {i for node in model.graph.node for i in node.input}
        dead = [node for node in model.graph.node if used.isdisjoint(node.output)]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)


def insert(model: ModelProto, before: str, *nodes: NodeProto) -> None:
    place = [node.name for node in model.graph.node].index(before)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*kept[:place], *nodes, *kept[place:]])


def pair_before(model: ModelProto, name: str, place: int, scale: float = SCALE) -> None:
    """Q/DQ of its own before an input of a node."""
    tensor = find(model, name).input[place]
    d = Drawing()
    d.node("Identity", "none", tensor)
    put(model, "new.scale", scale)
    put(model, "new.zero", 0, np.int8)
    d.node("QuantizeLinear", "new.q", tensor, "new.scale", "new.zero")
    d.node("DequantizeLinear", "new.dq", "new.q", "new.scale", "new.zero")
    insert(model, name, *d.nodes[1:])
    find(model, name).input[place] = "new.dq"


def rescale(model: ModelProto, weight: str, size: int | None, axis: int | None = None) -> None:
    """Gives both of a weight's pair scales along another axis."""
    shape = () if size is None else (size,)
    put(model, f"{weight}.scale", np.full(shape, 1 / 127))
    put(model, f"{weight}.zero", np.zeros(shape), np.int8)
    for one in (f"{weight}.q", f"{weight}.dq"):
        drop(model, one, "axis")
        if axis is not None:
            write(model, one, axis=axis)


def computed(model: ModelProto, name: str, place: int) -> None:
    """A node's constant input comes out of a Cast, as torch's old exporter leaves it."""
    constant = find(model, name).input[place]
    dtype = next(t.data_type for t in model.graph.initializer if t.name == constant)
    insert(model, name, helper.make_node("Cast", [constant], ["late"], name="late", to=dtype))
    find(model, name).input[place] = "late"


def zero_points(model: ModelProto, tensor: str, value: int, dtype: type) -> None:
    put(model, f"{tensor}.zero", value, dtype)


def opset(model: ModelProto, version: int) -> None:
    model.opset_import[0].version = version


def foreign_domain(model: ModelProto) -> None:
    find(model, "c1.relu").domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))


def unknown_operator(model: ModelProto) -> None:
    find(model, "c1.relu").op_type = "SwooshR"


def foreign_in_a_branch(model: ModelProto) -> None:
    inner = helper.make_node("Acme", ["c1"], ["out"], name="hidden", domain="com.acme")
    branch = helper.make_graph([inner], "branch", [], [helper.make_empty_tensor_value_info("out")])
    put(model, "yes", True, bool)
    node = helper.make_node("If", ["yes"], ["branched"], name="if", then_branch=branch, else_branch=branch)
    insert(model, "c1.relu", node)


def external(model: ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "c1.w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def external_constant(model: ModelProto) -> None:
    value = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[4])
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="secret")
    insert(model, "c1.relu", helper.make_node("Constant", [], ["k"], name="k", value=value))


def integer_operator(model: ModelProto) -> None:
    node = helper.make_node("DynamicQuantizeLinear", ["c1"], ["dyn", "dyn.s", "dyn.z"], name="dynamic")
    insert(model, "c1.relu", node)


def free_size(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def half_scale(model: ModelProto) -> None:
    put(model, "c1.relu.scale", SCALE, np.float16)


def no_zero_point(name: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        del find(model, name).input[2]

    return change


def scales_of_activation(model: ModelProto) -> None:
    put(model, "c1.relu.scale", np.full(WIDTH, SCALE))
    put(model, "c1.relu.zero", np.zeros(WIDTH), np.int8)
    for one in ("c1.relu.q", "c1.relu.dq"):
        write(model, one, axis=1)


def no_axis(model: ModelProto) -> None:
    for one in ("gemm.w.q", "gemm.w.dq"):
        drop(model, one, "axis")


def clip_of_int8(model: ModelProto) -> None:
    insert(model, "c1.relu.dq", helper.make_node("Clip", ["c1.relu.q"], ["clip"], name="clip"))
    find(model, "c1.relu.dq").input[0] = "clip"


def int8_output(model: ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info("c1.relu.q", TensorProto.INT8, [1, WIDTH, 16, 16])
    )


def int32_bias(model: ModelProto) -> None:
    put(model, "bias8", np.zeros(WIDTH), np.int32)
    put(model, "bias8.scale", np.full(WIDTH, 1e-4))
    node = helper.make_node(
        "DequantizeLinear", ["bias8", "bias8.scale"], ["bias8.dq"], name="bias8.dq", axis=0
    )
    insert(model, "c1", node)
    find(model, "c1").input[2] = "bias8.dq"


def int8_stored(model: ModelProto) -> None:
    put(model, "c1.w8", np.ones((WIDTH, WIDTH, 3, 3)), np.int8)
    read(model, "c1.w.dq", 0, "c1.w8")


def quantised_scalar(model: ModelProto) -> None:
    put(model, "half", 0.5)
    insert(model, "nchw", helper.make_node("Mul", ["cast", "half"], ["scaled"], name="scaled"))
    read(model, "nchw", 0, "scaled")
    pair_before(model, "scaled", 1)


def wide_axis(weight: str, size: int, axis: int) -> Callable[[ModelProto], None]:
    return lambda model: rescale(model, weight, size, axis)


def grouped(name: str, groups: int, shape: tuple[int, ...]) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        put(model, f"{name}.w", np.ones(shape))
        write(model, name, group=groups)

    return change


def oblong_head(model: ModelProto) -> None:
    put(model, "head.w", np.ones((1, WIDTH, 1, 3)))
    write(model, "head", pads=[0, 1, 0, 1])


def transpose_first(model: ModelProto) -> None:
    cast, nchw = find(model, "cast"), find(model, "nchw")
    cast.input[0], nchw.input[0] = "nchw", "picture"
    find(model, "nchw.q").input[0] = "cast"
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in (nchw, cast)]
    cast.CopyFrom(nodes[0])
    nchw.CopyFrom(nodes[1])


def second_reader(model: ModelProto) -> None:
    insert(
        model, "nchw", helper.make_node("Cast", ["picture"], ["again"], name="again", to=TensorProto.FLOAT)
    )


def int32_picture(model: ModelProto) -> None:
    write(model, "cast", to=TensorProto.INT32)


def uint8_inside(model: ModelProto) -> None:
    insert(model, "nchw", helper.make_node("Cast", ["cast"], ["byte"], name="byte", to=TensorProto.UINT8))


E, W = "error", "warning"
# The rule, the node it names, how bad it is, TensorRT's version, the change to the good graph, and what else breaks.
BAD: list[tuple[str, str, str, str, Callable[[ModelProto], object], str]] = [
    ("G1", "graph", E, "8.6", lambda m: opset(m, 19), ""),
    ("G1", "graph", E, "10.13", lambda m: opset(m, 21), ""),
    ("G1", "graph", E, "11.4", lambda m: opset(m, 25), ""),
    ("G2", "graph", E, "10.3", lambda m: opset(m, 12), ""),
    ("G2", "c1.relu.q", E, "10.3", half_scale, ""),
    ("G3", "c1.relu", E, "11.4", foreign_domain, ""),
    ("G3", "c1.relu", E, "11.4", unknown_operator, ""),
    ("G3", "hidden", E, "10.3", foreign_in_a_branch, ""),
    ("G4", "dynamic", E, "10.3", integer_operator, "U1"),
    ("G5", "c1.w", E, "10.3", external, ""),
    ("G5", "inner", E, "10.3", external_constant, ""),
    ("G6", "picture", E, "10.3", free_size, ""),
    ("Q1", "c1.relu.q", E, "10.3", lambda m: computed(m, "c1.relu.q", 1), ""),
    ("Q1", "c1.relu.q", W, "10.13", lambda m: computed(m, "c1.relu.q", 1), ""),
    ("Q2", "c1.relu.q", E, "10.3", lambda m: put(m, "c1.relu.scale", 0), ""),
    ("Q2", "c1.relu.dq", E, "10.3", lambda m: put(m, "c1.relu.scale", np.inf), ""),
    ("Q2", "c2.w.q", E, "10.3", lambda m: put(m, "c2.w.scale", np.linspace(-0.1, 1, WIDTH)), ""),
    ("Q3", "c1.relu.q", E, "8.6", half_scale, "G2"),
    ("Q4", "c1.relu.dq", E, "8.6", no_zero_point("c1.relu.dq"), ""),
    ("Q5", "c1.relu.q", E, "11.4", lambda m: computed(m, "c1.relu.q", 2), "Q12"),
    ("Q6", "c1.relu.q", E, "8.6", lambda m: zero_points(m, "c1.relu", 0, np.uint8), ""),
    ("Q6", "c1.relu.dq", E, "11.4", lambda m: zero_points(m, "c1.relu", 0, np.uint8), ""),
    ("Q6", "c1.relu.q", E, "10.3", no_zero_point("c1.relu.q"), ""),
    ("Q7", "c1.relu.q", E, "10.3", lambda m: zero_points(m, "c1.relu", -3, np.int8), ""),
    ("Q7", "c1.relu.q", E, "10.3", lambda m: zero_points(m, "c1.relu", 128, np.uint8), "Q6"),
    ("Q8", "c1.relu.q", E, "10.3", lambda m: put(m, "c1.relu.zero", [0, 0], np.int8), ""),
    ("Q9", "c1.relu.q", E, "10.3", scales_of_activation, ""),
    ("Q10", "gemm.w.q", E, "10.3", no_axis, "W2"),
    ("Q11", "c3.w.q", E, "10.3", lambda m: rescale(m, "c3.w", 5, 0), ""),
    ("Q12", "clip", E, "10.3", clip_of_int8, ""),
    ("Q13", "c1.relu.q", E, "10.3", int8_output, ""),
    ("Q14", "bias8.dq", E, "10.3", int32_bias, ""),
    ("Q15", "c1.w.dq", E, "8.6", int8_stored, ""),
    ("Q15", "c1.w.q", E, "8.6", lambda m: computed(m, "c1.w.q", 0), ""),
    ("Q16", "new.q", E, "10.3", quantised_scalar, ""),
    ("W1", "c3", E, "10.3", wide_axis("c3.w", WIDTH, 1), ""),
    ("W1", "c1", E, "10.3", wide_axis("c1.w", WIDTH, 1), ""),  # square: every size is right
    ("W1", "c1", E, "10.3", wide_axis("c1.w", WIDTH, -3), ""),
    ("W1", "c1", E, "10.3", lambda m: write(m, "c1.w.q", axis=1), ""),
    ("W1", "c1", W, "10.3", lambda m: rescale(m, "c1.w", None), ""),
    ("W2", "gemm", E, "10.3", wide_axis("gemm.w", WIDTH, 1), ""),
    ("W2", "matmul", E, "10.3", wide_axis("matmul.w", WIDTH, 0), ""),
    ("W3", "up", E, "8.6", wide_axis("up.w", WIDTH, 1), ""),
    ("W3", "up", W, "8.6", wide_axis("up.w", 2 * WIDTH, 0), ""),
    ("W3", "up", E, "10.3", wide_axis("up.w", 2 * WIDTH, 0), ""),
    ("W3", "up", W, "10.3", wide_axis("up.w", WIDTH, 1), ""),
    ("W4", "up", E, "10.3", grouped("up", 2, (2 * WIDTH, WIDTH // 2, 2, 2)), ""),
    ("W5", "c1", W, "10.3", lambda m: put(m, "c1.w.scale", np.full(WIDTH, 1 / 140)), ""),
    ("W5", "up", W, "10.3", lambda m: put(m, "up.w.scale", 1 / 140), ""),
    ("C1", "head", W, "10.3", oblong_head, ""),
    ("C2", "c1", E, "10.3", grouped("c1", 8, (WIDTH, 2, 3, 3)), ""),
    ("C2", "c1", W, "10.3", grouped("c1", WIDTH, (WIDTH, 1, 3, 3)), ""),
    ("P1", "new.q", W, "10.3", lambda m: pair_before(m, "c1.relu", 0), ""),
    ("P2", "c2", E, "10.3", lambda m: read(m, "c2", 0, "c1.relu"), ""),
    ("P2", "c3", W, "10.3", lambda m: read(m, "c3", 1, "c3.w"), ""),
    ("P3", "c1", E, "10.3", lambda m: pair_before(m, "c1", 2), ""),
    ("P4", "sum", W, "10.3", lambda m: read(m, "sum", 0, "stem.relu"), ""),
    ("P5", "sum", W, "10.3", lambda m: pair_before(m, "sum", 1), ""),
    ("P6", "cat", W, "10.3", lambda m: put(m, "up.scale", 2 * SCALE), ""),
    ("P6", "cat", W, "10.3", lambda m: put(m, "cat.scale", 2 * SCALE), ""),
    ("P7", "new.q", W, "10.3", lambda m: pair_before(m, "c2", 0), ""),
    ("P8", "cat", W, "10.3", lambda m: read(m, "c4", 0, "cat"), ""),
    ("P9", "pool", W, "10.3", lambda m: pair_before(m, "c3", 0), ""),
    ("P9", "mean", W, "10.3", lambda m: read(m, "mean", 0, "c4.relu"), ""),
    ("P10", "resize", W, "10.3", lambda m: read(m, "resize", 0, "c4.relu.dq"), ""),
    ("P11", "sum.relu.q", W, "10.3", lambda m: (read(m, "pool", 0, "sum.relu"), pair_before(m, "pool", 0)), ""),
    ("R1", "resize", E, "10.3", lambda m: write(m, "resize", mode="cubic"), ""),
    ("R2", "resize", E, "10.3", lambda m: write(m, "resize", coordinate_transformation_mode="tf_crop_and_resize"), ""),
    ("R3", "resize", E, "10.3", lambda m: (opset(m, 18), write(m, "resize", antialias=1)), ""),
    ("R3", "resize", E, "10.3", lambda m: (opset(m, 18), write(m, "resize", keep_aspect_ratio_policy="not_larger")), ""),
    ("U1", "nchw", E, "8.6", transpose_first, ""),
    ("U1", "picture", E, "11.4", second_reader, ""),
    ("U1", "cast", E, "10.3", int32_picture, ""),
    ("U1", "byte", E, "10.3", uint8_inside, ""),
]  # fmt: skip


def rules_of(findings: Iterable[Finding]) -> set[str]:
    return {finding.rule for finding in findings}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_good_graph_keeps_every_rule(version):
    model = good()
    onnx.checker.check_model(model, full_check=True)
    assert check_graph(model, version) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_graph_typed_fp16_is_for_10_and_later(version):
    model = good(np.float16, opset=19)
    onnx.checker.check_model(model, full_check=True)
    assert rules_of(check_graph(model, version)) == ({"G1", "Q3", "Q15"} if version == "8.6" else set())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_float_graph_keeps_every_rule(exported: Callable[[str, str], Path], version):
    model = onnx.load(exported("onnx", "fp32") / "model.onnx", load_external_data=False)
    assert check_graph(model, version) == []


@pytest.mark.parametrize(("rule", "node", "severity", "version", "change", "also"), BAD)
def test_a_bad_graph_is_named(rule, node, severity, version, change, also):
    model = good()
    change(model)
    findings = check_graph(model, version)
    assert (rule, node, severity) in [(f.rule, f.node, f.severity) for f in findings]
    assert rules_of(findings) == {rule, *also.split()}
    assert all("\n" not in f.text and " got " in f.text and "; " in f.text for f in findings)


def test_every_rule_has_a_bad_graph():
    ids = [rule.id for rule in (*FILE_RULES, *RULES)]
    assert len(set(ids)) == len(ids)
    assert {rule for rule, *_ in BAD} == set(ids)


def _compile_all(paths: list[str]) -> list[bool]:
    """Whether NVIDIA's compiler refuses each file; in a process of its own."""
    from runtime.trt.rtx import CompileRequest, _compile

    return [bool(_compile(CompileRequest(Path(path), ("8.6",))).graph.refused) for path in paths]


def test_what_nvidias_newest_compiler_does_with_every_bad_graph(tmp_path):
    if not installed("tensorrt-rtx"):
        pytest.skip("TensorRT for RTX is not installed (Linux on x86-64 only)")
    for number, (*_, change, _) in enumerate(BAD):
        model = good()
        change(model)
        onnx.save(model, tmp_path / f"{number}.onnx")
    paths = [str(tmp_path / f"{number}.onnx") for number in range(len(BAD))]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        refused = pool.submit(_compile_all, paths).result()
    found: dict[str, set[bool]] = {}
    for (rule, *_), no in zip(BAD, refused, strict=True):
        found.setdefault(rule, set()).add(no)
    words = {
        rule: "some" if len(seen) > 1 else "refuses" if True in seen else "takes"
        for rule, seen in found.items()
    }
    assert words == {rule.id: rule.newest for rule in (*FILE_RULES, *RULES)}
    assert sum(refused) == 21  # of 74, as docs/int8.md says


def test_rules_that_newer_versions_dropped():
    for change in (no_zero_point("c1.relu.dq"), int8_stored):
        model = good()
        change(model)
        assert rules_of(check_graph(model, "8.6.2")) == ({"Q15"} if change is int8_stored else {"Q4"})
        assert check_graph(model, "10.3.0.30") == []


def test_the_axis_is_followed_through_a_transpose():
    """A linear layer is exported as weight → Q → DQ → Transpose → MatMul: axis 0 of it is MatMul's axis 1."""
    model = good()
    put(model, "matmul.w", np.ones((2 * WIDTH, WIDTH)))
    rescale(model, "matmul.w", 2 * WIDTH, 0)
    insert(model, "matmul", helper.make_node("Transpose", ["matmul.w.dq"], ["wt"], name="wt", perm=[1, 0]))
    find(model, "matmul").input[1] = "wt"
    assert check_graph(model, "10.3") == []
    rescale(model, "matmul.w", WIDTH, 1)
    assert [(f.rule, f.node) for f in check_graph(model, "10.3")] == [("W2", "matmul")]


def test_either_of_two_convolutions_may_be_the_skip():
    """A residual block that widens adds two convolutions; one of them has Q/DQ, and it does not matter which."""
    for place in (0, 1):
        model = good()
        insert(model, "sum", *[NodeProto.FromString(n.SerializeToString().replace(b"c2", b"s2"))
                               for n in model.graph.node if n.name.startswith("c2")])  # fmt: skip
        for tensor in [t for t in model.graph.initializer if t.name.startswith("c2")]:
            put(model, tensor.name.replace("c2", "s2"), numpy_helper.to_array(tensor), None)
        find(model, "sum").input[0] = "s2"
        assert rules_of(check_graph(model, "10.3")) == {"P4"}
        pair_before(model, "sum", place)
        assert check_graph(model, "10.3") == []


def test_nameless_nodes_can_be_found():
    model = good()
    int32_bias(model)
    find(model, "bias8.dq").ClearField("name")
    (found,) = check_graph(model, "10.3")
    assert (
        found.node
        == f"DequantizeLinear {next(i for i, n in enumerate(model.graph.node) if not n.name)} (bias8.dq)"
    )


def test_what_a_message_says():
    model = good()
    zero_points(model, "c1.relu", 128, np.uint8)
    wide_axis("c1.w", WIDTH, 1)(model)
    texts = {(f.rule, f.node): f.text for f in check_graph(model, "10.3")}
    assert texts["Q7", "c1.relu.q"] == "zero point: must be 0, got 128; quantise symmetrically"
    assert texts["W1", "c1"] == (
        "axis of the weight's scale: must be 0, its outputs, got 1 (at c1.w.dq); quantise it along the right axis"
    )


@pytest.mark.parametrize("version", ["10", "eight.six", "8.5", ""])
def test_a_version_that_we_do_not_know_is_refused(version):
    with pytest.raises(InputError, match=rf"^--tensorrt {version}: must be "):
        check_graph(good(), version)


def test_require_clean_names_the_first_error_and_returns_warnings():
    model = good()
    pair_before(model, "c1.relu", 0)
    (warning,) = require_clean(model, VERSIONS, name="model.onnx")
    assert (warning.rule, warning.node) == ("P1", "new.q")
    int8_stored(model)
    with pytest.raises(GateError) as caught:
        require_clean(model, VERSIONS, name="model.onnx")
    assert str(caught.value) == (
        "model.onnx: TensorRT 8.6, rule Q15, node c1.w.dq: weight: must be a float32 constant, then QuantizeLinear, "
        "then DequantizeLinear for TensorRT 8.6, got int8 c1.w8; add the Q/DQ pair to the weight"
    )
    assert require_clean(model, VERSIONS[1:], name="model.onnx") == [warning]
    zero_points(model, "stem.relu", 1, np.int8)
    with pytest.raises(GateError, match=r"; and 2 more, which python -m export\.check lists$"):
        require_clean(model, VERSIONS, name="model.onnx")


def run_check(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "export.check", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)


def test_the_command_prints_a_table_and_one_json_line(tmp_path):
    model = good()
    int8_stored(model)
    onnx.save(model, tmp_path / "m.onnx")
    done = run_check("--onnx", tmp_path / "m.onnx", "--tensorrt", "8.6", "--tensorrt", "10.3")
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "TensorRT 8.6: errors 1, warnings 0"
    assert lines[1].split() == ["error", "Q15", "c1.w.dq"]
    assert lines[3].strip().startswith("TensorRT for RTX 1.7 compiles graphs that break Q15; ")
    assert lines[4] == "TensorRT 10.3: keeps every rule"
    assert json.loads(lines[-1]) == {
        "onnx": str(tmp_path / "m.onnx"), "errors": {"8.6": 1, "10.3": 0}, "warnings": {"8.6": 0, "10.3": 0},
        "rules": ["Q15"], "passed": False,
    }  # fmt: skip
    assert done.stderr.startswith(
        f"gate failed: {tmp_path / 'm.onnx'}: must keep TensorRT's rules, breaks some: 1 for 8.6"
    )


def check_here(path: Path, *versions: str) -> None:
    from export.check import OnnxCheckSettings, main

    main(OnnxCheckSettings(onnx=path, tensorrt=versions))


def test_the_command_passes_a_good_graph_for_every_version(tmp_path, capsys):
    onnx.save(good(), tmp_path / "m.onnx")
    check_here(tmp_path / "m.onnx")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["passed"]
    assert list(last["errors"]) == list(VERSIONS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (external, "G5, c1.w: weights: must be in the file, got external data; save it as one file, within 2 GB"),
        (foreign_domain, "G3, c1.relu: operator: must be ONNX's own, got Relu of com.acme; "
                         "export without it, TensorRT has no plugin for it"),
        (integer_operator, "G4, dynamic: operator: must be QuantizeLinear or DequantizeLinear for 8 bits, "
                           "got DynamicQuantizeLinear; quantise in the QDQ format"),
        (lambda m: opset(m, 19), "G1, graph: opset: must be at most 17 for TensorRT 8.6, got 19; export it at opset 17"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_bad_input(tmp_path, change, says):
    model = good()
    change(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as caught:
        check_here(tmp_path / "m.onnx")
    assert str(caught.value) == f"--onnx {tmp_path / 'm.onnx'}: {says}"


def test_external_data_are_never_read(tmp_path):
    """The file names a neighbour that is there and of the right size; its numbers must not be looked at."""
    model = good()
    external(model)
    tensor = next(t for t in model.graph.initializer if t.name == "c1.w")
    tensor.external_data[0].value = "weights.bin"
    (tmp_path / "weights.bin").write_bytes(np.full(WIDTH * WIDTH * 9, np.nan, np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").chmod(0)
    with pytest.raises(InputError, match=r"G5, c1\.w"):
        check_here(tmp_path / "m.onnx")
    assert rules_of(check_graph(model, "10.3")) == {"G5"}


def test_a_damaged_model_is_refused_in_one_line(tmp_path):
    model = good()
    next(t for t in model.graph.initializer if t.name == "c1.w").dims[0] = 5
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"^--onnx .*m\.onnx: must be valid ONNX, is damaged \([^\n]*$"):
        check_here(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [None, b"", b"not a model", b'{"graph": {}}'])
def test_what_is_no_model_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^--onnx .*m\.onnx: must be an ONNX file, [^\n]*$"):
        check_here(path)
