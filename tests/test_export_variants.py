"""More files of one network: sizes, batches, TensorRT's strongly typed graph; and what each target's bundle holds."""

import pytest

from export.__main__ import ExportSettings, export_bundle, make_job
from runtime.engines.seam import open_engine
from runtime.parity import PARITY_LIMITS, check_parity
from segcore.bundle.folder import open_bundle
from segcore.bundle.golden import load_golden
from segcore.errors import GateError, InputError

DATA = "phantom:cxr:24"
UNGUARDED = {
    "max_drop_points": 100,
    "max_p05_drop_points": 100,
    "min_speedup": 0,
    "calibration_cases": 4,
    "guard_cases": 3,
    "max_size_drop_points": 100,
}


@pytest.fixture(scope="module")
def several(torch_bundle, tmp_path_factory):
    """Exports with one more size and one more batch, each target once."""
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package) if package != "openvino" else None
    folder = tmp_path_factory.mktemp("several")

    def export(to, precision):
        out = folder / f"{to}-{precision}"
        if not out.exists():
            settings = {"bundle": torch_bundle, "to": to, "precision": precision, "data": DATA, "out": out}
            export_bundle(ExportSettings(**settings, size=(96, 64), batch=(1, 3), **UNGUARDED))
        return open_bundle(out)

    return export


@pytest.mark.parametrize(
    ("to", "precision", "files"),
    [
        ("openvino", "int8", {"model-96x96.xml": 1, "model-b3.xml": 3}),
        ("onnx", "fp16", {"model-96x96.onnx": 1, "model-b3.onnx": 3}),
        (
            "tensorrt",
            "int8",
            {
                "model-96x96.onnx": 1,
                "model-b3.onnx": 3,
                "model-fp16typed.onnx": 1,
                "model-96x96-fp16typed.onnx": 1,
                "model-b3-fp16typed.onnx": 3,
            },
        ),
    ],
)
def test_a_bundle_holds_what_was_asked_for(several, to, precision, files):
    manifest = several(to, precision).manifest
    assert {variant.file: variant.batch for variant in manifest.variants} == files
    for variant in manifest.variants:
        size = 96 if "96x96" in variant.file else 64
        assert variant.size_px == (size, size)
        assert variant.golden == ("golden-96x96.npz" if size == 96 else "golden.npz")
        assert variant.typing == ("fp16" if "fp16typed" in variant.file else "fp32")
        assert variant.golden in manifest.files


@pytest.mark.parametrize("to", ["openvino", "tensorrt"])
def test_the_size_in_a_report_is_that_of_one_model(several, to):
    from benchmarks.report.subject import Subject

    bundle = several(to, "int8")
    model = ["model.xml", "model.bin"] if to == "openvino" else ["model.onnx"]
    expected = sum(bundle.path(name).stat().st_size for name in model)
    assert Subject("any", bundle, "any").size_bytes == expected


@pytest.mark.parametrize(("to", "engine"), [("openvino", "openvino"), ("tensorrt", "onnxruntime")])
def test_each_int8_file_computes_what_the_main_one_does(several, to, engine):
    bundle = several(to, "int8")
    inputs, golden = load_golden(bundle.folder)
    batch = next(v for v in bundle.manifest.variants if v.batch == 3)
    opened = open_engine(engine, bundle.path(batch.file), precision="int8", threads=1)
    parity = check_parity(opened.run(inputs), golden, bundle.manifest.output, [(64, 64)] * len(inputs))
    opened.close()
    assert parity.failures(PARITY_LIMITS["int8"]) == []
    large = next(v for v in bundle.manifest.variants if v.size_px == (96, 96) and v.typing == "fp32")
    inputs, golden = load_golden(bundle.folder, file=large.golden)
    assert inputs.shape[1:3] == (96, 96)
    opened = open_engine(engine, bundle.path(large.file), precision="int8", threads=1)
    parity = check_parity(opened.run(inputs), golden, bundle.manifest.output, [(96, 96)] * len(inputs))
    opened.close()
    assert parity.failures(PARITY_LIMITS["int8"]) == []  # made with more threads, whose sums round otherwise


