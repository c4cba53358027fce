"""A click or a box in the demo: what the session keeps, what is written along, and what a browser shows."""

import json
import re
import shutil
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.case.api import read_request, segment_file
from demo.case.content import case_text, view_of_case
from demo.case.downloads import write_case_files
from demo.page.html_pieces import measurement_card, model_section, speed_card, trust_card
from demo.session.models import Models
from demo.session.prompt_dialogue import PromptStep, prompt_json
from demo.session.prompt_summary import prompt_words
from demo.session.reader_session import ReaderSession
from demo.viewer.scene import viewer_value
from segcore.bundle.folder import open_bundle
from segcore.errors import InputError
from segcore.phantom import phantom_case
from segcore.picture.prompts import Prompt
from segcore.picture.scan import Scan

for package in ("onnx", "onnxruntime", "pydicom"):
    pytest.importorskip(package, reason=f"{package} is not installed: prompts in the demo are not tested")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 30_000
POINT = PromptStep(act="point", x=100, y=120)
PICTURE = phantom_case("cxr", 9)[0]


def load_discs():
    spec = spec_from_file_location("prompted_discs", Path(__file__).with_name("prompted_discs.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DISCS = load_discs()
SCALE = PICTURE.shape[0] / DISCS.SIDE
RADIUS = DISCS.RADIUS_PX * SCALE


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Promptable of one class, promptable of two, and one that takes no prompts."""
    folder = tmp_path_factory.mktemp("discs")
    bundles = [
        DISCS.write_bundle(folder / "one"),
        DISCS.write_bundle(folder / "two", ("heart", "lung")),
        DISCS.write_bundle(folder / "deaf", promptable=False),
    ]
    with Models([open_bundle(one) for one in bundles], threads=1, engine="onnxruntime") as opened:
        yield opened


@pytest.fixture
def session(models, tmp_path):
    for name in ("reader", "made"):
        (tmp_path / name).mkdir()
    made = ReaderSession(tmp_path / "reader", tmp_path / "made", models, (models.names[0],))
    yield made
    made.end()


def scan_of(*pictures):
    return Scan(
        name="chest.png", kind="image", slices=len(pictures), size_px=pictures[0].shape,
        values=lambda i: pictures[i], display=lambda i: pictures[i],
    )  # fmt: skip


def is_disc(mask, x, y, *, of=1):
    """Whether what is marked is the disc around a point, to within a step of the network's grid."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    far, grid = np.hypot(columns - x, rows - y), DISCS.STRIDE * SCALE
    return bool((mask[far < RADIUS - grid] == of).all() and not (mask[far > RADIUS + grid] == of).any())


def shown(session, name=None):
    return session.shown_answers[session.model_names.index(name or session.model_names[0])]


def test_a_click_takes_the_place_of_the_automatic_mask_and_start_over_brings_it_back(session):
    session.show_example(scan_of(PICTURE), None)
    automatic = shown(session).mask
    session.take_step(POINT)
    assert is_disc(shown(session).mask, 100, 120)
    session.take_step(PromptStep(act="point", x=148, y=120, inside=False))
    halved = shown(session).mask
    assert halved[120, 90] == 1
    assert halved[120, 130] == 0  # as near to the place beside it
    session.take_step(PromptStep(act="undo"))
    assert is_disc(shown(session).mask, 100, 120)
    session.take_step(PromptStep(act="over"))
    assert shown(session).prompt_summary is None
    np.testing.assert_array_equal(shown(session).mask, automatic)
    session.take_step(PromptStep(act="undo"))  # nothing to take back
    np.testing.assert_array_equal(shown(session).mask, automatic)


def test_a_box_marks_what_is_inside(session):
    session.show_example(scan_of(PICTURE), None)
    session.take_step(PromptStep(act="box", box=(40, 60, 120, 200)))
    mask, grid = shown(session).mask, int(DISCS.STRIDE * SCALE)
    assert mask[60 + grid : 200 - grid, 40 + grid : 120 - grid].all()
    mask[60 - grid : 200 + grid, 40 - grid : 120 + grid] = 0
    assert not mask.any()


def test_the_encoder_looks_once_and_answers_are_mended_until_another_box(session):
    """The estimate says whether an earlier mask was part of the question."""
    session.show_example(scan_of(PICTURE), None)
    first, mended = (pytest.approx(DISCS.mended_iou(PICTURE, m), abs=0.01) for m in (False, True))
    looks = []

    def estimate(step):
        session.take_step(step)
        looks.append(shown(session).prompt_summary.look_ms)
        return shown(session).prompt_summary.estimated_iou

    assert estimate(POINT) == first
    assert estimate(PromptStep(act="point", x=60, y=60)) == mended
    assert estimate(PromptStep(act="undo")) == first
    assert estimate(PromptStep(act="box", box=(40, 60, 120, 200))) == first  # a new beginning
    assert estimate(PromptStep(act="point", x=60, y=80)) == mended
    assert len(shown(session).prompt_summary.questions) == 2
    assert len(set(looks)) == 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [PromptStep(act="point", x=256, y=3)],
            "point: must lie in the picture, x 0 to 255 and y 0 to 255, got 256,3",
        ),
        (
            [PromptStep(act="box", box=(-3, 0, 20, 20))],
            "box: must lie in the picture, x 0 to 255 and y 0 to 255, got -3,0",
        ),
        (
            [PromptStep(act="box", box=(20, 0, 3, 20))],
            "box: must run from top left to bottom right, got 20,0 to 3,20; swap its corners",
        ),
        (
            [POINT] * (DISCS.SLOTS - 1),
            "prompt: must be at most 5 points (a box is two), got 6; take some away",
        ),
        ([PromptStep(act="class", class_name="spleen")], "prompt: must be for one of lung, got spleen"),
        (
            [PromptStep(act="box")],
            None,  # a box without corners asks the same again
        ),
    ],
)
def test_a_bad_step_is_one_line_and_nothing_is_lost(session, steps, message):
    session.show_example(scan_of(PICTURE), None)
    session.take_step(POINT)
    before, handled = shown(session), session.dialogue.handled
    *good, bad = [*steps, *([POINT] if len(steps) > 1 else [])]
    for step in good:
        session.take_step(step)
    if message is None:
        session.take_step(bad)
    else:
        kept = session.dialogue.questions
        with pytest.raises(InputError) as caught:
            session.take_step(bad)
        assert str(caught.value) == message
        assert session.dialogue.questions == kept
    assert session.dialogue.handled == handled + len(good) + 1
    np.testing.assert_array_equal(shown(session).mask, before.mask)


