"""Takes the docs' pictures in Debian's Chromium, of a report and of a running page:

    python docs/screenshots.py --report runs/quickstart/report/report.html --out docs/pictures
    python docs/screenshots.py --demo http://127.0.0.1:7860 --series ct.zip --out docs/pictures

Only procedural phantoms may go into the docs: a report shows cases of its data, and so does the page.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

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
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        made = report(browser, given.report, given.out) if given.report else []
        made += demo(browser, given.demo, given.series, given.out) if given.demo else []
        browser.close()
    for path in made:
        print(path)


if __name__ == "__main__":
    main()
