"""What the comparison knows of the commands that it runs: their flags, and whether a finished folder is theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from segcore.bundle.folder import MANIFEST
from segcore.bundle.manifest import Manifest
from segcore.command import Settings, parse_settings
from segcore.dataset.soft_labels import LABELS, LabelRecord
from segcore.errors import InputError
from segcore.learn.settings import TrainSettings
from student.design import check_size, find_design
from student.distill import DistillSettings, with_steps
from teacher.label import LabelSettings, teacher_hash
from teacher.settings import CONTROLS as CONTROLS
from teacher.settings import PACKAGED, TeacherSettings, check_settings

TEACHER, LABEL, DISTILL, EXPORT = "teacher.train", "teacher.label", "student.distill", "export"
_SETTINGS: Mapping[str, type[Settings]] = {
    TEACHER: TeacherSettings,
    LABEL: LabelSettings,
    DISTILL: DistillSettings,
}
_HELD_OTHERWISE = frozenset({"data", "soft", "teacher", "baseline", "teacher_check", "cache_gib"})
"""Settings of a training that are held against the hashes in its manifest, or that change no weight."""
_CHOSEN_LATE = frozenset({"prompt", "cached_views"})
"""Settings that a training chooses itself where they are not given: whatever a bundle tells is its choice."""


def flag_names(module: str) -> frozenset[str]:
    """Every setting of a training or of teacher.label."""
    return frozenset(_SETTINGS[module].model_fields)


def needs_package(encoder: str) -> bool:
    """Whether an encoder's weights come from an installed package."""
    return encoder in PACKAGED


def check_command(module: str, words: Sequence[str]) -> None:
    """Parses and checks a command's words as it will itself, as far as the words tell.

    Raises:
        InputError: it would refuse them.
    """
    if module not in _SETTINGS:
        return  # the export, whose few words are ours
    settings = _parse_words(module, words)
    if isinstance(settings, TeacherSettings):
        check_settings(settings)
    if isinstance(settings, DistillSettings):
        check_size(find_design(settings.design), settings.size)


def check_training(folder: Path, module: str, words: Sequence[str], data_sha256: str) -> None:
    """Checks that a finished bundle is what this command would make.

    Raises:
        InputError: it is no bundle, or of other data or settings.
    """
    manifest, _ = read_manifest(folder)
    differing = [] if manifest.data.sha256 == data_sha256 else ["data"]
    settings = sealed_settings(module, words, manifest.input.channels)
    # What an older bundle does not tell has its default, and an augmentation may be told by its name.
    told = {name: value for name, value in manifest.settings.items() if name in type(settings).model_fields}
    stored = type(settings).model_validate({**told, "data": settings.data, "out": settings.out})
    found = stored.for_channels(manifest.input.channels).recipe()
    for name, wanted in settings.recipe().items():
        free = name in _HELD_OTHERWISE or (name in _CHOSEN_LATE and wanted is None)
        if not free and found[name] != wanted:
            differing.append(f"{name.replace('_', '-')} {found[name]}, not {wanted}")
    if differing:
        raise InputError(
            f"{folder}: must be made with the settings of this command, was made with other ones "
            f"({'; '.join(differing)}); give those, or move it away"
        )


def sealed_settings(module: str, words: Sequence[str], channels: int) -> TrainSettings:
    """What a training's bundle holds as its settings: those of its command, and what it puts where none was given.

    Args:
        module: teacher.train or student.distill.
        words: of the command.
        channels: of its pictures.
    """
    settings = _parse_words(module, words)
    if isinstance(settings, TeacherSettings):
        encoder = settings.encoder_name if settings.has_encoder else None
        settings = settings.model_copy(update={"tune": settings.tuned, "encoder": encoder})
    elif isinstance(settings, DistillSettings):
        settings = with_steps(settings)
    assert isinstance(settings, TrainSettings)
    return settings.for_channels(channels)


def check_labels(folder: Path, bundles: Sequence[Path], tta: str, data_sha256: str) -> None:
    """Checks that finished soft labels are of these teachers, as far as those are there.

    Raises:
        InputError: other teachers, other data, or other mirrored views.
    """
    record = read_labels(folder)
    if all(bundle.exists() for bundle in bundles):
        wanted = teacher_hash([read_manifest(bundle)[1] for bundle in bundles])
        _check_same(folder, "of the teacher beside it", record.teacher == wanted)
    else:
        missing = next(bundle for bundle in bundles if not bundle.exists())
        raise InputError(f"{folder}: must have its teacher beside it, {missing} is not there; move it away")
    _check_same(folder, "of this data", record.data_sha256 == data_sha256)
    _check_same(folder, f"made with --tta {tta}", tta in ("auto", record.tta))


def check_child(folder: Path, source: Path) -> None:
    """Checks that a student was distilled from these labels, or exported from this bundle.

    Raises:
        InputError: it comes from another one.
    """
    manifest, _ = read_manifest(folder)
    if not source.exists():
        raise InputError(f"{folder}: must have {source.name} beside it, is alone; move it away")
    if (source / LABELS).is_file():
        _check_same(folder, f"distilled from {source.name}", manifest.teacher == read_labels(source).teacher)
    else:
        _check_same(folder, f"an export of {source.name}", manifest.parent == read_manifest(source)[1])


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """A bundle's manifest, and the hash that its children name; its files are not looked at.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
        return Manifest.model_validate_json(text), hashlib.sha256(text).hexdigest()
    except (OSError, ValidationError):
        raise InputError(f"{folder}: must be a bundle, has no readable {MANIFEST}; move it away") from None


def read_labels(folder: Path) -> LabelRecord:
    """What soft labels say of themselves.

    Raises:
        InputError: there is nothing, or it is damaged.
    """
    try:
        return LabelRecord.model_validate_json((folder / LABELS).read_text())
    except (OSError, ValidationError):
        raise InputError(f"{folder}: must be soft labels, has no readable {LABELS}; move it away") from None


def _parse_words(module: str, words: Sequence[str]) -> Settings:
    known = flag_names(module)
    for word in words:
        name = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if name not in known:
            raise InputError(f"--{name.replace('_', '-')}: must be a setting of {module}, is none")
    return parse_settings(_SETTINGS[module], f"python -m {module}", words)


def _check_same(folder: Path, what: str, same: bool) -> None:
    if not same:
        raise InputError(f"{folder}: must be {what}, is not; move it away")
