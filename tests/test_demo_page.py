"""The page in a real browser and through its HTTP API, served by the real command with real exported models."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from segcore.errors import InputError
from segcore.phantom import phantom_case

pytest.importorskip("gradio", reason="gradio is not installed: the page is not tested")
pytest.importorskip("pydicom", reason="pydicom is not installed: the page is not tested")

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 30_000
# Without these Chromium looks for updates; they say nothing about the page.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

browser_needed = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not driven"),
    pytest.mark.skipif(
        find_spec("playwright") is None, reason="playwright is not installed: the page is not driven"
    ),
]


def browser_test(function):
    for mark in browser_needed:
        function = mark(function)
    return function


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_port_that_is_taken():
    from demo.__main__ import _check_port

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(InputError) as caught:
            _check_port(port)
    assert (
        str(caught.value) == f"--port {port}: must be free, got Address already in use; choose another --port"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"user": "ward"},
            "--user: must come with --password-file, and the other way round; give both or neither",
        ),
        (
            {"user": "ward", "password_file": "no-such-file"},
            "--password-file no-such-file: must hold a password in its first line, does not",
        ),
    ],
)
def test_half_a_login_is_refused(words, message):
    from demo.__main__ import DemoSettings, main

    with pytest.raises(InputError) as caught:
        main(DemoSettings(bundle=["b"], **words))
    assert str(caught.value) == message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The server's TMPDIR: all that it writes is here."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def log_file(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "server.log"


@pytest.fixture(scope="module")
def served(exported, folder, log_file):
    """The real command, started; its address."""
    port = free_port()
    words = ["--bundle", exported("openvino", "fp32"), "--bundle", exported("onnx", "fp32")]
    words += ["--data", "phantom:cxr:30", "--port", port, "--threads", 1, "--max-upload-mb", 20]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", *map(str, words)], cwd=ROOT, env=os.environ | {"TMPDIR": str(folder)},
            stdout=log, stderr=log, text=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, log_file.read_text()
            try:
                urlopen(address, timeout=1).close()
                break
            except (URLError, OSError):
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert list(folder.glob("sam2edge-demo-*")) == [], "files were left behind"


@pytest.fixture(scope="module")
def browser(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    """A new reader's page at 1280×800, which must ask nothing of another host and log no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    hosts, errors = set(), []
    page.on("request", lambda r: hosts.add(urlparse(r.url).hostname) if r.url.startswith("http") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served)
    page.get_by_text("Research use only.").wait_for(timeout=WAIT_MS)
    yield page
    context.close()
    assert hosts == {"127.0.0.1"}
    assert errors == []


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(phantom_case("cxr", 9)[0]).save(path)
    return path


def volume(slices: int = 5) -> np.ndarray:
    """8-bit slices that differ, N×H×W."""
    return np.stack([phantom_case("cxr", 9 + i)[0] for i in range(slices)])


@pytest.fixture
def series(tmp_path, dicom_files):
    """A ZIP of a series of five slices."""
    dicom_files.make_series(tmp_path / "series", volume(), Modality="OT")
    path = tmp_path / "series.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "series").iterdir()):
            archive.write(file, f"study/{file.name}")
    return path


def files_in(folder: Path) -> list[Path]:
    """All files below a folder; `os.walk` goes on where one vanishes meanwhile, `Path.rglob` does not."""
    return [Path(where, name) for where, _, names in os.walk(folder) for name in names]


def readers_files(folder: Path) -> list[Path]:
    """What lies on the server's disk of readers' uploads and of what was made for them; Gradio leaves empty files."""

    def holds_bytes(path: Path) -> bool:
        try:
            return path.stat().st_size > 0
        except FileNotFoundError:
            return False

    return [path for path in files_in(folder) if "examples" not in path.parts and holds_bytes(path)]


def wait_until(holds: Callable[[], bool], limit_s: float = 60) -> None:
    """Waits for a state, not for a time: a busy machine may take long."""
    end = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)


def drop(page, where: str, *paths: Path) -> None:
    page.locator(f"{where} input[type=file]").first.set_input_files([str(path) for path in paths])


