"""Who is let in: one ASGI layer around the page that checks every request before Gradio does.

Against other sites in the reader's browser: Host and Origin. Against other readers: each browser gets a cookie, and
only the routes that the page needs are open. Against guessing: login attempts take their turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import shutil
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.page.calls import CALLER, Caller, read_call
from demo.session.open_sessions import OpenSessions
from demo.session.owned_files import PROGRAM
from segcore.command import log
from segcore.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_CALL_BYTES = 8 * 2**20
"""Of a call: the names of 5,000 files are some 3 MB."""
MOST_UPLOAD_BYTES = 2 * 2**30
"""Of one upload of many files; a single file is held to --max-upload-mb."""
SILENCE_S = 60.0
"""A request whose next bytes do not come for so long is dropped."""
MOST_REQUESTS = 512
"""Requests at once, the open pages' own connections among them."""
_MOST_PAGES = 10_000
_LOGIN_BYTES = 4096

_API = "/gradio_api"
_ASSETS = ("/assets/", "/static/", "/svelte/")
# What the page needs before anybody has logged in. Gradio asks the start-up events of itself.
_OPEN_ROUTES = {"/", "/login", "/theme.css", "/favicon.ico", "/manifest.json", f"{_API}/startup-events"}
_READ_ROUTES = _OPEN_ROUTES | {"/config", "/logout"} | {
    f"{_API}/{name}" for name in ("info", "app_id", "login_check", "queue/data", "queue/status", "upload_progress")
}  # fmt: skip
_READ_UNDER = (f"{_API}/file=", f"{_API}/heartbeat/", f"{_API}/call/", *_ASSETS)
_SEND_ROUTES = {"/login", f"{_API}/upload", f"{_API}/queue/join", f"{_API}/cancel"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)

_CALLS = re.compile(rb"(window\.gradio_api_info = ).*?(;</script>)", re.DOTALL)


