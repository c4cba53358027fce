"""The page builds, answers with a real exported model, and keeps to this computer."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from segcore.errors import InputError
from segcore.phantom import phantom_case

pytest.importorskip("gradio", reason="gradio is not installed: the page is not tested")

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def predictor(exported):
    from runtime.predictor import Predictor

    with Predictor.open(exported("openvino", "fp32"), threads=1) as opened:
        yield opened


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(phantom_case("cxr", 9)[0]).save(path)
    return path


def test_upload_is_answered(predictor, png):
    from demo.page import answer_upload

    html = answer_upload([predictor, predictor], str(png))
    assert "chest.png" in html
    assert html.count("<img ") == 3
    assert "The two masks are the same in every pixel." in html
    assert "Choose an example" in answer_upload([predictor], None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "image bad.png: must be an image, got a file of 0 bytes; copy it again"),
        (
            b"text",
            "image bad.png: must be PNG, JPEG or TIFF of 8 or 16 bit or 32-bit float, got something else "
            "or a damaged header; save it again",
        ),
        (
            np.zeros((9, 9), np.uint16),
            "bad.png: must be uint8 as the model was trained on (window 0 to 255), got uint16; "
            "convert it the way the training images were",
        ),
    ],
)
def test_bad_upload_is_one_line_without_our_folders(predictor, tmp_path, content, expected):
    from demo.page import answer_upload

    path = tmp_path / "bad.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(InputError) as caught:
        answer_upload([predictor], str(path))
    assert str(caught.value) == expected


def test_examples_are_test_cases_with_their_masks(tmp_path):
    from demo.page import make_examples
    from segcore.dataset import open_dataset

    examples = make_examples("phantom:cxr:60", tmp_path)
    test_ids = {case.id for case in open_dataset("phantom:cxr:60").split("test")}
    assert len(examples) == 6
    assert {e.name for e in examples} <= test_ids
    assert all(e.thumbnail.is_file() and e.mask is not None for e in examples)


def test_page_builds_with_the_banner_and_no_analytics(predictor, tmp_path):
    from demo.page import build_page, make_examples

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    page = build_page([predictor], make_examples("phantom:cxr:30", tmp_path))
    text = str(page.config)
    assert "Research use only." in text
    assert "How this model was made" in text
    assert "no pretrained weights" in text


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


@pytest.fixture
def served(exported, tmp_path):
    """The real command, started; its address."""
    port, bundle = free_port(), str(exported("openvino", "fp32"))
    words = [
        "--bundle",
        bundle,
        "--bundle",
        bundle,
        "--data",
        "phantom:cxr:30",
        "--port",
        str(port),
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", *words], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            assert process.poll() is None, process.stderr.read()
            try:
                urlopen(address, timeout=1).close()
                break
            except (URLError, OSError):
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        process.stderr.close()
    assert list(tmp_path.glob("sam2edge-demo-*")) == [], "uploads were left behind"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not driven")
@pytest.mark.skipif(
    find_spec("playwright") is None, reason="playwright is not installed: the page is not driven"
)
def test_a_reader_can_use_the_page(served, png, tmp_path_factory):
    from playwright.sync_api import expect, sync_playwright

    bad = tmp_path_factory.mktemp("bad") / "broken.png"
    bad.write_bytes(b"not an image")
    hosts: set[str] = set()
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on(
            "request", lambda r: hosts.add(urlparse(r.url).hostname) if r.url.startswith("http") else None
        )
        page.goto(served)
        results = page.locator("#results")
        expect(page.get_by_text("Research use only.")).to_be_visible(timeout=20_000)
        page.locator("#examples button.thumbnail-item, #examples .gallery-item").first.click()
        expect(results.locator("figure img")).to_have_count(3, timeout=20_000)
        expect(results.get_by_text("Overlap with the reference")).to_be_visible()
        page.locator("input[type=file]").first.set_input_files(str(png))
        expect(results.locator("h2")).to_contain_text("chest.png", timeout=20_000)
        alts = results.locator("figure img").evaluate_all("images => images.map(i => i.alt)")
        assert all(re.match(r"chest\.png: .+", alt) for alt in alts)
        page.get_by_label(re.compile("Remove|Clear")).first.click()
        page.locator("input[type=file]").first.set_input_files(str(bad))
        expect(results.get_by_role("alert")).to_contain_text("image broken.png: must be PNG", timeout=20_000)
        assert results.locator("img").count() == 0  # the old answer is gone
        browser.close()
    assert hosts == {"127.0.0.1"}
