"""The case as one HTML page to print or file: everything is in the one file, nothing is fetched."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from demo.case.text import case_text
from demo.case.view import CaseView
from segcore.errors import need
from segcore.picture.overlay import COLOURS

TEMPLATE = Path(__file__).with_name("case.html.j2")
_DASHES = {"solid": "none", "dashed": "7 5", "dotted": "3 3"}


def case_html(case: CaseView) -> str:
    """The page as text. One slice and two models print on one A4 page.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError:
        raise need("jinja2", "demo") from None
    text = case_text(case)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text()).render(
        text=text,
        pictures=[_data_address(one.picture) for one in text.figures],
        colours=[f"rgb{colour}" for colour in COLOURS],
        dashes=_DASHES,
    )


def _data_address(picture: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
