"""Takes the docs' pictures in Debian's Chromium, of a report and of a running page:

    python docs/screenshots.py --report runs/quickstart/report/report.html --out docs/pictures
    python docs/screenshots.py --demo http://127.0.0.1:7860 --series ct.zip --out docs/pictures
    python docs/screenshots.py --prompt runs/promptable-fp32 runs/student-int8 --data phantom:cxr --out docs/pictures

The last starts the page itself, with the bundles given, the promptable one first.

Only procedural phantoms may go into the docs: a report shows cases of its data, and so does the page.
"""

from __future__ import annotations

import argparse
import io
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from PIL import Image

from segcore.dataset.dataset import open_dataset

WIDTHS_PX = {1440: 900, 820: 1180, 390: 844}
"""A desk's screen, a tablet and a phone: width and height."""
DEMO_WIDTHS_PX = {1280: 800, 820: 1180, 390: 844}
MAX_BYTES = 600_000
WAIT_MS = 60_000


def report(browser: Any, page_file: Path, out: Path) -> list[Path]:
    """The report's first screen at each width, light; at the first width also its plots, and the first screen dark."""
    address, made = page_file.resolve().as_uri(), []
    for width, height in WIDTHS_PX.items():
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(address)
        made.append(save(page.screenshot(), out / f"report-{width}.png"))
        if width == max(WIDTHS_PX):
            page.locator("#plots").evaluate("element => element.scrollIntoView()")
            made.append(save(page.screenshot(), out / "report-plots.png"))
            page.emulate_media(color_scheme="dark")
            page.evaluate("scrollTo(0, 0)")
            made.append(save(page.screenshot(), out / "report-dark.png"))
        page.close()
    return made


def demo(browser: Any, address: str, series: Path | None, out: Path) -> list[Path]:
    """The page with its first example at each width, light; at the first width also dark, and its other tabs.

    With `series`, the ZIP of a DICOM series, its middle slice too.
    """
    made = []
    for width, height in DEMO_WIDTHS_PX.items():
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(address)
        page.locator("#examples button.thumbnail-item, #examples .gallery-item").first.click(timeout=WAIT_MS)
        page.locator("#speed table").wait_for(timeout=WAIT_MS)
        page.wait_for_timeout(1500)
        if width < 600:
            page.locator("#said").evaluate("element => element.scrollIntoView()")
        made.append(save(page.screenshot(), out / f"page-{width}.png"))
        if width == max(DEMO_WIDTHS_PX):
            page.locator("#trust").evaluate("element => element.scrollIntoView()")
            made.append(save(page.screenshot(), out / "page-numbers.png"))
            page.evaluate("document.body.classList.add('dark'); scrollTo(0, 0)")
            page.wait_for_timeout(500)
            made.append(save(page.screenshot(), out / "page-dark.png"))
            page.evaluate("document.body.classList.remove('dark')")
            page.get_by_role("tab", name="The models").click()
            page.wait_for_timeout(500)
            made.append(save(page.screenshot(), out / "page-models.png"))
            if series is not None:
                page.get_by_role("tab", name="One case").click()
                page.locator("#upload input[type=file]").set_input_files(str(series))
                page.locator("#said").get_by_text("slices").wait_for(timeout=WAIT_MS)
                page.wait_for_timeout(3000)
                made.append(save(page.screenshot(), out / "page-series.png"))
        page.close()
    return made


