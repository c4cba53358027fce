"""A bundle: the folder that a stage writes and the next reads. Its manifest holds all a user must know.

Files are hashed. `open_bundle` checks every hash before anything is parsed, takes no path that leaves the
folder, and reads no pickle: weights are safetensors, graphs carry no external data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from segcore.bundle.external_data import has_external_data
from segcore.bundle.golden import GOLDEN_FILE, GOLDEN_PROMPTS
from segcore.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest
from segcore.bundle.story import MODEL_CARD, model_card
from segcore.command import log
from segcore.errors import InputError
from segcore.outfolder import write_text
from segcore.words import printable

MANIFEST = "manifest.json"
_LONGEST_PART = 255
"""Bytes of the name of a file or folder, as Linux takes them."""
_LONGEST_QUOTE = 60
_SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "tensorrt-onnx": ".onnx",
    "tensorrt": ".plan",
    "tensorrt-rtx": ".plan",
}
"""Format → how its graphs end; no engine opens torch's."""
_NOT_HANDED_DOWN = {"compiled", "files", "metrics", "schema_version"}


class Bundle(BaseModel):
    """An opened bundle: its folder, its manifest, and the hash that children name as their parent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    manifest: Manifest
    sha256: str

    def path(self, name: str) -> Path:
        """Where a file of the bundle is; whoever opens one asks here.

        Raises:
            InputError: it is not listed in the manifest, so nobody hashed it.
        """
        if name not in self.manifest.files:
            raise InputError(
                f"bundle {self.folder}: {_shown(name)} must be listed in {MANIFEST}, is not; export it again"
            )
        return self.folder / name

    @property
    def model_path(self) -> Path:
        return self.path(self.manifest.model_file)

    def child_fields(self) -> dict[str, Any]:
        """Of the manifest of a bundle that is made from this one: what stays as it is, the parent, the lineage.

        Metrics are not handed down: they were measured on other numbers.
        """
        kept = {name: value for name, value in self.manifest if name not in _NOT_HANDED_DOWN}
        return {**kept, "parent": self.sha256, "lineage": (*self.manifest.lineage, self.manifest.made)}


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileEntry(sha256=digest.hexdigest(), bytes=path.stat().st_size)


def seal_bundle(
    folder: Path, *, also: Collection[str] = (), resumed_from: Collection[str] = (), **manifest: Any
) -> Manifest:
    """Writes the model card, hashes the stage's files in `folder` and writes the manifest; the last step of a stage.

    Args:
        folder: the stage's working folder (OUT.partial); its `settings.json` is not part of the bundle.
        also: files that the stage writes besides those that the manifest names; a folder stands for all that is in it.
            One that is not there is not missed.
        resumed_from: files that only going on needed: not part of the bundle, and removed once it is sealed.
        manifest: the fields of `Manifest` except `files`.

    Raises:
        InputError: something else is in the folder.
    """
    known = {*_named_files(Manifest(files={}, **manifest)), *also}
    skip = {MANIFEST, MODEL_CARD, "settings.json", *resumed_from}
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if name.as_posix() in skip:
            continue
        if not known.intersection(part.as_posix() for part in (name, *name.parents)):
            raise InputError(
                f"bundle {folder}: must hold the files of its stage alone, got {name.as_posix()}; move it away and run "
                "the same command again"
            )
        # Under another name the file could be changed after it was hashed.
        if path.stat().st_nlink > 1:
            raise InputError(
                f"bundle {folder}: {name.as_posix()} must be a file of its own, has another name elsewhere (a hard "
                "link); copy it"
            )
        files[name.as_posix()] = hash_file(path)
    card = folder / MODEL_CARD
    write_text(card, model_card(Manifest(files=files, **manifest)))
    sealed = Manifest(files={**files, MODEL_CARD: hash_file(card)}, **manifest)
    write_text(folder / MANIFEST, sealed.model_dump_json(indent=2) + "\n")
    for old in resumed_from:
        (folder / old).unlink(missing_ok=True)
    return sealed


def _named_files(manifest: Manifest) -> set[str]:
    """The files that a manifest names, and those that belong to them: weights of an IR, golden cases."""
    models = [manifest.model_file, *(variant.file for variant in manifest.variants)]
    golden = [GOLDEN_FILE, *(variant.golden for variant in manifest.variants)]
    if manifest.prompt is not None:
        golden.append(GOLDEN_PROMPTS)
        models += [name for name in (manifest.prompt.encoder_file, manifest.prompt.decoder_file) if name]
    weights = [PurePosixPath(name).with_suffix(".bin").as_posix() for name in models if name.endswith(".xml")]
    return {*models, *weights, *golden}


def open_bundle(folder: Path | str) -> Bundle:
    """Reads the manifest and checks every file's size and hash.

    Files that are not listed may lie beside the others (a user's notes, a signature): `Bundle.path` gives none of them
    to anybody, and an engine opens by itself only an IR's weights, which are asked for here.

    Raises:
        InputError: not a bundle, a newer schema, a missing or changed file, a path that leaves the folder, a graph that
            takes what is not listed.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        hint = (
            f"; {folder}.partial is unfinished, run its command again"
            if Path(f"{folder}.partial").exists()
            else ""
        )
        raise InputError(f"bundle {folder}: must be a folder with {MANIFEST}, got none{hint}")
    _refuse_links(folder)
    text = path.read_bytes()
    manifest = _parse_manifest(text, folder)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    bundle = Bundle(folder=folder, manifest=manifest, sha256=hashlib.sha256(text).hexdigest())
    prompt = manifest.prompt
    parts = [prompt.encoder_file, prompt.decoder_file] if prompt else []
    graphs = [manifest.model_file, *(variant.file for variant in manifest.variants)]
    # A bundle without encoder and decoder (an engine's) keeps their names: it cannot be asked, and opens neither.
    for name in (*graphs, *(name for name in parts if name in manifest.files)):
        _check_graph(bundle, name)
    for variant in manifest.variants:
        bundle.path(variant.golden)
    return bundle


def open_and_tell(folder: Path | str, expect: Sequence[str] = ()) -> Bundle:
    """`open_bundle` of a command: says on stderr which bundle this is, and refuses one that is not expected.

    Args:
        folder: of the bundle.
        expect: of `--expect`; empty where any bundle will do.

    Raises:
        InputError: as `open_bundle` and `check_expected`.
    """
    bundle = open_bundle(folder)
    check_expected(bundle, expect)
    log(f"bundle {bundle.folder}: {bundle.manifest.name} (sha256 {bundle.sha256})")
    return bundle


def check_expected(bundle: Bundle, expect: Sequence[str]) -> None:
    """Refuses a bundle whose sha256 is none of those that a user was given for it; none asks for nothing.

    Args:
        bundle: the opened bundle.
        expect: sha256 of manifests, or their first 12 hexadecimal digits or more, in capitals or not. A manifest holds
            the hash of every file, so its own stands for all of the bundle.

    Raises:
        InputError: another bundle, or no such hash.
    """
    for word in expect:
        if not re.fullmatch("[0-9a-fA-F]{12,64}", word):
            raise InputError(
                f"--expect {_shown(word)}: must be 12 to 64 hexadecimal digits, is not; give the sha256 that the "
                "bundle's maker told"
            )
    if expect and not any(bundle.sha256.startswith(word.lower()) for word in expect):
        raise InputError(
            f"bundle {bundle.folder}: must have the sha256 {' or '.join(expect)} (--expect), has {bundle.sha256}; "
            "do not use this bundle, or give its own"
        )


def _check_graph(bundle: Bundle, name: str) -> None:
    """That a graph is of the bundle's format, and that all an engine would open of it is listed."""
    folder, form = bundle.folder, bundle.manifest.format
    path, suffix = bundle.path(name), _SUFFIXES.get(form)
    if suffix is None:
        return
    # Engines choose their reader by the suffix, and another reader may open files that nobody listed.
    if path.suffix != suffix:
        raise InputError(
            f"bundle {folder}: {name} must end in {suffix} as {form} has it, does not; export it again"
        )
    # OpenVINO takes an IR's weights from the file of the same name beside it, whoever put it there.
    weights = PurePosixPath(name).with_suffix(".bin").as_posix()
    if suffix == ".xml" and (folder / weights).exists():
        bundle.path(weights)
    if suffix != ".onnx":
        return
    try:
        elsewhere = has_external_data(path.read_bytes())
    except ValueError as error:
        raise InputError(f"bundle {folder}: {name} must be ONNX, is not ({error}); export it again") from None
    if elsewhere:
        raise InputError(
            f"bundle {folder}: {name} must hold its weights, takes some from another file; do not use this bundle"
        )


def _parse_manifest(text: bytes, folder: Path) -> Manifest:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or a number of thousands of digits
        raise InputError(
            f"bundle {folder}: {MANIFEST} must be JSON, is damaged; copy the bundle again"
        ) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"bundle {folder}: schema must be {SCHEMA_VERSION}, got {_shown(version)}; "
            "install a newer sam2edge, or export the bundle again with this one"
        )
    # Of other texts a record escapes what cannot be printed. Names are refused: two that look alike would be two.
    for field in ("name", "classes", "files"):
        values = raw.get(field)
        for value in (
            [values] if isinstance(values, str) else values if isinstance(values, list | dict) else ()
        ):
            if isinstance(value, str) and printable(value) != value:
                raise InputError(
                    f"bundle {folder}: {MANIFEST} field {field} must be printable, got {_shown(value)}; do not use "
                    "this bundle"
                )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = _shown(".".join(map(str, first["loc"])))
        if first["type"] == "extra_forbidden":
            raise InputError(
                f"bundle {folder}: {MANIFEST} must hold known fields, got {where}: a newer sam2edge made it; "
                "install that version, or export the bundle again with this one"
            ) from None
        raise InputError(
            f"bundle {folder}: {MANIFEST} field {where}: {first['msg']}; export the bundle again"
        ) from None


