"""One reference, torch; two engines. And what happens when an engine is not there."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from runtime.engines.seam import OPENED_BY, choose_engine, engines_for, installed, open_engine
from runtime.pipeline import check_numbers
from runtime.predictor import Predictor
from segcore.bundle.folder import open_bundle
from segcore.errors import InputError
from segcore.phantom import phantom_case
from segcore.picture.preprocess import InputSpec, mask_of_logits, output_spec, prepare


def test_runtime_imports_neither_torch_nor_an_engine():
    code = (
        "import runtime.predictor, runtime.verify, runtime.predict.__main__, runtime.engines.openvino_engine, sys; "
        "heavy = {'torch', 'openvino', 'onnxruntime', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Untrained nets with lively statistics, as ONNX: grey with one class, RGB with three."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from export.graph.onnx_export import write_onnx
    from segcore.learn.network import DeployGraph
    from student.design import unet
    from student.network import build_student

    found = {}
    for name, channels, classes in (("grey", 1, ("lung",)), ("rgb", 3, ("a", "b", "c"))):
        torch.manual_seed(3)
        spec = InputSpec(
            height_px=32, width_px=48, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels
        )
        output = output_spec(classes, 1)
        network = build_student(unet(4), channels=channels, outputs=output.channels)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.1, 1.0)
            elif isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                torch.nn.init.kaiming_normal_(module.weight)
        graph = DeployGraph(network, spec).eval()
        pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 48, channels), np.uint8)
        path = tmp_path_factory.mktemp(name) / "model.onnx"
        with torch.no_grad():
            network.head.weight /= graph(
                torch.from_numpy(pictures)
            ).std()  # logits of about one, as trained ones
            write_onnx(graph, spec, output, path)
            found[name] = path, pictures, graph(torch.from_numpy(pictures)).numpy()
    return found


@pytest.mark.parametrize("name", ["grey", "rgb"])
@pytest.mark.parametrize("engine", OPENED_BY["onnx"])
def test_engines_compute_what_torch_computes(graphs, name, engine):
    if not installed(engine):
        pytest.skip(f"{engine} is not installed")
    path, pictures, expected = graphs[name]
    opened = open_engine(engine, path, precision="fp32", threads=1)
    assert opened.version[0].isdigit()
    logits = opened.run(pictures)
    assert logits.dtype == np.float32
    assert expected.std() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    first = opened.run(pictures[:1])
    opened.run(pictures[1:])  # the engine's own memory is used again: earlier answers must not change
    np.testing.assert_allclose(first, expected[:1], atol=1e-4)
    opened.close()


@pytest.mark.parametrize("engine", OPENED_BY["onnx"])
def test_damaged_model_is_named(tmp_path, engine):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(
        InputError, match=rf"^model {path}: must open in {engine} \S+, does not \(.+\); export it again$"
    ):
        open_engine(engine, path, precision="fp32", threads=1)


def test_predictor_gives_masks_at_the_pictures_own_size(exported):
    image = phantom_case("cxr", 3, size_px=200)[0][:150]
    with Predictor.open(exported("onnx", "fp32")) as predictor:
        found = predictor.predict(image)
        logits = predictor.run(prepare(image, predictor.manifest.input)[None])
        expected = mask_of_logits(logits[0], predictor.manifest.output, (150, 200))
        assert predictor.engine_name == "openvino"
        assert predictor.threads >= 1
    assert found.mask.shape == (150, 200)
    assert found.probabilities.shape == (1, 150, 200)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_array_equal(found.probabilities[0] >= 0.5, found.mask)
    assert found.probabilities is found.probabilities
    assert 0.02 < found.mask.mean() < 0.9
    np.testing.assert_array_equal(found.mask, expected)
    timings = found.timings
    assert timings.total_ms == pytest.approx(timings.pre_ms + timings.engine_ms + timings.post_ms)
    assert min(timings.pre_ms, timings.engine_ms, timings.post_ms) > 0


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("engine", OPENED_BY["onnx"])
def test_eight_threads_may_call_at_once(graphs, engine, streams):
    """Each call has its own memory, the first ones too, which come at the same moment."""
    if not installed(engine):
        pytest.skip(f"{engine} is not installed")
    path, pictures, expected = graphs["grey"]
    opened = open_engine(engine, path, precision="fp32", threads=4, streams=streams)
    together = Barrier(8)

    def work(n: int) -> float:
        together.wait()
        at = n % len(pictures)
        return max(
            float(np.abs(opened.run(pictures[at : at + 1])[0] - expected[at]).max()) for _ in range(1000)
        )

    with ThreadPoolExecutor(8) as pool:
        worst = list(pool.map(work, range(8)))
    opened.close()
    assert max(worst) < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_model_that_gives_no_numbers_is_an_error_of_that_picture(exported, monkeypatch, engine, bad):
    image = phantom_case("cxr", 0)[0]
    with Predictor.open(exported("onnx", "fp32"), engine=engine, threads=1) as predictor:
        mask = predictor.predict(image).mask
        finish = predictor._finish_image

        def spoiled(computed):
            if computed.prepared.name == "b.png":
                computed.logits[0, 3, 3] = bad
            return finish(computed)

        monkeypatch.setattr(predictor, "_finish_image", spoiled)
        words = (
            r"^b\.png: must be segmented, the model gave (NaN|infinity); .* python -m runtime\.verify tells$"
        )
        with pytest.raises(InputError, match=words):
            predictor.predict(image, name="b.png")
        answers = list(predictor.try_map([image] * 3, names=["a.png", "b.png", "c.png"]))
    assert isinstance(answers[1], InputError)
    np.testing.assert_array_equal(answers[0].mask, mask)
    np.testing.assert_array_equal(answers[2].mask, mask)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, (np.inf, -np.inf), (3e38, np.inf)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_pixel_that_is_no_number_is_found(bad, dtype):
    logits = np.random.default_rng(0).normal(0, 10, (3, 64, 64)).astype(dtype)
    check_numbers(logits, "a.png")
    with np.errstate(over="ignore"):
        logits.ravel()[1000 : 1000 + np.size(bad)] = bad
    what = "NaN" if np.isnan(bad).any() else "infinity"
    with pytest.raises(InputError, match=rf"^a\.png: must be segmented, the model gave {what}; "):
        check_numbers(logits, "a.png")


@pytest.mark.parametrize(
    ("dtype", "large"),
    [(np.float32, 3.4e38), (np.float32, -3.4e38), (np.float16, 65504), (np.float16, -65504)],
)
def test_a_sum_that_overflows_is_not_taken_for_a_number_that_is_infinite(dtype, large):
    check_numbers(np.full((3, 64, 64), large, dtype), "a.png")
    check_numbers(np.array([large, -large] * 4096, dtype), "a.png")


def test_engine_can_be_chosen(exported):
    with Predictor.open(exported("onnx", "fp32"), engine="onnxruntime", threads=1) as predictor:
        assert (predictor.engine_name, predictor.threads) == ("onnxruntime", 1)


def test_a_batch_of_another_shape_is_our_bug(exported):
    with (
        Predictor.open(exported("onnx", "fp32")) as predictor,
        pytest.raises(ValueError, match=r"^batch must be uint8 N×64×64×1, got float32"),
    ):
        predictor.run(np.zeros((1, 64, 64, 1), np.float32))


def test_torch_bundle_must_be_exported_first(torch_bundle):
    with pytest.raises(InputError) as error:
        Predictor.open(torch_bundle)
    assert str(error.value) == (
        f"bundle {torch_bundle}: must be exported first, got torch format; "
        f"run python -m export --bundle {torch_bundle} --to openvino --precision fp32 --out OUT"
    )


def test_an_absent_engine_names_its_extra(exported, monkeypatch):
    onnx = exported("onnx", "fp32")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError) as error:
        Predictor.open(onnx, engine="onnxruntime")
    assert str(error.value) == "onnxruntime: must be installed, is not; run: pip install 'sam2edge[onnx]'"


def test_onnxruntime_steps_in_where_openvino_is_absent(exported, monkeypatch):
    onnx, ir = exported("onnx", "fp32"), exported("openvino", "int8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with Predictor.open(onnx) as predictor:
        assert predictor.engine_name == "onnxruntime"
    with pytest.raises(InputError) as error:
        Predictor.open(ir)
    assert str(error.value) == "openvino: must be installed, is not; run: pip install 'sam2edge[openvino]'"


@pytest.mark.parametrize(
    ("machine", "precision", "engine"),
    [
        ("x86_64", "int8", "openvino"),
        ("aarch64", "int8", "onnxruntime"),  # OpenVINO computes it in FP32 there
        ("arm64", "int8", "onnxruntime"),
        ("aarch64", "fp32", "openvino"),
    ],
)
def test_the_default_engine_is_one_that_computes_in_int8(exported, monkeypatch, machine, precision, engine):
    bundle = open_bundle(exported("onnx", "fp32"))
    manifest = bundle.manifest.model_copy(update={"precision": precision})
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert choose_engine(bundle.model_copy(update={"manifest": manifest})) == engine


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            "onnxruntime",
            "--engine onnxruntime: must be able to open openvino, is not; use --engine openvino, "
            "or export the model to another format",
        ),
        ("tvm", "--engine tvm: must be one of openvino, onnxruntime, tensorrt, tensorrt-rtx, got tvm"),
    ],
)
def test_wrong_engines_are_refused(exported, engine, message):
    with pytest.raises(InputError) as error:
        Predictor.open(exported("openvino", "int8"), engine=engine)
    assert str(error.value) == message


def test_threads_must_be_positive(exported):
    with pytest.raises(InputError, match=r"^--threads: must be at least 1, got 0$"):
        Predictor.open(exported("onnx", "fp32"), threads=0)


def test_engines_of_each_format(exported):
    assert engines_for(open_bundle(exported("onnx", "fp32"))) == ("onnxruntime", "openvino")
    assert engines_for(open_bundle(exported("openvino", "int8"))) == ("openvino",)


def test_openvino_is_imported_without_telemetry():
    code = (
        "from runtime.engines.openvino_engine import import_openvino; import sys; import_openvino(); "
        "assert sys.modules['openvino_telemetry'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
