"""The manifest's format is frozen; a bundle that was changed, cut or made to attack is refused."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from segcore.bundle.external_data import TENSOR_PARTS, has_external_data
from segcore.bundle.folder import (
    MANIFEST,
    Bundle,
    hash_file,
    open_and_tell,
    open_bundle,
    seal_bundle,
)
from segcore.bundle.manifest import Manifest, Metric
from segcore.errors import InputError

# Written by version 0.1.0. It must keep parsing to the same values: bundles travel and live long.
GOLDEN = """{
  "schema_version": 1,
  "name": "lightunet-8 INT8 openvino",
  "kind": "student",
  "format": "openvino",
  "precision": "int8",
  "architecture": "unet",
  "architecture_settings": {"base": 8},
  "classes": ["left lung", "right lung"],
  "input": {
    "height_px": 256, "width_px": 320, "channels": 1, "depth": "uint16", "window": [12.5, 4000.0],
    "resize_filter": "bilinear", "mean": [0.5], "std": [0.25]
  },
  "output": {"activation": "softmax", "channels": 3, "stride": 4, "threshold": 0.5},
  "parameters": 487163,
  "trained_parameters": 487163,
  "macs": 765000000,
  "pretrained": "no pretrained weights",
  "parent": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  "teacher": null,
  "data": {
    "name": "phantom:cxr", "sha256": "b", "split_sha256": "c", "split_seed": 0,
    "counts": {"train": 144, "val": 48, "test": 48}, "calibration_cases": ["cxr-0001"]
  },
  "metrics": [{"name": "dice_mean", "split": "val", "value": 0.9423, "cases": 48}],
  "gate": {"golden_mean_share": 0.001},
  "settings": {"seed": 0},
  "made": {
    "command": "python -m export", "time": "2026-01-02T03:04:05+00:00", "commit": "1a211d7", "python": "3.10.12",
    "host": "ARM, 4 cores, Linux aarch64", "versions": {"numpy": "2.2.6"}
  },
  "lineage": [],
  "model_file": "model.xml",
  "files": {"model.xml": {"sha256": "SHA", "bytes": 5}}
}
"""
FIELDS = json.loads(GOLDEN)
CONTENT = b"graph"
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "B"
    folder.mkdir()
    (folder / "model.xml").write_bytes(CONTENT)
    (folder / MANIFEST).write_text(GOLDEN.replace("SHA", SHA))
    return folder


def message(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_bundle(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(folder), "B")


def rewrite(folder: Path, **changes) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(fields | changes))


def test_golden_manifest_keeps_parsing(folder):
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    assert bundle.sha256 == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert bundle.model_path == folder / "model.xml"
    assert manifest.input.size_px == (256, 320)
    assert manifest.input.window == (12.5, 4000.0)
    assert manifest.classes == ("left lung", "right lung")
    assert manifest.metric("dice_mean", "val") == 0.9423
    assert manifest.metric("dice_mean", "test") is None
    assert manifest.data.counts == {"train": 144, "val": 48, "test": 48}


# Since 0.1.0, each with a default: an old bundle stays readable, the schema's number stays.
ADDED = {
    "quality": None,
    "guard": None,
    "engine_target": None,
    "compiled": None,
    "variants": [],
    "prompt": None,
    "calibration": None,
    "stopped_epoch": None,
}
ADDED_TO_DATA = {"test_images": [], "fold": ""}


def test_golden_manifest_is_what_we_write():
    """No field is lost, added or renamed without this test saying so (and the schema's number rising)."""
    text = GOLDEN.replace("SHA", SHA)
    fields = json.loads(text)
    fields["data"] |= ADDED_TO_DATA
    assert json.loads(Manifest.model_validate_json(text).model_dump_json()) == fields | ADDED
    assert sorted([*json.loads(text), *ADDED]) == sorted(Manifest.model_fields)


def test_quality_travels_in_the_manifest():
    fields = {
        "weights": [0.5] * 13, "centre": [0.0] * 6, "spread": [1.0] * 6, "high": [1.5] * 6,
        "shape_centre": [[0.0] * 7] * 2, "shape_spread": [[1.0] * 7] * 2, "empty_right": [0.0, 0.9],
        "cases": 48, "error": 0.02, "error_degraded": 0.05,
    }  # fmt: skip
    manifest = Manifest.model_validate(json.loads(GOLDEN.replace("SHA", SHA)) | {"quality": fields})
    assert json.loads(manifest.model_dump_json())["quality"] == fields


def test_seal_then_open(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.bin").write_bytes(b"x" * 10)
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "model.xml").write_bytes(CONTENT)
    fields = {k: v for k, v in FIELDS.items() if k != "files"}
    fields["metrics"] = (Metric(name="dice_mean", split="test", value=0.5, cases=3),)
    sealed = seal_bundle(tmp_path, also=("sub", "not-made.png"), **fields)
    assert set(sealed.files) == {"model.xml", "sub/x.bin", "MODEL_CARD.md"}
    opened = open_bundle(tmp_path)
    assert isinstance(opened, Bundle)
    assert opened.manifest == sealed


@pytest.mark.parametrize("name", ["0123456789abcdef.tmp", "old-model.bin", "sub/model.xml", "fp32.onnx"])
def test_what_the_stage_did_not_write_is_not_sealed(tmp_path, name):
    """Five kills of an export had made a bundle of 21 MB out of one of 0.9 MB."""
    (tmp_path / "model.xml").write_bytes(CONTENT)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"left behind")
    with pytest.raises(InputError) as caught:
        seal_bundle(tmp_path, **{k: v for k, v in FIELDS.items() if k != "files"})
    assert str(caught.value).replace(str(tmp_path), "O.partial") == (
        f"bundle O.partial: must hold the files of its stage alone, got {name}; move it away and run the same command "
        "again"
    )
    assert not (tmp_path / MANIFEST).exists()