def test_no_model_that_takes_clicks(session, models):
    session.use_models([models.names[2]], None)
    session.show_example(scan_of(PICTURE), None)
    assert viewer_value(session)["prompt"] is None
    with pytest.raises(InputError) as caught:
        session.take_step(POINT)
    assert str(caught.value) == "prompt: must go to a model that takes clicks, none is shown; choose one"
    with pytest.raises(InputError) as caught:
        models.prompt_predictor(models.names[2])
    assert str(caught.value) == (
        f"prompt: must go to a model that takes clicks, {models.names[2]} takes none; "
        f"choose {models.names[0]} or {models.names[1]}"
    )


def test_slice_scan_and_model_clear_the_prompt(session, models):
    session.show_example(scan_of(PICTURE, PICTURE[::-1].copy(), PICTURE), None)
    for change in (
        lambda: session.go_to(2),
        lambda: session.use_models(models.names[:2], None),
        lambda: session.show_example(scan_of(PICTURE), None),
    ):
        session.take_step(POINT)
        assert all(a.prompt_summary for a in session.shown_answers)
        change()
        assert not any(a.prompt_summary for a in session.shown_answers)
        assert session.dialogue.questions == ()


def test_models_that_take_no_prompt_keep_their_own_mask(session, models):
    session.use_models(models.names, None)
    session.show_example(scan_of(PICTURE), None)
    before = {name: shown(session, name).mask for name in models.names}
    session.take_step(PromptStep(act="class", class_name="lung"))
    session.take_step(POINT)
    one, two, deaf = models.names
    assert is_disc(shown(session, one).mask, 100, 120)
    assert is_disc(shown(session, two).mask, 100, 120, of=2)
    np.testing.assert_array_equal(shown(session, deaf).mask, before[deaf])
    assert shown(session, deaf).prompt_summary is None


