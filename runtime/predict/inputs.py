"""Which files `--image` names: one, a folder tree, a DICOM series, or a list; and what their outputs are called.

In runtime.predict's modules an input (`PredictionInput`, `input_`) is a file or a series that was given; an image is an
array that a model is asked about, H×W or H×W×C: a scan's slice. Where users read it, it is a picture.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePath, PurePosixPath

from segcore.dataset.scan_cases import without_suffix
from segcore.errors import InputError
from segcore.medical.dicom.series import SeriesFiles
from segcore.medical.read import find_scans
from segcore.text import path_in, read_table, read_text, readable_name

LIST_SUFFIXES = (".txt", ".csv")


@dataclass(frozen=True)
class PredictionInput:
    """One file, one folder with a DICOM series, or one series of a folder's several.

    Attributes:
        path: where it is, or which files it is.
        case: what its record and its outputs are called: `sub/dir/NAME` gives masks/sub/dir/NAME.png.
        name: what error messages call it; by default the path.
    """

    path: Path | SeriesFiles
    case: str
    name: str = ""

    @property
    def shown(self) -> str:
        return self.name or str(self.path)


@dataclass(frozen=True)
class InputList:
    """What `--image` names.

    Attributes:
        inputs: in a fixed order, with different cases.
        left_out: a line for each kind of file of a folder that is no input.
    """

    inputs: tuple[PredictionInput, ...]
    left_out: tuple[str, ...] = ()


def list_inputs(image: Path, *, deidentify: bool = False) -> InputList:
    """Lists the inputs that `--image` names.

    Args:
        image: a file, a folder tree, a folder with a DICOM series, or a list: `.txt` with a path a line, or `.csv`
            with a column `image` and perhaps `case`. Paths in a list are relative to the list's folder.
        deidentify: call them case-000001, case-000002 and so on.

    Raises:
        InputError: no such file, nothing in it, or two inputs whose outputs would have one name. What a list names
            and is not there is an input like others: it fails when it is read.
    """
    found: list[tuple[Path | SeriesFiles, str]]
    left_out: tuple[str, ...] = ()
    if image.is_dir():
        folder = find_scans(image)
        found, left_out = [(scan, _case_of(scan, image)) for scan in folder.scans], tuple(folder.told())
    elif not image.is_file():
        raise InputError(
            f"--image {image}: must be an image, a folder or a list of images, no such file or folder"
        )
    elif image.suffix.lower() in LIST_SUFFIXES:
        found = [*_read_list(image)]
    else:
        found = [(image, _case_name(PurePath(image.name), image))]
    if not found:
        raise InputError(f"--image {image}: must hold images, DICOM or NIfTI files, got none")
    if deidentify:
        running = [f"case-{n:06d}" for n in range(1, len(found) + 1)]
        named = (PredictionInput(path, case, case) for (path, _), case in zip(found, running, strict=True))
        return InputList(tuple(named), tuple(line.rpartition(": ")[0] for line in left_out))
    return InputList(_separate_cases([PredictionInput(path, case) for path, case in found], image), left_out)


def inputs_sha256(inputs: Sequence[PredictionInput]) -> str:
    """Hash of paths and cases: whether a run that is resumed has the same files before it."""
    listed = [[str(input_.path), input_.case] for input_ in inputs]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def name_inputs(files: Iterable[Path]) -> tuple[PredictionInput, ...]:
    """Inputs of files from anywhere, called by their own names without folders; "NAME (2)" where one comes again."""
    inputs: dict[str, PredictionInput] = {}
    for path in files:
        stem = _case_name(PurePath(path.name), path)
        case = next(c for n in count(1) if (c := stem if n == 1 else f"{stem} ({n})") not in inputs)
        inputs[case] = PredictionInput(path, case, path.name)
    return tuple(inputs.values())


def _case_of(scan: Path | SeriesFiles, root: Path) -> str:
    if isinstance(scan, SeriesFiles):
        return _case_name(scan.folder.relative_to(root) / scan.name, root)
    return _case_name(scan.relative_to(root), root)


def _case_name(path: PurePath, root: Path) -> str:
    """`sub/dir/NAME.nii.gz` → `sub/dir/NAME`; the root's own name where the root is itself the input.

    Only known suffixes are taken off: DICOM files are often named by a UID, whose last number is none.
    """
    if not path.parts:
        return readable_name(root.resolve().name)
    return readable_name(path.with_name(without_suffix(path.name)).as_posix())


def _separate_cases(inputs: list[PredictionInput], image: Path) -> tuple[PredictionInput, ...]:
    """Gives other cases to inputs whose outputs would meet, by one name or because one's would be the other's folder.

    A file keeps its suffix: a.png and a.dcm give masks/a.png.png and masks/a.dcm.png. A series in a folder that holds
    other inputs, too, is called FOLDER/series.
    """
    colliding = _colliding_cases(inputs)
    separated = []
    for input_ in inputs:
        if input_.case in colliding:
            case = PurePosixPath(input_.case)
            if isinstance(input_.path, SeriesFiles) or input_.path.is_dir():
                case = case / "series"
            else:
                case = case.with_name(readable_name(input_.path.name))
            input_ = replace(input_, case=case.as_posix())
        separated.append(input_)
    if still := _colliding_cases(separated):
        names = sorted(str(input_.path) for input_ in separated if input_.case in still)
        raise InputError(
            f"--image {image}: must have names that differ in more than the suffix, got {' and '.join(names[:2])}; "
            "rename one, or give them cases in an index.csv"
        )
    return tuple(separated)


def _colliding_cases(inputs: Sequence[PredictionInput]) -> set[str]:
    """Cases that several inputs have, and those that are folders of others."""
    times = Counter(input_.case for input_ in inputs)
    folders = {str(parent) for case in times for parent in PurePosixPath(case).parents}
    return {case for case, count in times.items() if count > 1 or case in folders}


def _read_list(image: Path) -> list[tuple[Path, str]]:
    name = f"--image {image}"
    if image.suffix.lower() == ".csv":
        columns, table = read_table(image, name, ("image", "case"))
        if "image" not in columns:
            raise InputError(f"{name}: must have a column image, got {', '.join(columns) or 'none'}")
        rows = [(line, row["image"], row.get("case", "")) for line, row in table]
    else:
        lines = read_text(image, name).split("\n")
        rows = [(n, line.strip(), "") for n, line in enumerate(lines, start=1) if line.strip()]
    found: list[tuple[Path, str]] = []
    for line, cell, case in rows:
        if not cell:
            raise InputError(f"{name}: line {line} must name an image, got {cell!r}; fill it in")
        parts = PurePosixPath(case).parts
        if case and (not parts or parts[0] == "/" or ".." in parts or "\\" in case):
            raise InputError(
                f"{name}: case of line {line} must be a name for output files, got {case!r}; "
                "use no .. and begin with no /"
            )
        path = path_in(image.parent, cell)
        # ../other/a.png and /other/a.png both give other/a: outputs stay in OUT.
        own = PurePath(cell if path == image.parent / cell else cell.replace("\\", "/"))
        below = PurePath(*[part for part in own.parts if part not in ("..", own.anchor)])
        found.append((path, PurePosixPath(case).as_posix() if case else _case_name(below, path)))
    twice = [path for path, times in Counter(path for path, _ in found).items() if times > 1]
    if twice:
        raise InputError(f"{name}: must name each image once, {twice[0]} comes again; remove a line")
    return found
