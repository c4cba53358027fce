"""Uploads and sessions without a web server: what is taken, what is refused in which words, and that nothing stays."""

import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from demo.session.answers import MAX_RUNS
from demo.session.incoming import receive
from demo.session.models import Models
from demo.session.open_sessions import MAX_SESSIONS, OpenSessions
from segcore.bundle.folder import open_bundle
from segcore.errors import InputError
from segcore.phantom import phantom_case

pytest.importorskip("pydicom")


@pytest.fixture(scope="module")
def models(exported):
    bundles = [open_bundle(exported("openvino", "fp32")), open_bundle(exported("onnx", "fp32"))]
    with Models(bundles, threads=1) as opened:
        yield opened


def test_a_torch_bundle_is_refused_by_its_path(torch_bundle):
    with Models([open_bundle(torch_bundle)], threads=1) as opened:
        for ask in (lambda: opened.engines, lambda: opened.predictor(opened.names[0])):
            with pytest.raises(InputError) as error:
                ask()
            assert str(error.value) == (
                f"bundle {torch_bundle}: must be exported first, got torch format; "
                f"run python -m export --bundle {torch_bundle} --to openvino --precision fp32 --out OUT"
            )


@pytest.fixture
def sessions(models, tmp_path, web):
    (tmp_path / "readers").mkdir()
    opened = OpenSessions(tmp_path / "readers", web, models)
    yield opened
    opened.close()
    assert list((tmp_path / "readers").iterdir()) == []
    assert uploads(web) == []


@pytest.fixture
def web(tmp_path):
    """Where the web server would put what was sent."""
    folder = tmp_path / "web"
    folder.mkdir()
    return folder


def uploads(web):
    """Files in the web server's folder."""
    return [path for path in web.rglob("*") if path.is_file()]


def wait_until(holds, limit_s=60):
    """Waits for a state, not for a time: a busy machine may take long."""
    end = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)


def sent_png(web, name="chest.png", index=9):
    path = web / name
    Image.fromarray(phantom_case("cxr", index)[0]).save(path)
    return str(path)


def sent_zip(web, names, content=b"x", name="study.zip"):
    with zipfile.ZipFile(web / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in names:
            archive.writestr(each, content)
    return str(web / name)


def test_upload_is_shown_and_replaced(sessions, web):
    session = sessions.of("a")
    session.take_upload([sent_png(web)])
    assert session.scan.name == "chest.png"
    assert [a.mask.shape for a in session.automatic_answers] == [session.scan.size_px] * 2
    assert session.automatic_answers[0].times.runs in range(1, MAX_RUNS + 1)
    session.take_upload([sent_png(web, "other.png", 10)])
    assert [p.name for p in session.uploads_folder.rglob("*") if p.is_file()] == ["other.png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda web: [str(web / "a.png"), (web / "a.png").write_bytes(b"MZ program")][:1],
            "image a.png: must be PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, DICOM or NIfTI, got something else or a damaged "
            "header; save it again",
        ),
        (lambda web: [sent_zip(web, ["../../evil.png"])], "ZIP study.zip: "),
        (lambda web: [sent_zip(web, ["/etc/cron.d/evil"])], "ZIP study.zip: "),
        (lambda web: [sent_zip(web, ["bomb.png"], bytes(2**26))], "ZIP study.zip: "),
        (
            lambda web: [sent_zip(web, ["readme.txt"])],
            "must hold images (PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, DICOM or NIfTI), got 1 file, no picture: readme.txt",
        ),
        (lambda _: [], "the upload: must hold a file, got none; choose one"),
    ],
    ids=["program", "dots", "absolute", "bomb", "nothing in it", "nothing"],
)
def test_bad_upload_is_one_line_and_leaves_nothing(sessions, web, tmp_path, make, message):
    session = sessions.of("a")
    session.take_upload([sent_png(web, "before.png")])
    with pytest.raises(InputError) as caught:
        session.take_upload(make(web))
    assert message in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert session.scan is None  # the old answer does not stand beside a new problem
    assert not (tmp_path / "evil.png").exists()


def test_zip_of_a_series_is_one_scan_and_slices_are_asked_for_one_by_one(
    sessions, web, tmp_path, dicom_files
):
    volume = np.stack([phantom_case("cxr", 9 + i)[0] for i in range(5)])
    files = dicom_files.make_series(tmp_path / "series", volume, Modality="OT")
    with zipfile.ZipFile(web / "s.zip", "w") as archive:
        for file in files:
            archive.write(file, f"deep/in/{file.name}")
    session = sessions.of("a")
    session.take_upload([str(web / "s.zip")])
    assert (session.scan.slices, session.slice_index) == (5, 2)
    middle = session.automatic_answers[0].mask
    session.go_to(4)
    assert not np.array_equal(session.automatic_answers[0].mask, middle)
    assert list(session.measure_all()) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(session.volume_masks[session.model_names[0]][2], middle)
    masks, classes = (
        session.volume_masks[session.model_names[0]],
        session.models.manifest(session.model_names[0]).classes,
    )
    once = session.measured_volume(masks, classes)
    assert once[0].voxels == np.count_nonzero(masks == 1)
    assert session.measured_volume(masks, classes) is once
    with pytest.raises(InputError, match="slice: must be 1 to 5, got 6"):
        session.go_to(5)


def test_measuring_all_ends_when_the_reader_goes_on(sessions, web, tmp_path, dicom_files):
    volume = np.stack([phantom_case("cxr", 9 + i)[0] for i in range(3)])
    for i, file in enumerate(dicom_files.make_series(tmp_path / "series", volume, Modality="OT")):
        file.rename(web / f"{i}.dcm")
    session = sessions.of("a")
    session.take_upload([str(p) for p in sorted(web.iterdir())])
    running = session.measure_all()
    assert next(running) == 1
    session.set_threshold(0.9)
    assert list(running) == []
    assert session.volume_masks == {}


