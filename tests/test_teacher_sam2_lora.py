"""SAM 2's mask decoder with one mask a class and a learned prompt, updated by LoRA or with adapters."""

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
pytest.importorskip("peft")

from segcore.bundle.folder import open_bundle  # noqa: E402
from segcore.errors import InputError  # noqa: E402
from segcore.learn.network import DeployGraph  # noqa: E402
from segcore.picture.preprocess import InputSpec, output_spec  # noqa: E402
from teacher.decoders.class_masks import ClassMaskNetwork, class_mask_loss  # noqa: E402
from teacher.sam2_model import Sam2ImageModel  # noqa: E402
from teacher.settings import TeacherSettings  # noqa: E402
from teacher.system import (  # noqa: E402
    Task,
    load_teacher,
    system_module,
)
from teacher.train import main  # noqa: E402
from teacher.tuning.peft_kinds import load_peft, merge_peft  # noqa: E402

PX = 64
SPEC = InputSpec(height_px=PX, width_px=PX, channels=1, mean=(0.45,) * 3, std=(0.23,) * 3)
THREE = ("tooth", "filling", "caries")  # with the background as many channels as SAM 2 has candidates
TRUNK = "image_encoder.trunk."


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(1)
    model = Sam2ImageModel("tiny", PX).eval()
    for p in model.parameters():  # zeros and ones would hide what is lost
        p.data.add_(0.02 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def weights(sam, tmp_path_factory):
    """A file laid out as Meta's, with random numbers."""
    path = tmp_path_factory.mktemp("weights") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": sam.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def encoder_weights(sam, tmp_path_factory):
    """An encoder alone, as one that was trained in house."""
    path = tmp_path_factory.mktemp("weights") / "encoder.pt"
    torch.save({"model": {k: v for k, v in sam.state_dict().items() if k.startswith(TRUNK)}}, path)
    return path


def settings(weights, system="sam2-lora", **more):
    return TeacherSettings(data="phantom:dental:6", out="unused", weights=str(weights), system=system, **more)


def build(weights, system="sam2-lora", classes=THREE, **more):
    torch.manual_seed(0)
    chosen = settings(weights, system, **more)
    return system_module(system).build_system(chosen, Task(classes, SPEC, ()))


def asked_nothing(sam, x):
    """SAM 2's four answers to an empty prompt."""
    with torch.no_grad():
        return sam.decode(sam.encode(x), torch.zeros(len(x), 0, 2), torch.zeros(len(x), 0)).logits


def sample(channels):
    mask = torch.randint(0, max(2, channels), (2, PX, PX))
    return {"mask": mask, "labelled": torch.tensor([True, True])}


@pytest.mark.parametrize("system", ["sam2-lora", "sam2-adapter"])
def test_at_first_it_computes_what_sam2_answers_to_an_empty_prompt(sam, weights, system):
    x = torch.randn(2, 3, PX, PX)
    built = build(weights, system)
    with torch.no_grad():
        logits = built.view(built.network.eval())(x)
    assert logits.shape == (2, 4, PX // 4, PX // 4)
    assert torch.allclose(logits, asked_nothing(sam, x), atol=1e-5)
    assert built.pretrained == "sam2.1_hiera_tiny.pt"


def test_candidates_are_taken_in_turn(sam):
    decoder = ClassMaskNetwork(copy.deepcopy(sam), 6).decoder
    assert torch.equal(decoder.mask_tokens[:4], sam.sam_mask_decoder.mask_tokens.weight)
    assert torch.equal(decoder.mask_tokens[4:], decoder.mask_tokens[:2])
    twins = zip(decoder.hypernetworks[5].parameters(), decoder.hypernetworks[1].parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in twins)


@pytest.mark.parametrize(
    ("system", "tune", "transformer"),
    [
        ("sam2-lora", "dora", 4 * (7 * 2 * 256 + 4 * 256 + 10 * 128) + 4 * 256 + 10 * 128),
        ("sam2-lora", "ia3", 2 * (2 * 256 + 2 * 2 * 128 + 2048) + 2 * 128),
        # LoRA of rank 4: q and v of 7 attentions
        ("sam2-lora", "bitfit", 4 * (7 * 2 * 256 + 4 * 256 + 10 * 128)),
        ("sam2-lora", "all", None),
        ("sam2-adapter", "adapter-parallel", 4 * (2 * 256 * 32 + 256 + 32)),
    ],
)
def test_what_is_trained_gets_a_gradient_and_the_plain_form_computes_the_same(
    weights, system, tune, transformer
):
    built = build(weights, system, tune=tune)
    network = built.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0)
    built.loss(network, torch.randn(2, 3, PX, PX), sample(4)).backward()
    for name, p in network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    optimizer.step()
    for name, p in network.named_parameters():
        assert p.requires_grad or torch.equal(p, before[name]), name
    inside = [p for p in network.decoder.transformer.parameters() if p.requires_grad]
    if transformer is None:
        assert all(p.requires_grad for p in network.parameters())
    else:
        assert sum(p.numel() for p in inside) == transformer
        assert not any(p.requires_grad for p in network.neck.parameters())
    for name in ("default_prompt", "default_mask", "mask_tokens", "context"):  # the prompt is learned
        assert not torch.equal(getattr(network.decoder, name), before[f"decoder.{name}"]), name
    if tune in ("dora", "bitfit"):
        updated = (name for name, p in network.decoder.transformer.named_parameters() if p.requires_grad)
        assert {name.split(".lora_")[0].split(".")[-1] for name in updated} == {"q_proj", "v_proj"}
    x = torch.randn(1, 3, PX, PX)
    with torch.no_grad():
        expected = built.view(network.eval())(x)
        plain = built.plain(network).eval()
        assert torch.allclose(plain(x), expected, atol=1e-5 * float(expected.abs().max()))
    assert not any("lora" in name or "ia3" in name or "base_layer" in name for name in plain.state_dict())


def test_each_channel_has_a_token_and_a_hypernetwork_of_its_own(sam):
    network = ClassMaskNetwork(copy.deepcopy(sam), 4).eval()
    decoder, x = network.decoder, torch.randn(1, 3, PX, PX)
    with torch.no_grad():
        before = network(x)
        decoder.hypernetworks[2].layers[-1].bias.add_(1)
        changed = network(x)
        assert ((changed - before).abs().amax(dim=(0, 2, 3)) > 0).tolist() == [False, False, True, False]
        # tokens attend to each other, so that one changes every mask a little; but their order says which is whose
        order = [3, 1, 0, 2]
        decoder.mask_tokens.copy_(decoder.mask_tokens[order].clone())
        assert not torch.allclose(network(x), changed[:, order], atol=1e-3)
        decoder.hypernetworks = torch.nn.ModuleList(decoder.hypernetworks[c] for c in order)
        assert torch.allclose(network(x), changed[:, order], atol=1e-5)


def test_another_size_than_it_was_built_at(sam):
    network = ClassMaskNetwork(copy.deepcopy(sam), 1).eval()
    assert network(torch.zeros(1, 3, 32, 96)).shape == (1, 1, 8, 24)


def test_no_dead_weights_are_carried(sam):
    names = set(ClassMaskNetwork(copy.deepcopy(sam), 1).state_dict())
    assert not any("iou_prediction" in n or "obj_score" in n or "point_embed" in n for n in names)


class Constant(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits).view(1, -1, 1, 1)

    def forward(self, x):
        return self.logits.expand(len(x), -1, x.shape[2] // 4, x.shape[3] // 4)


@pytest.mark.parametrize(
    ("logits", "entropy", "share"), [([0.0], math.log(2), 0.5), ([0.0, 0.0, 0.0, 0.0], math.log(4), 0.25)]
)
def test_the_loss_in_closed_form(logits, entropy, share):
    everywhere = {"mask": torch.ones(1, 8, 8, dtype=torch.long), "labelled": torch.tensor([True])}
    n = 64
    dice = 1 - (2 * share * n + 1) / (share * n + n + 1)
    others = 1 - 1 / (share * n + 1)  # classes that are not there
    classes = max(1, len(logits) - 1)
    expected = 0.3 * entropy + 0.7 * (dice + (classes - 1) * others) / classes
    found = class_mask_loss(Constant(logits), torch.zeros(1, 3, 8, 8), everywhere)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def fails(message, weights, system="sam2-lora", **more):
    with pytest.raises(InputError) as caught:
        build(weights, system, **more)
    assert str(caught.value) == message


def test_an_encoder_alone_is_not_enough(encoder_weights):
    fails(
        f"--weights {encoder_weights}: must hold image_encoder.neck, sam_prompt_encoder, sam_mask_decoder for --system "
        "sam2-adapter, which leaves most of that as it is; give all of SAM 2.1, such as facebook/sam2.1-hiera-tiny, "
        "or add --tune all",
        encoder_weights,
        "sam2-adapter",
    )


def test_an_encoder_alone_is_enough_to_train_everything(encoder_weights):
    built = build(encoder_weights, tune="all")
    absent = "image_encoder.neck, no_mem_embed, sam_mask_decoder, sam_prompt_encoder"
    assert built.pretrained == f"encoder.pt, without {absent}"


def test_weights_of_another_size(weights):
    with pytest.raises(
        InputError, match=r"^--weights .*: must be of SAM 2.1 Hiera small, got another model \("
    ):
        build(weights, encoder="small")


def test_a_bundle_is_what_was_trained(sam, weights, tmp_path):
    out = tmp_path / "teacher"
    chosen = {"epochs": 1, "size": PX, "batch_size": 2, "limit": 4, "workers": 0, "lr": 1e-3}
    main(settings(weights).model_copy(update={**chosen, "out": out}))
    bundle = open_bundle(out)
    manifest = bundle.manifest
    assert manifest.architecture == "sam2-lora"
    assert manifest.output == output_spec(manifest.classes, 4)
    assert manifest.output.activation == "softmax"
    network = load_teacher(bundle)
    x = torch.randn(1, 3, PX, PX)
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (1, 5, PX // 4, PX // 4)
    assert torch.isfinite(logits).all()
    assert 0 < manifest.trained_parameters < manifest.parameters
    # the decoder's updates are beside it, in peft's format
    transformer = load_peft(copy.deepcopy(sam.sam_mask_decoder.transformer), out / "adapter" / "decoder")
    merged, sealed = merge_peft(transformer).state_dict(), network.decoder.transformer.state_dict()
    assert all(torch.allclose(merged[name], sealed[name], atol=1e-6) for name in sealed)


def test_onnx_keeps_the_contract_and_computes_the_same(weights, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from export.graph.onnx_export import write_onnx

    built = build(
        weights, "sam2-adapter", classes=("lung",)
    )  # SAM2-LoRA's plain form is this without adapters
    network = built.plain(built.network)
    for i in (2, *range(4, 10), 11):  # repeat the blocks before them, and make the export slow
        network.encoder.blocks[i] = torch.nn.Identity()
    graph = DeployGraph(network, SPEC).eval()
    write_onnx(graph, SPEC, built.output, tmp_path / "model.onnx")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert not {"Sqrt", "ReduceMean", "CumSum", "Sin"} & {
        node.op_type for node in nodes
    }  # whole norms, fixed places
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(0).integers(0, 256, (1, PX, PX, 1), dtype=np.uint8)
    found = session.run(None, {"picture": picture})[0]
    with torch.no_grad():
        expected = graph(torch.from_numpy(picture)).numpy()
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())
