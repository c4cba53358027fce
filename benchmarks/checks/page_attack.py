"""The page attacked, and under load of good and bad callers: is each wrong request one line, and nobody else's harm?

`python -m benchmarks.checks.page_attack --bundle B --out O` starts `python -m demo`, plays strangers who want what is
another reader's, then lets many callers at it for some minutes, and writes

    O/attack.md      what was sent, what was answered
    O/record.json    the same, and of the load: errors, lost, waits, memory, descriptors, files left

An answer is right where it is what the table of the attack says it must be: a refusal of one line, or the result.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydantic import Field

from benchmarks.checks.demo_load import serve_demo
from benchmarks.checks.page_caller import (
    API,
    Answer,
    PageCaller,
    as_file,
    detail_of,
    page_says,
)
from benchmarks.checks.page_load import LoadFigures, load_page
from benchmarks.measuring import Part, check_libraries, results_folder, write_record
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset.dataset import open_dataset
from segcore.errors import GateError
from segcore.host import Made, made_now
from segcore.outfolder import write_text
from segcore.tables import Column, Table

LARGE_SIDE_PX = 10_000
INVENTED = 200
WRONG_LOGINS = 60
_MAX_UPLOAD_MB = 100


class PageAttackSettings(Settings):
    """`python -m benchmarks.checks.page_attack` attacks the demo's page, and loads it with good and bad callers.

    Exit status 3 if an answer was not what it must be.
    """

    bundle: list[Path] = Field(min_length=1)
    """exported bundle; repeat for several, the last is asked"""
    out: Path
    """folder to write"""
    data: str = "phantom:cxr:30"
    """dataset whose pictures are sent"""
    clients: int = Field(20, ge=1)
    """callers at once, in the load"""
    seconds: float = Field(180, ge=0)
    """how long the load goes on; 0 leaves it out"""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each model"""
    overwrite: bool = False
    """replace a finished --out"""


class AttackRow(Part):
    """One kind of attack.

    Attributes:
        sent: what, in words.
        answered: what came back, in words.
        held: whether that is what must come back.
    """

    sent: str
    answered: str
    held: bool


class AttackRecord(Part):
    """What was found."""

    attack: tuple[AttackRow, ...]
    load: LoadFigures | None
    names_in_log: int
    tracebacks_in_log: int
    made: Made


# The attack.


@dataclass
class Attack:
    """The running page, a reader whose things are wanted, and what was found so far.

    Attributes:
        address: of the page.
        pictures: small ones.
        scratch: folder of ours.
        reader: who looks at an example.
        rows: so far.
    """

    address: str
    pictures: list[Path]
    scratch: Path
    reader: PageCaller
    rows: list[AttackRow] = field(default_factory=list)

    def note(self, sent: str, answered: str, held: bool) -> None:
        """One more row."""
        self.rows.append(AttackRow(sent=sent, answered=answered, held=held))
        log(f"{'held' if held else 'NOT HELD'}: {sent}: {answered}")

    def note_all(self, sent: str, answers: Sequence[Answer]) -> None:
        """A row of answers that must all be refusals of one line."""
        refused = [one for one in answers if one.is_one_line]
        said = dict.fromkeys(str(one.problem) for one in refused)
        words = f"{len(refused)} of {len(answers)} refused in one line: “{'”, “'.join(said)}”"
        self.note(sent, words, len(refused) == len(answers))

    def still_there(self) -> bool:
        """Whether the reader still looks at the case."""
        answer = self.reader.event("viewer", "release", threshold=0.5)
        return page_says(answer) == "" and any(
            isinstance(v, str) and "Area" in v for v in answer.values or ()
        )


def attack_page(address: str, pictures: list[Path], scratch: Path) -> list[AttackRow]:
    """Everything that needs no login."""
    attack = Attack(address, pictures, scratch, PageCaller(address, browser=True))
    attack.reader.event("examples", "select", index=0)
    attack_files(attack)
    attack_pages_of_others(attack)
    attack_sources(attack)
    attack_types(attack)
    attack_with_sessions(attack)
    attack_with_large(attack)
    attack.note("afterwards: the reader moves the threshold", "the case is there", attack.still_there())
    return attack.rows


