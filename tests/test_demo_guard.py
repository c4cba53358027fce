"""Who is let in and what is theirs: the real page over HTTP, attacked by other sites, other readers and wrong values."""

import asyncio
import hashlib
import re
import socket
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from demo.session.incoming import make_examples
from demo.session.models import MOST_WAITING, Models
from demo.session.open_sessions import MAX_SESSIONS, OpenSessions
from demo.session.owned_files import PROGRAM, OwnedFiles
from segcore.bundle.folder import open_bundle
from segcore.errors import InputError
from segcore.phantom import phantom_case

pytest.importorskip("gradio", reason="gradio is not installed: the page is not tested")
pytest.importorskip("httpx", reason="httpx is not installed: the page is not tested")

from benchmarks.checks.demo_load import serve_demo
from benchmarks.checks.page_attack import wrong_events
from benchmarks.checks.page_caller import PageCaller, page_says

NOT_YOURS = (
    "file: must be a file that was uploaded for this and not used before, got something else; upload it again"
)
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """The real command; its address, its temporary folder, and its log."""
    folder, log_file = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("log") / "server.log"
    bundles = [exported("openvino", "fp32"), exported("onnx", "fp32")]
    more = ["--data", "phantom:cxr:30", "--max-upload-mb", "5", "--allow-host", "demo.ward.example"]
    with serve_demo(bundles, folder, threads=1, more=more, log_to=log_file) as (address, _):
        yield address, folder, log_file
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.fixture(scope="module")
def address(server):
    return server[0]


@pytest.fixture(scope="module")
def login_address(exported, tmp_path_factory):
    """The page behind a login."""
    folder = tmp_path_factory.mktemp("login")
    (folder / "password").write_text(f"{PASSWORD}\n")
    more = ["--data", "phantom:cxr:30", "--user", "ward", "--password-file", str(folder / "password")]
    log_file = folder / "server.log"
    with serve_demo([exported("onnx", "fp32")], folder, threads=1, more=more, log_to=log_file) as (
        address,
        _,
    ):
        yield address


@pytest.fixture
def browser(address):
    caller = PageCaller(address, browser=True)
    yield caller
    caller.close()


@pytest.fixture
def stranger(address):
    caller = PageCaller(address, browser=True)
    yield caller
    caller.close()


@pytest.fixture
def program(address):
    caller = PageCaller(address, browser=False)
    yield caller
    caller.close()


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "mustermann.png"
    Image.fromarray(phantom_case("cxr", 9)[0]).save(path)
    return path


# ---- Other sites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:1234", 200),
        ("[::1]:1234", 200),
        ("demo.ward.example", 200),
        ("DEMO.ward.example:443", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example@127.0.0.1", 403),
        ("127.0.0.1:x", 403),
        ("127.0.0.1/..", 403),
        ("", 403),
    ],
)
def test_only_our_own_names_lead_to_the_page(program, host, status):
    answer = program.http.get("/config", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json() == {
            "detail": "Host: must be 127.0.0.1, localhost, [::1] or a name given with --allow-host, got another"
        }


def test_a_proxy_may_name_the_page_only_as_it_is_called(program):
    assert program.get("/config", **{"X-Forwarded-Host": "demo.ward.example"}) == 200
    assert program.get("/config", **{"X-Forwarded-Host": "evil.example"}) == 403


def test_other_sites_cannot_call(program, address):
    port = address.rpartition(":")[2]
    own = [address, f"http://localhost:{port}", "https://demo.ward.example"]
    foreign = [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        f"{address}.evil.example",
    ]
    for origin in (*own, *foreign):
        for method, path in (("GET", "/config"), ("POST", "/gradio_api/call/models")):
            answer = program.http.request(method, path, json={"data": []}, headers={"Origin": origin})
            assert answer.status_code == (200 if origin in own else 403), (origin, method)
    assert answer.json() == {"detail": "Origin: must be the page's own, got another site's"}
    for site, path, status in (
        ("cross-site", "/gradio_api/info", 403),
        ("same-site", "/gradio_api/info", 403),
        ("same-origin", "/gradio_api/info", 200),
        ("cross-site", "/logout", 403),
        ("cross-site", "/", 200),  # a link to the page
    ):
        assert program.get(path, **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}) == status


def test_only_what_the_page_needs_is_served(program):
    for path in (
        "component_server",
        "process_recording",
        "run/segment",
        "api/segment",
        "vibe-edit/",
        "call/v2/segment",
    ):
        assert program.http.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404, path
    for path in (
        "gradio_api/proxy=http://evil.example",
        "gradio_api/deep_link",
        "gradio_api/runs",
        "monitoring/x",
    ):
        assert program.get(f"/{path}") == 404, path