def test_tensorrt_graphs_keep_the_rules_of_their_versions(several):
    onnx = pytest.importorskip("onnx")
    from export.rules.check import check_graph
    from export.typed_files import TYPED_8, TYPED_10

    bundle = several("tensorrt", "int8")
    files = {v.file: TYPED_10 if v.typing == "fp16" else TYPED_8 for v in bundle.manifest.variants}
    for file, versions in {"model.onnx": TYPED_8, **files}.items():
        model = onnx.load(bundle.path(file), load_external_data=False)
        for version in versions:
            assert [f for f in check_graph(model, version) if f.severity == "error"] == [], (file, version)
        pairs = [node.op_type for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert len(pairs) > 20


def onnx_nodes(bundle):
    onnx = pytest.importorskip("onnx")
    return onnx.load(bundle.model_path, load_external_data=False).graph.node


def test_a_tensorrt_bundle_says_that_its_speed_is_unmeasured(several, capsys):
    from export.__main__ import print_guard

    guard = several("tensorrt", "int8").manifest.guard
    assert guard.speeds == ()
    assert guard.engine == "onnxruntime"
    # What the device looks for in its engine: convolutions alone, where the layers are also sums and joints.
    assert 0 < len(guard.int8_nodes) < guard.layers
    assert set(guard.int8_nodes) < {node.name for node in onnx_nodes(several("tensorrt", "int8"))}
    print_guard(guard)
    assert "speed: unmeasured; it is measured on the device (python -m export.kit)" in capsys.readouterr().out


@pytest.mark.usefixtures("exact_int8")
def test_onnx_int8_is_judged_in_every_engine_that_opens_it(several):
    guard = several("onnx", "int8").manifest.guard
    assert [speed.engine for speed in guard.speeds] == ["onnxruntime", "openvino"]
    assert not any("fp16typed" in v.file for v in several("onnx", "int8").manifest.variants)


def test_a_size_that_costs_dice_is_refused(torch_bundle, tmp_path):
    """The masks are torch's at that size, too; it is the network that knows no lungs of 512 px."""
    settings = {"bundle": torch_bundle, "to": "onnx", "out": tmp_path / "out", "size": (512,)}
    with pytest.raises(
        InputError, match=r"^--data: must be given with --size, got none; it tells what the size costs$"
    ):
        export_bundle(ExportSettings(**settings))
    with pytest.raises(
        GateError,
        match=r"^--size 512: fp32 must lose at most 1 point of the Dice at 64 px, 0\.\d{4}, lost \d+\.\d\d; leave this size "
        r"out, train at it, or raise --max-size-drop-points$",
    ):
        export_bundle(ExportSettings(**settings, data=DATA))
    assert list(tmp_path.iterdir()) == []


def test_int8_at_another_size_is_guarded_too(torch_bundle, several, fragile_student, tmp_path):
    from export.job import open_export_data
    from export.pipeline import open_graph
    from export.variants import write_variants
    from segcore.learn.network import DeployGraph

    source = open_bundle(torch_bundle)
    network = open_graph(source).network
    graph = DeployGraph(
        fragile_student.make_fragile(network, layers=fragile_student.fragile_layers(network)[:1], factor=1e4),
        source.manifest.input,
    )
    settings = ExportSettings(
        bundle=torch_bundle,
        to="openvino",
        precision="int8",
        data=DATA,
        out=tmp_path / "out",
        size=(32,),
        max_size_drop_points=100,
    )
    data = open_export_data(DATA, source.manifest, calibration_cases=4, guard_cases=3)
    guard = several("openvino", "int8").manifest.guard
    with pytest.raises(
        GateError,
        match=r"^--size 32: int8 must lose at most 0.1 points \(0.5 of the 5th percentile\), lost \d+\.\d\d "
        r"\(-?\d+\.\d\d\); leave this size out, or raise --max-drop-points$",
    ):
        write_variants(make_job(settings, source, data, tmp_path, tmp_path), graph.eval(), guard)


def test_a_teacher_has_one_picture_a_call(torch_bundle, tmp_path):
    import shutil

    from segcore.bundle.folder import seal_bundle

    shutil.copytree(torch_bundle, tmp_path / "teacher")
    of_sam = {"kind": "teacher", "architecture_settings": {"encoder": "tiny"}}
    manifest = dict(open_bundle(torch_bundle).manifest) | of_sam
    manifest.pop("files")
    seal_bundle(tmp_path / "teacher", **manifest)
    with pytest.raises(InputError) as error:
        export_bundle(
            ExportSettings(bundle=tmp_path / "teacher", to="onnx", batch=(2,), out=tmp_path / "out")
        )
    assert str(error.value) == (
        "--batch: must be 1 for a teacher, got more; its graph holds the batch in many places"
    )
