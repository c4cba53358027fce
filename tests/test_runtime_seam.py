"""A graph that is not what its manifest says is refused when it is opened, in every engine, before a picture is seen."""

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from onnx import parser, save

from runtime.engines.seam import installed
from runtime.predictor import Predictor
from runtime.promptable import PromptPredictor
from segcore.bundle.folder import MANIFEST, hash_file
from segcore.errors import InputError

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"{name} is not installed"))
    for name in ("onnxruntime", "openvino")
]


@pytest.fixture
def discs(prompted_discs, tmp_path) -> Path:
    """Takes uint8 1×64×64×1, gives float32 1×1×16×16."""
    return prompted_discs.write_bundle(tmp_path / "B")


def edit(folder: Path, **changes: object) -> None:
    """Changes fields of the manifest ("input__channels" is one inside another), and hashes every file anew."""
    fields = json.loads((folder / MANIFEST).read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = fields
        for parent in parents:
            place = place[parent]
        place[last] = value
    for name in fields["files"]:
        fields["files"][name] = hash_file(folder / name).model_dump()
    (folder / MANIFEST).write_text(json.dumps(fields))


def refusal(folder: Path, opener: type[Predictor] | type[PromptPredictor], engine: str) -> str:
    with pytest.raises(InputError) as caught:
        opener.open(folder, engine=engine, threads=1)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"input__height_px": 32}, "take uint8 1×32×64×1 as its bundle says, takes uint8 1×64×64×1"),
        ({"input__channels": 3}, "take uint8 1×64×64×3 as its bundle says, takes uint8 1×64×64×1"),
        ({"output__stride": 8}, "give float32 1×1×8×8 as its bundle says, gives float32 1×1×16×16"),
        (
            {"classes": ["a", "b"], "output__activation": "softmax", "output__channels": 3},
            "give float32 1×3×16×16 as its bundle says, gives float32 1×1×16×16",
        ),
    ],
)
def test_a_manifest_that_is_not_its_graphs_is_refused(discs, engine, changes, told):
    edit(discs, **changes)
    assert refusal(discs, Predictor, engine) == f"model model.onnx: must {told}; do not use this bundle"


GRAPHS = {
    "float": (
        "float[1,64,64,1] picture) => (float[1,1,16,16] logits",
        "take uint8 1×64×64×1 as its bundle says, takes float32 1×64×64×1",
    ),
    "any batch": (
        "uint8[N,64,64,1] picture) => (float[N,1,16,16] logits",
        "take uint8 1×64×64×1 as its bundle says, takes uint8 ?×64×64×1",
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ends", GRAPHS)
def test_a_graph_with_other_ends_is_refused(discs, engine, ends):
    given, told = GRAPHS[ends]
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g ({given}) {{
      wide = Cast <to = 1> (picture)
      planes = Transpose <perm = [0, 3, 1, 2]> (wide)
      logits = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (planes)
    }}"""
    save(parser.parse_model(text), discs / "model.onnx")
    edit(discs)
    assert refusal(discs, Predictor, engine) == f"model model.onnx: must {told}; do not use this bundle"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_with_two_outputs_is_refused(discs, engine):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (uint8[1,64,64,1] picture) => (float[1,1,16,16] logits, float[1,1,64,64] more) {
      wide = Cast <to = 1> (picture)
      more = Transpose <perm = [0, 3, 1, 2]> (wide)
      logits = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (more)
    }"""
    save(parser.parse_model(text), discs / "model.onnx")
    edit(discs)
    assert "model model.onnx: must" in refusal(discs, Predictor, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt__slots": 6}, "decoder.onnx: must take fine float32 1×1×16×16, image float32 1×1×4×4, middle float32 "
         "1×1×8×8, points float32 1×6×2, labels float32 1×6, mask float32 1×1×16×16, has_mask float32 1×1 as its bundle "
         "says, takes fine float32 1×1×16×16, image float32 1×1×4×4, middle float32 1×1×8×8, points float32 1×5×2, labels "
         "float32 1×5, mask float32 1×1×16×16, has_mask float32 1×1"),
        ({"prompt__masks": 3}, "decoder.onnx: must give logits float32 1×3×16×16, iou float32 1×3 as its bundle says, "
         "gives logits float32 1×1×16×16, iou float32 1×1"),
        ({"input__width_px": 32}, "encoder.onnx: must take picture uint8 1×64×32×1 as its bundle says, takes picture "
         "uint8 1×64×64×1"),
        ({"prompt__encoder_file": "decoder.onnx"}, "decoder.onnx: must take picture uint8 1×64×64×1 as its bundle says, "
         "takes image float32 1×1×4×4, middle float32 1×1×8×8, fine float32 1×1×16×16, points float32 1×5×2, labels "
         "float32 1×5, mask float32 1×1×16×16, has_mask float32 1×1"),
    ],
)  # fmt: skip
def test_prompts_that_are_not_the_graphs_are_refused(discs, engine, changes, told):
    edit(discs, **changes)
    assert refusal(discs, PromptPredictor, engine) == f"model {told}; do not use this bundle"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_decoder_that_wants_more_is_refused(discs, engine, prompted_discs):
    """OpenVINO would compute with whatever lies in that memory."""
    text = prompted_discs.DECODER.replace("float[1,1] has_mask)", "float[1,1] has_mask, float[1,1] secret)")
    text = text.replace(
        "tenth = Mul (has_mask, step)", "both = Add (has_mask, secret)\n  tenth = Mul (both, step)"
    )
    prompted_discs.DECODER, kept = text, prompted_discs.DECODER
    try:
        prompted_discs._write_parts(discs)
    finally:
        prompted_discs.DECODER = kept
    edit(discs)
    assert refusal(discs, PromptPredictor, engine).endswith(
        "has_mask float32 1×1, secret float32 1×1; do not use this bundle"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_listed_is_not_opened(discs, engine):
    fields = json.loads((discs / MANIFEST).read_text())
    del fields["files"]["model.onnx"]
    (discs / MANIFEST).write_text(json.dumps(fields))
    assert refusal(discs, Predictor, engine).endswith(
        ": model.onnx must be listed in manifest.json, is not; export it again"
    )