class Refused(Exception):
    """A request that is answered with one line.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, words: str, wait_s: int | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.headers = {} if wait_s is None else {"Retry-After": str(wait_s)}


class Guard:
    """The layer. `demo.page.layout.launch_options` puts it inside Gradio's own, next to its routes.

    Attributes:
        sessions: whose files and pages it knows.
        hosts: names, besides this computer's own, that the page is reached by.
        max_upload_bytes: the largest file; so much disk stays free twice.
    """

    def __init__(
        self, app: ASGIApp, *, sessions: OpenSessions, hosts: tuple[str, ...], max_upload_bytes: int
    ) -> None:
        self.app = app
        self.sessions = sessions
        self.hosts = tuple(host.lower() for host in hosts)
        self.max_upload_bytes = max_upload_bytes
        self._secret = secrets.token_bytes(32)
        self._reader_of_page: OrderedDict[str, str] = OrderedDict()
        self._logins = LoginTurns()
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        self._requests += 1
        cookie = f"sam2edge-{scope['server'][1]}"
        headers = Headers(scope=scope)
        reader = self._read_cookie(headers, cookie)
        new = None if reader != PROGRAM else self._new_cookie()
        send = _send_with_headers(send, scope["path"], None if new is None else f"{cookie}={new}")
        try:
            if self._requests > MOST_REQUESTS:
                raise Refused(
                    503, f"the page: must serve at most {MOST_REQUESTS} requests at once, got one more"
                )
            self._check_source(scope, headers)
            self._check_route(scope)
            await self._pass_on(scope, _receive_with_deadline(receive), send, headers, reader)
        except Refused as refused:
            answer = JSONResponse({"detail": str(refused)}, refused.status, refused.headers)
            await answer(scope, receive, send)
        finally:
            self._requests -= 1

    # Where a request comes from.

    def _check_source(self, scope: Scope, headers: Headers) -> None:
        """No other site's page: not by a name of its own for this computer (DNS rebinding), nor across sites."""
        named = [*headers.getlist("host"), *headers.getlist("x-forwarded-host")]
        for host in named or [""]:
            if _split_host(host)[0] not in (*LOOPBACK, *self.hosts):
                raise Refused(
                    403,
                    "Host: must be 127.0.0.1, localhost, [::1] or a name given with --allow-host, got another",
                )
        origins = headers.getlist("origin")
        if origins:
            if len(origins) > 1 or not self._is_own_origin(origins[0], headers["host"]):
                raise Refused(403, "Origin: must be the page's own, got another site's")
            return
        # A picture or a link of another site sends no Origin; its browser says so all the same.
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        to_page = scope["path"] == "/" and scope["method"] == "GET" and mode == "navigate"
        if site not in ("none", "same-origin") and not to_page:
            raise Refused(403, "Sec-Fetch-Site: must be the page's own, got another site's")

    def _is_own_origin(self, origin: str, host: str) -> bool:
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https") or not rest:
            return False
        name, port = _split_host(rest)
        # A proxy may call the page by another Host than the browser does.
        return name in self.hosts or (name in LOOPBACK and port == _split_host(host)[1])

    def _check_route(self, scope: Scope) -> None:
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        reads = method in ("GET", "HEAD") and (path in _READ_ROUTES or path.startswith(_READ_UNDER))
        plain_call = path.startswith(f"{_API}/call/") and path.count("/") == 3
        if not reads and not (method == "POST" and (path in _SEND_ROUTES or plain_call)):
            raise Refused(404, "the page: must be asked for what it has, got another address")
        if not (path in _OPEN_ROUTES or path.startswith(_ASSETS)) and not _is_logged_in(scope):
            raise Refused(401, "Not authenticated")

    # Who it is: a browser by the cookie that it got with the page.

    def _new_cookie(self) -> str:
        reader = secrets.token_hex(16)
        return f"{reader}.{self._sign(reader)}; HttpOnly; SameSite=Strict; Path=/"

    def _read_cookie(self, headers: Headers, name: str) -> str:
        for part in "; ".join(headers.getlist("cookie")).split("; "):
            key, _, value = part.partition("=")
            reader, _, signed = value.partition(".")
            if key == name and hmac.compare_digest(signed.encode(), self._sign(reader).encode()):
                return reader
        return PROGRAM

    def _sign(self, reader: str) -> str:
        return hmac.new(self._secret, reader.encode(), hashlib.sha256).hexdigest()

    def _check_page(self, page: str, reader: str) -> None:
        """A page's number is its reader's alone: whoever knows it otherwise could take the answers away."""
        if self._reader_of_page.setdefault(page, reader) != reader:
            raise Refused(403, "session_hash: must be of your own page, got another's")
        self._reader_of_page.move_to_end(page)
        while len(self._reader_of_page) > _MOST_PAGES:
            self._reader_of_page.popitem(last=False)

    # What it wants.

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, reader: str
    ) -> None:
        path, sends = scope["path"].rstrip("/") or "/", scope["method"] == "POST"
        scope[CALLER] = Caller(reader)
        if path == "/":
            await self.app(scope, receive, _send_page(send, tells_calls=_is_logged_in(scope)))
        elif path == "/login" and sends:
            await self._log_in(scope, receive, send, headers, reader)
        elif path == f"{_API}/upload":
            await self._upload(scope, receive, send, headers, reader)
        elif sends and path != f"{_API}/cancel":
            await self._call(scope, receive, send, headers, reader)
        elif path == f"{_API}/cancel":
            await self._cancel(scope, receive, send, headers, reader)
        elif path.startswith(f"{_API}/heartbeat/"):
            await self._keep_page(scope, receive, send, path.rpartition("/")[2], reader)
        elif path.startswith(f"{_API}/file="):
            self._check_file(scope, scope["path"].partition("file=")[2], reader)
            await self.app(scope, receive, send)
        else:
            if path == f"{_API}/queue/data":
                self._check_page(QueryParams(scope["query_string"]).get("session_hash", ""), reader)
            await self.app(scope, receive, send)

    async def _keep_page(self, scope: Scope, receive: Receive, send: Send, page: str, reader: str) -> None:
        """The connection that a browser holds as long as it shows the page."""
        self._check_page(page, reader)
        self.sessions.page_opened(page, reader)
        try:
            await self.app(scope, receive, send)
        finally:
            self.sessions.page_closed(page, reader)

    def _check_file(self, scope: Scope, path: str, reader: str) -> None:
        page = scope["app"].get_blocks()
        public = {one["path"] for one in _files_in(page.config["components"])}
        if path not in public and not self.sessions.owned.may_read(path, reader):
            raise Refused(403, "the file: must be one that was made for you, got another or one that is gone")

    async def _upload(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, reader: str
    ) -> None:
        most = max(MOST_UPLOAD_BYTES, self.max_upload_bytes)
        if shutil.disk_usage(self.sessions.owned.web).free < 2 * self.max_upload_bytes:
            raise Refused(507, "the upload: must leave room on the server's disk, would not; try again later")
        answer = list[Message]()

        async def send_noted(message: Message) -> None:
            answer.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                if answer[0]["status"] == 200:  # noted before the names are told
                    body = b"".join(one.get("body", b"") for one in answer)
                    self.sessions.owned.add_uploads(json.loads(body), reader)
                for one in answer:
                    await send(one)

        with suppress(ClientDisconnect):  # cut off: nobody is left to be answered
            await self.app(scope, _receive_at_most(receive, headers, most, "the upload"), send_noted)

    async def _call(self, scope: Scope, receive: Receive, send: Send, headers: Headers, reader: str) -> None:
        body = await _read_body(receive, headers, MOST_CALL_BYTES)
        path = scope["path"].rstrip("/")
        name = path.rpartition("/")[2] if path.startswith(f"{_API}/call/") else None
        owned = self.sessions.owned
        try:
            call = read_call(body, scope["app"].get_blocks(), name, owned, reader)
        except InputError as error:
            raise Refused(400, str(error)) from None
        taken = False

        async def send_watched(message: Message) -> None:
            nonlocal taken
            taken = taken or message.get("status") == 200
            await send(message)

        try:
            if call.page:
                self._check_page(call.page, reader)
            raw = MutableHeaders(raw=list(scope["headers"]))
            raw["Content-Type"], raw["Content-Length"] = "application/json", str(len(call.body))
            passed = {**scope, "headers": raw.raw, CALLER: Caller(reader, call.refusal)}
            await self.app(passed, _receive_body(call.body, receive), send_watched)
        finally:
            if not taken:  # the queue was full: the caller may try again with the same file
                owned.add_uploads(call.files, reader)

    async def _cancel(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, reader: str
    ) -> None:
        body = await _read_body(receive, headers, _LOGIN_BYTES)
        try:
            page = json.loads(body)["session_hash"]
        except (ValueError, KeyError, TypeError, RecursionError):
            page = None
        if not isinstance(page, str):
            raise Refused(400, "session_hash: must be given, none was")
        self._check_page(page, reader)
        await self.app(scope, _receive_body(body, receive), send)

    async def _log_in(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, reader: str
    ) -> None:
        if scope["app"].auth is None:
            raise Refused(404, "the page: must be asked for what it has, got another address")
        body = await _read_body(receive, headers, _LOGIN_BYTES)
        status = 0

        async def send_watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async with self._logins.turn(reader) as line:
            await self.app(scope, _receive_body(body, receive), send_watched)
            line.right = status == 200