def said(page, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#said")).to_contain_text(text, timeout=WAIT_MS)


def marked_px(page, panel: int = 0) -> int:
    """Pixels of a panel whose colour is no grey: the picture is grey, the mask is not."""
    return page.locator("#viewer canvas").nth(panel).evaluate(
        """canvas => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0; for (let i = 0; i < d.length; i += 4)
          if (Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > 12) n++;
        return n; }"""
    )  # fmt: skip


def set_range(page, name: str, value: float) -> None:
    """Moves a slider of the viewer as a hand does: input events, then change when it is let go."""
    page.locator(f'#viewer [data-v="{name}"]').evaluate(
        """(slider, value) => { slider.value = value;
        slider.dispatchEvent(new Event('input', {bubbles: true}));
        slider.dispatchEvent(new Event('change', {bubbles: true})); }""",
        value,
    )


@browser_test
def test_an_example_is_shown_measured_and_judged(page):
    from playwright.sync_api import expect

    page.locator("#examples button.thumbnail-item, #examples .gallery-item").first.click()
    said(page, "pixels")
    expect(page.locator("#viewer canvas")).to_have_count(3, timeout=WAIT_MS)
    expect(page.locator("#measured")).to_contain_text("Area", timeout=WAIT_MS)
    expect(page.locator("#measured")).to_contain_text("Dice to the reference")
    expect(page.locator("#speed")).to_contain_text(re.compile(r"times faster|times slower|as fast"))
    expect(page.locator("#trust")).to_contain_text("The two masks")
    labels = page.locator("#viewer canvas").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
    assert all(labels)


@browser_test
def test_the_browser_keeps_nothing(page, png):
    """Gradio's run history would store pictures and answers in the browser, after the page is closed."""
    drop(page, "#upload", png)
    said(page, "chest.png")
    page.locator("#speed table").wait_for(timeout=WAIT_MS)
    kept = page.evaluate(
        """async () => JSON.stringify([await indexedDB.databases(), Object.entries(localStorage),
        Object.entries(sessionStorage), (await caches.keys())])"""
    )
    assert "chest" not in kept
    assert json.loads(kept)[0] == []
    assert page.evaluate("window.gradio_config.run_history") is False


@browser_test
def test_threshold_moves_the_mask_at_once_and_then_the_numbers(page, png):
    from playwright.sync_api import expect

    drop(page, "#upload", png)
    said(page, "chest.png")
    expect(page.locator("#measured")).to_contain_text("Area", timeout=WAIT_MS)
    before, words = marked_px(page), page.locator("#measured").inner_text()
    set_range(page, "threshold", 0.95)
    wait_until(lambda: marked_px(page) < before)
    assert marked_px(page) < before
    expect(page.locator("#measured")).not_to_have_text(words, timeout=WAIT_MS)
    page.locator('#viewer [data-v="own"]').click()
    expect(page.locator("#measured")).to_have_text(re.compile("Area"), timeout=WAIT_MS)
    wait_until(lambda: marked_px(page) == before)
    assert marked_px(page) == before


@browser_test
def test_slider_goes_through_a_series(page, series):
    from playwright.sync_api import expect

    drop(page, "#upload", series)
    said(page, "5 slices")
    expect(page.locator('#viewer [data-v="sliceOut"]')).to_contain_text("3 of 5", timeout=WAIT_MS)
    before = page.locator("#viewer canvas").first.evaluate("canvas => canvas.toDataURL()")
    set_range(page, "slice", 5)
    expect(page.locator('#viewer [data-v="sliceOut"]')).to_contain_text("5 of 5", timeout=WAIT_MS)
    page.wait_for_function(
        "before => document.querySelector('#viewer canvas').toDataURL() !== before",
        arg=before,
        timeout=WAIT_MS,
    )
    page.locator("#every").click()
    expect(page.locator("#measured")).to_contain_text("All slices", timeout=WAIT_MS)
    expect(page.locator("#measured")).to_contain_text("Volume")


@browser_test
def test_dicom_seg_is_the_mask_of_the_page(page, tmp_path, dicom_files, exported):
    from playwright.sync_api import expect

    from runtime.predictor import Predictor
    from segcore.medical.mask_files import read_mask_file
    from segcore.medical.read import read_scan

    picture = phantom_case("cxr", 9)[0]
    source = dicom_files.make_dicom(tmp_path / "film.dcm", picture, Modality="DX", PixelSpacing=[0.2, 0.2])
    drop(page, "#upload", source)
    said(page, "0.2 × 0.2 mm")
    page.locator("#along").get_by_text("DICOM segmentation").click()
    page.locator("#take").click()
    expect(page.locator("#files")).to_contain_text("mask-seg", timeout=WAIT_MS)
    with page.expect_download() as download:
        page.locator("#files a[href*='mask-seg']").first.click()
    kept = tmp_path / "back.dcm"
    download.value.save_as(kept)
    with Predictor.open(exported("onnx", "fp32"), threads=1) as predictor:
        expected = predictor.predict(picture).mask
    assert expected.any()
    np.testing.assert_array_equal(read_mask_file(kept, read_scan(source))[0], expected)
    page_text = page.locator("body").inner_text()
    assert not any(word in page_text for word in ("Mustermann", "HOSP-4711", "Elsewhere"))


@browser_test
def test_reference_mask_is_scored(page, png, tmp_path):
    from playwright.sync_api import expect

    mask = tmp_path / "truth.png"
    Image.fromarray(phantom_case("cxr", 9)[1] * np.uint8(255)).save(mask)
    drop(page, "#upload", png)
    said(page, "chest.png")
    page.locator("input[data-testid^='Compare with']").set_input_files(str(mask))
    expect(page.locator("#measured")).to_contain_text("HD95", timeout=WAIT_MS)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "other.png")
    page.locator("input[data-testid^='Compare with']").set_input_files(str(tmp_path / "other.png"))
    said(page, "mask other.png: must have the size of its image, 256×256, got 8×8")
    assert page.locator("#viewer canvas:visible").count() == 3  # the case stays