def test_headers(program):
    page, config = program.http.get("/"), program.http.get("/config")
    for answer in (page, config):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
    policy = page.headers["Content-Security-Policy"]
    scripts = re.search("script-src ([^;]*);", policy).group(1).split()
    assert "'unsafe-inline'" not in scripts
    inline = re.findall(rb"<script(?![^>]* src=)[^>]*>(.*?)</script>", page.content, re.DOTALL)
    assert len(inline) > 2
    for script in inline:
        assert f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'" in scripts
    assert re.search(r"sam2edge-\d+=\w+\.\w+; HttpOnly; SameSite=Strict; Path=/", page.headers["Set-Cookie"])


# ---- Other readers ----------------------------------------------------------------------------------------------


def test_an_upload_is_its_readers_and_used_once(browser, stranger, program, png):
    path = browser.upload(png)[0]
    for other in (stranger, program):
        assert other.segment(path).problem == NOT_YOURS
        assert other.get(f"/gradio_api/file={path}") == 403
        assert NOT_YOURS in page_says(other.event("upload", "upload", [[{"path": path, "meta": {}}]]))
    assert Path(path).is_file()
    assert browser.segment(path).values[0]["file"] == "mustermann.png"
    assert not Path(path).exists()
    assert browser.segment(path).problem == NOT_YOURS
    sent = program.upload(png)[0]  # a program has no cookie: the name is the key
    assert browser.segment(sent).problem == NOT_YOURS
    assert program.segment(sent).values is not None


def test_folders_and_files_of_the_server_are_no_uploads(program, browser, png, server):
    path = Path(browser.upload(png)[0])
    example = next(server[1].rglob("examples/*.png"))
    for wrong in (
        path.parent,
        path.parents[1],
        path.parents[2],
        example,
        "/etc/passwd",
        "/",
        ".",
        "",
        "\0",
        "~",
    ):
        assert browser.segment(str(wrong)).problem == NOT_YOURS, wrong
        assert NOT_YOURS in page_says(browser.event("upload", "upload", [[{"path": str(wrong), "meta": {}}]]))
    assert path.is_file()
    assert example.is_file()


def test_a_link_is_no_upload(tmp_path):
    owned = OwnedFiles(tmp_path)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    paths = [str(tmp_path / "link"), str(tmp_path)]
    owned.add_uploads(paths, "me")
    for path in paths:
        with pytest.raises(InputError, match="must be a file that was uploaded"):
            owned.claim_uploads([path], "me", "file")
    assert not owned.may_read(f"{owned.new_folder('me')}/../secret", "me")


def test_all_files_of_a_call_are_claimed_or_none(tmp_path):
    owned, paths = OwnedFiles(tmp_path), [str(tmp_path / name) for name in "ab"]
    for path in paths:
        Path(path).write_text("x")
    owned.add_uploads(paths[:1], "me")
    owned.add_uploads(paths[1:], "you")
    for wrong in (paths, [paths[0]] * 2):
        with pytest.raises(InputError):
            owned.claim_uploads(wrong, "me", "file")
    owned.claim_uploads(paths[:1], "me", "file")
    owned.claim_uploads(paths[1:], "you", "file")


def test_made_files_are_their_readers(browser, stranger, program, png):
    made = browser.segment(browser.upload(png)[0]).values[1][0]["path"]
    address = f"/gradio_api/file={made}"
    assert [one.get(address) for one in (browser, stranger, program)] == [200, 403, 403]
    assert browser.get(f"/gradio_api/file={Path(made).parent}") == 403
    assert (
        browser.get(f"/gradio_api/file={Path(made).parent}/%2e%2e/{Path(made).parent.name}/mask.png") == 403
    )
    mine = program.segment(program.upload(png)[0]).values[1][0]["path"]
    assert program.get(f"/gradio_api/file={mine}") == 200


def test_a_page_number_is_its_readers(browser, address):
    """Whoever knows it can neither take the answers, nor end the session, nor stop what runs."""
    assert page_says(browser.event("examples", "select", index=0)) == ""
    for is_browser in (True, False):
        other = PageCaller(address, browser=is_browser, page=browser.page)
        number = {"session_hash": browser.page}
        assert other.event("examples", "select", index=1).status == 403
        assert other.http.get("/gradio_api/queue/data", params=number).status_code == 403
        assert other.get(f"/gradio_api/heartbeat/{browser.page}") == 403
        cancel = {**number, "fn_index": 0, "event_id": "x"}
        assert other.http.post("/gradio_api/cancel", json=cancel).status_code == 403
        other.close()
    answer = browser.event("viewer", "release", threshold=0.5)
    assert any("Area" in value for value in answer.values if isinstance(value, str))