def prompt(browser: Any, bundles: Sequence[Path], data: str, out: Path, width: int = 1280) -> list[Path]:
    """A click and a box on the first example with a reference mask: two pictures of the page.

    Both are put where the reference has its first class, the click where that is thickest, as a reader would.
    """
    case = next(c for c in open_dataset(data).split("test") if (c.mask() == 1).any())
    (x, y), box = _thickest(case.mask() == 1)
    height_px, width_px = case.mask().shape
    made = []
    with _served(bundles, data) as address:
        page = browser.new_page(viewport={"width": width, "height": DEMO_WIDTHS_PX[width]})
        page.goto(address)
        number = [c.id for c in open_dataset(data).split("test")].index(case.id)
        page.locator("#examples button.thumbnail-item, #examples .gallery-item").nth(number).click(
            timeout=WAIT_MS
        )
        page.locator("#speed table").wait_for(timeout=WAIT_MS)
        stage = page.locator("#viewer .v-stage:visible").first

        def at(column: float, row: float) -> tuple[float, float]:
            """A pixel's place on the screen: the picture is fitted into its panel."""
            area = stage.bounding_box()
            scale = min(area["width"] / width_px, area["height"] / height_px)
            left = area["x"] + (area["width"] - scale * width_px) / 2
            top = area["y"] + (area["height"] - scale * height_px) / 2
            return left + (column + 0.5) * scale, top + (row + 0.5) * scale

        for tool in ("Click", "Box"):
            page.get_by_role("button", name="Start over").evaluate(
                "button => button.disabled || button.click()"
            )
            page.locator("#viewer").get_by_role("button", name=tool, exact=True).click()
            page.locator('#viewer [data-v="tools"]').evaluate(
                "tools => tools.scrollIntoView({block: 'center'})"
            )
            page.wait_for_timeout(1500)
            if tool == "Click":
                page.mouse.click(*at(x, y))
            else:
                page.mouse.move(*at(*box[:2]))
                page.mouse.down()
                page.mouse.move(*at(*box[2:]), steps=8)
                page.mouse.up()
            page.locator("#viewer .v-asked").filter(has_text="your prompt").first.wait_for(timeout=WAIT_MS)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)
            made.append(save(page.screenshot(), out / f"prompt-{tool.lower()}-{width}.png"))
        page.close()
    return made


def _thickest(area: np.ndarray) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The place x, y of an area H×W that is farthest from its edge, and the box around the part that it is in."""
    inner = np.pad(area, 1)
    last = inner
    while inner.any():
        last = inner
        inner = inner & np.roll(inner, 1, 0) & np.roll(inner, -1, 0)
        inner = inner & np.roll(inner, 1, 1) & np.roll(inner, -1, 1)
    row, column = np.argwhere(last)[0] - 1
    part = np.zeros_like(area)
    part[row, column] = True
    while True:
        grown = np.pad(part, 1)
        grown = part | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
        if ((grown & area) == part).all():
            break
        part = grown & area
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    return (int(column), int(row)), (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))


@contextmanager
def _served(bundles: Sequence[Path], data: str) -> Iterator[str]:
    """The page of these bundles, served while the block runs; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word for bundle in bundles for word in ("--bundle", str(bundle))]
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", *words, "--data", data, "--port", str(port)],
        cwd=Path(__file__).parents[1],
    )
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + WAIT_MS / 1e3
    try:
        while True:
            try:
                urlopen(address, timeout=1).close()
                break
            except (URLError, OSError):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("the page did not start; its own words are above") from None
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def save(png: bytes, path: Path) -> Path:
    """Writes a PNG in full colour: a palette would change small things, as the lamp of a traffic light."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(stream, "PNG", optimize=True)
    if stream.tell() > MAX_BYTES:
        raise SystemExit(
            f"{path}: must be at most {MAX_BYTES} bytes, got {stream.tell()}; take a smaller part of the page"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
    return path


def main() -> None:
    """Takes the pictures of what was given, and prints their paths."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, help="report.html of python -m benchmarks on phantoms")
    parser.add_argument("--demo", help="address of a running python -m demo with phantoms as examples")
    parser.add_argument("--series", type=Path, help="ZIP of a DICOM series of phantoms, for --demo")
    parser.add_argument(
        "--prompt", type=Path, nargs="+", help="a promptable bundle, and others to show beside it"
    )
    parser.add_argument("--data", default="phantom:cxr", help="dataset of the examples, for --prompt")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        made = report(browser, given.report, given.out) if given.report else []
        made += demo(browser, given.demo, given.series, given.out) if given.demo else []
        made += prompt(browser, given.prompt, given.data, given.out) if given.prompt else []
        browser.close()
    for path in made:
        print(path)


if __name__ == "__main__":
    main()
