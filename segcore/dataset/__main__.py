"""`python -m segcore.dataset --data D`: says what a dataset holds, or all that is wrong with it at once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from segcore.command import Progress, Settings, log, print_result, run_command
from segcore.dataset.case import Case
from segcore.dataset.checked import check_case
from segcore.dataset.dataset import Dataset, odd_masks, open_dataset, split_counts
from segcore.dataset.listing import list_data
from segcore.dataset.scan_cases import ScanSource, open_scan
from segcore.dataset.split import SPLITS, given_split_problems
from segcore.errors import InputError
from segcore.outfolder import out_folder
from segcore.picture.overlay import overlay, sheet

SHEET_CASES, TILE_PX = 24, 224
T = TypeVar("T")


class CheckSettings(Settings):
    """Checks a dataset, prints what it holds and draws a contact sheet of its masks."""

    data: str
    """a folder, an index.csv, or phantom:cxr, phantom:ct, phantom:dental, phantom:volume"""
    out: Path | None = None
    """new folder for the contact sheet (default: runs/dataset/NAME.png, drawn anew each time)"""
    overwrite: bool = False
    """replace OUT if it is there"""
    split_seed: int = 0
    """seed of the split by patient, where the index has no split column"""
    augment: str | None = None
    """a second sheet, of training cases as an augmentation changes them: auto, film, colour, scan, none or a YAML
    file, as for student.distill and teacher.train (needs torch)"""
    flip: bool = True
    """of that sheet: --no-flip mirrors nothing"""
    window: str | None = None
    """of that sheet: values from black to white, as for student.distill"""


def check(settings: CheckSettings) -> None:
    """Checks, prints, draws.

    Raises:
        InputError: cases must be mended; every one has its own line on stderr.
    """
    augment = _read_augment(settings.augment) if settings.augment else None
    if not settings.data.startswith("phantom:"):
        _raise_all_problems(settings.data)
    dataset = open_dataset(settings.data, seed=settings.split_seed, need_masks=False)
    facts = dict(
        zip((c.id for c in dataset.cases), _map_cases(case_facts, dataset.cases, "reading"), strict=True)
    )
    copies, hints = copies_across_splits(dataset.cases, facts), patient_hints(dataset.cases)
    for line in report(dataset, facts, copies, hints):
        print(line)
    sheets = {"": contact_sheet(dataset)}
    if settings.augment:
        sheets[f"-augment-{Path(settings.augment).stem}"] = _draw_augment(dataset, augment, settings)
    path, *augmented = _save_sheets(sheets, settings)
    print(f"contact sheet   {path}")
    for other in augmented:
        print(f"augmentation    {other}")
    shares = class_shares(facts.values(), len(dataset.classes))
    print_result(
        data=dataset.name,
        cases=len(dataset.cases),
        scans=len(_slices_by_scan(dataset.cases)),
        patients=len({c.patient for c in dataset.cases}),
        splits=split_counts(dataset),
        classes=dataset.classes,
        class_shares=dict(zip(dataset.classes, (round(s, 6) for s in shares), strict=True)),
        empty_masks=len(_empty_masks(facts)),
        copies_across_splits=len(copies),
        patient_hints=len(hints),
        data_sha256=dataset.sha256,
        split_sha256=dataset.split_sha256,
        sheet=path,
        **({"augment_sheet": augmented[0]} if augmented else {}),
    )


# What is wrong with it.


def find_problems(data: str) -> tuple[list[tuple[str, str]], int]:
    """Every (case, message) of a folder or index, and how many cases it has with the unpaired ones."""
    listing = list_data(data)
    problems = list(listing.problems)
    values: dict[str, frozenset[int]] = {}
    for case, (found, messages) in zip(
        listing.cases, _map_cases(_read_whole, listing.cases, "checking"), strict=True
    ):
        problems += [(case.id, message) for message in messages]
        if found is not None:
            values[case.id] = found
    labelled = [c for c in listing.cases if c.labelled]
    problems += odd_masks(values, [c for c in labelled if c.id in values], listing.class_names)
    if any(c.split for c in labelled):
        problems += given_split_problems([(c.id, c.patient, c.split) for c in labelled], name=data)
    return problems, len({c.id for c in listing.cases} | {case for case, _ in listing.problems})


def _raise_all_problems(data: str) -> None:
    problems, cases = find_problems(data)
    # All slices of a scan may have the same message.
    for message in dict.fromkeys(message for _, message in problems):
        log(message)
    if problems:
        bad = len({case for case, _ in problems})
        raise InputError(f"--data {data}: {bad} of {cases} cases must be mended, see the lines above")


def _read_whole(case: Case) -> tuple[frozenset[int] | None, list[str]]:
    messages: list[str] = []
    values: frozenset[int] | None = None
    try:
        case.image()  # decodes all of it; check_case reads only the header
    except InputError as error:
        messages.append(str(error))
    try:
        if case.labelled:
            values = check_case(case)
    except InputError as error:
        messages.append(str(error))
    return values, list(dict.fromkeys(messages))


# What it holds.


@dataclass(frozen=True)
class CaseFacts:
    """What one readable case holds.

    Attributes:
        kind: size, depth and channels of the image, "512×512 uint8 grey"; of DICOM also the modality, in front.
        pixel_sha256: of the decoded image, so that a copy in another file format is found too; None where all pixels
            are equal, as in the air above a patient.
        pixels_per_class: background first; empty where there is no mask.
    """

    kind: str
    pixel_sha256: str | None
    pixels_per_class: tuple[int, ...]


def case_facts(case: Case) -> CaseFacts:
    """Decodes a case and measures it."""
    image = case.image()
    channels = "RGB" if image.ndim == 3 else "grey"
    modality = open_scan(case.source.image_path).modality if isinstance(case.source, ScanSource) else ""
    digest = hashlib.sha256(f"{image.shape}{image.dtype}".encode() + np.ascontiguousarray(image).tobytes())
    counts = tuple(np.bincount(case.mask().ravel()).tolist()) if case.labelled else ()
    kind = f"{modality} {image.shape[0]}×{image.shape[1]} {image.dtype.name} {channels}".lstrip()
    return CaseFacts(kind, digest.hexdigest() if image.min() < image.max() else None, counts)


def class_shares(facts: Iterable[CaseFacts], classes: int) -> tuple[float, ...]:
    """Share of all labelled pixels, 0–1, of each foreground class."""
    total = np.zeros(classes + 1)
    for fact in facts:
        total[: len(fact.pixels_per_class)] += fact.pixels_per_class
    return tuple((total[1:] / max(total.sum(), 1)).tolist())


def copies_across_splits(cases: Sequence[Case], facts: dict[str, CaseFacts]) -> list[list[Case]]:
    """Groups of cases with the same pixels in more than one split."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if digest := facts[case.id].pixel_sha256:
            groups[digest].append(case)
    return [group for group in groups.values() if len({c.split for c in group}) > 1]