def test_of_several_classes_the_prompt_is_for_one(session, models):
    session.use_models([models.names[1]], None)
    session.show_example(scan_of(PICTURE), None)
    automatic = shown(session).mask
    assert prompt_json(session.dialogue)["classes"] == ["heart", "lung"]
    session.take_step(POINT)  # for the first, until another is chosen
    mask = shown(session).mask
    assert is_disc(mask, 100, 120)
    np.testing.assert_array_equal(mask[mask != 1], automatic[mask != 1])  # the lung is as it was
    sent = viewer_value(session)
    assert sent["models"][0]["prompted"] == shown(session).prompt_summary.estimated_iou
    session.take_step(PromptStep(act="class", class_name="lung"))
    np.testing.assert_array_equal(shown(session).mask, automatic)
    session.take_step(POINT)
    mask = shown(session).mask
    assert is_disc(mask, 100, 120, of=2)
    assert "lung answers your prompt (1 point on it); other classes are as the model found" in trust_card(
        session
    )
    session.go_to(0)
    assert session.dialogue.class_name == "lung"  # what it is for is kept, the prompt is not


def test_threshold_moves_the_prompted_mask_too(session):
    session.show_example(scan_of(PICTURE), None)
    session.take_step(POINT)
    own = shown(session).mask.sum()
    session.set_threshold(0.999)
    assert 0 < shown(session).mask.sum() < own


def test_all_slices_hold_the_prompted_one(session):
    other = PICTURE[::-1].copy()
    session.show_example(scan_of(other, PICTURE, other), None)
    name = session.model_names[0]
    automatic = session.masks_of(name)
    session.take_step(POINT)
    masks = session.masks_of(name)
    assert is_disc(masks[1], 100, 120)
    np.testing.assert_array_equal(masks[[0, 2]], automatic[[0, 2]])
    session.go_to(0)
    np.testing.assert_array_equal(session.masks_of(name), automatic)
    session.take_step(POINT)
    running = session.measure_all()
    assert next(running) == 1
    session.take_step(PromptStep(act="over"))
    assert list(running) == []  # what it was measuring is no longer shown


def test_words_say_that_a_prompt_made_the_mask(session):
    session.show_example(scan_of(PICTURE), None)
    assert "prompt" not in trust_card(session) + measurement_card(session) + speed_card(session)
    session.take_step(POINT)
    session.take_step(PromptStep(act="point", x=10, y=10, inside=False))
    session.take_step(PromptStep(act="box", box=(40, 60, 120, 200)))
    words = "lung answers your prompt (1 point on it, 1 beside it and a box)."
    assert words in trust_card(session)
    assert re.search(
        r"own estimate of the overlap \(IoU\) with what you meant: 0\.\d\d\. It is an estimate",
        trust_card(session),
    )
    assert words in measurement_card(session)
    assert "looked at the slice in" in speed_card(session)
    text = case_text(view_of_case(session))
    assert text.notes[0].startswith(
        "Teacher: discs: lung answers the reader's prompt (1 point on it, 1 beside it and a box)."
    )
    assert text.figures[0].note == "Answers the reader's prompt."
    colours = text.figures[0].picture.reshape(-1, 3)
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (colours == colour).all(axis=1).sum() > 50


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt(points=((1, 1, True),)), "1 point on it"),
        (Prompt(points=((1, 1, False), (2, 2, False))), "2 points beside it"),
        (Prompt(box=(0, 0, 1, 1)), "a box"),
        (Prompt(points=((1, 1, True), (3, 1, True)), box=(0, 0, 1, 1)), "2 points on it and a box"),
    ],
)
def test_prompts_in_words(prompt, words):
    assert prompt_words(prompt) == words


def test_files_taken_along_say_what_was_asked(session, tmp_path, dicom_files):
    import pydicom

    from segcore.medical.read import read_scan

    source = dicom_files.make_dicom(tmp_path / "film.dcm", PICTURE, Modality="DX", PixelSpacing=[0.2, 0.2])
    session.show_example(read_scan(source), None)
    session.take_step(POINT)
    session.take_step(PromptStep(act="box", box=(40, 60, 120, 200)))
    files = {
        p.name: p for p in write_case_files(session, session.model_names[0], ["png", "json", "dicom-seg"])
    }
    np.testing.assert_array_equal(np.asarray(Image.open(files["mask.png"])) > 0, shown(session).mask == 1)
    record = json.loads(files["case.json"].read_text())["details"]["prompt"]
    estimate = record.pop("estimated_iou")
    assert estimate == pytest.approx(DISCS.mended_iou(PICTURE, False), abs=0.01)
    asked = {"points": [[100, 120, True]], "box": [40, 60, 120, 200]}
    assert record == {"slice": 1, "class": "lung", **asked, "questions": [asked]}
    kinds = [s.SegmentAlgorithmType for s in pydicom.dcmread(files["mask-seg.dcm"]).SegmentSequence]
    assert kinds == ["SEMIAUTOMATIC"]
    session.take_step(PromptStep(act="over"))
    files = {p.name: p for p in write_case_files(session, session.model_names[0], ["json", "dicom-seg"])}
    assert "prompt" not in json.loads(files["case.json"].read_text())["details"]
    kinds = [s.SegmentAlgorithmType for s in pydicom.dcmread(files["mask-seg.dcm"]).SegmentSequence]
    assert kinds == ["AUTOMATIC"]