@browser_test
def test_many_cases_give_a_table_and_a_zip(page, png, tmp_path, folder):
    from playwright.sync_api import expect

    bad = tmp_path / "setup.png"
    bad.write_bytes(b"MZ\x90\x00 this is a program")
    page.get_by_role("tab", name="Many cases").click()
    drop(page, "#batch-upload", png, bad)
    expect(page.locator("#batch-upload")).to_contain_text("setup", timeout=WAIT_MS)
    page.locator("#batch-start").click()
    expect(page.locator("#batch-said")).to_contain_text(
        "2 of 2 files done, 1 could not be used", timeout=WAIT_MS
    )
    expect(page.locator("#batch-table")).to_contain_text("must be PNG, JPEG", timeout=WAIT_MS)
    with page.expect_download() as download:
        page.locator("#batch-zip a[href*='.zip']").first.click()
    download.value.save_as(tmp_path / "result.zip")
    with zipfile.ZipFile(tmp_path / "result.zip") as archive:
        names = archive.namelist()
        lines = [json.loads(line) for line in archive.read("predictions.jsonl").splitlines()]
    assert any(name.endswith("chest.png") for name in names)
    assert sum("error" in line for line in lines) == 1
    page.close()
    wait_until(lambda: readers_files(folder) == [])
    assert readers_files(folder) == []


@browser_test
def test_a_page_closed_in_the_middle_of_a_batch_leaves_nothing(page, series, tmp_path, folder):
    from playwright.sync_api import expect

    copies = [shutil.copy(series, tmp_path / f"study-{n}.zip") for n in range(8)]
    page.get_by_role("tab", name="Many cases").click()
    drop(page, "#batch-upload", *copies)
    expect(page.locator("#batch-upload")).to_contain_text("study-7", timeout=WAIT_MS)
    page.locator("#batch-start").click()
    expect(page.locator("#batch-said")).to_contain_text("of 8 files done", timeout=WAIT_MS)
    page.close()
    quiet = 0  # how often in a row there was nothing: what is still running may write once more
    for _ in range(300):
        left = readers_files(folder)
        quiet = quiet + 1 if left == [] else 0
        if quiet > 6:
            break
        time.sleep(0.2)
    assert left == []


@browser_test
def test_wrong_files_are_answered_in_words_and_leave_nothing(page, tmp_path, png, folder, log_file):
    from playwright.sync_api import expect

    program = tmp_path / "viewer.png"
    program.write_bytes(b"\x7fELF" + bytes(200))
    drop(page, "#upload", program)
    said(page, "viewer.png: must be PNG, JPEG")
    shown = page.locator("body").inner_text()
    assert "Traceback" not in shown
    assert str(folder) not in shown
    assert page.locator("#viewer canvas:visible").count() == 0
    drop(page, "#upload", png)
    said(page, "chest.png")
    page.locator("#viewer canvas").first.wait_for(timeout=WAIT_MS)
    expect(page.locator("#upload")).not_to_contain_text("viewer.png")
    page.close()

    def left() -> list[Path]:
        return [path for path in files_in(folder) if path.name in ("viewer.png", "chest.png")]

    wait_until(lambda: left() == [])
    assert left() == []
    assert "Traceback" not in log_file.read_text()