# Logging in. Of the wrong attempts in a row each makes the next one wait longer. Who has logged in before, by the
# cookie, waits in a line of its own: strangers who guess do not lock a reader out.
# Source: OWASP, "Slow Down Online Guessing Attacks with Device Cookies".

FREE_ATTEMPTS = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 4.0
MOST_IN_LINE = 8
_MOST_KNOWN = 1000


@dataclass
class LoginLine:
    """Those who wait to log in, one behind the other.

    Attributes:
        wrong: wrong attempts in a row.
        waiting: attempts that are in line or at work.
        right: whether the attempt at work was right; its caller says so.
    """

    wrong: int = 0
    waiting: int = 0
    right: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LoginTurns:
    """Attempts to log in, one at a time in each line."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, LoginLine] = OrderedDict({PROGRAM: LoginLine()})

    def line_of(self, reader: str) -> LoginLine:
        """A reader's own line, where it has logged in before; else that of everybody."""
        return self._lines.get(reader, self._lines[PROGRAM])

    @asynccontextmanager
    async def turn(self, reader: str) -> AsyncIterator[LoginLine]:
        """Waits in line; set `right` of what it gives before leaving.

        Raises:
            Refused: the line is full.
        """
        line = self.line_of(reader)
        if line.waiting > MOST_IN_LINE:
            raise Refused(429, "login: must wait, others try to log in; try again in a minute", wait_s=60)
        line.waiting += 1
        try:
            async with line.lock:
                await asyncio.sleep(_wait_after(line.wrong))
                line.right = False
                yield line
                line.wrong = 0 if line.right else line.wrong + 1
                if not line.right:
                    log(f"login: {line.wrong} wrong attempts in a row")
                elif reader != PROGRAM:
                    self._give_line(reader)
        finally:
            line.waiting -= 1

    def _give_line(self, reader: str) -> None:
        self._lines.setdefault(reader, LoginLine())
        while len(self._lines) > _MOST_KNOWN:
            del self._lines[next(name for name in self._lines if name != PROGRAM)]


