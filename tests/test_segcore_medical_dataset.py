"""Data sets of DICOM and NIfTI: every slice is a case, values and geometry are the file's, and nobody's name is told."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.dataset.__main__ import CheckSettings, check, find_problems
from segcore.dataset.case import FileSource
from segcore.dataset.dataset import open_dataset, split_counts
from segcore.dataset.listing import list_data
from segcore.dataset.scan_cases import ScanSource, open_scan, stem_of
from segcore.errors import InputError
from segcore.phantom import phantom_case
from segcore.picture.preprocess import InputSpec, prepare

pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

ROOT = Path(__file__).parents[1]
SIZE_PX, SLICES, VOLUMES = 40, 3, 5
# Grey 0 to 255 of a phantom is this range of Hounsfield units; CT stores them 1024 higher.
HU_LOW, HU_HIGH, STORED_ABOVE = -1000, 400, 1024
SECRETS = ("Mustermann", "Erika", "HOSP-4711", "19640812", "Elsewhere", "Doktor", "ACC-0815")


def ct_volume(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units and masks of one phantom patient, both N×H×W; the top slice has no lesion."""
    drawn = [phantom_case("ct", number * SLICES + i, size_px=SIZE_PX) for i in range(SLICES)]
    grey = np.stack([image for image, _ in drawn]).astype(float)
    masks = np.stack([mask for _, mask in drawn])
    masks[:, 10:14, 10:14] = 1
    masks[-1] = 0
    return np.round(HU_LOW + grey * (HU_HIGH - HU_LOW) / 255).astype(np.int16), masks