@browser_test
@pytest.mark.parametrize("width", [390, 820])
def test_narrow_screens_do_not_scroll_sideways(page, png, width):
    page.set_viewport_size({"width": width, "height": 900})
    drop(page, "#upload", png)
    said(page, "chest.png")
    page.locator("#viewer canvas").first.wait_for(timeout=WAIT_MS)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@browser_test
def test_page_is_accessible(page, png):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

    def serious() -> list[str]:
        found = axe.Axe().run(page).response["violations"]
        return [
            f"{v['id']}: {v['help']} at {[n['target'] for n in v['nodes'][:3]]}"
            for v in found
            if v["impact"] in ("serious", "critical")
        ]

    drop(page, "#upload", png)
    said(page, "chest.png")
    page.locator("#speed table").wait_for(timeout=WAIT_MS)
    assert serious() == []
    for tab in ("Many cases", "The models"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert serious() == [], tab


def test_api_segments_and_refuses(served, png, tmp_path, folder):
    from gradio_client import Client, handle_file

    client = Client(served, verbose=False, download_files=str(tmp_path / "got"))
    models = client.predict(api_name="/models")
    assert [m["kind"] for m in models] == ["student", "student"]
    record, files = client.predict(
        file=handle_file(str(png)), model="", formats=["png", "json"], threshold=None, api_name="/segment"
    )
    assert record["file"] == "chest.png"
    assert record["measurements"][0]["pixels"] > 0
    mask = np.asarray(Image.open(next(f for f in files if f.endswith(".png"))))
    assert (mask > 0).sum() == record["measurements"][0]["pixels"]
    with pytest.raises(Exception, match="must be one of Student"):
        client.predict(
            file=handle_file(str(png)), model="none", formats=[], threshold=None, api_name="/segment"
        )


def test_api_keeps_equal_uploads_apart_and_none_after_the_answer(served, png, folder, tmp_path):
    """Two programs send the same file: the first's answer must not take the file from the second."""
    from gradio_client import Client, handle_file

    def send() -> str:
        boundary = "b0undary"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="same.png"\r\n\r\n'
        body = head.encode() + png.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return json.load(urlopen(Request(f"{served}/gradio_api/upload", body, kind), timeout=20))[0]

    first, second = Path(send()), Path(send())
    assert first != second
    client = Client(served, verbose=False, download_files=str(tmp_path / "got"))
    client.predict(file=handle_file(str(png)), model="", formats=[], threshold=None, api_name="/segment")
    assert [path for path in files_in(folder) if path.name == "chest.png"] == []
    assert second.is_file()
    first.unlink(), second.unlink()


def test_api_takes_no_file_of_this_computer(served, tmp_path):
    """Only what was uploaded: another path, sent as a client would send an upload's, is refused and left as it is."""
    import urllib.request

    secret = tmp_path / "secret.png"
    Image.fromarray(phantom_case("cxr", 3)[0]).save(secret)
    data = [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "", ["png"], None, None]
    call = f"{served}/gradio_api/call/segment"
    request = urllib.request.Request(
        call, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
    )
    event = json.load(urlopen(request, timeout=20))["event_id"]
    answer = urlopen(f"{call}/{event}", timeout=20).read().decode()
    assert answer.startswith("event: error"), answer
    assert str(tmp_path) not in answer
    assert secret.is_file()


def test_login_keeps_others_out(exported, tmp_path):
    import urllib.request

    (tmp_path / "password").write_text("correct horse\n")
    port = free_port()
    words = [
        "--bundle",
        exported("onnx", "fp32"),
        "--port",
        port,
        "--user",
        "ward",
        "--data",
        "phantom:cxr:30",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", *map(str, words), "--password-file", str(tmp_path / "password")],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                urlopen(f"http://127.0.0.1:{port}", timeout=1).close()
                break
            except (URLError, OSError, HTTPException):
                time.sleep(0.2)
        with pytest.raises(URLError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