def test_files_that_belong_to_the_named_ones_are_sealed(tmp_path):
    """Weights of an IR, golden cases, those of another size; what resuming needed goes when the manifest is there."""
    names = {"model.xml", "model.bin", "golden.npz", "model-96x96.xml", "model-96x96.bin", "golden-96x96.npz"}
    for name in (*names, "last.pt"):
        (tmp_path / name).write_bytes(CONTENT)
    size = {"file": "model-96x96.xml", "golden": "golden-96x96.npz", "height_px": 96, "width_px": 96}
    fields = {k: v for k, v in FIELDS.items() if k != "files"} | {"variants": (size,)}
    assert {*seal_bundle(tmp_path, resumed_from=("last.pt",), **fields).files} == {*names, "MODEL_CARD.md"}
    assert not (tmp_path / "last.pt").exists()


def sized(**changes) -> Manifest:
    sizes = changes.pop("sizes")
    return Manifest.model_validate(
        FIELDS | {"files": {name: {"sha256": SHA, "bytes": n} for name, n in sizes.items()}} | changes
    )


PLAIN = {"model.xml": 1, "model.bin": 20, "golden.npz": 300, "MODEL_CARD.md": 4000}


def test_size_of_a_plain_model_is_its_graph_and_weights():
    assert sized(sizes=PLAIN).model_bytes == 21
    trained = PLAIN | {"model.safetensors": 7, "adapter/adapter_model.safetensors": 50}
    trained = {name: n for name, n in trained.items() if name not in ("model.xml", "model.bin")}
    assert sized(sizes=trained, model_file="model.safetensors", format="torch").model_bytes == 7


def test_size_leaves_out_files_of_other_sizes_and_batches():
    other = {"file": "model_384x384_b8.xml", "height_px": 384, "width_px": 384, "batch": 8}
    sizes = PLAIN | {"model_384x384_b8.xml": 50_000, "model_384x384_b8.bin": 600_000}
    assert sized(sizes=sizes, variants=[other]).model_bytes == 21