def segment(models, tmp_path, prompt, *, model=0, formats=()):
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "made").mkdir(parents=True)
    Image.fromarray(PICTURE).save(tmp_path / "chest.png")
    asked = read_request(models.names[model], list(formats), None, prompt, models)
    return segment_file(models, str(tmp_path / "chest.png"), work / "folder", work / "made", asked)


def test_a_model_that_takes_no_prompt_is_told_before_anything_is_segmented(models, tmp_path):
    with pytest.raises(InputError) as caught:
        segment(models, tmp_path, {"points": [[100, 120, True]]}, model=2)
    assert str(caught.value).startswith(
        f"prompt: must go to a model that takes clicks, {models.names[2]} takes none"
    )
    assert not (tmp_path / "work" / "folder" / "upload").exists()  # not even unpacked


def test_programs_ask_too(models, tmp_path):
    record, (png,) = segment(models, tmp_path, {"points": [[100, 120, True]]}, formats=["png"])
    assert is_disc(np.asarray(Image.open(png)) // 255, 100, 120)
    assert record["prompt"]["points"] == [[100, 120, True]]
    assert record["measurements"][0]["pixels"] == (np.asarray(Image.open(png)) > 0).sum()
    box = {"box": [40, 60, 120, 200], "class": "lung", "slice": 1}
    record, _ = segment(models, tmp_path, box, model=1)
    assert record["prompt"]["class"] == "lung"
    assert models.describe(models.names[0])["prompt"] == {"kinds": ["point", "box"], "most_points": 5}
    assert models.describe(models.names[2])["prompt"] is None
    told = "yes, it answers points and boxes; up to 5 points, a box is two"
    assert [told in model_section(models.manifest(name)) for name in models.names] == [True, True, False]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "prompt: must be a point or a box, got none; click on the thing or draw a box around it"),
        (
            {"points": [[300, 1, True]]},
            "point: must lie in the picture, x 0 to 255 and y 0 to 255, got 300,1",
        ),
        ({"points": [[3, 1, True]], "slice": 2}, "prompt: slice must be 1 to 1, got 2"),
        ({"points": [[3, 1, True]], "class": "ear"}, "prompt: must be for one of lung, got ear"),
        (
            {"clicks": [[3, 1]]},
            'prompt: must be like {"points": [[x, y, true]], "box": [left, top, right, bottom], "class": "lung", '
            "\"slice\": 1}, each optional, got {'clicks': [[3, 1]]}",
        ),
    ],
)
def test_programs_are_told_in_one_line(models, tmp_path, prompt, message):
    with pytest.raises(InputError) as caught:
        segment(models, tmp_path, prompt)
    assert str(caught.value) == message


# ---- In a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    """The real page with the three models."""
    pytest.importorskip("gradio", reason="gradio is not installed: the page is not driven")
    from demo.page.layout import build_page, launch_options
    from demo.session.incoming import make_examples
    from demo.session.open_sessions import OpenSessions

    folder = tmp_path_factory.mktemp("page")
    for name in ("examples", "readers", "web"):
        (folder / name).mkdir()
    sessions = OpenSessions(folder / "readers", folder / "web", models)
    # As the command does: Gradio's folder is the one whose owners are known.
    environment = pytest.MonkeyPatch()
    environment.setenv("GRADIO_TEMP_DIR", str(folder / "web"))
    page = build_page(models, sessions, make_examples("phantom:cxr:30", folder / "examples"))
    words = launch_options(sessions, max_upload_mb=20) | {"allowed_paths": [str(folder)]}
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **words)
    yield url
    page.close(verbose=False)
    sessions.close()
    environment.undo()