@pytest.fixture(scope="module")
def models(exported):
    with Models([open_bundle(exported("onnx", "fp32"))], threads=1) as opened:
        yield opened


@pytest.fixture
def sessions(models, tmp_path):
    for name in ("readers", "web"):
        (tmp_path / name).mkdir()
    opened = OpenSessions(tmp_path / "readers", tmp_path / "web", models)
    yield opened
    opened.close()


def test_plain_calls_leave_few_sessions_and_an_open_page_working(
    sessions, models, png, tmp_path, monkeypatch
):
    """Gradio keeps a copy of every component for each plain call, so many that the open page's own copy goes."""
    from demo.page.layout import build_page, launch_options

    (tmp_path / "examples").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "web"))  # as the command does
    page = build_page(models, sessions, make_examples("phantom:cxr:30", tmp_path / "examples"))
    words = launch_options(sessions, max_upload_mb=20) | {"allowed_paths": [str(tmp_path)]}
    app, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **words)
    browser = PageCaller(url.rstrip("/"), browser=True)
    program = PageCaller(url.rstrip("/"), browser=False)
    try:
        assert page_says(browser.event("examples", "select", index=0)) == ""
        assert browser.page in app.state_holder
        for _ in range(2 * MAX_SESSIONS):
            assert program.call("models", []).problem is None
        assert program.segment(program.upload(png)[0]).problem is None
        assert len(app.state_holder.session_data) == 2 * MAX_SESSIONS  # 201 calls and a page
        assert browser.page not in app.state_holder
        assert len(sessions) == 1  # a plain call begins none of ours
        moved = browser.event("viewer", "release", threshold=0.5)
        assert page_says(moved) == ""
        assert any("Area" in one for one in moved.values if isinstance(one, str))  # its case is still there
        assert page_says(browser.event("examples", "select", index=1)) == ""
        assert len(app.state_holder.session_data) == 2 * MAX_SESSIONS
    finally:
        browser.close()
        program.close()
        page.close(verbose=False)


def put_case(session):
    """As if a picture were shown."""
    session.version = 1
    return session


def test_invented_sessions_end_no_readers(sessions):
    reader = put_case(sessions.of("page", "reader"))
    for n in range(2 * MAX_SESSIONS):
        sessions.of(str(n), "stranger")  # untouched ones make room for one another
    assert sessions.of("page", "reader") is reader
    for n in range(MAX_SESSIONS - 1):
        put_case(sessions.of(f"full-{n}", "stranger"))
    with pytest.raises(InputError) as caught:
        sessions.of("one more", "stranger")
    assert str(caught.value) == (
        "the page: must have at most 100 readers at once, got one more; try again in a few minutes"
    )
    assert not reader.closed
    for session in sessions._open.values():
        session.last_seen_s -= 301
    sessions.page_opened("page", "reader")  # looks at it, and does nothing
    for n in range(MAX_SESSIONS - 1):
        put_case(sessions.of(f"later-{n}", "stranger"))
    assert not reader.closed
    sessions.page_closed("page", "reader")
    sessions.of("one more", "stranger")
    assert reader.closed


def test_what_sessions_hold_in_memory_is_bounded(sessions, monkeypatch):
    monkeypatch.setattr("demo.session.reader_session.ReaderSession.held_px", property(lambda s: s.version))
    for n in range(3):
        sessions.of(str(n), "stranger").version = 100_000_000
    new = sessions.of("new", "reader")
    new.make_room(new, 10_000_000)  # a small one has a place of its own
    with pytest.raises(InputError) as caught:
        new.make_room(new, 100_000_000)
    assert str(caught.value) == (
        "the picture: must find room in memory beside those of other readers, finds none; "
        "try again in a few minutes, or send it smaller"
    )
    sessions.of("1", "stranger").last_seen_s -= 301
    new.make_room(new, 100_000_000)
    assert ("stranger", "1") not in sessions._open