def test_size_of_a_promptable_bundle_is_that_of_its_automatic_model():
    prompt = {
        "kinds": ["point"],
        "slots": 5,
        "masks": 1,
        "encoder_file": "encoder.xml",
        "decoder_file": "decoder.xml",
    }
    sizes = PLAIN | {"encoder.xml": 50_000, "encoder.bin": 600_000, "decoder.xml": 7_000_000}
    assert sized(sizes=sizes, prompt=prompt).model_bytes == 21


def test_hash_of_known_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    entry = hash_file(tmp_path / "a")
    assert entry.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert entry.bytes == 3


def test_not_a_bundle(tmp_path):
    assert message(tmp_path / "B") == "bundle B: must be a folder with manifest.json, got none"
    (tmp_path / "B.partial").mkdir()
    assert message(tmp_path / "B") == (
        "bundle B: must be a folder with manifest.json, got none; B.partial is unfinished, run its command again"
    )


@pytest.mark.parametrize("content", [b"grapH", b"graph ", b""])
def test_changed_byte(folder, content):
    (folder / "model.xml").write_bytes(content)
    assert (
        message(folder)
        == "bundle B: model.xml was changed after it was made (sha256 differs); copy the bundle again"
    )


def test_missing_file(folder):
    (folder / "model.xml").unlink()
    assert message(folder) == "bundle B: model.xml must be there, is missing; copy the bundle again"


@pytest.mark.parametrize("name", ["../model.xml", "/etc/passwd", "a/../../model.xml", "..\\model.xml"])
def test_path_that_leaves_the_folder(folder, name):
    (folder.parent / "model.xml").write_bytes(CONTENT)
    rewrite(folder, files={name: {"sha256": SHA, "bytes": 5}}, model_file=name)
    assert message(folder) == (
        f"bundle B: file paths must stay inside the bundle, got {name}; do not use this bundle"
    )


def test_link(folder):
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / "model.xml").rename(outside / "model.xml")
    (folder / "model.xml").symlink_to(outside / "model.xml")
    assert message(folder) == "bundle B: model.xml must be a file, is a link; copy the bundle with its files"
    (folder / "sub").symlink_to(outside)
    rewrite(folder, files={"sub/model.xml": {"sha256": SHA, "bytes": 5}}, model_file="sub/model.xml")
    assert message(folder) == "bundle B: sub must be a file, is a link; copy the bundle with its files"


def test_bundle_reached_through_a_link_is_fine(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    assert open_bundle(tmp_path / "latest").sha256 == open_bundle(folder).sha256


@pytest.mark.parametrize("version", [2, 99, None])
def test_newer_schema(folder, version):
    rewrite(folder, schema_version=version)
    assert message(folder) == (
        f"bundle B: schema must be 1, got {version}; "
        "install a newer sam2edge, or export the bundle again with this one"
    )


@pytest.mark.parametrize("text", ["{", "", "\x00", "[" * 100_000, GOLDEN[:500]])
def test_damaged_json(folder, text):
    (folder / MANIFEST).write_text(text)
    assert message(folder) == "bundle B: manifest.json must be JSON, is damaged; copy the bundle again"


def test_manifest_that_is_not_text(folder):
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
    assert message(folder) == "bundle B: manifest.json must be JSON, is damaged; copy the bundle again"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"kind": "uncle"}, "field kind: Input should be 'teacher' or 'student'"),
        ({"parameters": "many"}, "field parameters: Input should be a valid integer"),
        (
            {"files": {"model.xml": {"sha256": "0", "bytes": 5}}},
            "field files.model.xml.sha256: String should match",
        ),
    ],
)
def test_wrong_field(folder, changes, where):
    rewrite(folder, **changes)
    text = message(folder)
    assert text.startswith(f"bundle B: manifest.json {where}")
    assert text.endswith("; export the bundle again")


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"surprise": 1}, "surprise"), ({"data": FIELDS["data"] | {"phase_of_moon": 3}}, "data.phase_of_moon")],
)
def test_field_of_a_newer_version(folder, changes, where):
    rewrite(folder, **changes)
    assert message(folder) == (
        f"bundle B: manifest.json must hold known fields, got {where}: a newer sam2edge made it; "
        "install that version, or export the bundle again with this one"
    )


