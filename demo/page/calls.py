"""What a call may hold: read before Gradio sees it, so that a wrong value is one line, and a file its caller's own.

Gradio 6.31 takes any path in its upload folder for an upload, folders too, and answers a value of the wrong type with
null and a traceback that holds it. So the page's own events are given raw values (`preprocess=False`), which the
functions here read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from demo.session.owned_files import OwnedFiles
from demo.session.prompt_dialogue import PromptStep
from segcore.errors import InputError

CALLER = "sam2edge.caller"
"""Key of the `Caller` in an ASGI scope."""
MOST_LEVELS = 32
"""Lists and objects in one another; a prompt has four."""
MOST_TEXT = 200
_MOST_HASH = 64
_EVENT_KEYS = ("index", "key", "slice", "step", "threshold")
B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        reader: the browser, by its cookie; `PROGRAM` where there is none.
        refusal: why the values cannot be used, in one line; "" where they can.
    """

    reader: str
    refusal: str = ""


def caller_of(request: gr.Request) -> Caller:
    """Who sent an event."""
    assert request.request is not None
    caller: Caller = request.request.scope[CALLER]
    return caller


def check_call(request: gr.Request) -> None:
    """Refuses a call whose values `read_call` could not use.

    Raises:
        InputError: why.
    """
    if refusal := caller_of(request).refusal:
        raise InputError(refusal)


@dataclass(frozen=True)
class Call:
    """The body of a call, as it is passed on.

    Attributes:
        body: JSON.
        page: the browser's number for its page; "" in a plain call.
        files: uploads that were claimed for it.
        refusal: see `Caller`.
    """

    body: bytes
    page: str
    files: tuple[str, ...]
    refusal: str


def read_call(body: bytes, page: gr.Blocks, api_name: str | None, owned: OwnedFiles, reader: str) -> Call:
    """Reads a call, claims the files that it names, and leaves out what no call needs.

    Args:
        body: as it came.
        page: whose functions are called.
        api_name: of the function, for a plain call; None where the body holds its number.
        owned: the uploads.
        reader: who calls.

    Raises:
        InputError: it is no call of one of the page's functions.
    """
    given = _read_json(body)
    function = _function_of(page, given, api_name)
    number = given.get("session_hash")
    if number is not None and not (isinstance(number, str) and 0 < len(number) <= _MOST_HASH):
        raise InputError(f"session_hash: must be text of at most {_MOST_HASH} characters, got something else")
    if api_name is None and number is None:
        raise InputError("session_hash: must be given, none was")
    trigger = given.get("trigger_id")
    passed: dict[str, Any] = {
        "fn_index": function._id,
        "session_hash": number,
        "event_data": _event_values(given.get("event_data")),
        "trigger_id": trigger if isinstance(trigger, int) and not isinstance(trigger, bool) else None,
    }
    files: tuple[str, ...] = ()
    refusal = ""
    try:
        passed["data"], files = _own_values(given["data"], function.inputs, owned, reader)
    except InputError as error:
        # It is told as the function's answer: so it reaches who called, whichever way that was.
        passed["data"], refusal = [None] * len(function.inputs), str(error)
    return Call(json.dumps(passed).encode(), number or "", files, refusal)


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the call: must be JSON, is not") from None
    if not isinstance(given, dict) or not isinstance(given.get("data"), list):
        raise InputError('the call: must be JSON like {"data": [value, …]}, got something else')
    if _levels(given) > MOST_LEVELS:
        raise InputError(f"the call: must have at most {MOST_LEVELS} levels of lists and objects, got more")
    return given


def _levels(value: Any) -> int:
    levels, layer = 0, [value]
    while layer and levels <= MOST_LEVELS:
        layer = [child for one in layer for child in _children(one)]
        levels += 1
    return levels


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _function_of(page: gr.Blocks, given: dict[str, Any], api_name: str | None) -> Any:
    if api_name is None:
        index = given.get("fn_index")
        if isinstance(index, int) and not isinstance(index, bool) and index in page.fns:
            return page.fns[index]
        raise InputError("fn_index: must be the number of one of the page's functions, got something else")
    public = {f.api_name: f for f in page.fns.values() if f.api_visibility == "public"}
    if api_name not in public:
        raise InputError(f"the call: must be of {', '.join(f'/{name}' for name in public)}, got another")
    return public[api_name]