def _shown(value: object) -> str:
    """What a stranger wrote, as a message may quote it."""
    text = printable(str(value))
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def _refuse_links(folder: Path) -> None:
    """A link says that something outside belongs to the bundle, and may say otherwise tomorrow.

    Hard links cannot be told from files here: backups make them. `seal_bundle` refuses them.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                shown = _shown(path.relative_to(folder).as_posix())
                raise InputError(
                    f"bundle {folder}: {shown} must be a file, is a link; copy the bundle with its files"
                )


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    pure = PurePosixPath(name)
    if not pure.parts or any(len(part.encode()) > _LONGEST_PART for part in pure.parts):
        raise InputError(
            f"bundle {folder}: file names must be 1 to {_LONGEST_PART} bytes, got {_shown(name)}; do not use "
            "this bundle"
        )
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or pure.as_posix() != name:
        raise InputError(
            f"bundle {folder}: file paths must stay inside the bundle, got {_shown(name)}; do not use this bundle"
        )
    path = folder / name
    if not path.is_file():
        raise InputError(f"bundle {folder}: {name} must be there, is missing; copy the bundle again")
    found = path.stat().st_size
    if found != entry.bytes or hash_file(path).sha256 != entry.sha256:
        raise InputError(
            f"bundle {folder}: {name} was changed after it was made (sha256 differs); copy the bundle again"
        )
