"""The page: upload or example on the left, what the models say on the right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import numpy as np
from PIL import Image

from demo import cards
from demo.compare import ask
from runtime.predictor import Predictor
from segcore.dataset import open_dataset
from segcore.errors import InputError
from segcore.image import IMAGE_SUFFIXES, read_image
from segcore.overlay import as_rgb

EXAMPLES = 6
CSS = Path(__file__).with_name("page.css")
SYSTEM_FONTS = ("system-ui", "Segoe UI", "Roboto", "sans-serif")


@dataclass(frozen=True)
class Example:
    """A picture that the page offers, with its reference mask.

    Attributes:
        image: H×W or H×W×3, as the model takes it.
        mask: class indices H×W, or None.
        thumbnail: PNG for the gallery.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None
    thumbnail: Path


def make_examples(data: str, folder: Path) -> list[Example]:
    """Takes a few test cases of a dataset (any, where none is labelled); writes thumbnails to `folder`.

    Raises:
        InputError: the dataset cannot be opened.
    """
    dataset = open_dataset(data, need_masks=False)
    cases = dataset.split("test", limit=EXAMPLES) or dataset.cases[:EXAMPLES]
    examples = []
    for i, case in enumerate(cases):
        image, path = case.image(), folder / f"example-{i}.png"
        thumbnail = Image.fromarray(as_rgb(image))
        thumbnail.thumbnail((256, 256))
        thumbnail.save(path)
        examples.append(Example(case.id, image, case.mask() if case.labelled else None, path))
    return examples


def answer_upload(predictors: Sequence[Predictor], path: str | None) -> str:
    """Reads an uploaded file strictly and asks every model; HTML.

    Raises:
        InputError: the models cannot take the file; the message names the file, not where it lies.
    """
    if path is None:
        return cards.EMPTY
    file = Path(path)
    try:
        image = read_image(file)
        return answer_image(predictors, image, name=file.name)
    except InputError as error:
        raise InputError(str(error).replace(str(file), file.name)) from None


def answer_image(
    predictors: Sequence[Predictor], image: np.ndarray, *, name: str, truth: np.ndarray | None = None
) -> str:
    """Asks every model about a picture; HTML."""
    answers = [ask(predictor, image, name=name) for predictor in predictors]
    return cards.results(image, answers, name=name, truth=truth)


def build_page(predictors: Sequence[Predictor], examples: Sequence[Example]) -> gr.Blocks:
    """Lays out the page. Launch it with `look()`."""

    def on_upload(path: str | None) -> str:
        try:
            return answer_upload(predictors, path)
        except InputError as error:
            return cards.problem(str(error))

    def on_select(event: gr.SelectData) -> tuple[int, str]:
        return event.index, cards.WAITING

    def on_example(index: int) -> str:
        example = examples[index]
        try:
            return answer_image(predictors, example.image, name=example.name, truth=example.mask)
        except InputError as error:
            return cards.problem(str(error))

    with gr.Blocks(title="sam2edge demo", analytics_enabled=False) as page:
        with gr.Row(equal_height=False):
            gr.HTML(cards.INTRO, elem_classes="s2e")
            gr.HTML(cards.BANNER, elem_classes="s2e")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=260):
                upload = gr.File(
                    label="Your picture (PNG, JPEG or TIFF)",
                    file_types=list(IMAGE_SUFFIXES),
                    type="filepath",
                    height=160,
                )
                gallery = gr.Gallery(
                    [(str(e.thumbnail), e.name) for e in examples],
                    label="Or choose an example",
                    elem_id="examples",
                    columns=2,
                    height="auto",
                    allow_preview=False,
                    buttons=[],
                    format="png",
                    interactive=False,
                )
            with gr.Column(scale=3):
                shown = gr.HTML(
                    cards.EMPTY, elem_classes="s2e", elem_id="results", label="What the models mark"
                )
        with gr.Accordion(
            "How this model was made" if len(predictors) == 1 else "How these models were made", open=False
        ):
            gr.HTML("".join(cards.how_made(p.manifest) for p in predictors), elem_classes="s2e")
        # The old answer goes first, so that it never stands beside a new picture. A problem is shown where the
        # answer would be, not as a message that fades.
        queue: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}
        upload.change(
            lambda: (cards.WAITING, gr.Gallery(selected_index=None)),
            None,
            [shown, gallery],
            show_progress="hidden",
        ).then(on_upload, upload, shown, show_progress="hidden", **queue)
        chosen = gr.State()  # an event's data does not reach what comes after `then`
        gallery.select(on_select, None, [chosen, shown], show_progress="hidden").then(
            on_example, chosen, shown, show_progress="hidden", **queue
        )
    return page


def look() -> dict[str, Any]:
    """Arguments of `launch` that make the page look as it should and keep to itself."""
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=list(SYSTEM_FONTS),
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css_paths": CSS, "footer_links": [], "share": False, "ssr_mode": False}