def attack_files(attack: Attack) -> None:
    """Paths that were not uploaded by who names them."""
    reader, stranger = attack.reader, PageCaller(attack.address, browser=True)
    program = PageCaller(attack.address, browser=False)
    theirs = reader.upload(attack.pictures[0])[0]
    upload_folder, web = Path(theirs).parent, Path(theirs).parents[1]
    folders = [str(f) for f in (upload_folder, web, web.parent, f"{web}/..", "/", "/etc", ".", "")]
    callers = (stranger, program)
    attack.note_all("a folder as the file, 8 kinds, by browser and program",
                    [c.segment(folder) for c in callers for folder in folders])  # fmt: skip
    files = ["/etc/passwd", f"{web}/examples/example-0.png", f"{upload_folder}/../{upload_folder.name}/x.png"]
    attack.note_all(
        "a file of the server as the file, 3 kinds", [c.segment(f) for c in callers for f in files]
    )
    attack.note_all("another reader's upload, by browser and program", [c.segment(theirs) for c in callers])
    on_page = [stranger.event("upload", "upload", [[as_file(p)]]) for p in (theirs, *folders)]
    says = [page_says(one) for one in on_page]
    attack.note(
        "the same paths dropped on the page", f"{sum(map(bool, says))} of {len(says)} refused", all(says)
    )
    own = reader.segment(theirs)
    attack.note(
        "the reader uses the upload", "answered" if own.values else str(own.problem), bool(own.values)
    )
    attack.note_all("the reader uses it again", [reader.segment(theirs)])
    made = own.values[1][0]["path"] if own.values else ""
    got = [one.get(f"{API}/file={made}") for one in (reader, stranger, program)]
    attack.note("that mask fetched by reader, stranger, program", str(got)[1:-1], got == [200, 403, 403])
    others = [str(web), str(Path(made).parent), f"{made}/%2e%2e/{Path(made).name}", "/etc/passwd", theirs]
    got = [reader.get(f"{API}/file={path}") for path in others]
    attack.note("folders, dots, /etc/passwd, a used upload fetched", str(got)[1:-1], set(got) == {403})


def attack_pages_of_others(attack: Attack) -> None:
    """A stranger who knows the number of the reader's page."""
    stranger = PageCaller(attack.address, browser=True, page=attack.reader.page)
    program = PageCaller(attack.address, browser=False, page=attack.reader.page)
    for who, words in ((stranger, "a browser"), (program, "a program")):
        number = {"session_hash": attack.reader.page}
        got = [
            who.event("examples", "select", index=1).status,
            who.http.get(f"{API}/queue/data", params=number).status_code,
            who.get(f"{API}/heartbeat/{attack.reader.page}"),
            who.http.post(f"{API}/cancel", json={**number, "fn_index": 0, "event_id": "x"}).status_code,
        ]
        attack.note(f"the reader's page number used by {words}: event, answers, end, cancel",
                    str(got)[1:-1], set(got) == {403})  # fmt: skip
    attack.note("the reader goes on", "the case is there", attack.still_there())


