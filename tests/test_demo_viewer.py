"""What the viewer sends is what the server decided, and the browser shows it without asking again."""

import base64
import json
import re
import shutil
import time
import zlib
from importlib.util import find_spec

import numpy as np
import pytest

from demo.viewer.scene import (
    LEVELS,
    SHOWN_SIDE_PX,
    VIEWER,
    ModelView,
    ViewerScene,
    offered_windows,
    quantise_probability,
    scene_json,
)
from segcore.picture.overlay import COLOURS
from segcore.picture.preprocess import CT_WINDOWS, OutputSpec, Window, decide

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 30_000
INJECTION = '<img src=x onerror="window.injected = 1">${alert(1)}{{name}}.png'


def unpacked(text, dtype):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def disc(size=64, radius=20, at=0.5):
    """A probability that falls from 1 in the middle of a square, H×W float32."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) * at
    return np.clip(1.25 - np.hypot(rows, columns) / (2 * radius), 0, 1).astype(np.float32)


def view(probability, **changes):
    given = {
        "title": "Student",
        "kind": "student",
        "activation": "sigmoid",
        "threshold": 0.5,
        "classes": ("lung",),
    }
    return ModelView(
        probability=probability[None] if probability.ndim == 2 else probability, **given | changes
    )


def value_of(picture, models, **changes):
    given = {
        "key": "1", "name": "chest.png", "slice_index": 0, "slices": 1, "windows": offered_windows(picture),
        "spacing_mm": None,
    }  # fmt: skip
    return scene_json(ViewerScene(picture=picture, models=tuple(models), **given | changes))


def test_threshold_in_the_browser_is_the_servers_on_the_whole_slider():
    rng, grid = np.random.default_rng(0), np.arange(1, 100) / 100
    probability = rng.random((1, 200, 200)).astype(np.float32)
    probability[0, 0, :103] = np.concatenate([grid, [0, 1, 0.5 - 2**-24, 0.5]])
    sent = value_of(np.zeros((200, 200), np.uint8), [view(probability)])["models"][0]["probability"][0]
    stored = unpacked(sent, "<u2").reshape(200, 200)
    for threshold in grid:
        spec = OutputSpec(activation="sigmoid", channels=1, stride=1, threshold=threshold)
        server = decide(probability, spec) == 1
        browser = stored >= threshold * LEVELS  # as decide in draw.js
        assert np.all(np.abs(probability[0][browser != server] - threshold) < 1 / LEVELS)
    assert np.array_equal(stored >= 0.5 * LEVELS, probability[0] >= 0.5)  # exactly, where most models decide


def test_probabilities_are_rounded_down_and_one_fits():
    given = np.array([0.0, 0.99999, 1.0, 0.5, 1 / LEVELS], np.float32)
    assert quantise_probability(given).tolist() == [0, 65535, 65535, 32768, 1]


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 4), "uint8"),
        (np.array([[0, 300], [65535, 7]], np.uint16), "uint16"),
        (np.array([[-1024.0, 3071.0], [0.0, -600.0]], np.float32), "uint16"),  # HU stay exact
        (np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "uint8"),
        (np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 999, "uint16"),
    ],
)
def test_values_come_back_exactly(picture, kind):
    value = value_of(picture, [view(np.zeros(picture.shape[:2], np.float32))])
    sent = value["picture"]
    back = unpacked(sent["data"], "u1" if kind == "uint8" else "<u2") * sent["scale"] + sent["offset"]
    assert sent["type"] == kind
    assert sent["channels"] == (3 if picture.ndim == 3 else 1)
    assert np.array_equal(back.reshape(picture.shape), picture.astype(float))
    assert value["size"] == value["shown"] == [picture.shape[1], picture.shape[0]]
    json.dumps(value)


def test_float_values_come_back_to_a_65535th_of_their_range():
    picture = np.random.default_rng(1).normal(0, 250, (40, 30)).astype(np.float32)
    sent = value_of(picture, [view(np.zeros((40, 30), np.float32))])["picture"]
    back = (unpacked(sent["data"], "<u2") * sent["scale"] + sent["offset"]).reshape(40, 30)
    assert np.abs(back - picture).max() <= 0.51 * (picture.max() - picture.min()) / 65535


def test_large_pictures_are_sent_reduced_with_their_own_size():
    picture = np.full((3000, 1500), 40_000, np.uint16)
    picture[:1500] = 1000
    probability = (picture > 2000).astype(np.float32)
    value = value_of(picture, [view(probability)], truth=probability.astype(np.uint8))
    assert value["size"] == [1500, 3000]
    assert value["shown"] == [512, SHOWN_SIDE_PX]
    shape = (SHOWN_SIDE_PX, 512)
    shown = unpacked(value["picture"]["data"], "<u2").reshape(shape)
    assert (shown[0, 0], shown[-1, -1]) == (1000, 40_000)
    stored = unpacked(value["models"][0]["probability"][0], "<u2").reshape(shape)
    assert np.array_equal(stored >= LEVELS / 2, unpacked(value["truth"], "u1").reshape(shape).astype(bool))
    assert len(json.dumps(value)) < 50_000


def test_softmax_sends_the_likeliest_class_of_background_and_foreground():
    logits = np.random.default_rng(2).normal(0, 2, (4, 20, 30)).astype(np.float32)
    probability = np.exp(logits) / np.exp(logits).sum(axis=0)
    model = view(probability[1:], activation="softmax", classes=("a", "b", "c"), quality=0.85)
    sent = value_of(np.zeros((20, 30), np.uint8), [model])["models"][0]
    expected = decide(probability, OutputSpec(activation="softmax", channels=4, stride=1))
    assert np.array_equal(unpacked(sent["mask"], "u1").reshape(20, 30), expected)
    assert len(sent["probability"]) == 3
    assert sent["light"] == {"colour": "amber", "word": "check the outline", "dice": 0.85}


def test_windows_that_are_offered():
    hounsfield = np.linspace(-1000, 2000, 4096, dtype=np.float32).reshape(64, 64)
    offered = offered_windows(hounsfield, own=(Window("LUNG", -1400, 200), Window("", 0, 80)), modality="CT")
    words = [
        "as in the file (LUNG)",
        "as in the file",
        "lung",
        "soft-tissue",
        "bone",
        "automatic",
        "full range",
    ]
    assert [w.name for w in offered] == words
    assert offered[2:5] == CT_WINDOWS
    assert (offered[-1].low, offered[-1].high) == (-1000, 2000)
    assert offered_windows(np.zeros((2, 2), np.uint8)) == (Window("full range", 0, 255),)
    assert all(w.low < w.high for w in offered_windows(np.full((4, 4), 7, np.uint16)))


def test_templates_hold_nothing_that_gradio_would_fill_in():
    # Gradio reads them as Handlebars and as a JavaScript template, and fills in the props, which hold a file's name.
    for text in (VIEWER["html_template"], VIEWER["css_template"]):
        assert not re.search(r"\$\{|\{\{|`|\\", text)
    script = VIEWER["js_on_load"]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|https?:", script
    )


@pytest.fixture(scope="module")
def address():
    """A page with nothing but the viewer and what loads it; events are written into a box."""
    gr = pytest.importorskip("gradio", reason="gradio is not installed: the viewer is not driven")
    rng = np.random.default_rng(3)
    grey = rng.integers(0, 255, (64, 64), np.uint8)

    def chest():
        models = [view(disc(at=0.45), title="Teacher", kind="teacher"), view(disc(), quality=0.95)]
        truth = (disc() > 0.6).astype(np.uint8)
        return value_of(grey, models, name=INJECTION, spacing_mm=(0.5, 0.5), truth=truth)

    def series(index=0):
        picture = np.full((64, 64), -500 + 10 * index, np.float32)
        one = np.stack([disc(at=0.3), disc(at=0.7)]) * 0.9
        model = view(one, activation="softmax", classes=("lung", "heart"))
        return value_of(
            picture, [model], key="ct", name="series.zip", slice_index=index, slices=9,
            windows=offered_windows(picture, modality="CT"), unit="HU",
        )  # fmt: skip

    def large():
        return value_of(np.zeros((90, 2000, 3), np.uint8), [view(np.ones((90, 2000), np.float32))], key="rgb")

    def on_slice(event: gr.EventData):
        return series(event.slice), f"slice {event.slice} of {event.key}"

    def on_threshold(event: gr.EventData):
        return f"threshold {event.threshold} of {event.key}"

    def on_step(event: gr.EventData):
        return f"step {event.step} on {event.slice} of {event.key}"

    with gr.Blocks(title="viewer", analytics_enabled=False) as page:
        buttons = [gr.Button(name) for name in ("chest", "series", "large", "nothing")]
        viewer = gr.HTML(None, elem_id="viewer", **VIEWER)
        told = gr.Textbox(label="told", elem_id="told")
        for button, make in zip(buttons, (chest, series, large, lambda: None), strict=True):
            button.click(make, None, viewer, show_progress="hidden")
        viewer.input(on_slice, None, [viewer, told], show_progress="hidden", trigger_mode="always_last")
        viewer.release(on_threshold, None, told)
        viewer.select(on_step, None, told)
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
    )
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: the viewer is not driven")
    if find_spec("playwright") is None:
        pytest.skip("playwright is not installed: the viewer is not driven")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Reader:
    """Somebody at the page: what they do and see."""

    def __init__(self, page, address):
        self.page, self.problems = page, []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.goto(address)

    def load(self, name, panels):
        from playwright.sync_api import expect

        self.page.get_by_role("button", name=name, exact=True).click()
        expect(self.page.locator(".v-panel canvas")).to_have_count(panels)

    def label(self, panel):
        return self.page.locator(".v-panel canvas").nth(panel).get_attribute("aria-label")

    def pixels(self, panel, colour):
        """How many of a panel's pixels have this very colour, after the next frame."""
        return self.page.locator(".v-panel canvas").nth(panel).evaluate(
            """(canvas, [r, g, b]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                let n = 0;
                for (let i = 0; i < data.length; i += 4) n += data[i] === r && data[i + 1] === g && data[i + 2] === b;
                done(n);
            })))""",
            list(colour),
        )  # fmt: skip

    def shows(self, panel, colour, holds):
        """Whether what holds of the number of a panel's pixels of this colour comes to hold, however slow the machine."""
        end = time.monotonic() + WAIT_MS / 1e3
        while not (held := holds(self.pixels(panel, colour))) and time.monotonic() < end:
            time.sleep(0.05)
        return held

    def set(self, control, value):
        self.page.locator(f'[data-v="{control}"]').evaluate(
            """(e, value) => { e.value = value; for (const type of ["input", "change"])
                e.dispatchEvent(new Event(type, { bubbles: true })); }""",
            str(value),
        )


