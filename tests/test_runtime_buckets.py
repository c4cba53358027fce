"""Several sizes and batches of one network in a bundle: each picture goes to the right one, and each is verified."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import runtime.predictor
from runtime.buckets import choose_size, model_files
from runtime.predict.__main__ import PredictSettings, main
from runtime.predictor import Predictor
from runtime.verify import VerifySettings, verify_bundle
from runtime.verify import main as verify
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.golden import (
    golden_inputs,
    graphs_digest,
    load_golden,
    load_whole_way,
    mask_digest,
    save_golden,
)
from segcore.bundle.manifest import Variant
from segcore.errors import GateError, InputError
from segcore.phantom import phantom_case
from segcore.picture.preprocess import mask_of_logits, prepare

SIZES = ((64, 64), (96, 128))


def resealed(folder, manifest=None, **changes):
    """Seals a bundle anew as an export would: its golden cases promise the new manifest."""
    fields = dict(manifest or open_bundle(folder).manifest) | changes
    also = tuple(fields.pop("files"))
    sealed = seal_bundle(folder, also=also, **fields)
    whole = replace(
        load_whole_way(folder),
        digest=mask_digest(sealed, (file.size_px for file in model_files(sealed))),
        graphs=graphs_digest(sealed.files),
    )
    save_golden(folder, *load_golden(folder), whole=whole)
    seal_bundle(folder, also=also, **fields)
    return folder


@pytest.fixture(scope="module")
def buckets(exported, torch_bundle, tmp_path_factory):
    """The student as ONNX: 64×64 for 1 and 4 pictures a call, 96×128 for 1, and a file for TensorRT alone."""
    from export.gate import golden_reference
    from export.model_file import write_model
    from export.pipeline import open_graph

    folder = tmp_path_factory.mktemp("buckets") / "b"
    shutil.copytree(exported("onnx", "fp32"), folder)
    graph, manifest = open_graph(open_bundle(torch_bundle)), open_bundle(folder).manifest
    large = manifest.input.model_copy(update={"height_px": 96, "width_px": 128})
    for spec, file, batch in ((manifest.input, "model-b4.onnx", 4), (large, "model-96x128.onnx", 1)):
        write_model(graph, spec, manifest.output, folder / file, to="onnx", precision="fp32", batch=batch)
    inputs = golden_inputs(large)
    save_golden(folder, inputs, golden_reference(graph, inputs).logits, file="golden-96x128.npz")
    (folder / "model-fp16.onnx").write_bytes(b"\x12\x1cfor TensorRT's builder alone")
    variants = (
        Variant(file="model-fp16.onnx", height_px=64, width_px=64, typing="fp16"),
        Variant(file="model-b4.onnx", height_px=64, width_px=64, batch=4),
        Variant(file="model-96x128.onnx", golden="golden-96x128.npz", height_px=96, width_px=128),
    )
    return resealed(folder, variants=variants)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((64, 64), (64, 64)),
        ((10, 20), (64, 64)),
        ((65, 64), (96, 128)),
        ((64, 65), (96, 128)),
        ((96, 128), (96, 128)),
        ((128, 96), (256, 256)),
        ((500, 500), (256, 256)),
        ((300, 10), (256, 256)),
        ((7,), (64, 64)),
    ],
)
def test_the_smallest_size_that_holds_the_picture(picture, expected):
    sizes = ((96, 128), (256, 256), (64, 64))
    assert choose_size(sizes, picture) == expected


def image(height, width, seed=3):
    return phantom_case("cxr", seed, size_px=256)[0][:height, :width].copy()


def test_each_picture_goes_to_its_size(buckets):
    with Predictor.open(buckets, threads=1) as predictor:
        spec, output = predictor.manifest.input, predictor.manifest.output
        for picture, size_px in (
            (image(60, 64), SIZES[0]),
            (image(80, 80), SIZES[1]),
            (image(200, 200), SIZES[1]),
        ):
            found = predictor.predict(picture)
            sized = spec.model_copy(update={"height_px": size_px[0], "width_px": size_px[1]})
            assert predictor.input_at(size_px) == sized
            logits = predictor.run(prepare(picture, sized)[None])[0]
            assert logits.shape[1:] == size_px
            np.testing.assert_array_equal(found.mask, mask_of_logits(logits, output, picture.shape))
            with Predictor.open(buckets, threads=1, size_px=size_px) as fixed:
                np.testing.assert_array_equal(fixed.predict(picture).mask, found.mask)
        small = predictor.run(prepare(picture, spec)[None])[0]
        assert (mask_of_logits(small, output, picture.shape) != found.mask).any()  # the sizes do differ
        with pytest.raises(ValueError, match=r"^batch must be uint8 N×64×64×1 or N×96×128×1, got uint8"):
            predictor.run(np.zeros((1, 80, 80, 1), np.uint8))


def opened_files(monkeypatch):
    """Names of the files that are opened and closed from now on, by the real engines."""
    notes = SimpleNamespace(opened=[], closed=[])
    real = runtime.predictor.open_engine

    def noted(name, path, **settings):
        notes.opened.append(path.name)
        engine = real(name, path, **settings)
        close = engine.close
        engine.close = lambda: (notes.closed.append(path.name), close())
        return engine

    monkeypatch.setattr(runtime.predictor, "open_engine", noted)
    return notes


def test_files_are_opened_when_needed_and_closed_together(buckets, monkeypatch):
    notes = opened_files(monkeypatch)
    with Predictor.open(buckets, threads=1) as predictor:
        predictor.predict(image(64, 64))
        assert notes.opened == ["model.onnx"]
        for _ in range(2):
            list(predictor.map([image(90, 90), image(50, 50)]))
        assert notes.opened == ["model.onnx", "model-96x128.onnx"]
        assert notes.closed == []
    assert sorted(notes.closed) == sorted(notes.opened)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("batch", [1, 4])
def test_map_keeps_the_order_over_sizes_and_batches(buckets, monkeypatch, engine, batch):
    notes = opened_files(monkeypatch)
    pictures = [image(64, 64, n) for n in range(6)] + [image(90, 90), image(50, 64), image(90, 128)]
    with Predictor.open(buckets, engine=engine, threads=2, batch=batch) as predictor:
        expected = [predictor.predict(picture).probabilities for picture in pictures]
        assert notes.opened == ["model.onnx", "model-96x128.onnx"]
        list(predictor.map(pictures[:3]))  # too few for the file for four
        assert notes.opened == ["model.onnx", "model-96x128.onnx"]
        found = [one.probabilities for one in predictor.map(pictures)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert ("model-b4.onnx" in notes.opened) == (batch == 4)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_without_a_file_for_one_the_batch_is_filled_up(buckets, tmp_path, engine):
    folder = tmp_path / "b"
    shutil.copytree(buckets, folder)
    only_four = Variant(file="model-b4.onnx", height_px=64, width_px=64, batch=4)
    large = open_bundle(buckets).manifest.input.model_copy(update={"height_px": 96, "width_px": 128})
    # The model itself is at 96×128 here: 64×64 is there for 4 pictures only.
    resealed(folder, model_file="model-96x128.onnx", input=large, variants=(only_four,))
    pictures = [image(64, 64, n) for n in range(6)]
    with (
        Predictor.open(folder, engine=engine, threads=1, batch=4) as predictor,
        Predictor.open(buckets, engine=engine, threads=1, size_px=(64, 64)) as single,
    ):
        found = [*predictor.map(pictures), predictor.predict(pictures[5])]
        for one, picture in zip(found, [*pictures, pictures[5]], strict=True):
            np.testing.assert_allclose(one.probabilities, single.predict(picture).probabilities, atol=1e-4)


def test_sizes_and_batches_that_are_not_there_are_refused(buckets, exported):
    with pytest.raises(InputError) as error:
        Predictor.open(buckets, size_px=(80, 80))
    assert str(error.value) == (
        f"bundle {buckets}: must hold the size 80×80, holds 64×64, 96×128; use one of these, or export the model at "
        "that size"
    )
    with pytest.raises(InputError) as error:
        Predictor.open(buckets, batch=8)
    assert str(error.value) == (
        f"--batch 8: must be one that bundle {buckets} holds, 1, 4, got 8; use one of these, or export the model with "
        "that batch"
    )
    with pytest.raises(InputError, match=r"holds, 1, got 4;"):
        Predictor.open(buckets, size_px=(96, 128), batch=4)
    with pytest.raises(InputError, match=r"holds, 1, got 4;"):
        Predictor.open(exported("onnx", "fp32"), batch=4)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_every_variant_is_verified(buckets, capsys, engine):
    found = verify_bundle(open_bundle(buckets), engine=engine, threads=1)
    assert found.failures == ()
    assert [(one.file, one.size_px, one.batch, one.cases) for one in found.files] == [
        ("model.onnx", (64, 64), 1, 12),
        ("model-b4.onnx", (64, 64), 4, 12),
        ("model-96x128.onnx", (96, 128), 1, 12),
    ]
    assert found.left_out == ("model-fp16.onnx",)
    verify(VerifySettings(bundle=buckets, engine=engine, threads=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[6].startswith("model-b4.onnx                 64×64, batch 4, 12 golden cases: mean 0.0")
    assert lines[7].startswith("model-96x128.onnx             96×128, batch 1, 12 golden cases: mean 0.0")
    assert lines[8] == f"model-fp16.onnx               not verified: {engine} does not open it"
    assert lines[9].startswith("from picture to mask          0.0")
    assert lines[10] == "PASS"
    result = json.loads(lines[-1])
    assert result["passed"] is True
    assert [one["file"] for one in result["variants"]] == ["model-b4.onnx", "model-96x128.onnx"]


def test_a_wrong_variant_fails_by_its_name(buckets, tmp_path, capsys):
    folder = tmp_path / "b"
    shutil.copytree(buckets, folder)
    inputs, logits = load_golden(folder, file="golden-96x128.npz")
    save_golden(folder, inputs, -logits, file="golden-96x128.npz")
    resealed(folder, open_bundle(buckets).manifest)
    with pytest.raises(
        GateError, match=r": model-96x128\.onnx: \S+ % of pixels differ on average, at most 0.100 % may$"
    ):
        verify(VerifySettings(bundle=folder, threads=1))
    assert "FAIL" in capsys.readouterr().out.splitlines()
    wrong = (Variant(file="model-96x128.onnx", height_px=96, width_px=128),)  # with the golden cases of 64×64
    resealed(folder, variants=wrong)
    with pytest.raises(InputError) as error:
        verify_bundle(open_bundle(folder))
    assert str(error.value) == (
        f"bundle {folder}: pictures must be 96×128 as model-96x128.onnx takes them, got (12, 64, 64, 1) in golden.npz; "
        "export it again"
    )


def test_predict_takes_batches_and_streams(buckets, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for n in range(6):
        Image.fromarray(image(64, 64, n)).save(images / f"p{n}.png")
    Image.fromarray(image(90, 120)).save(images / "p6.png")
    out = {}
    for name, settings in (("plain", {}), ("all", {"streams": 2, "batch": 4, "cache": tmp_path / "cache"})):
        main(PredictSettings(bundle=buckets, image=images, out=tmp_path / name, threads=2, **settings))
        captured = capsys.readouterr()
        out[name] = [json.loads(line) for line in captured.out.splitlines()]
        assert "7 images in " in captured.err
        assert captured.err.endswith("images/s with reading and writing\n")
    assert [one["case"] for one in out["all"]] == [f"p{n}" for n in range(7)]
    for plain, other in zip(out["plain"], out["all"], strict=True):
        masks = [np.asarray(Image.open(one["mask"])) for one in (plain, other)]
        assert (masks[0] != masks[1]).mean() <= 0.001
    with pytest.raises(InputError) as error:
        main(
            PredictSettings(
                bundle=buckets, image=images, out=tmp_path / "x", defer_to=buckets, threads=2, batch=4
            )
        )
    assert str(error.value) == "--batch: must be 1 with --defer-to, got 4; it takes pictures one by one"