def attack_sources(attack: Attack) -> None:
    """Other sites, and names that lead here."""
    caller, port = attack.reader, urlsplit(attack.address).port
    foreign = ["evil.example", f"127.0.0.1.evil.example:{port}", "a@127.0.0.1", "10.0.0.1", "0.0.0.0", ""]
    got = [caller.get("/config", Host=host) for host in foreign]
    attack.note(f"Host: {', '.join(foreign[:-1])}, empty", str(got)[1:-1], set(got) <= {400, 403})
    got = [caller.get("/config", Host=f"{host}:{port}") for host in ("127.0.0.1", "localhost", "[::1]")]
    attack.note("Host: 127.0.0.1, localhost, [::1]", str(got)[1:-1], set(got) == {200})
    foreign = ["http://evil.example", "null", f"http://127.0.0.1:{int(port or 0) + 1}", "file://", "x"]
    got = [
        caller.http.request(method, path, headers={"Origin": origin}).status_code
        for origin in foreign
        for method, path in (("GET", "/config"), ("POST", f"{API}/upload"), ("POST", f"{API}/queue/join"))
    ]
    attack.note(f"Origin: {', '.join(foreign)}; page, upload, event", str(Counter(got)), set(got) == {403})
    got = [caller.get("/config", Origin=origin) for origin in (attack.address, f"http://localhost:{port}")]
    attack.note("the page's own Origin", str(got)[1:-1], set(got) == {200})
    got = [caller.get(f"{API}/info", **{"Sec-Fetch-Site": site}) for site in ("cross-site", "same-site")]
    attack.note("Sec-Fetch-Site: cross-site, same-site", str(got)[1:-1], set(got) == {403})
    closed = ("component_server", "process_recording", "run/segment", "api/segment", "vibe-edit", "reset")
    got = [caller.http.post(f"{API}/{name}", json={}).status_code for name in closed]
    got += [caller.get(f"{API}/{name}") for name in ("proxy=http://evil.example", "deep_link", "dev/reload")]
    attack.note("Gradio's other addresses, 9 kinds", str(Counter(got)), set(got) == {404})


WRONG_VALUES: tuple[Any, ...] = (
    7,
    -1,
    1e400,
    float("nan"),
    True,
    [],
    ["x"],
    {},
    {"path": "/etc/passwd"},
    "x" * 10_000,
)


def attack_types(attack: Attack) -> None:
    """Values of the wrong type, in every place of a plain call, and bodies that are none."""
    program = PageCaller(attack.address, browser=False)
    right = ["", ["png"], None, None]
    answers = []
    for place, fine in ((0, ()), (1, ([],)), (2, ()), (3, ())):
        for value in (*WRONG_VALUES, "\n\x1b[31m"):
            path = program.upload(attack.pictures[0])[0]
            given = program.segment(path, *right[:place], value, *right[place + 1 :])
            if value not in fine or given.values is None:
                answers.append(given)
    attack.note_all("/segment with a wrong model, format, threshold, prompt", answers)
    files = [program.call("segment", [value, *right]) for value in (*WRONG_VALUES, None)]
    counts = [program.call("segment", [None] * n) for n in (0, 1, 4, 6, 1000)]
    attack.note_all("/segment with a wrong file, or too few or many values", files + counts)
    bodies = [
        b"",
        b"{",
        b"[]",
        b'{"data": null}',
        b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"\xff\xfe",
        b"1" * 9_000_000,
    ]
    got = [program.http.post(f"{API}/call/segment", content=body) for body in bodies]
    attack.note_all("bodies that are no call, 7 kinds", [Answer(problem=detail_of(one)) for one in got])
    says = [
        page_says(attack.reader.event(element, event, data, **given))
        for element, event, data, given in wrong_events()
    ]
    attack.note("wrong values in the page's own events", f"{sum(map(bool, says))} of {len(says)} told in one line",
                all(says) and all(attack_line(one) for one in says))  # fmt: skip
    attack.reader.event("examples", "select", index=0)


def wrong_events() -> Iterator[tuple[str, str, list[Any], dict[str, Any]]]:
    """Events of the page with values that its browser never sends."""
    for value in (None, *WRONG_VALUES):
        yield "viewer", "input", [], {"key": value, "slice": value}
        yield "viewer", "select", [], {"key": "1", "slice": 0, "step": value}
        yield "examples", "select", [], {"index": value if value is not True else 99}
        yield "scan", "input", [value], {}
        yield "models", "input", [value, value], {}
        yield "take", "click", [value, value], {}
        if value is not None:
            yield "viewer", "release", [], {"threshold": value}


def attack_line(html: str) -> bool:
    """Whether a problem on the page is one line in words."""
    return "\n" not in html and "Traceback" not in html and "null" not in html.lower()


