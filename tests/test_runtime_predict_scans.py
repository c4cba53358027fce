"""DICOM series and NIfTI volumes through the command: slices, formats, volumes, and what must not be told."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from runtime.predict.__main__ import PredictSettings, main
from segcore.errors import InputError
from segcore.medical.mask_files import read_mask_file
from segcore.medical.read import read_scan
from segcore.phantom import phantom_case


@pytest.fixture
def archive(tmp_path, dicom_files):
    """A CT series of three slices whose window makes 8 bit of it, a radiograph, and a PNG, in a tree."""
    folder = tmp_path / "Mustermann"
    slices = np.stack([phantom_case("cxr", i, size_px=96)[0] for i in (40, 41, 42)]).astype(np.int16)
    window = {"WindowCenter": 128, "WindowWidth": 256}
    dicom_files.make_series(folder / "ct", slices, **window)
    dicom_files.make_dicom(
        folder / "film" / "1.2.3.4",
        phantom_case("cxr", 43, size_px=96)[0],
        Modality="DX",
        PixelSpacing=[0.2, 0.2],
    )
    Image.fromarray(phantom_case("cxr", 44, size_px=96)[0]).save(folder / "film" / "plain.png")
    return folder


def run(exported, image, out, **more):
    main(PredictSettings(bundle=exported("openvino", "fp32"), image=image, out=out, threads=1, **more))


def records(out) -> dict[str, dict]:
    return {r["case"]: r for r in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())}


def test_a_series_has_one_line(exported, archive, tmp_path, capsys):
    out = tmp_path / "out"
    run(exported, archive, out, to=("png", "nifti", "json"))
    found = records(out)
    assert set(found) == {"ct", "film/1.2.3.4", "film/plain"}
    ct = found["ct"]
    assert (ct["slices"], ct["height_px"], ct["slice_spacing_mm"]) == (3, 96, 2.0)
    assert ct["files"] == {"png": "masks/ct", "nifti": "masks/ct.nii.gz", "json": "masks/ct.json"}
    assert (ct["mask"], ct["overlay"]) == ("masks/ct", "overlays/ct")
    names = ["0001.png", "0002.png", "0003.png"]
    assert sorted(p.name for p in (out / "masks" / "ct").iterdir()) == names
    assert sorted(p.name for p in (out / "overlays" / "ct").iterdir()) == names
    masks = np.stack([np.asarray(Image.open(out / "masks" / "ct" / name)) > 0 for name in names])
    assert ct["area_px"] == {"lung": int(masks.sum())}
    (lung,) = ct["measurements"]
    assert (lung["unit"], lung["slices_in_all"]) == ("ml", 3)
    assert lung["volume"] == pytest.approx(masks.sum() * 0.5 * 0.5 * 2 / 1000)
    back = read_mask_file(out / "masks" / "ct.nii.gz", read_scan(archive / "ct"))
    np.testing.assert_array_equal(back > 0, masks)
    film = found["film/1.2.3.4"]["measurements"][0]
    assert film["unit"] == "mm"
    assert film["area"] == pytest.approx(film["pixels"] * 0.04)
    assert found["film/plain"]["spacing_mm"] is None
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["files"]["nifti"] for record in printed} == {str(p) for p in out.rglob("*.nii.gz")}


def test_slices_are_predicted_as_single_pictures_are(exported, archive, tmp_path):
    run(exported, archive / "ct", tmp_path / "out")
    for n, path in enumerate(sorted((archive / "ct").iterdir(), key=lambda p: p.stem.split("-")[1])):
        run(exported, path, tmp_path / f"one{n}")
        (single,) = (tmp_path / f"one{n}" / "masks").iterdir()
        assert single.read_bytes() == (tmp_path / "out" / "masks" / "ct" / f"{n + 1:04d}.png").read_bytes()


def test_dicom_seg_is_for_dicom(exported, archive, tmp_path):
    pytest.importorskip("highdicom")
    with pytest.raises(InputError):
        run(exported, archive, tmp_path / "out", to=("dicom-seg",), overlays=False)
    found = records(tmp_path / "out")
    told = "--to dicom-seg: plain.png must be DICOM, is a picture file; choose nifti or png"
    assert found["film/plain"]["error"] == told
    assert found["ct"]["files"] == {"dicom-seg": "masks/ct.dcm"}
    masks = read_mask_file(tmp_path / "out" / "masks" / "ct.dcm", read_scan(archive / "ct"))
    assert found["ct"]["area_px"] == {"lung": int(masks.sum())}
    # Beside another format it costs that one nothing, and is told.
    with pytest.raises(InputError, match=r"--to png dicom-seg: 1 of 3 images lack a file"):
        run(exported, archive, tmp_path / "both", to=("png", "dicom-seg"), overlays=False)
    found = records(tmp_path / "both")
    assert found["film/plain"]["files"] == {"png": "masks/film/plain.png"}
    assert found["film/plain"]["not_written"] == {"dicom-seg": told}
    assert (tmp_path / "both" / "masks" / "film" / "plain.png").is_file()


def test_what_deidentify_tells_nobody(exported, archive, dicom_files, tmp_path, capsys):
    pytest.importorskip("highdicom")
    (archive / "film" / "Erika.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    words = {"to": ("png", "dicom-seg", "json"), "deidentify": True}
    with pytest.raises(InputError):
        run(exported, archive, out, **words)
    found = records(out)
    assert sorted(found) == [f"case-00000{n}" for n in (1, 2, 3, 4)]
    assert [found[case].get("error") is None for case in sorted(found)] == [True, True, False, True]
    assert "not_written" in found["case-000004"]
    said = capsys.readouterr()
    told = said.out + "".join(line for line in said.err.splitlines() if line.startswith("error"))
    for path in out.rglob("*"):
        told += path.name
        told += path.read_bytes().decode("latin-1") if path.is_file() else ""
    told = told.replace(str(tmp_path), "")
    for secret in (*dicom_files.PATIENT.values(), "Mustermann", "Erika", "1.2.3.4", "plain"):
        assert secret not in told, secret


def test_pictures_need_no_medical_library(exported, archive, tmp_path):
    blocked = "import sys; sys.modules.update(dict.fromkeys(('pydicom', 'nibabel', 'highdicom', 'ray'))); "
    script = (
        blocked
        + "from runtime.predict.__main__ import *; run_command(main, PredictSettings, 'predict', sys.argv[1:])"
    )
    words = ["--bundle", exported("openvino", "fp32"), "--out", tmp_path / "out", "--threads", 1]
    (archive / "film" / "1.2.3.4").unlink()
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, words), "--image", archive / "film"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert list(records(tmp_path / "out")) == ["plain"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, words), "--overwrite", "--ray", "--image", archive / "film"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stderr.splitlines()[-1] == (
        "error: ray: must be installed, is not; run: pip install 'sam2edge[ray]'"
    )
    assert not (tmp_path / "out.partial").exists()


def test_a_reference_class_is_one_of_the_models(exported, archive, tmp_path):
    with pytest.raises(InputError) as error:
        run(exported, archive, tmp_path / "out", reference_class="liver")
    assert str(error.value) == "--reference-class: must be one of lung, got liver"
    assert not list(tmp_path.glob("out*"))


def test_one_cut_off_slice_costs_itself_and_its_series_says_so(exported, archive, tmp_path):
    middle = sorted((archive / "ct").iterdir())[1]
    middle.write_bytes(middle.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"1 of 4 images could not be used"):
        run(exported, archive, tmp_path / "out")
    found = records(tmp_path / "out")
    failed, series = f"ct/{middle.stem}", found["ct/series-1"]
    assert set(found[failed]) == {"case", "error"}
    assert "error" not in found["film/plain"]
    assert series["slices"] == len(list((archive / "ct").iterdir())) - 1
    assert series["remarks"] == [f"1 file beside the series damaged, a slice may be missing: {middle.name}"]


def test_an_overlay_that_cannot_be_drawn_leaves_the_masks(exported, archive, tmp_path, monkeypatch):
    from runtime.predict import write

    monkeypatch.setattr(write, "overlay", lambda *_: 1 / 0)
    with pytest.raises(InputError, match=r"3 of 3 images lack a file"):
        run(exported, archive, tmp_path / "out")
    for record in records(tmp_path / "out").values():
        assert record["overlay"] is None
        assert "our code failed (ZeroDivisionError" in record["not_written"]["overlay"]
        assert (tmp_path / "out" / record["mask"]).exists()


def test_names_as_long_as_a_disk_allows_and_in_no_encoding(exported, tmp_path):
    """A picture of 255 bytes has a mask of as many; what would need more is told, and costs the others nothing."""
    picture = np.zeros((16, 16), np.uint8)
    (tmp_path / "in").mkdir()
    names = ("x" * 247, "y" * 251, os.fsdecode(b"M\xfcller"))
    for name in names:
        Image.fromarray(picture).save(tmp_path / "short.png")
        (tmp_path / "short.png").rename(tmp_path / "in" / f"{name}.png")
    with pytest.raises(InputError, match=r"1 of 3 images lack a file"):
        run(exported, tmp_path / "in", tmp_path / "out", to=("png", "nifti", "json"))
    found = records(tmp_path / "out")
    assert set(found) == {names[0], names[1], "Müller"}
    assert set(found[names[0]]["files"]) == {"png", "nifti", "json"}
    assert set(found["Müller"]["files"]) == {"png", "nifti", "json"}
    assert set(found[names[1]]["files"]) == {"png"}
    assert {"nifti", "json"} == set(found[names[1]]["not_written"])
    assert all("is too long for this disk" in text for text in found[names[1]]["not_written"].values())
    assert (tmp_path / "out" / "masks" / "Müller.png").is_file()
