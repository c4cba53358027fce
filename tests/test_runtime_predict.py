import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from runtime.predict.__main__ import PredictSettings, main
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.errors import InputError
from segcore.image import read_image
from segcore.phantom import phantom_case


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(phantom_case("cxr", 40 + i, size_px=128)[0]).save(folder / f"p{i}.png")
    return folder


def run(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "runtime.predict", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_good_files_are_kept_when_one_is_bad(exported, images, tmp_path):
    (images / "bad.png").write_bytes(b"")
    out = tmp_path / "out"
    done = run("--bundle", exported("openvino", "int8"), "--image", images, "--out", out, "--threads", 1)
    assert done.returncode == 2, done.stderr
    first, last = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert first.startswith(f"error: image {images / 'bad.png'}: must be an image, got a file of 0 bytes")
    assert last == (
        f"error: --image {images}: 1 of 3 images could not be used, each is named in predictions.jsonl; "
        f"the masks of the others are in {out}"
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["case"] for record in records] == ["p0", "p1"]
    mask = np.asarray(Image.open(records[0]["mask"]))
    assert mask.shape == (128, 128)
    assert set(np.unique(mask)) == {0, 255}
    assert records[0]["area_px"] == {"lung": int((mask > 0).sum())}
    assert records[0]["engine"].startswith("openvino 20")
    assert records[0]["total_ms"] > 0
    assert np.asarray(Image.open(records[0]["overlay"])).shape == (128, 128, 3)
    stored = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [record.get("mask") for record in stored] == [None, "masks/p0.png", "masks/p1.png"]
    assert stored[0] == {"case": "bad", "error": first.removeprefix("error: ")}


def test_a_torch_bundle_must_be_exported_first(torch_bundle, images, tmp_path):
    with pytest.raises(InputError) as error:
        main(PredictSettings(bundle=torch_bundle, image=images, out=tmp_path / "out"))
    assert str(error.value) == (
        f"bundle {torch_bundle}: must be exported first, got torch format; "
        f"run python -m export --bundle {torch_bundle} --to openvino --precision fp32 --out OUT"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "byte",
            "bundle {b}: model.onnx was changed after it was made (sha256 differs); copy the bundle again",
        ),
        ("missing", "bundle {b}: model.onnx must be there, is missing; copy the bundle again"),
        ("path", "bundle {b}: file paths must stay inside the bundle, got ../x; do not use this bundle"),
        (
            "schema",
            "bundle {b}: schema must be 1, got 2; "
            "install a newer sam2edge, or export the bundle again with this one",
        ),
    ],
)
def test_damaged_bundles_are_refused(exported, images, tmp_path, damage, message):
    bundle = tmp_path / "bundle"
    shutil.copytree(exported("onnx", "fp32"), bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    if damage == "byte":
        content = bytearray((bundle / "model.onnx").read_bytes())
        content[1000] ^= 1
        (bundle / "model.onnx").write_bytes(content)
    elif damage == "missing":
        (bundle / "model.onnx").unlink()
    elif damage == "path":
        manifest["files"] = {"../x": manifest["files"]["model.onnx"], **manifest["files"]}
    else:
        manifest["schema_version"] = 2
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    expected = message.format(b=bundle)
    if damage == "byte":  # once through the shell: one line, exit status 2, nothing written
        done = run("--bundle", bundle, "--image", images, "--out", tmp_path / "out")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {expected}\n")
    else:
        with pytest.raises(InputError) as error:
            main(PredictSettings(bundle=bundle, image=images, out=tmp_path / "out"))
        assert str(error.value) == expected
    assert not list(tmp_path.glob("out*"))


def test_one_bad_file_writes_nothing(exported, tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(path)
    assert read_image(path).dtype == np.uint16
    with pytest.raises(InputError) as error:
        main(PredictSettings(bundle=exported("onnx", "fp32"), image=path, out=tmp_path / "out"))
    assert str(error.value) == (
        f"image {path}: must be uint8 as the model was trained on (window 0 to 255), got uint16; "
        "convert it the way the training images were"
    )
    assert not list(tmp_path.glob("out*"))


def test_out_must_be_new_unless_overwritten(exported, images, tmp_path, capsys):
    settings = {"bundle": exported("onnx", "fp32"), "image": images / "p0.png", "out": tmp_path / "out"}
    main(PredictSettings(**settings))
    with pytest.raises(InputError, match=r"must not exist yet, it does; add --overwrite to replace it$"):
        main(PredictSettings(**settings))
    main(PredictSettings(**settings, overwrite=True))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_out_must_be_apart_from_the_images(exported, images):
    with pytest.raises(InputError) as error:
        main(PredictSettings(bundle=exported("onnx", "fp32"), image=images, out=images, overwrite=True))
    assert (
        str(error.value)
        == f"--out {images}: must be apart from --image {images}, is not; choose another folder"
    )
    assert (images / "p0.png").exists()


def test_several_classes_are_written_as_indices(exported, images, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from export.graph.onnx_export import write_onnx
    from segcore.learn.network import DeployGraph
    from segcore.picture.preprocess import output_spec

    class Bands(torch.nn.Module):
        """Class 1 where it is bright, class 2 where it is dark, background between."""

        def forward(self, x):
            return torch.cat([torch.zeros_like(x), x - 1.0, -x - 1.0], dim=1)

    manifest = dict(open_bundle(exported("onnx", "fp32")).manifest)
    manifest |= {"classes": ("bright", "dark"), "output": output_spec(("bright", "dark"), 1)}
    manifest.pop("files")
    bundle = tmp_path / "bands"
    bundle.mkdir()
    graph = DeployGraph(Bands(), manifest["input"]).eval()
    write_onnx(graph, manifest["input"], manifest["output"], bundle / "model.onnx")
    seal_bundle(bundle, **manifest)
    main(PredictSettings(bundle=bundle, image=images / "p0.png", out=tmp_path / "out"))
    record = json.loads(capsys.readouterr().out)
    mask = np.asarray(Image.open(record["mask"]))
    image = read_image(images / "p0.png")
    assert set(np.unique(mask)) == {0, 1, 2}
    assert image[mask == 1].min() > image[mask == 0].mean() > image[mask == 2].max()
    assert record["area_px"] == {"bright": int((mask == 1).sum()), "dark": int((mask == 2).sum())}