def attack_with_sessions(attack: Attack) -> None:
    """Numbers of pages that nobody opened, each with a case."""
    stranger, status = PageCaller(attack.address, browser=True), Counter[str]()
    for n in range(INVENTED):
        stranger.page = f"invented-{n}"
        said = page_says(stranger.event("examples", "select", index=0))
        status["refused: too many readers" if "readers at once" in said else said or "a case shown"] += 1
    attack.note(f"{INVENTED} invented pages that each choose an example",
                ", ".join(f"{n} × {words}" for words, n in status.items()), True)  # fmt: skip
    attack.note("the reader goes on", "the case is there", attack.still_there())


def attack_with_large(attack: Attack) -> None:
    """Four pictures of 100 megapixels at once, and a small one beside them."""
    side = LARGE_SIDE_PX
    large = attack.scratch / "large.png"
    with Image.open(attack.pictures[0]) as picture:
        picture.convert("L").resize((side, side)).save(large)
    too_large = attack.scratch / "too-large.png"
    Image.new("L", (side + 1, side + 1)).save(too_large)
    program = PageCaller(attack.address, browser=False)
    attack.note_all("a picture of 100.02 megapixels", [program.segment(program.upload(too_large)[0])])

    def ask(path: Path) -> tuple[Answer, float]:
        caller, begin = PageCaller(attack.address, browser=False), time.perf_counter()
        answer = caller.segment(caller.upload(path)[0])
        return answer, time.perf_counter() - begin

    alone = ask(attack.pictures[0])[1]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, large) for _ in range(4)]
        time.sleep(3)
        small = list[float]()
        while not all(one.done() for one in running):
            answer, wait = ask(attack.pictures[0])
            small.append(wait if answer.values else float("inf"))
            time.sleep(0.5)
        found = [one.result() for one in running]
    words = ", ".join(f"{'answered' if a.values else a.problem} after {wait:.0f} s" for a, wait in found)
    attack.note(
        "4 pictures of 100 megapixels at once", words, all(a.values or a.is_one_line for a, _ in found)
    )
    longest = max(small, default=float("nan"))
    attack.note(f"small pictures beside them, one after another ({len(small)}; alone {alone:.1f} s)",
                f"all answered, wait median {np.median(small):.1f} s, longest {longest:.1f} s",
                longest < 30)  # fmt: skip


def attack_login(address: str, password: str) -> list[AttackRow]:
    """Guesses, beside a reader who has logged in before."""
    attack = Attack(address, [], Path(), PageCaller(address, browser=True))
    stranger = PageCaller(address, browser=True)
    closed = ("/config", f"{API}/info", f"{API}/queue/data?session_hash=x", f"{API}/heartbeat/x",
              f"{API}/file=/etc/passwd", f"{API}/app_id", f"{API}/login_check", "/logout")  # fmt: skip
    got = [stranger.get(path) for path in closed]
    got += [
        stranger.http.post(f"{API}/{name}", content=b"{}").status_code
        for name in ("upload", "queue/join", "cancel")
    ]
    attack.note("without a login: 11 addresses", str(Counter(got)), set(got) == {401})
    page = stranger.http.get("/").text
    told = [word for word in ("segment", "Student", "phantom") if word in page]
    attack.note("the login page tells", ", ".join(told) or "nothing of the models", not told)

    def log_in(caller: PageCaller, word: str) -> tuple[int, float]:
        begin = time.perf_counter()
        answer = caller.http.post("/login", data={"username": "ward", "password": word})
        return answer.status_code, time.perf_counter() - begin

    first = log_in(attack.reader, password)[0]
    with ThreadPoolExecutor(WRONG_LOGINS) as pool:
        guesses = [
            pool.submit(log_in, PageCaller(address, browser=n % 2 == 0), f"guess {n}")
            for n in range(WRONG_LOGINS)
        ]
        time.sleep(1)
        again, wait = log_in(attack.reader, password)
        found = Counter(one.result()[0] for one in guesses)
        longest = max(one.result()[1] for one in guesses)
    words = ", ".join(f"{n} × {status}" for status, n in sorted(found.items()))
    attack.note(f"{WRONG_LOGINS} wrong logins at once", f"{words}; the longest after {longest:.0f} s",
                set(found) == {400, 429})  # fmt: skip
    attack.note("a reader who has logged in before logs in beside them", f"{again} after {wait:.1f} s",
                first == again == 200 and wait < 5)  # fmt: skip
    status, wait = log_in(PageCaller(address, browser=True), password)
    attack.note("a new browser logs in afterwards", f"{status} after {wait:.1f} s", status == 200)
    return attack.rows