def save_nifti(path: Path, volume: np.ndarray, affine_lps: np.ndarray) -> Path:
    """N×H×W with a DICOM affine (columns, rows, slices to left, posterior, superior), as NIfTI has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine_lps), path)
    return path


def save_png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_ct(dicom_files, folder: Path, volume: np.ndarray, patient: str, **tags) -> list[Path]:
    stored = (volume.astype(np.int32) + STORED_ABOVE).astype(np.uint16)
    options = {"RescaleSlope": 1, "RescaleIntercept": -STORED_ABOVE, "PatientID": patient} | tags
    return dicom_files.make_series(folder, stored, spacing_mm=(0.7, 0.8), slice_spacing_mm=2.5, **options)


@pytest.fixture
def ct(tmp_path, dicom_files) -> Path:
    """images/v0/ … series folders, masks/v0.nii.gz …; two volumes are of one patient."""
    for number in range(VOLUMES):
        volume, masks = ct_volume(number)
        save_ct(dicom_files, tmp_path / "d" / "images" / f"v{number}", volume, f"HOSP-{max(1, number)}")
        affine = open_scan(tmp_path / "d" / "images" / f"v{number}").affine
        save_nifti(tmp_path / "d" / "masks" / f"v{number}.nii.gz", masks, affine)
    return tmp_path / "d"


@pytest.fixture
def films(tmp_path, dicom_files) -> tuple[Path, Path]:
    """The same five 8-bit pictures as PNG and as DICOM, with PNG masks."""
    for i in range(5):
        image, mask = phantom_case("cxr", 2 * i, size_px=64)
        save_png(tmp_path / "png" / "images" / f"f{i}.png", image)
        film = {"Modality": "DX", "PatientID": f"HOSP-{i}", "ImagerPixelSpacing": [0.2, 0.2]}
        dicom_files.make_dicom(tmp_path / "dx" / "images" / f"f{i}.dcm", image, **film)
        for kind in ("png", "dx"):
            save_png(tmp_path / kind / "masks" / f"f{i}.png", mask * np.uint8(255))
    return tmp_path / "png", tmp_path / "dx"


def message(data: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(str(data))
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(data), "D")


def test_every_slice_is_a_case_in_the_order_of_position(ct):
    dataset = open_dataset(str(ct))
    assert [c.id for c in dataset.cases[:4]] == ["v0-s001", "v0-s002", "v0-s003", "v1-s001"]
    assert [(c.volume, c.slice_index) for c in dataset.cases[2:4]] == [("v0", 2), ("v1", 0)]
    assert dataset.classes == ("foreground",)
    for number in range(VOLUMES):
        volume, masks = ct_volume(number)
        for index in range(SLICES):
            case = dataset.cases[number * SLICES + index]
            assert case.image().dtype == np.float32
            np.testing.assert_array_equal(case.image(), volume[index])
            np.testing.assert_array_equal(case.mask(), masks[index])
            assert (case.spacing_mm, case.slice_spacing_mm) == ((0.7, 0.8), 2.5)


def test_patients_are_pseudonyms_and_stay_together(ct):
    dataset = open_dataset(str(ct))
    patients = {c.volume: c.patient for c in dataset.cases}
    assert patients["v0"] == patients["v1"]
    assert len(set(patients.values())) == VOLUMES - 1
    assert not any(secret in patient for patient in patients.values() for secret in ("HOSP", *SECRETS))
    for patient in set(patients.values()):
        assert len({c.split for c in dataset.cases if c.patient == patient}) == 1
    assert sum(split_counts(dataset).values()) == VOLUMES * SLICES


def test_nifti_volumes_are_their_own_patients(tmp_path):
    affine = np.diag([0.5, 0.6, 3.0, 1.0])
    for number in range(3):
        volume, masks = ct_volume(number)
        save_nifti(tmp_path / "images" / f"n.{number}.nii.gz", volume, affine)
        save_nifti(tmp_path / "masks" / f"n.{number}.nii.gz", masks * np.uint8(255), affine)
    dataset = open_dataset(str(tmp_path))
    assert [c.id for c in dataset.cases[:2]] == ["n.0-s001", "n.0-s002"]
    assert {c.patient for c in dataset.cases} == {"n.0", "n.1", "n.2"}
    assert dataset.cases[0].spacing_mm == pytest.approx((0.6, 0.5))
    assert dataset.cases[0].slice_spacing_mm == pytest.approx(3.0)
    for index, case in enumerate(dataset.cases[:SLICES]):
        assert set(np.unique(case.mask())) <= {0, 1}
        np.testing.assert_array_equal(case.image(), ct_volume(0)[0][index])
        np.testing.assert_array_equal(case.mask(), ct_volume(0)[1][index])


def test_an_index_names_scans_and_pictures_alike(ct, films):
    png, dx = films
    for place, folder in (("png", png), ("dx", dx)):
        shutil.copytree(folder, ct / place)
    rows = [
        {"case": "a", "patient": "me", "image": "images/v2", "mask": "masks/v2.nii.gz", "spacing_row_mm": "1",
         "spacing_col_mm": "2", "site": "north"},
        {"case": "b", "image": "images/v3", "mask": "masks/v3.nii.gz"},
        {"case": "c", "image": "dx/images/f0.dcm", "mask": "dx/masks/f0.png"},
        {"case": "d", "image": "png/images/f1.png", "mask": "png/masks/f1.png"},
        {"case": "e", "image": "images/v4"},
    ]  # fmt: skip
    with (ct / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    cases = {c.id: c for c in list_data(str(ct)).cases}
    slices = {name: [f"{name}-s00{i}" for i in (1, 2, 3)] for name in "abe"}
    assert list(cases) == [*slices["a"], *slices["b"], "c", "d", *slices["e"]]
    assert cases["a-s002"].patient == "me"
    assert cases["a-s002"].spacing_mm == (1.0, 2.0)
    assert cases["a-s002"].metadata == {"site": "north"}
    assert cases["b-s001"].spacing_mm == (0.7, 0.8)
    assert cases["c"].volume is None
    assert cases["c"].patient.startswith("p-")
    assert isinstance(cases["d"].source, FileSource)
    assert not cases["e-s003"].labelled


def test_8_bit_films_become_the_same_bytes_as_their_pictures(films):
    """What a network is fed must not depend on the wrapping."""
    spec = InputSpec(height_px=32, width_px=32, channels=1, mean=(0.5,), std=(0.25,))
    pictures, scans = (open_dataset(str(folder)) for folder in films)
    for picture, scan in zip(pictures.cases, scans.cases, strict=True):
        assert scan.image().dtype == np.uint8
        np.testing.assert_array_equal(prepare(scan.image(), spec), prepare(picture.image(), spec))
        np.testing.assert_array_equal(scan.mask(), picture.mask())
        assert scan.spacing_mm == (0.2, 0.2)


def test_a_folder_of_scans_alone_is_unlabelled(ct):
    dataset = open_dataset(str(ct / "images"), need_masks=False)
    assert len(dataset.unlabelled) == VOLUMES * SLICES


def test_a_file_without_a_suffix_is_known_by_its_first_bytes(films):
    _, dx = films
    for path in sorted((dx / "images").iterdir()):
        path.rename(path.with_name(f"1.2.840.{path.stem[1:]}"))
    for path in sorted((dx / "masks").iterdir()):
        path.rename(path.with_name(f"1.2.840.{path.stem[1:]}.png"))
    (dx / "images" / "README").write_text("not a picture")
    assert [c.id for c in open_dataset(str(dx)).cases] == [f"1.2.840.{i}" for i in range(5)]


def test_stems(tmp_path):
    (tmp_path / "1.2.nii").mkdir()
    stems = {
        "a.nii.gz": "a", "a.nii": "a", "b.1.NII.GZ": "b.1", "c.dcm": "c", "1.2.840.113": "1.2.840.113", "d.png": "d",
        "1.2.nii": "1.2.nii", ".nii": ".nii",
    }  # fmt: skip
    assert {name: stem_of(tmp_path / name) for name in stems} == stems


def test_a_scan_is_opened_once_for_its_neighbours_and_a_source_can_be_sent(ct):
    source = open_dataset(str(ct)).cases[1].source
    assert isinstance(source, ScanSource)
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_scan, [source.image_path] * 32))
    assert all(scan is opened[0] for scan in opened)
    sent = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(sent.image(), source.image())
    for other in range(1, VOLUMES):
        open_scan(ct / "images" / f"v{other}")
    assert open_scan(source.image_path) is not opened[0]  # only the last few are kept


def test_what_was_kept_is_read_anew_when_its_file_changes(ct, dicom_files):
    before = open_dataset(str(ct))
    affine = open_scan(ct / "images" / "v0").affine
    before.cases[0].mask()  # now it is kept
    save_nifti(ct / "masks" / "v0.nii.gz", ct_volume(0)[1][::-1].copy(), affine)
    np.testing.assert_array_equal(before.cases[0].mask(), ct_volume(0)[1][-1])
    after = open_dataset(str(ct))
    assert before.sha256 != after.sha256
    np.testing.assert_array_equal(after.cases[0].mask(), ct_volume(0)[1][-1])


def test_fingerprints_are_of_the_slice(ct, tmp_path, dicom_files):
    sources = [case.source for case in open_dataset(str(ct)).cases]
    prints = [source.image_fingerprint() for source in sources]
    assert len(set(prints)) == len({source.fingerprint() for source in sources}) == len(sources)
    assert all(len(text) == 16 for text in prints)
    # The second slice alone, under another name, is the same picture; one that was changed is another, alone.
    file = Path(open_scan(ct / "images" / "v0").header[1].filename)
    alone = Path(shutil.copy(file, tmp_path / "elsewhere"))
    assert ScanSource(alone, None).image_fingerprint() == prints[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    changed = [source.image_fingerprint() for source in sources]
    assert [i for i, (a, b) in enumerate(zip(prints, changed, strict=True)) if a != b] == [1]


def test_slices_of_a_nifti_differ_and_need_no_decoding(tmp_path):
    path = save_nifti(tmp_path / "n.nii", ct_volume(0)[0], np.eye(4))
    sources = [ScanSource(path, None, i) for i in range(SLICES)]
    assert len({source.image_fingerprint() for source in sources}) == SLICES
    assert sources[0].image_fingerprint() == ScanSource(path, None, 0).image_fingerprint()


def test_every_problem_of_every_scan_at_once(ct, capsys):
    masks, images = ct / "masks", ct / "images"
    first = sorted((images / "v0").iterdir())[0]
    first.write_bytes(first.read_bytes()[:300])  # cut inside the header
    shutil.copy(sorted((images / "v2").iterdir())[0], images / "v1" / "other.dcm")  # of another series
    affine = open_scan(images / "v2").affine
    save_nifti(masks / "v2.nii.gz", ct_volume(2)[1][:2].copy(), affine)  # two slices of three
    odd = ct_volume(3)[1]
    odd[0] *= 77
    odd[1] *= 99
    save_nifti(masks / "v3.nii.gz", odd, affine)
    (masks / "v4.nii.gz").unlink()
    save_png(masks / "v4.png", ct_volume(4)[1][0])
    bad = ct_volume(0)[0].astype(np.float32)
    bad[1, 3, 3] = np.nan
    save_nifti(images / "nan.nii.gz", bad, affine)
    save_nifti(masks / "nan.nii.gz", ct_volume(0)[1], affine)
    with pytest.raises(InputError) as caught:
        check(CheckSettings(data=str(ct)))
    lines = capsys.readouterr().err.strip().replace(str(ct), "D").splitlines()
    names = ("v0", "v1", "v2", "v3", "v4", "nan")
    told = {name: [line for line in lines if f"/{name}" in line] for name in names}
    assert {name: len(found) for name, found in told.items()} == dict.fromkeys(told, 1), lines
    assert told["v3"] == [
        "mask D/masks/v3.nii.gz: must hold 0/255, 0/1 or class indices up to 32, "
        "got values 0, 77, 99; save class indices"
    ]
    assert told["v4"] == [
        "mask D/masks/v4.png: must have the slices of its image, 3, got 1; give a folder of PNG masks, a NIfTI or a "
        "DICOM segmentation"
    ]
    assert str(caught.value).endswith("cases must be mended, see the lines above")
    assert not [secret for secret in SECRETS if secret in "".join(lines)]


def test_a_file_is_of_one_kind_in_all_its_slices(ct):
    mixed = ct_volume(3)[1]
    mixed[0] *= 255
    save_nifti(ct / "masks" / "v3.nii.gz", mixed, open_scan(ct / "images" / "v3").affine)
    with pytest.raises(InputError, match=r"v3\.nii\.gz: must hold 0/255 or 0/1, .* got values 0, 1, 255"):
        open_dataset(str(ct))


def test_a_folder_of_numbered_pngs_is_a_mask_too(ct):
    before = open_dataset(str(ct))
    for number in range(VOLUMES):
        (ct / "masks" / f"v{number}.nii.gz").unlink()
        for index, mask in enumerate(ct_volume(number)[1]):
            save_png(ct / "masks" / f"v{number}" / f"{index + 1:04d}.png", mask * np.uint8(255))
    dataset = open_dataset(str(ct))
    for case, same in zip(dataset.cases, before.cases, strict=True):
        np.testing.assert_array_equal(case.mask(), ct_volume(int(case.volume[1:]))[1][case.slice_index])
        assert case.source.image_fingerprint() == same.source.image_fingerprint()
    prints = [case.source.fingerprint() for case in dataset.cases]
    save_png(ct / "masks" / "v0" / "0002.png", np.zeros((SIZE_PX, SIZE_PX), np.uint8))
    changed = [case.source.fingerprint() for case in dataset.cases]
    assert [i for i, (a, b) in enumerate(zip(prints, changed, strict=True)) if a != b] == [1]


def test_a_mask_that_has_a_rival_is_not_guessed(ct):
    save_png(ct / "masks" / "v1.png", ct_volume(1)[1][0])
    problems, _ = find_problems(str(ct))
    assert [text.replace(str(ct), "D") for _, text in problems] == [
        "mask D/masks/v1.nii.gz: must be the only mask of its image, v1.png is another; keep one"
    ]


def test_what_the_check_says_holds_nothing_of_a_header_but_its_geometry(ct, capsys, tmp_path):
    check(CheckSettings(data=str(ct), out=tmp_path / "O"))
    out = capsys.readouterr().out
    lines = out.splitlines()
    result = json.loads(lines[-1])
    assert (result["cases"], result["scans"], result["patients"]) == (VOLUMES * SLICES, VOLUMES, VOLUMES - 1)
    assert f"scans           {VOLUMES} of {VOLUMES * SLICES} slices" in lines
    assert f"images          {VOLUMES * SLICES} of CT 40×40 float32 grey" in lines
    assert f"pixel spacing   known for {VOLUMES * SLICES}, 0.7 to 0.8 mm; slices 2.5 to 2.5 mm apart" in lines
    assert result["empty_masks"] == VOLUMES
    assert not [secret for secret in (*SECRETS, "HOSP") if secret in out]
    with Image.open(tmp_path / "O" / "d.png") as picture:
        assert picture.width > 1000


WITHOUT_THE_EXTRA = """
import sys
sys.modules["pydicom"] = sys.modules["nibabel"] = sys.modules["highdicom"] = None
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
print(len([c.image() for c in open_dataset(sys.argv[1]).cases]))
try:
    open_dataset(sys.argv[2])
except InputError as error:
    print(error)
"""


def test_pictures_need_no_extra_and_scans_name_it(films):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA, *map(str, films)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "5",
        "pydicom: must be installed, is not; run: pip install 'sam2edge[medical]'",
    ]


def test_a_deflated_series_has_fingerprints_too(tmp_path, dicom_files):
    """Its header is read from memory, so pydicom does not know its file."""
    save_ct(dicom_files, tmp_path / "v", ct_volume(0)[0], "HOSP-1", syntax="deflated")
    sources = [ScanSource(tmp_path / "v", None, i) for i in range(SLICES)]
    assert len({source.image_fingerprint() for source in sources}) == SLICES