def test_threshold_moves_the_shown_masks_only(sessions, web):
    session = sessions.of("a")
    session.take_upload([sent_png(web)])
    own = session.shown_answers[0].mask.sum()
    session.set_threshold(0.95)
    assert session.shown_answers[0].mask.sum() < own
    assert session.automatic_answers[0].mask.sum() == own
    session.set_threshold(None)
    assert session.shown_answers[0].mask.sum() == own


def test_reference_mask(sessions, web):
    session = sessions.of("a")
    session.take_upload([sent_png(web)])
    truth = phantom_case("cxr", 9)[1]
    Image.fromarray(truth * np.uint8(255)).save(web / "truth.png")
    session.take_reference_mask(str(web / "truth.png"))
    np.testing.assert_array_equal(session.truth_slice, truth)
    Image.fromarray(truth + np.uint8(3)).save(web / "odd.png")
    with pytest.raises(InputError) as caught:
        session.take_reference_mask(str(web / "odd.png"))
    assert str(caught.value) == (
        "reference mask odd.png: must hold 0/255 or class indices 0 to 1, got up to 4; save class indices"
    )


def test_reference_without_a_case(sessions, web):
    with pytest.raises(
        InputError, match="the case: must be chosen first, none is; choose an example or a file"
    ):
        sessions.of("a").take_reference_mask(sent_png(web))


def test_a_new_case_leaves_a_running_batch_alone(sessions, web):
    session = sessions.of("a")
    batch = [session.uploads_folder / "batch-1", session.downloads_folder / "batch-1"]
    for folder in batch:
        folder.mkdir()
    session.take_upload([sent_png(web)])
    assert all(folder.exists() for folder in batch)


def test_what_nobody_uses_is_removed(models, tmp_path, web):
    """An upload that was cut off, one that no page took, an answer to a program; not what open pages hold."""
    (web / "examples").mkdir()
    (tmp_path / "readers").mkdir()
    sessions = OpenSessions(tmp_path / "readers", web, models, unused_s=0.4)
    session = sessions.of("a", "browser")
    sessions.page_opened("a", "browser")
    sessions.owned.add_uploads([str(web / "waits" / "a.png")], "browser")
    for name in ("waits", "left", "answer"):
        (web / name).mkdir()
        (web / name / "a.png").write_bytes(b"x")
    (web / "tmp123").write_bytes(b"half of an upl")
    wait_until(lambda: len(list(web.iterdir())) == 3)
    assert set(web.iterdir()) == {web / "examples", web / "waits", session.downloads_folder}
    sessions.close()
    assert uploads(web) == []
    assert not session.downloads_folder.exists()


def test_a_picture_of_another_depth_is_refused_in_a_readers_words(sessions, web, models):
    Image.fromarray(phantom_case("cxr", 9)[0].astype(np.uint16) * 257).save(web / "deep.png")
    with pytest.raises(InputError) as caught:
        sessions.of("a").take_upload([str(web / "deep.png")])
    assert str(caught.value) == (
        f"deep.png: must hold 8 bits a pixel as {models.names[0]} was trained on, got 16 bits a pixel; save it as the "
        "training pictures were saved, or send the DICOM"
    )


def test_models_are_chosen_and_asked_again(sessions, web, models):
    session = sessions.of("a")
    session.take_upload([sent_png(web)])
    version = session.version
    session.use_models([models.names[1]], None)
    assert [a.engine.split()[0] for a in session.automatic_answers] == ["openvino"]
    assert session.version > version
    with pytest.raises(InputError) as caught:
        session.use_models(models.names, "onnxruntime")
    name = models.names[0]
    assert str(caught.value) == f"engine onnxruntime: must be able to open {name}, is not; choose openvino"
    with pytest.raises(InputError, match="models: must be at least one, got none; choose one"):
        session.use_models([], None)


def test_a_reader_who_left_is_forgotten(models, web, tmp_path, monkeypatch):
    monkeypatch.setattr("demo.session.open_sessions._SWEEP_S", 0.1)
    (tmp_path / "readers").mkdir()
    sessions = OpenSessions(tmp_path / "readers", web, models, idle_s=600)
    session = sessions.of("a")
    session.take_upload([sent_png(web)])
    session.last_seen_s -= 601
    wait_until(lambda: session.closed and not session.uploads_folder.exists())
    assert len(sessions) == 0
    assert not session.uploads_folder.exists()
    with pytest.raises(
        InputError, match="must belong to an open page, this one was closed; load the page again"
    ):
        session.take_upload([sent_png(web)])  # what was on its way when the reader left
    assert not session.uploads_folder.exists()
    assert uploads(web) == []
    sessions.close()


def test_many_readers_do_not_fill_the_memory(sessions):
    for n in range(MAX_SESSIONS + 5):
        sessions.of(str(n))
    assert len(sessions) == MAX_SESSIONS
    assert "0" not in sessions._open  # the one that was left longest


def test_two_files_of_one_name(tmp_path):
    web = tmp_path / "web"
    (web / "1").mkdir(parents=True)
    (web / "2").mkdir()
    paths = [sent_png(web / "1"), sent_png(web / "2")]
    with pytest.raises(InputError) as caught:
        receive(paths, tmp_path / "to")
    assert str(caught.value) == (
        "chest.png: must come once, came twice; rename one, or send the series as a ZIP"
    )