def main(settings: PageAttackSettings) -> None:
    """Starts the page twice, without and with a login; attacks, loads, writes OUT.

    Raises:
        InputError: gradio is missing, or a bundle or the data cannot be opened.
        GateError: an answer was not what it must be.
    """
    check_libraries("gradio", "gradio_client", "httpx", extra="demo")
    check_libraries("psutil")
    cases = open_dataset(settings.data, need_masks=False).cases[:10]
    with results_folder(settings) as folder, tempfile.TemporaryDirectory(prefix="sam2edge-attack-") as made:
        scratch = Path(made)
        pictures = [scratch / f"patient-{i}.png" for i in range(len(cases))]
        for case, path in zip(cases, pictures, strict=True):
            Image.fromarray(case.image()).save(path)
        logs = scratch / "server.log", scratch / "login.log", scratch / "load.log"
        more = ["--max-upload-mb", str(_MAX_UPLOAD_MB)]
        rows = list[AttackRow]()
        with _served(settings, scratch / "attacked", logs[0], more) as (address, _):
            rows += attack_page(address, pictures, scratch)
        (scratch / "password").write_text("correct horse\n")
        login = ["--user", "ward", "--password-file", str(scratch / "password")]
        with _served(settings, scratch / "login", logs[1], login) as (address, _):
            rows += attack_login(address, "correct horse")
        load = None
        if settings.seconds:
            with _served(settings, scratch / "loaded", scratch / "load.log", more) as (address, process):
                load = load_page(
                    address,
                    process.pid,
                    pictures,
                    scratch / "loaded",
                    clients=settings.clients,
                    seconds=settings.seconds,
                )
            left = sum(1 for path in (scratch / "loaded").rglob("*") if path.is_file())
            load = load.model_copy(update={"left_closed": left})
        said = "".join(path.read_text() for path in logs if path.exists())
        record = AttackRecord(
            attack=tuple(rows),
            load=load,
            names_in_log=said.count("patient-") + said.count("large.png"),
            tracebacks_in_log=said.count("Traceback"),
            made=made_now(),
        )
        write_record(folder / "record.json", record)
        write_text(folder / "attack.md", attack_table(rows))
    bad = [row.sent for row in rows if not row.held]
    print_result(
        held=len(rows) - len(bad),
        not_held=bad,
        names_in_log=record.names_in_log,
        tracebacks_in_log=record.tracebacks_in_log,
        load=None if load is None else load.model_dump(),
        out=str(settings.out),
    )
    if bad or record.names_in_log or (load and (load.errors or load.lost or load.left_closed)):
        raise GateError(
            f"the page: must hold against every attack, did not against {len(bad)}; see {settings.out}"
        )


def _served(settings: PageAttackSettings, folder: Path, log_to: Path, more: Sequence[str]) -> Any:
    folder.mkdir()
    words = ["--data", settings.data, *more]
    return serve_demo(settings.bundle, folder, threads=settings.threads, more=words, log_to=log_to)


def attack_table(rows: Sequence[AttackRow]) -> str:
    """The attack as a table of Markdown."""
    columns = (
        Column("sent", "", lambda row: row.sent, words=True),
        Column("answered", "", lambda row: row.answered, words=True),
        Column("held", "", lambda row: "yes" if row.held else "NO", words=True),
    )
    return Table("The page attacked", columns, tuple(rows)).markdown() + "\n"


if __name__ == "__main__":
    run_command(main, PageAttackSettings, "python -m benchmarks.checks.page_attack")