def test_a_large_picture_waits_and_a_small_one_does_not(models, monkeypatch):
    monkeypatch.setattr(models, "_turn_wait_s", 0.2)
    with models.turn(100_000_000):
        begin = time.monotonic()
        with models.turn(1_000_000):
            assert time.monotonic() - begin < 0.1
        with pytest.raises(InputError) as caught, models.turn(100_000_000):
            pass
        assert str(caught.value) == (
            "the picture: must wait for other large pictures; try again in a few minutes, 0 seconds were not enough"
        )
        monkeypatch.setattr(models, "_waiting", MOST_WAITING)
        with (
            pytest.raises(InputError, match=r"^the picture: must wait .* in a few minutes$"),
            models.turn(10**8),
        ):
            pass
    monkeypatch.setattr(models, "_waiting", 0)
    with models.turn(100_000_000):
        pass


# ---- Wrong values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (0, 7, "file: must be an uploaded file, got a number; upload it first"),
        (0, "/etc/passwd", "file: must be an uploaded file, got text; upload it first"),
        (0, None, "file: must be given, none was"),
        (0, {"path": None}, "file: must be an uploaded file, got an object; upload it first"),
        (0, {"path": "/etc/passwd"}, NOT_YOURS),
        (1, 7, "model: must be text, got a number"),
        (1, [], "model: must be text, got a list"),
        (1, "a\nb", "model: must be one line of at most 200 characters, got other text"),
        (1, "x" * 300, "model: must be one line of at most 200 characters, got other text"),
        (1, {"path": "/etc/passwd"}, "model: must hold no file, got one"),
        (2, "png", "formats: must be a list of png, nifti, dicom-seg, json, got something else"),
        (2, [7], "formats: must be a list of png, nifti, dicom-seg, json, got something else"),
        (3, "0.5", "threshold: must be a number between 0 and 1 or null, got something else"),
        (3, float("nan"), "threshold: must be a number between 0 and 1 or null, got something else"),
        (3, True, "threshold: must be a number between 0 and 1 or null, got something else"),
        (3, 10**400, "threshold: must be a number between 0 and 1 or null, got something else"),
        (4, [], "prompt: must be like"),
        (4, {"points": [[float("inf"), 1, True]]}, "prompt: must be like"),
        (
            4,
            {"points": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}},
            "prompt: must hold no file",
        ),
    ],
)
def test_a_wrong_value_is_one_line(program, png, place, value, problem):
    data = [{"path": program.upload(png)[0], "meta": {"_type": "gradio.FileData"}}, "", [], None, None]
    data[place] = value
    said = program.call("segment", data).problem
    assert said.startswith(problem)
    assert "\n" not in said


@pytest.mark.parametrize("count", [0, 4, 6])
def test_a_wrong_number_of_values_is_one_line(program, count):
    assert program.call("segment", [None] * count).problem == (
        f"data: must hold 5 values (file, model, formats, threshold, prompt), got {count}"
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("call/segment", b"{", 400, "the call: must be JSON, is not"),
        ("call/segment", b"\xff\xfe", 400, "the call: must be JSON, is not"),
        ("call/segment", b"[" * 100_000, 400, "the call: must be JSON, is not"),
        ("call/segment", b"[]", 400, 'the call: must be JSON like {"data": [value, …]}, got something else'),
        ("call/segment", b'{"data": 7}', 400, 'the call: must be JSON like {"data": [value, …]}, got something else'),
        (
            "call/segment",
            b'{"data": ' + b"[" * 50 + b"]" * 50 + b"}",
            400,
            "the call: must have at most 32 levels of lists and objects, got more",
        ),
        ("call/segment", b"7" * 9_000_000, 413, "the call: must be at most 8388608 bytes, got more"),
        ("call/on_upload", b'{"data": []}', 400, "the call: must be of /models, /segment, got another"),
        ("queue/join", b'{"data": [], "fn_index": 0}', 400, "session_hash: must be given, none was"),
        (
            "queue/join",
            b'{"data": [], "fn_index": "0", "session_hash": "x"}',
            400,
            "fn_index: must be the number of one of the page's functions, got something else",
        ),
    ],
)  # fmt: skip
def test_a_body_that_is_no_call_is_one_line(program, path, body, status, detail):
    answer = program.http.post(f"/gradio_api/{path}", content=body)
    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


def test_wrong_values_in_events_of_the_page(browser):
    browser.event("examples", "select", index=0)
    for element, event, data, given in wrong_events():
        said = page_says(browser.event(element, event, data, **given))
        assert ": must " in said, (element, event, given)
        assert "\n" not in said
    assert page_says(browser.event("examples", "select", index=0)) == ""


