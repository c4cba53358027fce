"""Encoder and decoder of promptable teachers: the graphs' contract, the gate, and what travels with the bundle.

A small network answers for most of it; SAM 2 itself is exported once.
"""

from contextlib import closing
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from export.__main__ import ExportSettings, export_bundle, make_job  # noqa: E402
from export.check import OnnxCheckSettings  # noqa: E402
from export.check import main as check  # noqa: E402
from export.graph.onnx_export import halve_weights  # noqa: E402
from export.graph.openvino_export import write_ir  # noqa: E402
from export.job import ExportData  # noqa: E402
from export.kit.__main__ import KitSettings, make_kit  # noqa: E402
from export.promptable import write_parts  # noqa: E402
from runtime.engines.tensor_session import open_session  # noqa: E402
from runtime.parity import PARITY_LIMITS, check_prompt_parity  # noqa: E402
from runtime.promptable import (  # noqa: E402
    PromptModel,
    PromptPredictor,
    open_prompt_model,
)
from runtime.trt.build import seal_engine  # noqa: E402
from runtime.verify import verify_bundle  # noqa: E402
from segcore.bundle.folder import open_bundle, seal_bundle  # noqa: E402
from segcore.bundle.golden import ask, golden_questions, load_golden_prompts  # noqa: E402
from segcore.bundle.manifest import DataRecord, EngineTarget  # noqa: E402
from segcore.errors import GateError  # noqa: E402
from segcore.host import made_now  # noqa: E402
from segcore.learn.network import save_weights  # noqa: E402
from segcore.picture.preprocess import InputSpec, output_spec  # noqa: E402
from segcore.picture.prompts import Prompt, PromptSpec, prompt_arrays  # noqa: E402
from teacher import sam2_model  # noqa: E402
from teacher.promptable import SLOTS, PromptedSam2, prompt_spec  # noqa: E402
from teacher.sam2_model import Answers, Embedding, Sam2ImageModel, SamEmbedding  # noqa: E402

SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.45,) * 3, std=(0.23,) * 3)
PROMPT = PromptSpec(kinds=("point", "box", "mask"), slots=3, masks=2, mask_input=True)
MANIFEST = SimpleNamespace(prompt=PROMPT, input=SPEC, output=output_spec(("lung",), 4))


