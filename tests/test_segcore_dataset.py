"""A dataset opens as it is meant, or says in one line which file is wrong and how to mend it."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.dataset.__main__ import find_problems
from segcore.dataset.dataset import open_dataset, split_counts
from segcore.dataset.listing import list_data
from segcore.errors import InputError
from segcore.phantom import PHANTOM_CLASSES, phantom_case, phantom_patient

SIZE = (12, 10)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, SIZE, np.uint8)


def mask(*values: int) -> np.ndarray:
    array = np.zeros(SIZE, np.uint8)
    array.flat[: len(values)] = values
    return array


def make_folder(folder: Path, masks: list[np.ndarray]) -> Path:
    for i, array in enumerate(masks):
        save(folder / "images" / f"c{i}.png", picture(i))
        save(folder / "masks" / f"c{i}.png", array)
    return folder


def make_index(folder: Path, rows: list[dict[str, str]]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "index.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def message(data: Path | str, **options) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(str(data), **options)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(data), "D")


@pytest.mark.parametrize(
    ("stored", "names", "classes", "highest"),
    [
        ([255], None, ("foreground",), 1),
        ([1], None, ("foreground",), 1),
        ([1, 2, 3], None, ("class1", "class2", "class3"), 3),
        ([255], "lung\n", ("lung",), 1),
        ([1, 2], "left lung\nright lung\n", ("left lung", "right lung"), 2),
    ],
)
def test_classes_and_mask_values(tmp_path, stored, names, classes, highest):
    make_folder(tmp_path, [mask(*stored), mask(0), mask(*stored)])
    if names:
        (tmp_path / "classes.txt").write_text(names)
    dataset = open_dataset(str(tmp_path))
    assert dataset.classes == classes
    assert [int(case.mask().max()) for case in dataset.cases] == [highest, 0, highest]


def test_folder_cases_are_their_own_patients_and_unlabelled_ones_train(tmp_path):
    make_folder(tmp_path, [mask(255)] * 5)
    save(tmp_path / "unlabelled" / "u.png", picture(9))
    dataset = open_dataset(str(tmp_path))
    assert split_counts(dataset) == {"train": 3, "val": 1, "test": 1, "unlabelled": 1}
    assert [case.id for case in dataset.unlabelled] == ["u"]
    assert all(case.patient == case.id for case in dataset.cases)


def test_index(tmp_path):
    make_folder(tmp_path, [mask(255)] * 4)
    rows = [
        {
            "case": f"c{i}", "patient": "ABCC"[i], "image": f"images/c{i}.png", "mask": f"masks/c{i}.png",
            "spacing_row_mm": "0.1", "spacing_col_mm": "0.2", "class": "normal",
        }
        for i in range(4)
    ]  # fmt: skip
    dataset = open_dataset(str(make_index(tmp_path, rows)))
    assert [c.patient for c in dataset.cases] == list("ABCC")
    assert dataset.cases[0].spacing_mm == (0.1, 0.2)
    assert dataset.cases[0].metadata == {"class": "normal"}
    assert dataset.cases[2].split == dataset.cases[3].split
    assert dataset.sha256 == open_dataset(str(tmp_path / "index.csv")).sha256


def test_split_does_not_depend_on_the_order_of_the_index(tmp_path):
    make_folder(tmp_path, [mask(255)] * 10)
    rows = [{"case": f"c{i}", "image": f"images/c{i}.png", "mask": f"masks/c{i}.png"} for i in range(10)]
    first = open_dataset(str(make_index(tmp_path, rows)))
    random.Random(0).shuffle(rows)
    second = open_dataset(str(make_index(tmp_path, rows)))
    assert first.split_sha256 == second.split_sha256
    assert first.split_sha256 != open_dataset(str(tmp_path), seed=1).split_sha256


def test_unlabelled_images_of_test_patients_are_not_trained_on(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    rows = [
        {"case": f"c{i}", "patient": f"p{i}", "image": f"images/c{i}.png", "mask": f"masks/c{i}.png",
         "split": ("train", "val", "test")[i]}
        for i in range(3)
    ]  # fmt: skip
    for name, patient, split in (("u0", "p0", ""), ("u2", "p2", ""), ("u3", "p3", ""), ("u4", "p4", "test")):
        save(tmp_path / "more" / f"{name}.png", picture(7))
        rows.append(
            {"case": name, "patient": patient, "image": f"more/{name}.png", "mask": "", "split": split}
        )
    dataset = open_dataset(str(make_index(tmp_path, rows)))
    assert [case.id for case in dataset.unlabelled] == ["u0", "u3"]


def test_hash_follows_the_pixels(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    before = open_dataset(str(tmp_path)).sha256
    save(tmp_path / "masks" / "c1.png", mask(255, 255))
    assert open_dataset(str(tmp_path)).sha256 != before


def test_limit_spreads_over_the_split(tmp_path):
    cases = open_dataset("phantom:cxr:60").split("train")
    limited = open_dataset("phantom:cxr:60").split("train", limit=4)
    assert limited == tuple(cases[i] for i in (0, 9, 18, 27))
    assert open_dataset("phantom:cxr:60").split("train", limit=999) == cases


@pytest.mark.parametrize("kind", PHANTOM_CLASSES)
def test_phantoms(kind):
    dataset = open_dataset(f"phantom:{kind}:12", seed=3)
    assert dataset.classes == PHANTOM_CLASSES[kind]
    assert len(dataset.cases) == 12
    image, truth = phantom_case(kind, 5, seed=3)
    np.testing.assert_array_equal(dataset.cases[5].image(), image)
    np.testing.assert_array_equal(dataset.cases[5].mask(), truth)
    homes = {phantom_patient(kind, i): set() for i in range(12)}
    for case in dataset.cases:
        homes[case.patient].add(case.split)
    assert all(len(splits) == 1 for splits in homes.values())


def test_no_such_folder(tmp_path):
    assert message(tmp_path / "no") == (
        "--data D: must be a folder, an index.csv or one of phantom:cxr, phantom:ct, phantom:dental, phantom:volume; "
        "no such file or folder"
    )


@pytest.mark.parametrize("name", ["phantom:mri", "phantom:cxr:many", "phantom:cxr:3:4"])
def test_no_such_phantom(name):
    assert message(name) == "D: must be one of phantom:cxr, phantom:ct, phantom:dental, phantom:volume; got D"


def test_neither_folder_nor_index(tmp_path):
    assert message(tmp_path) == "--data D: must have images/ and masks/, or an index.csv; got neither"
    (tmp_path / "images").mkdir()
    kinds = ".png, .jpg, .jpeg, .tif, .tiff, .bmp, .gif, .webp, .pgm, .ppm, .pbm, .pnm"
    assert message(tmp_path) == f"--data D: images/ must hold {kinds} files, DICOM or NIfTI, got none"
    (tmp_path / "images" / "a.nrrd").write_bytes(b"NRRD")
    assert message(tmp_path).endswith("DICOM or NIfTI, got a.nrrd")


def test_images_alone(tmp_path):
    for i in range(3):
        save(tmp_path / f"c{i}.png", picture(i))
    assert message(tmp_path) == "--data D: must have masks, got 3 images alone; add a masks/ folder"
    dataset = open_dataset(str(tmp_path), need_masks=False)
    assert len(dataset.unlabelled) == 3


def test_unpaired_image(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    (tmp_path / "masks" / "c1.png").unlink()
    assert message(tmp_path) == (
        "image D/images/c1.png: must have a mask of the same name in D/masks, got none; "
        "add it, or move the image to unlabelled/"
    )


def test_unpaired_mask(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    (tmp_path / "images" / "c1.png").unlink()
    assert (
        message(tmp_path)
        == "mask D/masks/c1.png: must have an image of the same name in D/images, got none; add it"
    )


def test_mask_of_another_size(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    save(tmp_path / "masks" / "c1.png", mask(255).T)
    assert message(tmp_path) == (
        "mask D/masks/c1.png: must have the size of its image, 12×10, got 10×12; export it again at the image's size"
    )


def test_case_named_twice(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    save(tmp_path / "images" / "c1.jpg", picture(1))
    assert message(tmp_path) == "--data D: case names must differ, c1 comes 2 times; rename one"


def test_one_patient(tmp_path):
    make_folder(tmp_path, [mask(255)])
    assert message(tmp_path).startswith(
        "--data D: must have at least 3 patients to be split into train, val and test, got 1;"
    )


@pytest.mark.parametrize(
    ("masks", "names", "expected"),
    [
        (
            [mask(255), mask(255), mask(2)],
            "lung\n",
            "mask D/masks/c2.png: must hold 0/255 or 0/1, as masks of one class do, got values 0, 2; "
            "save class indices as PNG",
        ),
        (
            [mask(255), mask(77), mask(255)],
            None,
            "mask D/masks/c1.png: must hold 0/255 or 0/1, as masks of one class do, got values 0, 77; "
            "save class indices as PNG",
        ),
        (
            [mask(1), mask(7, 2), mask(3)],
            "a\nb\nc\n",
            "mask D/masks/c1.png: must hold class indices 0 to 3 (classes.txt names 3), got values 0, 2, 7; "
            "save class indices as PNG",
        ),
        (
            [mask(0), mask(*range(0, 250, 10)), mask(0)],
            None,
            "mask D/masks/c1.png: must hold class indices 0 to 32, or 0/255 in every mask, "
            "got values 0, 10, 20, 30, 40, 50, 60, 70, …; save class indices as PNG",
        ),
        (
            [mask(255), mask(255), mask(255)],
            "a\nb\n",
            "mask D/masks/c0.png: must hold class indices 0 to 2 (classes.txt names 2), got values 0, 255; "
            "save class indices as PNG",
        ),
    ],
    ids=[
        "one name, mixed",
        "grey level among 0/255",
        "class 7 of 3",
        "grey levels",
        "0/255 for two classes",
    ],
)
def test_masks_with_wrong_values(tmp_path, masks, names, expected):
    make_folder(tmp_path, masks)
    if names:
        (tmp_path / "classes.txt").write_text(names)
    assert message(tmp_path) == expected


@pytest.mark.parametrize("names", [None, "lung\n"])
def test_masks_of_one_class_are_0_255_or_0_1_each_by_its_own_kind(tmp_path, names):
    make_folder(tmp_path, [mask(255), mask(1), mask(255), mask()])
    Image.fromarray(mask(255) > 0).save(tmp_path / "masks" / "c2.png")  # of 1 bit
    if names:
        (tmp_path / "classes.txt").write_text(names)
    dataset = open_dataset(str(tmp_path))
    assert dataset.classes == ("lung" if names else "foreground",)
    assert [sorted(np.unique(case.mask()).tolist()) for case in dataset.cases] == [[0, 1]] * 3 + [[0]]


def test_a_class_that_never_occurs_is_told(tmp_path, capsys):
    make_folder(tmp_path, [mask(1, 3), mask(3), mask(1)])
    assert open_dataset(str(tmp_path)).classes == ("class1", "class2", "class3")
    assert "classes that never occur in any mask: 2 (class2) of 3" in capsys.readouterr().err


def test_classes_file_that_names_nothing(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    (tmp_path / "classes.txt").write_text("\n\n")
    assert (
        message(tmp_path) == "classes D/classes.txt: must name 1 to 32 different classes, one a line, got 0"
    )


INDEX_ROW = {"case": "c0", "image": "images/c0.png", "mask": "masks/c0.png"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"image": "a"}],
            "--data D: index.csv must have the columns case and image, got no case among image",
        ),
        (
            [INDEX_ROW | {"case": ""}],
            "--data D: line 2 of the index must name a case and an image, got '' and 'images/c0.png'; fill them in",
        ),
        ([INDEX_ROW | {"image": "no.png"}], "D/no.png: must be a file, no such file"),
        (
            [INDEX_ROW | {"spacing_row_mm": "wide", "spacing_col_mm": "1"}],
            "--data D: spacing of case c0 must be two numbers of millimetres, got 'wide', '1'; mend or empty both",
        ),
        (
            [INDEX_ROW | {"spacing_row_mm": "0.1", "spacing_col_mm": ""}],
            "--data D: spacing of case c0 must be two numbers of millimetres, got '0.1', ''; mend or empty both",
        ),
        (
            [INDEX_ROW | {"case": n, "patient": "p", "split": s} for n, s in (("a", "train"), ("b", "test"))],
            "--data D: patient p must be in one split, is in train and test; move all cases of a patient to one split",
        ),
        (
            [INDEX_ROW | {"case": n, "split": n} for n in ("train", "test")],
            "--data D: split val must have a case, got none; fill it in the split column",
        ),
    ],
)
def test_wrong_index(tmp_path, rows, expected):
    make_folder(tmp_path, [mask(255)])
    assert message(make_index(tmp_path, rows)) == expected


def test_index_that_is_not_text(tmp_path):
    (tmp_path / "index.csv").write_bytes(b"case,image\n\xff\xfe,a\n")
    assert message(tmp_path) == (
        "--data D: index.csv: must be text in UTF-8, got another encoding in line 2; save it as UTF-8"
    )


def test_listing_reads_no_pixels(tmp_path):
    make_folder(tmp_path, [mask(255)] * 3)
    (tmp_path / "images" / "c1.png").write_bytes(b"")
    assert [case.id for case in list_data(str(tmp_path)).cases] == ["c0", "c1", "c2"]


def test_16_bit_pictures_are_read_as_stored_whatever_wraps_them(tmp_path):
    for i in range(3):
        deep = np.random.default_rng(i).integers(0, 65535, SIZE, np.uint16)
        for suffix in ("png", "tif"):
            save(tmp_path / suffix / "images" / f"c{i}.{suffix}", deep)
            save(tmp_path / suffix / "masks" / f"c{i}.png", mask(255))
    pngs, tiffs = (open_dataset(str(tmp_path / suffix)).cases for suffix in ("png", "tif"))
    for one, other in zip(pngs, tiffs, strict=True):
        assert one.image().dtype == np.uint16
        np.testing.assert_array_equal(one.image(), other.image())


def test_a_tiff_of_several_pages_a_palette_and_an_alpha_channel_are_told_by_the_check(tmp_path):
    make_folder(tmp_path, [mask(255)] * 6)
    pages = [Image.fromarray(picture(i)) for i in range(3)]
    (tmp_path / "images" / "c0.png").unlink()
    pages[0].save(tmp_path / "images" / "c0.tif", save_all=True, append_images=pages[1:])
    pages[0].convert("P").save(tmp_path / "images" / "c1.png")
    hidden = pages[0].convert("LA")
    hidden.putalpha(7)
    hidden.save(tmp_path / "images" / "c2.png")
    problems, cases = find_problems(str(tmp_path))
    assert cases == 6
    assert [text.replace(str(tmp_path), "D") for _, text in problems] == [
        "image D/images/c0.tif: must hold one picture, got 3 pages; save the page you mean",
        "image D/images/c2.png: must be opaque, got transparent pixels; lay it on a background and save it without "
        "alpha",
    ]