@pytest.fixture(scope="module")
def browser(address):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: the page is not driven")
    if find_spec("playwright") is None:
        pytest.skip("playwright is not installed: the page is not driven")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Reader:
    """Somebody at the page who chose the first example; the first panel is the promptable model's."""

    def __init__(self, browser, address, **screen):
        self.problems = []
        self.page = browser.new_context(**screen).new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(address)
        self.page.locator("#examples button.thumbnail-item, #examples .gallery-item").first.click(
            timeout=WAIT_MS
        )
        self.page.locator("#speed table").wait_for(timeout=WAIT_MS)
        self.stage = self.page.locator("#viewer .v-stage").first
        self.badge = self.page.locator("#viewer .v-asked").first
        self.asked = self.page.locator('#viewer [data-v="asked"]')

    def tool(self, name):
        return self.page.locator("#viewer").get_by_role("button", name=name, exact=True)

    def at(self, x, y):
        """A place of the picture, 0–1 in width and height, on the screen; the picture is square and fitted."""
        area = self.stage.bounding_box()
        side = min(area["width"], area["height"])
        left, top = area["x"] + (area["width"] - side) / 2, area["y"] + (area["height"] - side) / 2
        return left + x * side, top + y * side

    def drag(self, start, end):
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=6)
        self.page.mouse.up()

    def pixels(self, colour, panel=0):
        """How many of a panel's pixels have this very colour, after the next frame."""
        return self.page.locator("#viewer canvas").nth(panel).evaluate(
            """(canvas, [r, g, b]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                let n = 0;
                for (let i = 0; i < data.length; i += 4) n += data[i] === r && data[i + 1] === g && data[i + 2] === b;
                done(n);
            })))""",
            list(colour),
        )  # fmt: skip

    def marked(self, panel=0):
        """The words of a panel's picture: "… marks lung, 11 % of the picture"."""
        return self.page.locator("#viewer canvas").nth(panel).get_attribute("aria-label")


INSIDE, BESIDE = (0, 114, 178), (213, 94, 0)