class Near(torch.nn.Module):
    """Marks what is bright and near a point; an earlier mask counts a little. Two candidates."""

    def __init__(self, listens=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.listens = listens
        self.see = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.say = torch.nn.Conv2d(8, 2, 3, padding=1)
        centres = (torch.arange(16.0) + 0.5) * 4 - 0.5
        self.register_buffer("grid", torch.stack(torch.meshgrid(centres, centres, indexing="xy")))  # x, y

    def encode(self, x):
        fine = self.see(x)
        middle = torch.nn.functional.avg_pool2d(fine, 2)
        return Embedding(torch.nn.functional.avg_pool2d(middle, 2), middle, fine)

    def decode(self, embedding, points, labels, mask, has_mask):
        far = (self.grid - points[..., None, None]).square().sum(2).sqrt()  # 1 S 16 16
        used = (labels >= 0).float()[..., None, None]
        near = (used * (20 - far) / 4).sum(1, keepdim=True) * self.listens
        earlier = torch.where(has_mask[..., None, None] > 0, mask, torch.zeros_like(mask))
        logits = self.say(embedding.fine) + near + 0.25 * earlier
        return Answers(logits, torch.sigmoid(logits.mean((2, 3))))


class NearOnOneMap(Near):
    """The same with one feature map, and answers that are finer than it, as of a model like SAM 1."""

    def encode(self, x):
        return SamEmbedding(torch.nn.functional.avg_pool2d(self.see(x), 4))

    def decode(self, embedding, points, labels, mask, has_mask):
        fine = torch.nn.functional.interpolate(embedding.image, scale_factor=4.0)
        return super().decode(Embedding(fine, fine, fine), points, labels, mask, has_mask)


def parts_job(folder, to, precision, *, manifest=MANIFEST):
    settings = ExportSettings(bundle=folder, to=to, precision=precision, out=folder)
    return make_job(
        settings, SimpleNamespace(manifest=manifest), ExportData(None), folder, folder / "scratch"
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes the small network's parts once for each format and precision that a test asks for."""
    root, made = tmp_path_factory.mktemp("parts"), {}

    def write(to, precision):
        if (to, precision) not in made:
            folder = root / f"{to}-{precision}"
            (folder / "scratch").mkdir(parents=True)
            found = write_parts(parts_job(folder, to, precision), Near().eval())
            made[to, precision] = folder, *found
        return made[to, precision]

    return write


@pytest.fixture(scope="module")
def sam2s(tmp_path_factory):
    """A promptable teacher of 64 px with random weights, exported once: its masks mean nothing, and move with the prompt.

    All of SAM 2 but 7 of Hiera-tiny's 12 blocks: over those the exporter spends most of its time.
    """
    pytest.importorskip("sam2")
    folder = tmp_path_factory.mktemp("sam2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam2_model, "_read_config", partial(shallow, sam2_model._read_config))
        export_bundle(ExportSettings(bundle=write_teacher(folder / "torch"), to="onnx", out=folder / "onnx"))
    return folder / "onnx"


def shallow(full, size):
    config = full(size)
    config["image_encoder"]["trunk"] |= {"stages": [1, 1, 2, 1], "global_att_blocks": [3]}
    return config


def write_teacher(folder):
    torch.manual_seed(0)
    mean, std = sam2_model.IMAGENET_MEAN_STD
    network = PromptedSam2(Sam2ImageModel("tiny", 64), classes=1, slots=SLOTS, candidates="three").eval()
    network.points[0, 0], network.labels[0, 0] = torch.tensor([20.0, 30.0]), 1.0
    folder.mkdir()
    save_weights(folder / "model.safetensors", network)
    parameters = sum(p.numel() for p in network.parameters())
    seal_bundle(
        folder, name="SAM2-Med2D tiny", kind="teacher", format="torch", precision="fp32", architecture="sam2-med2d",
        architecture_settings={"encoder": "tiny", "slots": SLOTS, "tune": "decoder"}, classes=("lung",),
        input=InputSpec(height_px=64, width_px=64, channels=1, mean=mean, std=std), output=output_spec(("lung",), 4),
        parameters=parameters, trained_parameters=parameters, macs=1, pretrained="no pretrained weights",
        data=DataRecord(name="phantom:cxr:12", sha256="0" * 64, split_sha256="1" * 64),
        prompt=prompt_spec(("point", "box", "mask"), "three"), made=made_now(), model_file="model.safetensors",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def discs(prompted_discs, tmp_path_factory):
    """A whole bundle, small and not ours to export (tests/prompted_discs.py)."""
    return prompted_discs.write_bundle(tmp_path_factory.mktemp("discs") / "bundle")


def ends(path):
    graph = onnx.load(path).graph
    return {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_the_graphs_take_and_give_what_the_runtime_expects(written):
    folder, spec, figures = written("onnx", "int8")
    assert (spec.encoder_file, spec.decoder_file) == ("encoder.onnx", "decoder.onnx")
    assert ends(folder / "encoder.onnx") == {
        "picture": [1, 64, 64, 1], "image": [1, 8, 4, 4], "middle": [1, 8, 8, 8], "fine": [1, 8, 16, 16],
    }  # fmt: skip
    assert ends(folder / "decoder.onnx") == {
        "image": [1, 8, 4, 4], "middle": [1, 8, 8, 8], "fine": [1, 8, 16, 16], "points": [1, 3, 2], "labels": [1, 3],
        "mask": [1, 1, 16, 16], "has_mask": [1, 1], "logits": [1, 2, 16, 16], "iou": [1, 2],
    }  # fmt: skip
    for name in (spec.encoder_file, spec.decoder_file):
        model = onnx.load(folder / name)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        assert model.ir_version <= 10
    assert figures["golden_prompts"] == 9
    for engine in ("onnxruntime", "openvino"):
        assert figures[f"{engine}_prompts_mean_share"] <= 0.001
        assert figures[f"{engine}_prompts_iou_change"] < 1e-4


def answers(folder, spec, engine, prompt, before=None):
    with closing(
        open_prompt_model(engine, folder / spec.encoder_file, folder / spec.decoder_file, threads=1)
    ) as model:
        features = model.encode(golden_questions(SPEC, PROMPT).pictures[0])
        points, labels = prompt_arrays([prompt], (64, 64), (64, 64), PROMPT.slots)
        return model.decode(features, points, labels, before)[0]


def test_a_model_of_one_feature_map_is_written_and_answers(tmp_path):
    (tmp_path / "scratch").mkdir()
    network = NearOnOneMap().eval()
    spec, _ = write_parts(parts_job(tmp_path, "onnx", "fp32"), network)
    assert ends(tmp_path / "encoder.onnx") == {"picture": [1, 64, 64, 1], "image": [1, 8, 4, 4]}
    assert ends(tmp_path / "decoder.onnx") == {
        "image": [1, 8, 4, 4], "points": [1, 3, 2], "labels": [1, 3], "mask": [1, 1, 16, 16], "has_mask": [1, 1],
        "logits": [1, 2, 16, 16], "iou": [1, 2],
    }  # fmt: skip
    at_left, at_right = (
        answers(tmp_path, spec, "openvino", Prompt(points=((x, 32, True),))) for x in (8, 56)
    )
    assert at_left[0, 8, 2] > at_left[0, 8, 13]
    assert at_right[0, 8, 2] < at_right[0, 8, 13]


@pytest.mark.parametrize(("to", "engine"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_points_padding_and_an_earlier_mask_reach_the_decoder(written, to, engine):
    folder, spec, _ = written(to, {"onnx": "int8", "openvino": "fp16"}[to])
    left, right = (Prompt(points=((x, 32, True),)) for x in (8, 56))
    at_left, at_right = (answers(folder, spec, engine, asked) for asked in (left, right))
    assert at_left[0, 8, 2] > at_left[0, 8, 13]
    assert at_right[0, 8, 2] < at_right[0, 8, 13]
    more = answers(folder, spec, engine, left, np.full((16, 16), 8, np.float32))
    assert np.allclose(more - at_left, 2, atol=1e-3)


def test_int8_leaves_encoder_and_decoder_in_float(written):
    folder, spec, figures = written("onnx", "int8")
    for name in (spec.encoder_file, spec.decoder_file):
        graph = onnx.load(folder / name).graph
        assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in graph.node}
        assert {tensor.data_type for tensor in graph.initializer} <= {
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.INT64,
        }
    assert figures["openvino_prompts_mean_share"] <= 0.001


def test_fp16_stores_weights_of_16_bits(written):
    folder, spec, figures = written("openvino", "fp16")
    assert (spec.encoder_file, spec.decoder_file) == ("encoder.xml", "decoder.xml")
    assert 'element_type="f16"' in (folder / spec.encoder_file).read_text()
    assert figures["openvino_prompts_mean_share"] <= 0.005


def test_a_network_that_takes_no_notice_of_its_prompt_is_refused(tmp_path):
    network = Near(listens=0.0).eval()
    deaf = SimpleNamespace(**vars(MANIFEST) | {"prompt": PROMPT.model_copy(update={"mask_input": False})})
    (tmp_path / "scratch").mkdir()
    with pytest.raises(GateError) as refused:
        write_parts(parts_job(tmp_path, "onnx", "fp32", manifest=deaf), network)
    assert str(refused.value) == (
        "the network in torch: its masks must vary with the prompt, they do not; train it again"
    )


class TwoFaced(Near):
    """Flees the point in the file and seeks it in torch."""

    def decode(self, *tensors):
        self.listens = -1.0 if torch.compiler.is_exporting() else 1.0
        return super().decode(*tensors)


def test_engines_that_answer_otherwise_than_torch_are_refused(tmp_path):
    (tmp_path / "scratch").mkdir()
    with pytest.raises(
        GateError, match=r"^onnxruntime against torch on golden prompts: \S+ % of pixels differ on average"
    ):
        write_parts(parts_job(tmp_path, "onnx", "fp32"), TwoFaced().eval())


def test_tensorrts_graphs_keep_the_rules(written, capsys):
    folder, spec, figures = written("tensorrt", "fp16")
    assert {name.split("_")[0] for name in figures} == {"golden", "onnxruntime"}
    for name in (spec.encoder_file, spec.decoder_file):
        check(OnnxCheckSettings(onnx=folder / name))  # raises where a rule is broken
    assert '"passed": true' in capsys.readouterr().out


def test_golden_prompts_travel(written):
    folder, _, _ = written("onnx", "int8")
    questions, replies = load_golden_prompts(folder)
    assert questions.again
    assert replies.logits.shape == (3, 3, 2, 16, 16)
    again = golden_questions(SPEC, PROMPT)
    assert np.array_equal(questions.pictures, again.pictures)
    assert np.array_equal(questions.points, again.points)


def test_sam2s_bundle_verifies_answers_and_says_how_it_is_asked(sam2s):
    bundle = open_bundle(sam2s)
    manifest = bundle.manifest
    assert {"encoder.onnx", "decoder.onnx", "golden_prompts.npz"} <= set(manifest.files)
    assert (manifest.prompt.encoder_file, manifest.prompt.decoder_file) == ("encoder.onnx", "decoder.onnx")
    assert manifest.variants == ()
    assert manifest.gate["onnxruntime_prompts_worst_share"] <= 0.001
    assert manifest.gate["openvino_prompts_worst_share"] <= 0.001
    found = verify_bundle(bundle, engine="onnxruntime", threads=1)
    assert found.failures == ()
    assert found.prompts.answers == 3 * 3 * 3  # pictures, questions, candidates
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    assert (
        "**Prompts:** point, box or mask, of at most 10 points (a box is two), for one thing at a time; "
        "`encoder.onnx` and `decoder.onnx`, in floating point"
    ) in card
    assert "share of pixels that differ, mean over answers to golden prompts, in openvino" in card
    with PromptPredictor.open(bundle, engine="onnxruntime", threads=1) as predictor:
        encoded = predictor.look(golden_questions(SPEC, PROMPT).pictures[0, ..., 0])
        one, other = (predictor.answer(encoded, Prompt(points=((x, 30, True),))) for x in (8, 56))
    assert one.candidate > 0  # of a single point the best of the others
    assert np.abs(one.probability - other.probability).max() > 0


def test_sam2s_decoder_normalises_in_one_piece_and_computes_no_constants(sam2s):
    """A LayerNorm over channels that is made of Sub, Pow and Sqrt overflows in 16 bits (NVIDIA/TensorRT#3657)."""
    graph = onnx.load(sam2s / "decoder.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert not {"Pow", "Sqrt", "ReduceMean"} & set(kinds)
    # 4 in each of two layers of the transformer, 1 behind them, 1 while masks grow, 2 of an earlier mask.
    assert kinds.count("LayerNormalization") == 12
    assert kinds.count("Sin") == 1  # of the prompt's points; those of the picture's grid are folded
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        assert set(node.input) - fixed - {""}, node.name


def test_sam2s_decoder_with_weights_of_16_bits(sam2s, tmp_path):
    """Through both roads: Casts in ONNX, and a compressed IR."""
    bundle = sam2s
    manifest = open_bundle(bundle).manifest
    model = onnx.load(bundle / "decoder.onnx")
    halve_weights(model)
    onnx.save(model, tmp_path / "half.onnx")
    write_ir(bundle / "decoder.onnx", tmp_path / "half.xml", half_weights=True)
    full = (bundle / "decoder.onnx").stat().st_size
    assert (tmp_path / "half.onnx").stat().st_size < 0.55 * full
    assert (tmp_path / "half.bin").stat().st_size < 0.55 * full
    questions, reference = load_golden_prompts(bundle)
    encoder = open_session("onnxruntime", bundle / "encoder.onnx", threads=1)
    for engine, name in (("onnxruntime", "half.onnx"), ("openvino", "half.xml")):
        model = PromptModel(encoder, open_session(engine, tmp_path / name, threads=1))
        replies = ask(questions, model.encode, model.decode)
        found = check_prompt_parity(replies, reference, manifest.output, manifest.input.size_px)
        assert found.failures(PARITY_LIMITS["fp16"]) == []
        assert found.iou_change > 0  # 16 bits do round


def test_a_kit_takes_the_parts_along(discs, tmp_path):
    engines = make_kit(KitSettings(bundle=discs, out=tmp_path / "kit"))
    assert engines == ("onnxruntime", "openvino", "tensorrt")
    with PromptPredictor.open(tmp_path / "kit/bundle", engine="onnxruntime", threads=1) as predictor:
        encoded = predictor.look(golden_questions(SPEC, PROMPT).pictures[0, ..., 0])
        assert predictor.answer(encoded, Prompt(points=((20, 30, True),))).mask[30, 20]


def test_an_engine_that_a_device_builds_takes_no_prompts(discs, tmp_path):
    source = open_bundle(discs)
    (tmp_path / "model.plan").write_bytes(b"plan")
    target = EngineTarget(
        tensorrt="10.3.0",
        gpu="Orin",
        compute_capability="8.7",
        platform="Linux",
        onnx="model.onnx",
        onnx_sha256="",
    )
    manifest = seal_engine(source, tmp_path, [], target, made=source.manifest.made, gate={})
    assert manifest.prompt is None
