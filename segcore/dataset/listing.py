"""Which cases a folder or an index.csv names, before any pixel is read; of scans the headers are."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from segcore.dataset.case import Case
from segcore.dataset.scan_cases import cases_of, is_mask_folder, is_scan, stem_of
from segcore.errors import InputError
from segcore.image import IMAGE_SUFFIXES
from segcore.phantom import PHANTOM_KINDS

MAX_CLASSES = 32
_INDEX_COLUMNS = {"case", "patient", "image", "mask", "split", "spacing_row_mm", "spacing_col_mm"}


@dataclass(frozen=True)
class Listing:
    """What a folder or an index names.

    Attributes:
        cases: unscanned and unsplit; `split` holds what the index says, or "".
        class_names: from classes.txt, or None.
        problems: (case, message) of each file without its partner and each wrong row; not in `cases`.
    """

    cases: tuple[Case, ...]
    class_names: tuple[str, ...] | None
    problems: tuple[tuple[str, str], ...]


def list_data(data: str) -> Listing:
    """Lists a folder or an index.csv.

    Raises:
        InputError: there is nothing to list; a problem of single cases is returned instead.
    """
    path = Path(data)
    if path.is_dir() and (path / "index.csv").is_file():  # it says more than the folders do, so it goes first
        path = path / "index.csv"
    if path.is_file() and path.suffix == ".csv":
        cases, problems, folder = *_read_index(path, data), path.parent
    elif path.is_dir():
        cases, problems, folder = *_read_folder(path, data), path
    else:
        raise InputError(
            f"--data {data}: must be a folder, an index.csv or one of "
            f"{', '.join('phantom:' + k for k in PHANTOM_KINDS)}; no such file or folder"
        )
    # All slices of a scan that comes twice are doubled; it is told once, by the scan's name.
    times = Counter(c.id for c in cases)
    for name, n in {c.volume or c.id: times[c.id] for c in cases if times[c.id] > 1}.items():
        problems.append((name, f"--data {data}: case names must differ, {name} comes {n} times; rename one"))
    return Listing(tuple(cases), _class_names(folder / "classes.txt"), tuple(problems))


def _class_names(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if not 1 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise InputError(
            f"classes {path}: must name 1 to {MAX_CLASSES} different classes, one a line, got {len(names)}"
        )
    return names


def _read_folder(folder: Path, data: str) -> tuple[list[Case], list[tuple[str, str]]]:
    if not (folder / "images").is_dir():
        found = _input_paths(folder)
        if found:  # a plain folder of images: nothing labelled
            return _collect_cases([(p, None) for p in found])
        raise InputError(f"--data {data}: must have images/ and masks/, or an index.csv; got neither")
    images = _input_paths(folder / "images")
    if not images:
        raise InputError(
            f"--data {data}: images/ must hold {', '.join(IMAGE_SUFFIXES)} files, DICOM or NIfTI, got none"
        )
    extra = _input_paths(folder / "unlabelled") if (folder / "unlabelled").is_dir() else []
    if not (folder / "masks").is_dir():
        return _collect_cases([(p, None) for p in images + extra])
    files = _input_paths(folder / "masks", folders=is_mask_folder)
    masks = {stem_of(p): p for p in files}
    times = Counter(stem_of(p) for p in files)
    pairs = [(p, masks[stem_of(p)]) for p in images if times[stem_of(p)] == 1]  # the others are told below
    cases, problems = _collect_cases([*pairs, *((p, None) for p in extra)])
    return cases, problems + _pairing_problems(images, files, folder)


def _pairing_problems(images: list[Path], masks: list[Path], folder: Path) -> list[tuple[str, str]]:
    named = {stem_of(p): p for p in masks}
    lonely_images = [
        (stem_of(p), f"image {p}: must have a mask of the same name in {folder / 'masks'}, got none; "
                     "add it, or move the image to unlabelled/")
        for p in images if stem_of(p) not in named
    ]  # fmt: skip
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


def _collect_cases(pairs: Iterable[tuple[Path, Path | None]]) -> tuple[list[Case], list[tuple[str, str]]]:
    cases: list[Case] = []
    problems: list[tuple[str, str]] = []
    for image, mask in pairs:
        try:
            cases += cases_of(stem_of(image), image, mask)
        except InputError as error:
            problems.append((stem_of(image), str(error)))
    return cases, problems


def _input_paths(folder: Path, *, folders: Callable[[Path], bool] = is_scan) -> list[Path]:
    """Pictures, NIfTI and DICOM files, and the folders that stand for one input."""
    return sorted(
        p
        for p in folder.iterdir()
        if not p.name.startswith(".")
        and (folders(p) if p.is_dir() else p.suffix.lower() in IMAGE_SUFFIXES or is_scan(p))
    )


def _read_index(path: Path, data: str) -> tuple[list[Case], list[tuple[str, str]]]:
    cases: list[Case] = []
    problems: list[tuple[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            reader = csv.DictReader(file, restval="")
            missing = [c for c in ("case", "image") if c not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"--data {data}: {path.name} must have the columns case and image, got no {missing[0]}"
                )
            for row in reader:
                try:
                    cases += _index_cases(row, path.parent, data, reader.line_num)
                except InputError as error:  # of one row: the others are still listed
                    problems.append((row["case"] or f"line {reader.line_num}", str(error)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"--data {data}: {path.name} must be CSV in UTF-8, got {error}; save it again"
        ) from None
    if not cases and not problems:
        raise InputError(f"--data {data}: {path.name} must have a row for each case, got none")
    return cases, problems


def _index_cases(row: Mapping[str, str], folder: Path, data: str, line: int) -> list[Case]:
    if not row["case"] or not row["image"]:
        raise InputError(f"--data {data}: line {line} of the index must name a case and an image, got "
                         f"{row['case']!r} and {row['image']!r}; fill them in")  # fmt: skip
    return cases_of(
        row["case"],
        folder / row["image"],
        folder / row["mask"] if row.get("mask") else None,
        patient=row.get("patient"),
        split=row.get("split") or "",
        spacing_mm=_spacing_of_row(row, data),
        metadata={k: v for k, v in row.items() if k not in _INDEX_COLUMNS and isinstance(k, str) and v},
    )


def _spacing_of_row(row: Mapping[str, str], data: str) -> tuple[float, float] | None:
    texts = row.get("spacing_row_mm") or "", row.get("spacing_col_mm") or ""
    if texts == ("", ""):
        return None
    try:
        spacing = float(texts[0]), float(texts[1])
    except ValueError:
        spacing = 0.0, 0.0
    if not (0 < spacing[0] < float("inf") and 0 < spacing[1] < float("inf")):
        raise InputError(f"--data {data}: spacing of case {row['case']} must be two numbers of millimetres, "
                         f"got {texts[0]!r}, {texts[1]!r}; mend or empty both")  # fmt: skip
    return spacing