def _wait_after(wrong: int) -> float:
    """Seconds that an attempt waits after so many wrong ones."""
    return 0.0 if wrong < FREE_ATTEMPTS else min(FIRST_WAIT_S * 2 ** (wrong - FREE_ATTEMPTS), LONGEST_WAIT_S)


def _is_logged_in(scope: Scope) -> bool:
    """As Gradio 6.31 decides it (`get_current_user` in its routes)."""
    app = scope["app"]
    if app.auth is None:
        return True
    cookies = dict(
        part.partition("=")[::2] for part in "; ".join(Headers(scope=scope).getlist("cookie")).split("; ")
    )
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(cookies.get(name) in app.tokens for name in names)


def _split_host(host: str) -> tuple[str, int | None]:
    """Name and port of "name", "name:port" or "[::1]:port"; ("", None) where it is none of these."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return "", None
    bare = f"[{name}]" if ":" in name else name
    is_plain = host.lower() in (bare, f"{bare}:{port}")  # no user, path, or spaces around
    return (name, port) if is_plain else ("", None)


def _files_in(value: Any) -> list[dict[str, Any]]:
    """Every file in the page's own description: what every reader may see."""
    found, rest = list[dict[str, Any]](), [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            rest += one.values()
            if isinstance(one.get("path"), str):
                found.append(one)
        elif isinstance(one, list | tuple):
            rest += one
    return found


# Bytes in and out.


def _receive_with_deadline(receive: Receive) -> Receive:
    """A sender that falls silent in the middle of a request is taken to have left."""
    whole = False

    async def receive_soon() -> Message:
        nonlocal whole
        if whole:  # waiting for the end of the connection, as an open page's own does
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), SILENCE_S)
        except TimeoutError:
            return {"type": "http.disconnect"}
        whole = message["type"] != "http.request" or not message.get("more_body")
        return message

    return receive_soon


def _receive_at_most(receive: Receive, headers: Headers, most: int, name: str) -> Receive:
    if _announced_bytes(headers) > most:
        raise Refused(413, f"{name}: must be at most {most} bytes, got more")
    got = 0

    async def receive_counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        return {"type": "http.disconnect"} if got > most else message

    return receive_counted


def _announced_bytes(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isdecimal() and len(text) < 20 else 0


async def _read_body(receive: Receive, headers: Headers, most: int) -> bytes:
    if _announced_bytes(headers) > most:
        raise Refused(413, f"the call: must be at most {most} bytes, got more")
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the call: must be sent whole, was not")
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, f"the call: must be at most {most} bytes, got more")
        if not message.get("more_body"):
            return body


def _receive_body(body: bytes, receive: Receive) -> Receive:
    """A body that was read, and then what comes after it."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _send_with_headers(send: Send, path: str, cookie: str | None) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            for name, value in _HEADERS.items():
                headers[name] = value
            if not path.startswith(_ASSETS):
                headers["Cache-Control"] = "no-store"  # no picture stays in the browser
            if path == "/" and cookie is not None:
                headers.append("Set-Cookie", cookie)
            if "content-security-policy" not in headers:
                headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_more


def _send_page(send: Send, *, tells_calls: bool) -> Send:
    """The page itself, with a policy that names its own scripts by their hash and allows no other.

    Gradio 6.31 writes what programs can call into its login page, too; `tells_calls` False takes that out.
    """
    answer = list[Message]()

    async def send_whole(message: Message) -> None:
        answer.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            body = b"".join(one.get("body", b"") for one in answer)
            headers = MutableHeaders(raw=list(answer[0]["headers"]))
            if not tells_calls:
                body = _CALLS.sub(rb'\1{"named_endpoints":{},"unnamed_endpoints":{}}\2', body)
                headers["Content-Length"] = str(len(body))
            headers["Content-Security-Policy"] = page_policy(body)
            await send({**answer[0], "headers": headers.raw})
            await send({"type": "http.response.body", "body": body})

    return send_whole


def page_policy(page: bytes) -> str:
    """The Content-Security-Policy of the page's HTML.

    Gradio 6.31 writes its settings as scripts in the page, which are allowed by their hash. It makes functions of
    text (`gr.HTML`'s template and script, ours) and styles elements in place: so 'unsafe-eval' and inline styles stay.
    """
    hashes = [b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page)]
    scripts = " ".join(f"'sha256-{one}'" for one in dict.fromkeys(hashes))
    return (
        f"default-src 'none'; script-src 'self' 'unsafe-eval' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
        "manifest-src 'self'; base-uri 'self'; form-action 'self'; object-src 'none'; frame-ancestors 'none'"
    )