@pytest.mark.parametrize("missing", ["file", "golden"])
def test_variant_that_nobody_hashed(folder, missing):
    variant = {"file": "model.xml", "golden": "model.xml", "height_px": 64, "width_px": 96}
    rewrite(folder, variants=[variant])
    (variant,) = [v.model_dump() for v in open_bundle(folder).manifest.variants]
    assert (variant["batch"], variant["typing"]) == (1, "fp32")
    rewrite(folder, variants=[variant | {missing: "other.xml"}])
    assert message(folder) == "bundle B: other.xml must be listed in manifest.json, is not; export it again"


def test_model_file_that_nobody_hashed(folder):
    (folder / "other.xml").write_bytes(b"unknown")
    rewrite(folder, model_file="other.xml")
    assert message(folder) == "bundle B: other.xml must be listed in manifest.json, is not; export it again"


def test_full_disk_leaves_no_manifest(folder, monkeypatch):
    (folder / MANIFEST).unlink()

    def full(*_args, **_kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        seal_bundle(folder, **{k: v for k, v in FIELDS.items() if k != "files"})
    assert sorted(p.name for p in folder.iterdir()) == ["model.xml"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("input.window", [100.0, 100.0]),
        ("input.window", [200.0, 100.0]),
        ("input.window", [0.0, float("inf")]),
        ("input.height_px", 0),
        ("input.width_px", 1_000_000),
        ("input.std", [0.0]),
        ("input.std", [0.5, 0.5, 0.5]),
        ("input.mean", [0.1, 0.2]),
        ("output.activation", "sigmoid"),
        ("output.channels", 4),
        ("output.channels", 1),
        ("output.stride", 1000),
        ("output.threshold", 0.0),
        ("output.threshold", float("nan")),
        ("output.temperature", 0.0),
        ("output.temperature", 1e9),
        ("classes", []),
        ("classes", ["a", "a"]),
        ("classes", ["a", "\x1b[2J"]),
        ("classes", ["a", "b" * 300]),
        ("name", ""),
        ("name", "x\ny"),
        ("variants", [{"file": "model.xml", "height_px": 0, "width_px": 8}]),
        ("variants", [{"file": "model.xml", "height_px": 8, "width_px": 8, "batch": 0}]),
    ],
)
def test_a_field_that_no_model_has_is_refused(folder, path, value):
    fields = json.loads(GOLDEN.replace("SHA", SHA))
    *parents, last = path.split(".")
    place = fields
    for parent in parents:
        place = place[parent]
    place[last] = value
    (folder / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(InputError) as error:
        open_bundle(folder)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert MANIFEST in str(error.value)


def test_weights_that_nobody_listed_are_refused(folder):
    (folder / MANIFEST).write_text(GOLDEN.replace("SHA", SHA))
    open_bundle(folder)
    (folder / "model.bin").write_bytes(b"weights")  # OpenVINO would take it, unhashed
    with pytest.raises(InputError, match=r"model\.bin must be listed in manifest\.json"):
        open_bundle(folder)


def onnx_model(onnx, *, deep: bool):
    """A product with a matrix of 64×64: an initialiser, or a constant in a function's If."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((64, 64), "float32"), "w")
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in ("location", "y")]
    multiply = helper.make_node("MatMul", ["location", "w"], ["y"])
    if not deep:
        graph = helper.make_graph([multiply], "external_data", shapes[:1], shapes[1:], [weight])
        return helper.make_model(graph)
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    branch = helper.make_graph([constant, multiply], "branch", [], shapes[1:])
    body = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function(
        "own", "F", ["location", "c"], ["y"], [body], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("F", ["location", "c"], ["y"], domain="own")
    model = helper.make_model(helper.make_graph([call], "g", shapes[:1], shapes[1:]), functions=[function])
    return model


@pytest.mark.parametrize("deep", [False, True])
def test_onnx_that_takes_weights_from_another_file_is_refused(tmp_path, deep):
    onnx = pytest.importorskip("onnx")
    for inside in (True, False):
        folder = tmp_path / str(inside)
        folder.mkdir()
        model = onnx_model(onnx, deep=deep)
        if not inside:
            tensor = (
                model.functions[0].node[0].attribute[0].g.node[0].attribute[0].t
                if deep
                else model.graph.initializer[0]
            )
            onnx.external_data_helper.set_external_data(tensor, "w.data")
            (folder / "w.data").write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        fields = {**FIELDS, "format": "onnx", "precision": "fp32", "model_file": "model.onnx"}
        fields.pop("files")
        seal_bundle(folder, also=("w.data",), **fields)
        if inside:
            open_bundle(folder)
        else:
            assert message(folder) == (
                "bundle B: model.onnx must hold its weights, takes some from another file; do not use this bundle"
            )


def varint(number: int, *, wide: bool = False) -> bytes:
    """As protobuf writes it; `wide` in more bytes than it needs, which every reader takes."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number | 0x80, 0x80, 0x00] if wide else [*parts, number])


@pytest.mark.parametrize("wide", [False, True])
def test_external_data_is_found_however_it_is_written(wide):
    def field(number, content):
        return varint(number << 3 | 2, wide=wide) + varint(len(content), wide=wide) + content

    entry = field(2, b"w.data") + field(1, b"location")  # the value before its key
    for tensor in (field(13, entry), varint(14 << 3, wide=wide) + varint(1, wide=wide)):
        assert has_external_data(field(7, field(5, tensor)))
        assert has_external_data(field(25, field(7, field(5, field(11, field(15, field(2, tensor)))))))
    assert not has_external_data(field(7, field(5, varint(14 << 3) + varint(0) + field(9, entry))))
    deep = b""
    for _ in range(2_000):
        deep = field(5, field(6, field(1, deep)))  # graphs in graphs
    assert not has_external_data(field(7, deep))
    for damaged in (b"\x3a\x05ab", b"\x3b", b"\xff" * 12, b"\x3a", varint(1 << 35) + b"\x00"):
        with pytest.raises(ValueError, match=r"wire type|cut off|does not end|too large"):
            has_external_data(damaged)


def test_every_place_of_a_tensor_in_onnx_is_looked_at():
    """Against the message types of the installed onnx: a version that adds a place breaks this."""
    onnx = pytest.importorskip("onnx")
    found: dict[str, dict[int, str]] = {}

    def leads_to_tensor(message, seen=()):
        if message.name == "TensorProto":
            return True
        parts = [f for f in message.fields if f.message_type is not None and f.message_type not in seen]
        hits = [f for f in parts if leads_to_tensor(f.message_type, (*seen, message))]
        return bool(hits)

    left = [onnx.ModelProto.DESCRIPTOR]
    while left:
        message = left.pop()
        name = message.name.removesuffix("Proto")
        if name in found or name == "Tensor":
            continue
        found[name] = {}
        for field in message.fields:
            if field.message_type is not None and leads_to_tensor(field.message_type):
                found[name][field.number] = field.message_type.name.removesuffix("Proto")
                left.append(field.message_type)
    assert found == TENSOR_PARTS


@pytest.mark.parametrize("model_file", ["model.onnx", "model.tflite", "model.bin", "model"])
def test_a_graph_of_another_format_is_refused(folder, model_file):
    (folder / "model.xml").rename(folder / model_file)
    rewrite(folder, model_file=model_file, files={model_file: {"sha256": SHA, "bytes": 5}})
    assert message(folder) == (
        f"bundle B: {model_file} must end in .xml as openvino has it, does not; export it again"
    )


def test_notes_beside_a_bundle_are_nobodys_business(folder):
    (folder / "README.md").write_text("my notes")
    bundle = open_bundle(folder)
    with pytest.raises(
        InputError, match=r"README\.md must be listed in manifest\.json, is not; export it again$"
    ):
        bundle.path("README.md")


def test_a_file_with_another_name_is_not_sealed(folder):
    os.link(folder / "model.xml", folder.parent / "elsewhere")
    open_bundle(folder)  # a backup may make such links
    with pytest.raises(InputError) as caught:
        seal_bundle(folder, **{k: v for k, v in FIELDS.items() if k != "files"})
    assert str(caught.value).replace(str(folder), "B") == (
        "bundle B: model.xml must be a file of its own, has another name elsewhere (a hard link); copy it"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema_version": "\x1b[2J" * 50}, "schema must be 1, got \\x1b[2J"),
        ({"\x1b]0;x\x07": 1}, "must hold known fields, got \\x1b]0;x\\x07: a newer"),
        ({"name": "\x1b[2J"}, "field name must be printable, got \\x1b[2J; do not use"),
        ({"model_file": "\x1b[2J"}, "\\x1b[2J must be listed"),
        ({"macs": -1}, "field macs: Input should be greater"),
    ],
)
def test_messages_quote_nothing_raw(folder, changes, told):
    rewrite(folder, **changes)
    text = message(folder)
    assert told in text
    assert text.isprintable()
    assert len(text) < 400


def test_a_number_of_thousands_of_digits_is_no_json(folder):
    (folder / MANIFEST).write_text(GOLDEN.replace("SHA", SHA).replace("487163", "9" * 5000))
    assert message(folder) == "bundle B: manifest.json must be JSON, is damaged; copy the bundle again"


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "x" * 300, "a\0b"])
def test_names_that_no_file_should_have_are_refused(folder, name):
    fields = json.loads(GOLDEN.replace("SHA", SHA))
    fields["files"][name] = fields["files"]["model.xml"]
    (folder / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(InputError) as error:
        open_bundle(folder)
    assert str(error.value).isprintable()


def test_a_folder_that_is_a_link_is_refused(folder):
    (folder / "real").mkdir()
    (folder / "real" / "a.bin").write_bytes(CONTENT)
    (folder / "adapter").symlink_to("real")
    fields = json.loads(GOLDEN.replace("SHA", SHA))
    fields["files"]["adapter/a.bin"] = fields["files"]["model.xml"]
    (folder / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"adapter must be a file, is a link"):
        open_bundle(folder)


def test_a_command_says_which_bundle_it_opened(folder, capsys):
    bundle = open_and_tell(folder)
    assert capsys.readouterr().err == f"bundle {folder}: lightunet-8 INT8 openvino (sha256 {bundle.sha256})\n"
    for expect in ([bundle.sha256], [bundle.sha256[:12].upper()], ["0" * 64, bundle.sha256[:20]]):
        assert open_and_tell(folder, expect) == bundle


def test_another_bundle_than_expected_is_refused(folder, capsys):
    sha256 = open_bundle(folder).sha256
    with pytest.raises(InputError) as caught:
        open_and_tell(folder, ["0" * 12, "1" * 64])
    assert str(caught.value).replace(str(folder), "B") == (
        f"bundle B: must have the sha256 {'0' * 12} or {'1' * 64} (--expect), has {sha256}; do not use this bundle, or "
        "give its own"
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("word", ["", "0" * 11, "0" * 65, "g" * 64, "\x1b[2J" + "0" * 12])
def test_what_is_no_sha256_is_not_expected(folder, word):
    with pytest.raises(InputError, match="must be 12 to 64 hexadecimal digits, is not") as caught:
        open_and_tell(folder, [open_bundle(folder).sha256, word])
    assert str(caught.value).isprintable()
