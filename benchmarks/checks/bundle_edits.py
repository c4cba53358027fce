"""What is said of a bundle that somebody edited, and hashed anew as an attacker would.

`python -m benchmarks.checks.bundle_edits --bundle B --out O` changes every field of an exported bundle's manifest, one
at a time, and one weight of every layer of its graph to NaN. Of each it records what opening the bundle says, what
`runtime.verify` finds, what `runtime.predict` does, and which share of the golden pictures' pixels a mask without these
checks would differ in. Exit status 3 if an edit that changes a mask is refused by neither open nor verify.

O/bundle_edits.md     two tables
O/bundle_edits.json   the same, with the bundle, host and versions
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np

from benchmarks.measuring import Part, results_folder, write_record
from runtime.predictor import Predictor
from runtime.verify import prove, verify_bundle
from segcore.bundle.folder import MANIFEST, hash_file, open_and_tell, open_bundle
from segcore.bundle.golden import load_whole_way
from segcore.command import Progress, Settings, print_result, run_command
from segcore.errors import GateError, InputError
from segcore.host import describe_host, library_versions
from segcore.outfolder import write_text
from segcore.tables import table_of

_WHOLE = ("settings", "architecture_settings", "files", "guard", "compiled", "lineage", "gate")
"""Fields that are one field here: what they hold is told and computes nothing, or is hashed anew."""
_OTHERS = {
    "kind": "teacher", "format": "tensorrt-onnx", "precision": "int8", "activation": "softmax", "depth": "float32",
    "resize_filter": "area", "typing": "fp16",
}  # fmt: skip
"""Field → another value that it may have."""
_LONGEST_CELL = 160


class BundleEditsSettings(Settings):
    """Edits a bundle in every way, one at a time, and tells what notices."""

    bundle: Path
    """Folder of an exported bundle, with the golden pictures that this version writes."""
    engine: str | None = None
    """openvino or onnxruntime; by default openvino where it is there and can open the bundle."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace OUT if it is there."""


class EditVerdict(Part):
    """What was said of one edit.

    Attributes:
        what: field or layer.
        edit: the value before and after.
        opened: "opens", or why it does not.
        verified: "PASS", or what is wrong; "" where it does not open.
        predicted: "the same mask", "another mask", or why there is none.
        changed: share of the golden pictures' pixels that would differ, were nothing checked; None where that cannot be
            computed.
    """

    what: str
    edit: str
    opened: str
    verified: str
    predicted: str
    changed: float | None

    @property
    def escaped(self) -> bool:
        """Whether a mask is another one, and nobody said so."""
        return bool(self.changed) and self.opened == "opens" and self.verified == "PASS"


class BundleEditsRecord(Part):
    """All edits of one bundle."""

    bundle: str
    bundle_sha256: str
    engine: str
    fields: tuple[EditVerdict, ...]
    layers: tuple[EditVerdict, ...]
    host: str
    versions: dict[str, str]


def main(settings: BundleEditsSettings) -> None:
    """Writes the tables, prints them and one JSON line.

    Raises:
        GateError: an edit that changes a mask passes.
    """
    with results_folder(settings) as folder, TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # verdicts on a hundred bundles that nobody will open again
        record = judge_edits(settings)
        text = "\n\n".join(_tables(record)) + "\n"
        write_text(folder / "bundle_edits.md", text)
        write_record(folder / "bundle_edits.json", record)
    print(text)
    verdicts = (*record.fields, *record.layers)
    escaped = [one.what for one in verdicts if one.escaped]
    print_result(out=str(settings.out), edits=len(verdicts), escaped=escaped)
    if escaped:
        raise GateError(
            f"bundle {settings.bundle}: an edit changes masks and passes, of {', '.join(escaped)}"
        )


def judge_edits(settings: BundleEditsSettings) -> BundleEditsRecord:
    """Everything between the settings and the files."""
    bundle = open_and_tell(settings.bundle)
    whole = load_whole_way(bundle.folder)
    if whole is None:
        raise InputError(f"bundle {bundle.folder}: must hold golden pictures, has none; export it again")
    with Predictor.open(bundle, engine=settings.engine, threads=1) as predictor:
        engine = f"{predictor.engine_name} {predictor.engine_version}"
        masks = [predictor.predict(picture).mask for picture in whole.pictures]
    fields = json.loads((bundle.folder / MANIFEST).read_text())
    # Two that are left out where they say nothing, and change masks all the same.
    fields["input"].setdefault("window_name", "")
    fields["output"].setdefault("temperature", 1.0)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "bundle")
        shutil.copytree(bundle.folder, folder)
        found = []
        for path, value, other in Progress(list(field_edits(fields)), "fields", unit="edit"):
            _write_manifest(folder, _with_field(fields, path, other))
            edit = f"{json.dumps(value)} → {json.dumps(other)}"
            found.append(
                judge(folder, ".".join(map(str, path)), edit, whole.pictures, masks, settings.engine)
            )
        layers = []
        original = {path.name: path.read_bytes() for path in folder.glob("model.*")}
        for layer, file, content in Progress(list(nan_edits(folder)), "layers", unit="edit"):
            (folder / file).write_bytes(content)
            _write_manifest(folder, fields)
            layers.append(judge(folder, layer, "one weight → NaN", whole.pictures, masks, settings.engine))
            (folder / file).write_bytes(original[file])
    return BundleEditsRecord(
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        engine=engine,
        fields=tuple(found),
        layers=tuple(layers),
        host=describe_host(),
        versions=library_versions(),
    )