@pytest.mark.browser
def test_click_box_undo_and_start_over_in_a_browser(browser, address, models):
    from playwright.sync_api import expect

    reader = Reader(browser, address, viewport={"width": 1280, "height": 800})
    page, before = reader.page, reader.marked()
    automatic_two = reader.marked(1)
    assert reader.pixels(INSIDE) == 0
    expect(reader.tool("Look")).to_have_attribute("aria-pressed", "true")
    page.mouse.click(*reader.at(0.4, 0.5))  # Look asks nothing
    height = reader.stage.bounding_box()["y"]
    reader.tool("Click").focus()
    page.keyboard.press("Enter")  # the tools are reached without a mouse
    expect(reader.tool("Click")).to_have_attribute("aria-pressed", "true")
    expect(reader.tool("Undo")).to_be_disabled()
    # A click on it, in another panel: a prompt is about the picture.
    area = page.locator("#viewer .v-stage").nth(1).bounding_box()
    page.mouse.click(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    expect(reader.badge).to_contain_text(
        re.compile(r"your prompt · IoU 0\.\d\d, its own estimate"), timeout=WAIT_MS
    )
    expect(reader.asked).to_have_text("Asked: 1 on it · room for 4 more points")
    one = reader.marked()
    assert one.startswith(f"{models.names[0]}, by your prompt, marks lung, ")
    assert one != before
    assert reader.pixels(INSIDE) > 50  # not hidden by the pointer's cross, which is here too
    assert reader.pixels(BESIDE) == 0
    expect(page.locator("#trust")).to_contain_text("lung answers your prompt (1 point on it).")
    expect(page.locator("#measured")).to_contain_text("answers your prompt")
    # Beside it: with the right button, with Alt, with the box ticked; each is drawn otherwise.
    page.mouse.click(*reader.at(0.62, 0.5), button="right")
    expect(reader.asked).to_have_text("Asked: 1 on it, 1 beside it · room for 3 more points", timeout=WAIT_MS)
    assert reader.pixels(BESIDE) > 50
    assert reader.marked() != one
    page.keyboard.down("Alt")
    page.mouse.click(*reader.at(0.62, 0.4))
    page.keyboard.up("Alt")
    expect(reader.asked).to_contain_text("2 beside it", timeout=WAIT_MS)
    page.get_by_label("Not this").check()
    page.mouse.click(*reader.at(0.62, 0.6))
    expect(reader.asked).to_contain_text("3 beside it", timeout=WAIT_MS)
    page.get_by_label("Not this").uncheck()
    # Two clicks at once are two points; and one too many is told, and nothing is lost.
    for x in (0.1, 0.2):
        page.mouse.click(*reader.at(x, 0.9))
    expect(page.locator("#said")).to_contain_text(
        "prompt: must be at most 5 points (a box is two), got 6; take some away", timeout=WAIT_MS
    )
    expect(reader.asked).to_have_text("Asked: 2 on it, 3 beside it · room for 0 more points")
    for left in ("1 on it, 3 beside it", "1 on it, 2 beside it", "1 on it, 1 beside it", "1 on it"):
        reader.tool("Undo").click()
        expect(reader.asked).to_contain_text(f"Asked: {left} ·", timeout=WAIT_MS)
    assert reader.marked() == one
    expect(page.locator("#said")).not_to_contain_text("must be at most")
    # Beside the picture: the server's own words.
    page.mouse.click(*reader.at(1.1, 0.5))
    expect(page.locator("#said")).to_contain_text("point: must lie in the picture", timeout=WAIT_MS)
    # Space hides the question with the mask.
    reader.stage.focus()
    page.keyboard.down("Space")
    assert reader.pixels(INSIDE) == 0
    page.keyboard.up("Space")
    # A box that reaches over the edge ends there.
    reader.tool("Start over").click()
    expect(reader.badge).to_be_hidden(timeout=WAIT_MS)
    assert (reader.marked(), reader.marked(1)) == (before, automatic_two)
    assert reader.pixels(INSIDE) == 0
    reader.tool("Box").click()
    reader.drag((0.5, 0.25), (1.1, 0.75))
    expect(reader.asked).to_have_text("Asked: a box · room for 3 more points", timeout=WAIT_MS)
    share = int(re.search(r"lung, (\d+) %", reader.marked())[1])
    assert 20 <= share <= 25  # half of the width, half of the height
    assert reader.pixels(INSIDE) > 200
    assert reader.stage.bounding_box()["y"] == height  # the picture stands still under the pointer
    # Another example: the question is gone, and a drag moves again.
    page.locator("#examples button.thumbnail-item, #examples .gallery-item").nth(1).click()
    expect(reader.badge).to_be_hidden(timeout=WAIT_MS)
    expect(reader.tool("Look")).to_have_attribute("aria-pressed", "true")
    assert reader.problems == []
    page.context.close()


@pytest.mark.browser
def test_class_touch_and_accessibility_in_a_browser(browser, address, models):
    from playwright.sync_api import expect

    reader = Reader(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = reader.page
    page.get_by_label("Asks for").select_option("lung")
    reader.tool("Click").tap()
    page.wait_for_timeout(300)
    reader.stage.evaluate("stage => stage.scrollIntoView({block: 'center'})")
    page.touchscreen.tap(*reader.at(0.4, 0.5))
    expect(reader.badge).to_contain_text("your prompt", timeout=WAIT_MS)
    expect(reader.asked).to_contain_text("Asked: 1 on it")
    assert reader.pixels(INSIDE) > 50
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.locator("#trust")).to_contain_text("lung answers your prompt")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    found = axe.Axe().run(page, context="#viewer").response["violations"]
    assert [(f["id"], f["nodes"][0]["html"]) for f in found if f["impact"] in ("serious", "critical")] == []
    assert reader.problems == []
    page.context.close()


def test_api_takes_a_prompt(address, models, tmp_path):
    from gradio_client import Client, handle_file

    Image.fromarray(PICTURE).save(tmp_path / "chest.png")
    client = Client(address, verbose=False, download_files=str(tmp_path / "got"))
    given = {"file": handle_file(str(tmp_path / "chest.png")), "model": models.names[0], "formats": ["png"]}
    record, files = client.predict(
        **given, threshold=None, prompt={"points": [[100, 120, True]]}, api_name="/segment"
    )
    assert is_disc(np.asarray(Image.open(files[0])) // 255, 100, 120)
    assert record["prompt"]["class"] == "lung"
    record, _ = client.predict(**given, threshold=None, api_name="/segment")  # as before there were prompts
    assert record["prompt"] is None
    with pytest.raises(Exception, match=r"point: must lie in the picture, x 0 to 255"):
        client.predict(**given, threshold=None, prompt={"points": [[-1, 0, True]]}, api_name="/segment")
