"""Which files `--image` names: one, a folder tree, a DICOM series, or a list; and what their outputs are called."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePath, PurePosixPath

from segcore.errors import InputError
from segcore.medical.read import scan_paths
from segcore.scan_cases import without_suffix

LIST_SUFFIXES = (".txt", ".csv")


@dataclass(frozen=True)
class Input:
    """One file, or one folder with a DICOM series.

    Attributes:
        path: where it is.
        case: what its record and its outputs are called: `sub/dir/NAME` gives masks/sub/dir/NAME.png.
        name: what error messages call it; by default the path.
    """

    path: Path
    case: str
    name: str = ""

    @property
    def shown(self) -> str:
        return self.name or str(self.path)


def list_inputs(image: Path, *, deidentify: bool = False) -> tuple[Input, ...]:
    """The inputs that `--image` names, in a fixed order, with different cases.

    Args:
        image: a file, a folder tree, a folder with a DICOM series, or a list: `.txt` with a path a line, or `.csv`
            with a column `image` and perhaps `case`. Paths in a list are relative to the list's folder.
        deidentify: call them case-000001, case-000002 and so on.

    Raises:
        InputError: no such file, nothing in it, or two inputs whose outputs would have one name. What a list names
            and is not there is an input like others: it fails when it is read.
    """
    if image.is_dir():
        found = [(path, _stem(path.relative_to(image), image)) for path in scan_paths(image)]
    elif not image.is_file():
        raise InputError(
            f"--image {image}: must be an image, a folder or a list of images, no such file or folder"
        )
    elif image.suffix.lower() in LIST_SUFFIXES:
        found = _listed(image)
    else:
        found = [(image, _stem(PurePath(image.name), image))]
    if not found:
        raise InputError(f"--image {image}: must hold images, DICOM or NIfTI files, got none")
    if deidentify:
        running = [f"case-{n:06d}" for n in range(1, len(found) + 1)]
        return tuple(Input(path, case, case) for (path, _), case in zip(found, running, strict=True))
    return _told_apart([Input(path, case) for path, case in found], image)


def inputs_sha256(inputs: Sequence[Input]) -> str:
    """Hash of paths and cases: whether a run that is resumed has the same files before it."""
    listed = [[str(one.path), one.case] for one in inputs]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def named(files: Iterable[Path]) -> tuple[Input, ...]:
    """Inputs of files from anywhere, called by their own names without folders; "NAME (2)" where one comes again."""
    inputs: dict[str, Input] = {}
    for path in files:
        stem = _stem(PurePath(path.name), path)
        case = next(c for n in count(1) if (c := stem if n == 1 else f"{stem} ({n})") not in inputs)
        inputs[case] = Input(path, case, path.name)
    return tuple(inputs.values())


def _stem(path: PurePath, root: Path) -> str:
    """`sub/dir/NAME.nii.gz` → `sub/dir/NAME`; the root's own name where the root is itself the input.

    Only known suffixes are taken off: DICOM files are often named by a UID, whose last number is none.
    """
    if not path.parts:
        return root.resolve().name
    return path.with_name(without_suffix(path.name)).as_posix()


def _told_apart(inputs: list[Input], image: Path) -> tuple[Input, ...]:
    """Gives other cases to inputs whose outputs would meet, by one name or because one's would be the other's folder.

    A file keeps its suffix: a.png and a.dcm give masks/a.png.png and masks/a.dcm.png. A series in a folder that holds
    other inputs, too, is called FOLDER/series.
    """
    meeting = _meeting(inputs)
    apart = []
    for one in inputs:
        if one.case in meeting:
            case = PurePosixPath(one.case)
            case = case / "series" if one.path.is_dir() else case.with_name(one.path.name)
            one = replace(one, case=case.as_posix())
        apart.append(one)
    if still := _meeting(apart):
        names = sorted(str(one.path) for one in apart if one.case in still)
        raise InputError(
            f"--image {image}: must have names that differ in more than the suffix, got {' and '.join(names[:2])}; "
            "rename one, or give them cases in an index.csv"
        )
    return tuple(apart)


def _meeting(inputs: Sequence[Input]) -> set[str]:
    """Cases that several inputs have, and those that are folders of others."""
    times = Counter(one.case for one in inputs)
    folders = {str(parent) for case in times for parent in PurePosixPath(case).parents}
    return {case for case, count in times.items() if count > 1 or case in folders}


def _listed(image: Path) -> list[tuple[Path, str]]:
    try:
        text = image.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
        rows = _csv_rows(text, image) if image.suffix.lower() == ".csv" else _lines(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--image {image}: must be a list in UTF-8, got {error}; save it again") from None
    found: list[tuple[Path, str]] = []
    for line, (name, case) in rows:
        if not name or "\0" in name + case:
            raise InputError(f"--image {image}: line {line} must name an image, got {name!r}; fill it in")
        parts = PurePosixPath(case).parts
        if case and (not parts or parts[0] == "/" or ".." in parts or "\\" in case):
            raise InputError(
                f"--image {image}: case of line {line} must be a name for output files, got {case!r}; "
                "use no .. and begin with no /"
            )
        path = image.parent / name
        # ../other/a.png and /other/a.png both give other/a: outputs stay in OUT.
        below = PurePath(
            *[part for part in PurePath(name).parts if part not in ("..", PurePath(name).anchor)]
        )
        found.append((path, PurePosixPath(case).as_posix() if case else _stem(below, path)))
    twice = [path for path, times in Counter(path for path, _ in found).items() if times > 1]
    if twice:
        raise InputError(f"--image {image}: must name each image once, {twice[0]} comes again; remove a line")
    return found


def _lines(text: str) -> list[tuple[int, tuple[str, str]]]:
    return [(n, (line.strip(), "")) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _csv_rows(text: str, image: Path) -> list[tuple[int, tuple[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    if "image" not in (reader.fieldnames or ()):
        raise InputError(
            f"--image {image}: must have a column image, got {', '.join(reader.fieldnames or ())}"
        )
    return [(reader.line_num, (row["image"].strip(), (row.get("case") or "").strip())) for row in reader]