@pytest.fixture
def reader(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seen = Reader(context.new_page(), address)
    yield seen
    context.close()
    assert seen.problems == []


@pytest.mark.browser
def test_masks_move_in_the_browser_and_the_page_is_told(reader):
    from playwright.sync_api import expect

    page, told = reader.page, reader.page.locator("#told textarea")
    expect(page.get_by_text("Choose an example or drop a file")).to_be_visible()
    reader.load("chest", 3)
    assert page.locator("#viewer").bounding_box()["height"] <= 560
    expect(page.locator(".v-title strong")).to_have_text(INJECTION)
    assert page.locator("#viewer img").count() == 0
    assert page.evaluate("window.injected") is None
    share = (disc() >= 0.5).mean()
    assert reader.label(1) == f"Student marks lung, {100 * share:.0f} % of the picture"
    assert re.fullmatch(
        r"Teacher and Student are more than 0\.5 apart in .+ % of the picture", reader.label(2)
    )
    expect(page.locator(".v-light.green")).to_have_text("likely good (0.95)")
    page.get_by_label("reference").uncheck()
    reader.set("mode", "fill")
    reader.set("opacity", 100)
    side = page.locator(".v-stage").nth(1).bounding_box()["height"]
    assert reader.shows(1, COLOURS[0], lambda marked: abs(marked / side**2 - share) < 0.01)
    at_half = reader.pixels(1, COLOURS[0])
    reader.set("mode", "outline")
    assert reader.shows(1, COLOURS[0], lambda marked: 0.01 * at_half < marked < 0.2 * at_half)
    reader.set("mode", "fill")
    reader.set("threshold", 0.3)
    assert reader.shows(1, COLOURS[0], lambda marked: marked > 1.2 * at_half)
    assert reader.label(1) == f"Student marks lung, {100 * (disc() >= 0.3).mean():.0f} % of the picture"
    expect(told).to_have_value("threshold 0.3 of 1")
    expect(page.locator("[aria-live]").filter(has_text="Threshold 0.30. Teacher marks")).to_have_count(1)
    page.get_by_role("button", name="Back to the model's own 0.50").click()
    assert reader.shows(1, COLOURS[0], lambda marked: marked == at_half)
    expect(told).to_have_value("threshold None of 1")
    page.get_by_role("checkbox", name="lung").uncheck()
    assert reader.shows(1, COLOURS[0], lambda marked: marked == 0)
    assert reader.label(1) == "Student: what it marks is hidden"
    page.get_by_role("checkbox", name="lung").check()
    page.get_by_role("button", name="Hide mask").click()
    assert reader.shows(1, COLOURS[0], lambda marked: marked == 0)
    page.get_by_role("button", name="Show mask").click()
    stage = page.locator(".v-stage").nth(1)
    stage.focus()
    page.keyboard.down("Space")
    assert reader.shows(1, COLOURS[0], lambda marked: marked == 0)
    page.keyboard.up("Space")
    page.keyboard.press("+")
    assert reader.shows(0, COLOURS[0], lambda marked: marked > 1.2 * at_half)  # the other panel follows
    page.keyboard.press("0")
    assert reader.shows(1, COLOURS[0], lambda marked: marked == at_half)
    stage.hover()
    page.mouse.wheel(0, -300)
    assert reader.shows(1, COLOURS[0], lambda marked: marked > 1.2 * at_half)
    stage.dblclick()
    assert reader.shows(1, COLOURS[0], lambda marked: marked == at_half)
    expect(page.get_by_role("button", name="Click")).to_be_hidden()  # no model here takes one
    expect(told).to_have_value("threshold None of 1")  # and so the clicks were told to nobody
    expect(page.locator('[data-v="read"]')).to_have_text(
        re.compile(
            r"^x 3\d, y 3\d \(1\d\.\d, 1\d\.\d mm\) · value \d+ · Teacher: lung \d\.\d\d · Student: lung 1\.00$"
        )
    )
    page.get_by_role("button", name="nothing").click()
    expect(page.get_by_text("Choose an example or drop a file")).to_be_visible()


@pytest.mark.browser
def test_slices_windows_and_the_likeliest_class(reader):
    from playwright.sync_api import expect

    page = reader.page
    reader.load("series", 2)
    assert reader.label(1).startswith("Student marks lung, ")
    assert " and heart, " in reader.label(1)
    expect(page.get_by_label("Threshold")).to_be_disabled()
    expect(page.get_by_text("No threshold: the likeliest class is marked.")).to_be_visible()
    expect(page.get_by_label("Window")).to_have_value("0")
    # -500 in -1350..150 is 57 %, in soft tissue's window black.
    assert reader.pixels(0, (144, 144, 144)) > 1000 or reader.pixels(0, (145, 145, 145)) > 1000
    page.get_by_label("Window").select_option("soft tissue")
    assert reader.shows(0, (0, 0, 0), lambda black: black > 1000)
    reader.set("width", 2000)
    expect(page.get_by_label("Window")).to_have_value("own")
    # An arrow key held down asks for the last slice only; what the reader set is kept.
    page.get_by_label("Slice").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight", delay=5)
    expect(page.get_by_text("loading slice 5 …")).to_be_visible()
    expect(page.locator("#told textarea")).to_have_value("slice 4 of ct")
    expect(page.locator(".v-busy")).to_be_empty()
    expect(page.get_by_text("slice 5 of 9")).to_be_visible()
    expect(page.locator('[data-v="widthOut"]')).to_have_text("2000")
    page.locator(".v-stage").first.hover()
    expect(page.locator('[data-v="read"]')).to_contain_text("value -460 HU")


@pytest.mark.browser
def test_narrow_screen_and_reduced_pictures(reader):
    from playwright.sync_api import expect

    page = reader.page
    page.set_viewport_size({"width": 400, "height": 800})
    reader.load("large", 2)
    expect(page.get_by_text("2000 × 90 px, shown at 1024 of 2000 px")).to_be_visible()
    expect(page.get_by_label("Brightness")).to_be_visible()
    expect(page.get_by_label("Centre")).to_be_hidden()
    expect(page.locator(".v-panel").nth(1)).to_be_visible()
    expect(page.locator(".v-panel").nth(0)).to_be_hidden()
    page.get_by_role("radio", name="Picture").check()
    expect(page.locator(".v-panel").nth(0)).to_be_visible()
    expect(page.locator(".v-panel").nth(1)).to_be_hidden()
    assert reader.pixels(0, (0, 0, 0)) > 1000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_a_late_older_value_is_dropped(browser):
    from playwright.sync_api import expect

    # Without Gradio, so that the two values come as close as they can: the first takes longer to unpack.
    noise = np.random.default_rng(4).integers(0, 65535, (1024, 1024), np.uint16)
    slow = value_of(noise, [view(np.zeros((1024, 1024), np.float32))] * 3, key="slow", name="slow.png")
    quick = value_of(np.zeros((8, 8), np.uint8), [view(disc(8))], key="quick", name="quick.png")
    page = browser.new_page()
    page.set_content(VIEWER["html_template"])
    page.evaluate(
        """async ([code, slow, quick]) => {
            const props = { value: slow };
            let changed;
            new Function("element", "trigger", "props", "watch", code)(
                document.body, () => {}, props, (_, fn) => (changed = fn));
            props.value = quick;
            changed();
            await new Promise((done) => setTimeout(done, 1000));
        }""",
        [VIEWER["js_on_load"], slow, quick],
    )
    expect(page.locator(".v-title strong")).to_have_text("quick.png")
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_accessibility_finding(reader, theme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    reader.load("chest", 3)
    reader.page.evaluate(f"document.body.classList.toggle('dark', {str(theme == 'dark').lower()})")
    found = axe.Axe().run(reader.page, context="#viewer").response["violations"]
    assert [(f["id"], f["nodes"][0]["html"]) for f in found if f["impact"] in ("serious", "critical")] == []