def test_what_is_sent_is_bounded(program, tmp_path, address, server):
    (tmp_path / "big.png").write_bytes(bytes(6_000_000))
    with (tmp_path / "big.png").open("rb") as file:
        assert program.http.post("/gradio_api/upload", files={"files": file}).status_code == 413
    port = int(address.rpartition(":")[2])
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        assert b"413" in connection.recv(100)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:  # cut off
        part = '--b\r\nContent-Disposition: form-data; name="files"; filename="mustermann.png"\r\n\r\nhalf'
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{part}".encode())
    Image.new("L", (10_001, 10_000)).save(tmp_path / "wide.png")  # small as a file
    said = program.segment(program.upload(tmp_path / "wide.png")[0]).problem
    assert said.startswith("image wide.png: must be at most 20000 pixels a side and 100000000 in all")


def test_no_name_of_an_upload_is_in_the_log(program, browser, server, png, tmp_path):
    """After everything above, and what Gradio itself would have told with the path."""
    path = program.upload(png)[0]
    with ThreadPoolExecutor(4) as pool:  # of calls at once that name the same upload, one gets it
        answers = [one.result() for one in [pool.submit(program.segment, path) for _ in range(4)]]
    assert sum(answer.values is not None for answer in answers) == 1
    assert {answer.problem for answer in answers} == {None, NOT_YOURS}
    (tmp_path / "mustermann-2.png").write_bytes(b"MZ this is a program")
    assert (
        "mustermann-2.png: must be"
        in program.segment(program.upload(tmp_path / "mustermann-2.png")[0]).problem
    )
    log = server[2].read_text()
    assert "mustermann" not in log
    assert "Traceback" not in log


# ---- Logging in -------------------------------------------------------------------------------------------------


def log_in(caller, password):
    begin = time.perf_counter()
    status = caller.http.post("/login", data={"username": "ward", "password": password}).status_code
    return status, time.perf_counter() - begin


def test_nothing_but_the_login_page_without_a_login(login_address):
    caller = PageCaller(login_address, browser=True)
    page = caller.http.get("/")
    assert page.status_code == 200
    assert b"/segment" not in page.content
    assert b"Student" not in page.content
    for path in ("config", "logout", *(f"gradio_api/{name}" for name in (
        "info", "app_id", "heartbeat/x", "queue/data?session_hash=x", "file=/etc/passwd", "call/models/x"
    ))):  # fmt: skip
        assert caller.get(f"/{path}") == 401, path
    for path in ("upload", "queue/join", "call/models", "cancel"):
        assert caller.http.post(f"/gradio_api/{path}", json={"data": []}).status_code == 401, path
    asset = re.search(rb"\./(assets/index-[^\"]+\.js)", page.content).group(1).decode()
    assert caller.get(f"/{asset}") == 200
    assert log_in(caller, PASSWORD)[0] == 200
    assert caller.get("/config") == 200


def test_guesses_are_slowed_and_lock_no_reader_out(login_address):
    reader = PageCaller(login_address, browser=True)
    assert log_in(reader, PASSWORD)[0] == 200
    with ThreadPoolExecutor(20) as pool:
        guesses = [pool.submit(log_in, PageCaller(login_address, browser=n % 2 == 0), "x") for n in range(20)]
        time.sleep(1)
        status, wait = log_in(reader, PASSWORD)  # the cookie knows that it has logged in before
        answers = [one.result() for one in guesses]
    assert status == 200
    assert {code for code, _ in answers} == {400, 429}
    assert wait < max(wait for _, wait in answers)  # the reader does not stand in the guessers' line
    assert max(wait for _, wait in answers) > 4
    assert log_in(PageCaller(login_address, browser=True), PASSWORD)[0] == 200  # after a wait, everybody else


def test_waits_grow_and_end_with_the_right_password(monkeypatch):
    from demo.page import guard

    assert [guard._wait_after(n) for n in range(9)] == [0, 0, 0, 0.25, 0.5, 1, 2, 4, 4]
    monkeypatch.setattr(guard, "_wait_after", lambda wrong: 0)
    turns = guard.LoginTurns()

    async def attempt(reader, right):
        async with turns.turn(reader) as line:
            line.right = right
        return turns.line_of(reader).wrong

    async def attempts():
        assert [await attempt(PROGRAM, False) for _ in range(3)] == [1, 2, 3]
        assert await attempt("reader", False) == 4  # nobody has a line for having a cookie
        assert await attempt("reader", True) == 0
        assert await attempt("reader", False) == 1
        assert turns.line_of(PROGRAM).wrong == 0

    asyncio.run(attempts())
