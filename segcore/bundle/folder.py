"""A bundle: the folder that a stage writes and the next reads. Its manifest holds all a user must know.

Files are hashed. `open_bundle` checks every hash before anything is parsed, takes no path that leaves the
folder, and reads no pickle: weights are safetensors, graphs carry no external data.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from segcore.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest
from segcore.bundle.story import MODEL_CARD, model_card
from segcore.errors import InputError
from segcore.outfolder import write_text

MANIFEST = "manifest.json"
_LONGEST_PATH = 255
_EXTERNAL = re.compile(rb"\x6a(?:[\x00-\x7f]|[\x80-\xff][\x00-\x7f])\x0a\x08location\x12")
"""In an ONNX file: a tensor's `external_data` with the key `location`, as protobuf writes it; read without onnx."""
_NOT_HANDED_DOWN = {"compiled", "files", "metrics", "schema_version"}


class Bundle(BaseModel):
    """An opened bundle: its folder, its manifest, and the hash that children name as their parent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    manifest: Manifest
    sha256: str

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def model_path(self) -> Path:
        return self.folder / self.manifest.model_file

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


def seal_bundle(folder: Path, **manifest: Any) -> Manifest:
    """Writes the model card, hashes every file in `folder` and writes the manifest; the last step of a stage.

    Args:
        folder: the stage's working folder (OUT.partial); its `settings.json` is not part of the bundle.
        manifest: the fields of `Manifest` except `files`.
    """
    skip = {MANIFEST, MODEL_CARD, "settings.json"}
    files = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in skip
    }
    card = folder / MODEL_CARD
    write_text(card, model_card(Manifest(files=files, **manifest)))
    sealed = Manifest(files={**files, MODEL_CARD: hash_file(card)}, **manifest)
    write_text(folder / MANIFEST, sealed.model_dump_json(indent=2) + "\n")
    return sealed


def open_bundle(folder: Path | str) -> Bundle:
    """Reads the manifest and checks every file's size and hash.

    Raises:
        InputError: not a bundle, a newer schema, a missing or changed file, or a path that leaves the folder.
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
    text = path.read_bytes()
    manifest = _parse_manifest(text, folder)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    for name in (manifest.model_file, *(file for v in manifest.variants for file in (v.file, v.golden))):
        if name not in manifest.files:
            raise InputError(f"bundle {folder}: {name} must be listed in {MANIFEST}, is not; export it again")
        # OpenVINO takes an IR's weights from the file of the same name beside it, whoever put it there.
        weights = PurePosixPath(name).with_suffix(".bin").as_posix()
        if name.endswith(".xml") and weights not in manifest.files and (folder / weights).exists():
            raise InputError(
                f"bundle {folder}: {weights} must be listed in {MANIFEST}, is not; export it again"
            )
    for name in manifest.files:
        if name.endswith(".onnx") and _EXTERNAL.search((folder / name).read_bytes()):
            raise InputError(
                f"bundle {folder}: {name} must hold its weights, takes some from another file; do not use this bundle"
            )
    return Bundle(folder=folder, manifest=manifest, sha256=hashlib.sha256(text).hexdigest())


def _parse_manifest(text: bytes, folder: Path) -> Manifest:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            f"bundle {folder}: {MANIFEST} must be JSON, is damaged; copy the bundle again"
        ) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"bundle {folder}: schema must be {SCHEMA_VERSION}, got {version}; "
            "install a newer sam2edge, or export the bundle again with this one"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise InputError(
                f"bundle {folder}: {MANIFEST} must hold known fields, got {where}: a newer sam2edge made it; "
                "install that version, or export the bundle again with this one"
            ) from None
        raise InputError(
            f"bundle {folder}: {MANIFEST} field {where}: {first['msg']}; export the bundle again"
        ) from None


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    pure = PurePosixPath(name)
    if not name.isprintable() or len(name.encode("utf-8", "replace")) > _LONGEST_PATH:
        raise InputError(
            f"bundle {folder}: file names must be printable, at most {_LONGEST_PATH} bytes, got {name[:40]!r}; do not "
            "use this bundle"
        )
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise InputError(
            f"bundle {folder}: file paths must stay inside the bundle, got {name}; do not use this bundle"
        )
    path = folder / name
    if any((folder / part).is_symlink() for part in (pure, *pure.parents) if part.parts):
        raise InputError(f"bundle {folder}: {name} must be a file, is a link; copy the bundle with its files")
    if not path.is_file():
        raise InputError(f"bundle {folder}: {name} must be there, is missing; copy the bundle again")
    found = path.stat().st_size
    if found != entry.bytes or hash_file(path).sha256 != entry.sha256:
        raise InputError(
            f"bundle {folder}: {name} was changed after it was made (sha256 differs); copy the bundle again"
        )
