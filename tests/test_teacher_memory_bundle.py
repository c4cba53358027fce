"""A bundle of SAM 2 with memory: it opens with its memory, and exports as pictures without one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("sam2")

from export.graph.onnx_export import write_onnx  # noqa: E402
from segcore.bundle.folder import open_bundle  # noqa: E402
from segcore.dataset.dataset import open_dataset  # noqa: E402
from segcore.dataset.soft_labels import open_soft_labels  # noqa: E402
from segcore.learn.network import DeployGraph  # noqa: E402
from segcore.picture.preprocess import prepare, resize_logits  # noqa: E402
from teacher.label import LabelSettings  # noqa: E402
from teacher.label import main as label  # noqa: E402
from teacher.memory.volumes import (  # noqa: E402
    label_volume,
    volume_logits,
    volume_prompt,
)
from teacher.settings import TeacherSettings  # noqa: E402
from teacher.system import load_teacher  # noqa: E402
from teacher.train import main  # noqa: E402

SIZE = 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "teacher"
    given = {
        "system": "sam2-memory",
        "data": "phantom:volume:3",
        "weights": "none",
        "tune": "all",
        "size": SIZE,
    }
    main(TeacherSettings(**given, out=out, epochs=1, clip_slices=3, batch_size=1, limit=4))
    return open_bundle(out)


@pytest.fixture(scope="module")
def network(bundle):
    return load_teacher(bundle)


def test_labels_are_made_volume_by_volume(bundle, network, tmp_path):
    label(
        LabelSettings(bundle=(bundle.folder,), data="phantom:volume:3", out=tmp_path / "soft", device="cpu")
    )
    soft, cases = open_soft_labels(tmp_path / "soft"), open_dataset("phantom:volume:3").split("train")
    manifest = bundle.manifest
    pictures = torch.from_numpy(np.stack([prepare(case.image(), manifest.input) for case in cases]))
    logits = label_volume(network, manifest, pictures, None).numpy()
    for case, one in zip(cases, logits, strict=True):
        np.testing.assert_allclose(soft.of(case.id), resize_logits(one, (SIZE, SIZE)), atol=0.02, rtol=1e-3)


def test_a_bundle_opens_with_its_memory_and_its_automatic_form_exports(bundle, network, tmp_path):
    manifest = bundle.manifest
    assert manifest.name == "SAM2-Memory tiny"
    assert manifest.prompt.kinds == ("point", "box")
    pictures, prompt = torch.randn(3, 3, SIZE, SIZE), volume_prompt(torch.ones(3, SIZE, SIZE), "points")
    with torch.no_grad():
        first = volume_logits(network, pictures, [prompt])
        alone = volume_logits(network, pictures, [prompt], remembering=False)
    assert [bool((a != b).any()) for a, b in zip(first, alone, strict=True)].count(
        False
    ) == 1  # the prompted slice
    graph, path = DeployGraph(network, manifest.input).eval(), tmp_path / "automatic.onnx"
    write_onnx(graph, manifest.input, manifest.output, path)
    picture = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 1), np.uint8)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: picture})
    with torch.no_grad():
        expected = graph(torch.from_numpy(picture)).numpy()
    assert found.shape == (1, 1, SIZE // 4, SIZE // 4)
    np.testing.assert_allclose(found, expected, atol=1e-3)