def field_edits(fields: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """Where a field is, its value, and another one, for every field of a manifest; of lists each item."""
    for key, value in fields.items() if isinstance(fields, dict) else enumerate(fields):
        place = (*path, key)
        if value and isinstance(value, dict | list) and key not in _WHOLE:
            yield from field_edits(value, place)
        else:
            yield place, value, _other(key, value)


def _other(key: str | int, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 1
    if isinstance(value, float):
        return 0.9 * value or 0.1
    if isinstance(value, str):
        return _OTHERS.get(str(key), f"{value}x")
    if isinstance(value, dict):
        return {**value, "more": 1}
    if isinstance(value, list):
        return [*value, "more"]
    return "x"


def nan_edits(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Of each layer with weights in floating point: its name, the file that they are in, and that file with a NaN."""
    if (folder / "model.xml").is_file():
        weights = (folder / "model.bin").read_bytes()
        for layer in ElementTree.parse(folder / "model.xml").iter("layer"):
            data = layer.find("data")
            if layer.get("type") != "Const" or data is None or data.get("element_type") not in ("f32", "f16"):
                continue
            at, half = int(data.get("offset", 0)), data.get("element_type") == "f16"
            nan = struct.pack("<e" if half else "<f", float("nan"))
            yield str(layer.get("name")), "model.bin", weights[:at] + nan + weights[at + len(nan) :]
        return
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "model.onnx")
    for n, tensor in enumerate(model.graph.initializer):
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype.kind != "f":
            continue
        array.flat[0] = np.nan
        edited = copy.deepcopy(model)
        edited.graph.initializer[n].CopyFrom(numpy_helper.from_array(array, tensor.name))
        yield tensor.name, "model.onnx", edited.SerializeToString()


def judge(
    folder: Path,
    what: str,
    edit: str,
    pictures: np.ndarray,
    masks: Sequence[np.ndarray],
    engine: str | None,
) -> EditVerdict:
    """Opens, verifies and predicts, each by itself."""
    try:
        bundle = open_bundle(folder)
    except InputError as error:
        said = _short(error, folder)
        return EditVerdict(what=what, edit=edit, opened=said, verified="", predicted=said, changed=None)
    changed: float | None = None
    try:
        failures = verify_bundle(bundle, engine=engine, threads=1).failures
        verified = "; ".join(failures) or "PASS"
    except InputError as error:
        verified = _short(error, folder)
    try:
        with Predictor.open(bundle, engine=engine, threads=1) as predictor:
            found = [predictor.predict(picture).mask for picture in pictures]
            changed = float(np.mean([np.mean(a != b) for a, b in zip(found, masks, strict=True)]))
            with redirect_stderr(StringIO()):  # that it is being checked, a line an edit
                prove(predictor)
        predicted = "another mask" if changed else "the same mask"
    except (InputError, GateError) as error:
        predicted = _short(error, folder)
    return EditVerdict(
        what=what, edit=edit, opened="opens", verified=verified, predicted=predicted, changed=changed
    )


def _with_field(fields: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    edited = copy.deepcopy(fields)
    place: Any = edited
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return edited


def _write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """With the hashes of the files as they are now."""
    fields = {**fields, "files": {**fields["files"]}}
    for name in fields["files"]:
        if (folder / name).is_file():
            fields["files"][name] = hash_file(folder / name).model_dump()
    (folder / MANIFEST).write_text(json.dumps(fields))


def _short(error: Exception, folder: Path) -> str:
    text = str(error).replace(f"{folder}/", "").replace(str(folder), "B")
    return text.partition("; do not use")[0].partition("; export")[0]


def _tables(record: BundleEditsRecord) -> list[str]:
    head = ("edit of", "before → after", "open", "verify", "predict", "pixels that would differ")
    made = []
    for title, verdicts in (("Every field × one edit", record.fields), ("NaN in each layer", record.layers)):
        rows = [
            (
                one.what,
                *(text[:_LONGEST_CELL] for text in (one.edit, one.opened, one.verified, one.predicted)),
                "" if one.changed is None else f"{100 * one.changed:.2f} %",
            )
            for one in verdicts
        ]
        note = f"{record.bundle}, {record.engine}, {len(rows)} edits; files were hashed anew after each."
        made.append(table_of(title, head, rows, words=(True,) * 5 + (False,), note=note).markdown())
    return made


if __name__ == "__main__":
    run_command(main, BundleEditsSettings, "python -m benchmarks.checks.bundle_edits")