def patient_hints(cases: Sequence[Case]) -> list[list[Case]]:
    """Groups in more than one split whose names suggest one patient, where nobody said who the patients are.

    "P017_1" and "P017_2" may be one patient; "img_1" and "img_2" say nothing, for "img" has no number.
    """
    if any(case.patient != (case.volume or case.id) for case in cases):
        return []
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in (c for c in cases if c.slice_index == 0):  # a scan goes by its first slice
        name = case.volume or case.id
        stem = re.sub(r"[-_. ]+[A-Za-z0-9]{1,4}$", "", name)
        if stem != name and re.search(r"\d", stem):
            groups[stem].append(case)
    most = max(2, len(cases) // 4)  # a stem that a quarter of all cases share is no patient's name
    return [group for group in groups.values() if len({c.split for c in group}) > 1 and len(group) <= most]


def report(
    dataset: Dataset, facts: dict[str, CaseFacts], copies: list[list[Case]], hints: list[list[Case]]
) -> list[str]:
    """What the command prints, line by line."""
    empty = _empty_masks(facts)
    patients = {name: len({c.patient for c in dataset.split(name)}) for name in SPLITS}
    shares = class_shares(facts.values(), len(dataset.classes))
    classes = (f"{name} {100 * share:.2f} %" for name, share in zip(dataset.classes, shares, strict=True))
    scans = _slices_by_scan(dataset.cases)
    lines = [
        f"data            {dataset.name}",
        f"cases           {len(dataset.cases)} of {len({c.patient for c in dataset.cases})} patients",
        *([f"scans           {len(scans)} of {sum(scans.values())} slices"] if scans else []),
        *(f"  {name:13} {n} of {patients[name]} patients" for name, n in split_counts(dataset).items()
          if name in patients),
        f"  unlabelled    {sum(not c.labelled for c in dataset.cases)}",
        f"images          {_counts_text(fact.kind for fact in facts.values())}",
        f"classes         {', '.join(classes)} (of all labelled pixels)",
        f"empty masks     {len(empty)}{_first_names(empty)}",
        f"pixel spacing   {_spacing_text(dataset.cases)}",
        f"copies          {len(copies)} images are in more than one split",
        *(f"  {_places_text(group)}" for group in copies),
    ]  # fmt: skip
    if hints:
        lines.append(f"same patient?   {len(hints)} groups in more than one split, by their names; "
                     "if so, give index.csv a patient column")  # fmt: skip
        lines += [f"  {_places_text(group)}" for group in hints]
    return lines


def _slices_by_scan(cases: Iterable[Case]) -> Counter[str]:
    """Slices of each scan that has several."""
    return Counter(case.volume for case in cases if case.volume is not None)


def _spacing_text(cases: Sequence[Case]) -> str:
    known = [case.spacing_mm for case in cases if case.spacing_mm is not None]
    across = [side for spacing in known for side in spacing]
    between = [case.slice_spacing_mm for case in cases if case.slice_spacing_mm is not None]
    text = f"known for {len(known)}" + (f", {min(across):.3g} to {max(across):.3g} mm" if known else "")
    return text + (f"; slices {min(between):.3g} to {max(between):.3g} mm apart" if between else "")


def _empty_masks(facts: dict[str, CaseFacts]) -> list[str]:
    return [name for name, fact in facts.items() if len(fact.pixels_per_class) == 1]


def _first_names(names: list[str], most: int = 8) -> str:
    return f": {', '.join(names[:most])}{', …' if len(names) > most else ''}" if names else ""


def _places_text(group: list[Case]) -> str:
    return ", ".join(f"{case.id} ({case.split or 'unlabelled'})" for case in group)


def _counts_text(items: Iterable[str], most: int = 6) -> str:
    counts = Counter(items).most_common()
    shown = ", ".join(f"{n} of {item}" for item, n in counts[:most])
    return shown + (f" and {len(counts) - most} other kinds" if len(counts) > most else "")


# The contact sheet.


def contact_sheet(dataset: Dataset, count: int = SHEET_CASES) -> Image.Image:
    """About `count` masks over their images, in columns by split."""
    groups = {name: dataset.split(name) for name in SPLITS} | {"unlabelled": dataset.unlabelled}
    groups = {name: cases for name, cases in groups.items() if cases}
    columns = [name for name in groups for _ in range(max(1, 6 // len(groups)))]
    height = -(-count // len(columns))
    rows: list[list[np.ndarray]] = [[] for _ in range(height)]
    for column, name in enumerate(columns):
        place, wide = columns[:column].count(name), columns.count(name)
        for row in range(height):
            index, shown = row * wide + place, min(height * wide, len(groups[name]))
            if index < shown:
                rows[row].append(_case_tile(groups[name][index * len(groups[name]) // shown]))
            else:
                rows[row].append(np.full((TILE_PX, TILE_PX), 24, np.uint8))
    return sheet(rows, columns, tile_px=TILE_PX)


def _case_tile(case: Case) -> np.ndarray:
    image = _case_picture(case)
    mask = case.mask() if case.labelled else np.zeros(image.shape[:2], np.uint8)
    tile = Image.fromarray(overlay(image, mask))
    scale = TILE_PX / max(tile.size)
    tile = tile.resize((max(1, round(tile.width * scale)), max(1, round(tile.height * scale))))
    ImageDraw.Draw(tile).text(
        (4, tile.height - 14), case.id, fill="white", stroke_width=1, stroke_fill="black"
    )
    return np.asarray(tile)


def _case_picture(case: Case) -> np.ndarray:
    """A slice of a scan as a viewer shows it: through the file's own window."""
    return case.source.display() if isinstance(case.source, ScanSource) else case.image()


def _save_sheets(sheets: dict[str, Image.Image], settings: CheckSettings) -> list[Path]:
    """Writes each picture as NAME, the data's, with its own suffix behind it."""
    source = Path(settings.data)
    name = source.resolve().parent.name if source.name == "index.csv" else source.stem
    name = re.sub(r"[^\w.-]+", "-", name or source.resolve().name)
    files = {f"{name}{suffix}.png": picture for suffix, picture in sheets.items()}
    if settings.out is None:
        folder = Path("runs/dataset")
        folder.mkdir(parents=True, exist_ok=True)
        for file, picture in files.items():
            picture.save(folder / file)
        return [folder / file for file in files]
    with out_folder(settings.out, settings.model_dump(mode="json"), overwrite=settings.overwrite) as folder:
        for file, picture in files.items():
            picture.save(folder / file)
    return [settings.out / file for file in files]


# The augmentation is by name, because it needs torch, which nothing else here does.


def _read_augment(name: str) -> object:
    return import_module("segcore.learn.transforms").read_augment(name)


def _draw_augment(dataset: Dataset, augment: object, settings: CheckSettings) -> Image.Image:
    label = settings.augment and Path(settings.augment).name
    module = import_module("segcore.learn.augment_sheet")
    drawn: Image.Image = module.augment_sheet(
        dataset, augment, label=label, flip=settings.flip, window=settings.window
    )
    return drawn


def _map_cases(function: Callable[[Case], T], cases: Sequence[Case], label: str) -> list[T]:
    with ThreadPoolExecutor() as pool:
        return list(Progress(pool.map(function, cases), label, total=len(cases), unit="case", leave=False))


if __name__ == "__main__":
    run_command(check, CheckSettings, "python -m segcore.dataset")
