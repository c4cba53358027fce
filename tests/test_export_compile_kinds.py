"""Every kind of graph goes through NVIDIA's compiler; `python -m export.compile_kinds` makes the whole table."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from export.compile_kinds import CompilerSettings, compile_kind, graph_kinds, main
from runtime.engines.seam import installed
from runtime.trt.layers import prove_int8
from segcore.errors import InputError

there = pytest.mark.skipif(
    not installed("tensorrt-rtx"), reason="TensorRT for RTX is not installed (Linux on x86-64 only)"
)


@there
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("student nano", "int8"),
        ("student lightunet", "int8"),
        ("student small (3 classes)", "int8"),
        ("student small (batch 4)", "fp16"),
        ("student small (twice the size)", "int8"),
        ("teacher S2AgScUNet tiny", "int8"),
        ("teacher with SAM 2's mask decoder, tiny", "fp16"),
        ("promptable teacher tiny, encoder", "fp32"),
        ("promptable teacher tiny, decoder", "fp32"),
    ],
)
def test_the_compiler_takes_it_and_keeps_int8(name, precision):
    (kind,) = (kind for kind in graph_kinds() if kind.name == name)
    ((_, compilation, nodes),) = compile_kind(kind, 64, (precision,))
    assert not compilation.graph.refused
    assert compilation.graph.plan_bytes > 500_000
    proof = prove_int8(compilation.layers, nodes)
    assert (proof.missing, proof.unseen) == ((), ())
    assert bool(proof.expected) == (precision == "int8")


@there
def test_the_table_is_printed(capsys):
    main(CompilerSettings(size=64, kind=("student nano",), precision=("fp16",)))
    table, result = capsys.readouterr().out.strip().rsplit("\n", 1)
    assert table.splitlines()[-1].startswith("| student nano | fp16 | ")
    assert '"refused": 0' in result


@there
def test_names_that_are_none_are_refused_in_one_line():
    with pytest.raises(
        InputError, match=r"^--kind: must be in the name of one of student nano, .*, got resnet$"
    ):
        main(CompilerSettings(kind=("resnet",)))
    with pytest.raises(InputError, match=r"^--precision: must be of fp32, fp16, int8, got int4$"):
        main(CompilerSettings(precision=("int4",)))
