"""Which cases a folder or an index.csv names, before any pixel is read; of scans the headers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from segcore.bundle.manifest import MAX_CLASSES
from segcore.dataset.case import Case
from segcore.dataset.scan_cases import cases_of, is_mask_folder, is_scan, stem_of
from segcore.errors import InputError
from segcore.image import IMAGE_SUFFIXES
from segcore.medical.dicom.series import is_clutter
from segcore.phantom import PHANTOM_KINDS
from segcore.text import path_in, read_table, read_text
from segcore.words import plural, shortened

_INDEX_COLUMNS = {"case", "patient", "image", "mask", "split", "spacing_row_mm", "spacing_col_mm"}


@dataclass(frozen=True)
class Listing:
    """What a folder or an index names.

    Attributes:
        cases: unscanned and unsplit; `split` holds what the index says, or "".
        class_names: from classes.txt, or None.
        problems: (case, message) of each file without its partner and each wrong row; not in `cases`.
        left_out: a line for each folder with files that are no pictures.
    """

    cases: tuple[Case, ...]
    class_names: tuple[str, ...] | None
    problems: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()


def list_data(data: str) -> Listing:
    """Lists a folder or an index.csv.

    Raises:
        InputError: there is nothing to list; a problem of single cases is returned instead.
    """
    path = Path(data)
    if path.is_dir():  # an index says more than the folders do, so it goes first
        path = next(
            (p for p in sorted(path.iterdir()) if p.name.lower() == "index.csv" and p.is_file()), path
        )
    left_out: list[str] = []
    if path.is_file() and path.suffix.lower() == ".csv":
        cases, problems, folder = *_read_index(path, data), path.parent
    elif path.is_dir():
        cases, problems, folder = *_read_folder(path, data, left_out), path
    else:
        raise InputError(
            f"--data {data}: must be a folder, an index.csv or one of "
            f"{', '.join('phantom:' + k for k in PHANTOM_KINDS)}; no such file or folder"
        )
    # All slices of a scan that comes twice are doubled; it is told once, by the scan's name.
    times = Counter(c.id for c in cases)
    for name, n in {c.volume or c.id: times[c.id] for c in cases if times[c.id] > 1}.items():
        problems.append((name, f"--data {data}: case names must differ, {name} comes {n} times; rename one"))
    return Listing(tuple(cases), _class_names(folder / "classes.txt"), tuple(problems), tuple(left_out))


def _class_names(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in read_text(path, f"classes {path}").splitlines() if line.strip())
    if not 1 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise InputError(
            f"classes {path}: must name 1 to {MAX_CLASSES} different classes, one a line, got {len(names)}"
        )
    return names


def _read_folder(folder: Path, data: str, left_out: list[str]) -> tuple[list[Case], list[tuple[str, str]]]:
    if not (folder / "images").is_dir():
        found, others = _input_paths(folder)
        _note_others(folder, others, left_out)
        if found:  # a plain folder of images: nothing labelled
            return _collect_cases([(p, None) for p in found])
        raise InputError(f"--data {data}: must have images/ and masks/, or an index.csv; got neither")
    images, others = _input_paths(folder / "images")
    if not images:
        got = f", got {_names(others)}" if others else ", got none"
        raise InputError(
            f"--data {data}: images/ must hold {', '.join(IMAGE_SUFFIXES)} files, DICOM or NIfTI{got}"
        )
    _note_others(folder / "images", others, left_out)
    extra: list[Path] = []
    if (folder / "unlabelled").is_dir():
        extra, others = _input_paths(folder / "unlabelled")
        _note_others(folder / "unlabelled", others, left_out)
    if not (folder / "masks").is_dir():
        return _collect_cases([(p, None) for p in images + extra])
    files, others = _input_paths(folder / "masks", folders=is_mask_folder)
    # runtime.predict writes a record beside its masks, which is none.
    unread = {stem_of(p): p for p in others if p.suffix.lower() != ".json"}
    _note_others(
        folder / "masks", [p for s, p in unread.items() if s in {stem_of(f) for f in files}], left_out
    )
    masks = {stem_of(p): p for p in files}
    times = Counter(stem_of(p) for p in files)
    pairs = [(p, masks[stem_of(p)]) for p in images if times[stem_of(p)] == 1]  # the others are told below
    cases, problems = _collect_cases([*pairs, *((p, None) for p in extra)])
    return cases, problems + _pairing_problems(images, files, unread, folder)


def _pairing_problems(
    images: list[Path], masks: list[Path], unread: Mapping[str, Path], folder: Path
) -> list[tuple[str, str]]:
    named = {stem_of(p): p for p in masks}
    lonely_images = []
    for path in (p for p in images if stem_of(p) not in named):
        stem = stem_of(path)
        if stem in unread:
            file = unread[stem]
            message = (
                f"mask {file}: must be in a format that is read, is not; save it as PNG, NIfTI or DICOM-SEG"
            )
        else:
            message = (
                f"image {path}: must have a mask of the same name in {folder / 'masks'}, got none; "
                "add it, or move the image to unlabelled/"
            )
        lonely_images.append((stem, message))
    stems = {stem_of(p) for p in images}
    lonely_masks = [
        (stem, f"mask {p}: must have an image of the same name in {folder / 'images'}, got none; add it")
        for stem, p in named.items() if stem not in stems
    ]  # fmt: skip
    rivals = [
        (stem_of(p), f"mask {p}: must be the only mask of its image, {named[stem_of(p)].name} is another; keep one")
        for p in masks if named[stem_of(p)] != p
    ]  # fmt: skip
    return lonely_images + lonely_masks + rivals


def _note_others(folder: Path, others: list[Path], left_out: list[str]) -> None:
    if others:
        word = "file or folder" if any(path.is_dir() for path in others) else "file"
        number = plural(len(others), word).replace("file or folders", "files and folders")
        left_out.append(f"left out {number} of {folder.name}/ that are not read: {_names(others)}")


def _names(paths: list[Path]) -> str:
    return shortened([path.name for path in paths])


def _collect_cases(pairs: Iterable[tuple[Path, Path | None]]) -> tuple[list[Case], list[tuple[str, str]]]:
    cases: list[Case] = []
    problems: list[tuple[str, str]] = []
    for image, mask in pairs:
        try:
            cases += cases_of(stem_of(image), image, mask)
        except InputError as error:
            problems.append((stem_of(image), str(error)))
    return cases, problems


def _input_paths(folder: Path, *, folders: Callable[[Path], bool] = is_scan) -> tuple[list[Path], list[Path]]:
    """Pictures, NIfTI and DICOM files and the folders that stand for one input; and what else is there."""
    files = sorted(p for p in folder.iterdir() if not is_clutter(p))
    found = [
        p for p in files
        if (folders(p) if p.is_dir() else p.suffix.lower() in IMAGE_SUFFIXES or is_scan(p))
    ]  # fmt: skip
    known = {*found, *(p for p in files if p.name == "classes.txt")}
    return found, [p for p in files if p not in known]


def _read_index(path: Path, data: str) -> tuple[list[Case], list[tuple[str, str]]]:
    cases: list[Case] = []
    problems: list[tuple[str, str]] = []
    columns, rows = read_table(path, f"--data {data}: {path.name}", _INDEX_COLUMNS)
    if missing := [c for c in ("case", "image") if c not in columns]:
        raise InputError(
            f"--data {data}: {path.name} must have the columns case and image, got no {missing[0]} among "
            f"{', '.join(columns) or 'none'}"
        )
    for line, row in rows:
        try:
            cases += _index_cases(row, path.parent, data, line)
        except InputError as error:  # of one row: the others are still listed
            problems.append((row["case"] or f"line {line}", str(error)))
    if not rows:
        raise InputError(f"--data {data}: {path.name} must have a row for each case, got none")
    return cases, problems


def _index_cases(row: Mapping[str, str], folder: Path, data: str, line: int) -> list[Case]:
    if not row["case"] or not row["image"]:
        raise InputError(f"--data {data}: line {line} of the index must name a case and an image, got "
                         f"{row['case']!r} and {row['image']!r}; fill them in")  # fmt: skip
    return cases_of(
        row["case"],
        path_in(folder, row["image"]),
        path_in(folder, row["mask"]) if row.get("mask") else None,
        patient=row.get("patient"),
        split=(row.get("split") or "").lower(),
        spacing_mm=_spacing_of_row(row, data),
        metadata={k: v for k, v in row.items() if k not in _INDEX_COLUMNS and k and v},
    )


def _spacing_of_row(row: Mapping[str, str], data: str) -> tuple[float, float] | None:
    texts = row.get("spacing_row_mm") or "", row.get("spacing_col_mm") or ""
    if texts == ("", ""):
        return None
    try:
        spacing = (
            float(texts[0].replace(",", ".")),
            float(texts[1].replace(",", ".")),
        )  # as most of Europe writes them
    except ValueError:
        spacing = 0.0, 0.0
    if not (0 < spacing[0] < float("inf") and 0 < spacing[1] < float("inf")):
        raise InputError(f"--data {data}: spacing of case {row['case']} must be two numbers of millimetres, "
                         f"got {texts[0]!r}, {texts[1]!r}; mend or empty both")  # fmt: skip
    return spacing
