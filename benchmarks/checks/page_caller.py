"""Somebody at the demo's page over HTTP, as a browser or a program speaks to it; for the attack and for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_ANSWER_S = 400.0
API = "/gradio_api"


@dataclass
class Answer:
    """What came of a call: values, or one line."""

    values: list[Any] | None = None
    problem: str | None = None
    status: int = 200

    @property
    def is_one_line(self) -> bool:
        """A refusal in words."""
        words = str(self.problem or "")
        return ": must " in words and not any(sign in words for sign in ("\n", "Traceback", "'type'"))


class PageCaller:
    """Somebody at the page, over HTTP.

    Attributes:
        address: of the page.
        http: the connection, with its cookies.
        page: number of the page that is open, as a browser invents it.
    """

    def __init__(self, address: str, *, browser: bool, page: str | None = None) -> None:
        import httpx

        self.address = address
        self.http = httpx.Client(base_url=address, timeout=LONGEST_ANSWER_S)
        self.page = page or f"{random.getrandbits(64):x}"
        if browser:
            self.http.get("/")  # which gives the cookie
        self._config: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The page's own description."""
        if self._config is None:
            self._config = self.http.get("/config").json()
        return self._config

    def upload(self, *paths: Path) -> list[str]:
        """Sends files; the server's names for them."""
        files = [("files", (path.name, path.read_bytes())) for path in paths]
        answer = self.http.post(f"{API}/upload", files=files)
        answer.raise_for_status()
        found: list[str] = answer.json()
        return found

    def segment(self, path: str | None, *values: Any) -> Answer:
        """A plain call of `/segment`: model, formats, threshold, prompt after the file."""
        file = None if path is None else as_file(path)
        return self.call("segment", [file, *(values or ("", ["png"], None, None))])

    def call(self, name: str, data: Any) -> Answer:
        """A plain call of an endpoint."""
        begun = self.http.post(f"{API}/call/{name}", content=json.dumps({"data": data}))
        if begun.status_code != 200:
            return Answer(problem=detail_of(begun), status=begun.status_code)
        with self.http.stream("GET", f"{API}/call/{name}/{begun.json()['event_id']}") as stream:
            kind = ""
            for line in stream.iter_lines():
                key, _, rest = line.partition(": ")
                if key == "event":
                    kind = rest
                elif key == "data" and kind == "complete":
                    return Answer(values=json.loads(rest))
                elif key == "data" and kind == "error":
                    problem = json.loads(rest)
                    return Answer(problem=problem.get("error") if isinstance(problem, dict) else problem)
        return Answer(problem=None)

    def event(self, element: str, event: str, data: Sequence[Any] = (), **event_data: Any) -> Answer:
        """An event of the open page, as its browser sends it."""
        where = {c["id"]: c["props"].get("elem_id") for c in self.config["components"]}
        for one in self.config["dependencies"]:
            for target, name in one["targets"]:
                if where.get(target) == element and name == event:
                    return self.join(one["id"], list(data), event_data, target)
        raise ValueError(f"no {event} of {element}")

    def join(self, number: int, data: Any, event_data: Any = None, trigger: int | None = None) -> Answer:
        """An event by its function's number."""
        body = {
            "data": data,
            "event_data": event_data,
            "fn_index": number,
            "trigger_id": trigger,
            "session_hash": self.page,
        }
        begun = self.http.post(f"{API}/queue/join", content=json.dumps(body))
        if begun.status_code != 200:
            return Answer(problem=detail_of(begun), status=begun.status_code)
        return self._read_queue(begun.json()["event_id"])

    def _read_queue(self, event: str) -> Answer:
        values: list[Any] | None = None
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.page}) as stream:
            if stream.status_code != 200:
                stream.read()
                return Answer(problem=detail_of(stream), status=stream.status_code)
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_generating" and message.get("event_id") == event:
                    values = message["output"].get("data")
                if message.get("msg") == "process_completed" and message.get("event_id") == event:
                    output = message["output"]
                    if message["success"]:
                        return Answer(values=output.get("data", values))
                    return Answer(problem=output.get("error"))
        return Answer(problem=None)

    def get(self, path: str, **headers: str) -> int:
        """Status of an address."""
        return int(self.http.get(path, headers=headers).status_code)

    def close(self) -> None:
        """Leaves."""
        self.http.close()


def as_file(path: str) -> dict[str, Any]:
    """A path as a call holds it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def page_says(answer: Answer) -> str:
    """The problem that an event of the page shows, in its first text; "" where there is none."""
    if answer.problem is not None or answer.values is None:
        return answer.problem or "no answer"
    texts = [v for v in answer.values if isinstance(v, str) and 'class="problem"' in v]
    return texts[0] if texts else ""


def detail_of(answer: Any) -> str:
    """What a refusal of an HTTP request says."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.text[:200]}"