def _event_values(event: Any) -> dict[str, Any]:
    """What our handlers read of an event; a file is never among it."""
    if not isinstance(event, dict):
        return {}
    kept = {key: event[key] for key in _EVENT_KEYS if key in event}
    return {} if any("path" in one for one in _objects(kept)) else kept


def _own_values(
    values: list[Any], inputs: Sequence[Any], owned: OwnedFiles, reader: str
) -> tuple[list[Any], tuple[str, ...]]:
    """The values with each file cut down to its path, and the paths, which are the caller's from now on."""
    if len(values) != len(inputs):
        names = ", ".join(str(block.label).lower() for block in inputs) or "none"
        raise InputError(f"data: must hold {len(inputs)} values ({names}), got {len(values)}")
    found, paths = list[Any](), list[str]()
    for value, block in zip(values, inputs, strict=True):
        name = str(block.label).lower()
        if not isinstance(block, gr.File | gr.UploadButton):
            if any("path" in one for one in _objects(value)):
                raise InputError(f"{name}: must hold no file, got one")
            found.append(value)
            continue
        several = block.file_count != "single"
        own = _paths_in(value, name, several=several)
        paths += own
        one = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in own]
        found.append(None if not one else one if several else one[0])
    if paths:
        owned.claim_uploads(paths, reader, "file")
    return found, tuple(paths)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    rest = [value]
    while rest:
        one = rest.pop()
        rest += _children(one)
        if isinstance(one, dict):
            yield one


def _paths_in(value: Any, name: str, *, several: bool) -> list[str]:
    """Paths of one file, or of a list where there may be several; none for null."""
    if value is None:
        return []
    files = value if several and isinstance(value, list) else [value]
    paths = [one.get("path") if isinstance(one, dict) else None for one in files]
    if not all(isinstance(path, str) for path in paths):
        raise InputError(f"{name}: must be an uploaded file, got {kind_of(value)}; upload it first")
    return [str(path) for path in paths]


# Values as a function of the page reads them.


def upload_paths(value: Any) -> list[str]:
    """Paths of a value that `read_call` has checked."""
    if value is None:
        return []
    return [one["path"] for one in (value if isinstance(value, list) else [value])]


def text_value(value: Any, name: str) -> str:
    """Text as a name is.

    Raises:
        InputError: something else.
    """
    if not isinstance(value, str):
        raise InputError(f"{name}: must be text, got {kind_of(value)}")
    if len(value) > MOST_TEXT or not value.isprintable():  # it may be said in an error
        raise InputError(f"{name}: must be one line of at most {MOST_TEXT} characters, got other text")
    return value


def text_values(value: Any, name: str) -> list[str]:
    """A list of texts, none twice.

    Raises:
        InputError: something else.
    """
    if not isinstance(value, list):
        raise InputError(f"{name}: must be a list of text, got {kind_of(value)}")
    return list(dict.fromkeys(text_value(one, name) for one in value))


def whole_number(value: Any, name: str) -> int:
    """A whole number.

    Raises:
        InputError: something else.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name}: must be a whole number, got {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in words; not the value, which may be long or name somebody."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return "nothing" if value is None else kinds.get(type(value), "an object")


class SliceEvent(BaseModel):
    """The viewer's slider. `key` is the scene's."""

    model_config = ConfigDict(strict=True)
    key: str
    slice: int


class ThresholdEvent(BaseModel):
    """The viewer's threshold; None: each model's own."""

    model_config = ConfigDict(strict=True)
    threshold: float | None = Field(gt=0, lt=1)


class PromptEvent(BaseModel):
    """A click or a box in the viewer."""

    key: str
    slice: int
    step: PromptStep


def viewer_event(event: gr.EventData, kind: type[B]) -> B:
    """What the viewer sent.

    Raises:
        InputError: it is nothing that the viewer sends.
    """
    try:
        return kind.model_validate(event._data)
    except ValidationError:
        raise InputError(
            "the viewer: must send what a reader did, got something else; load the page again"
        ) from None
