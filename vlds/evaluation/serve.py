"""The server: a page to ask on, and POST /answer for programs. It listens to this machine alone.

Top-down below the limits: `serve`, `Handler` (one request), `OpenRun` (a run that answers), and
`parse_form` (multipart/form-data, which a browser's form and `curl -F` send).
"""

from __future__ import annotations

import errno
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Lock
from typing import Any
from urllib.parse import urlsplit

from vlds.artifact import LoadedRun, load_run, read_recipe
from vlds.evaluation.evaluator import (
    Question,
    answer_questions,
    choose_task,
    predict,
    read_question,
)
from vlds.runtime.artifact_files import artifact_folder, check_changes
from vlds.runtime.devices import device_of
from vlds.runtime.limited import page
from vlds.runtime.terminal import tell, tell_exception, visible
from vlds.schema import LONGEST_TEXT
from vlds.tasks.base import Task

TEMPLATE = Path(__file__).with_name("serve.html")
HOST = "127.0.0.1"
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
ANSWER = "/answer"
USAGE = "send a form to /answer: curl -F image=@FILE -F question=... -F task=..."
MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request: pictures and texts together."""
MAX_BODIES = 4 * MAX_BODY
"""Bytes of all requests that are read or answered at a time; others wait for their turn."""
MAX_DRAINED = 4 * MAX_BODY
"""Bytes read of a refused request, so that its sender gets to read why."""
DIGITS = len(str(MAX_DRAINED)) + 1
"""Digits of a Content-Length that are read: enough to see that it is above every limit."""
LONGEST_REASON = 200
"""Characters of the library's reasons, which quote the request."""
PATIENCE = 30.0
"""Seconds without a byte until a connection is closed, and that a request waits for its turn."""
BODY_S = 4 * PATIENCE
"""Seconds that a request's body may take: others wait for its place."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'"
)
SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
MOST_PARTS = 32
LONGEST_HEAD = 4096
"""Bytes of a part's headers, of which browsers and curl send about 200; characters that are read of
the Content-Type, which may hold megabytes."""
LONGEST_BOUNDARY = 70
"""Characters, as RFC 2046 has it."""
# The email package is not safe here: its time grows with the square of a header's length, and many
# open brackets exceed Python's recursion limit.
PARAMETER = re.compile(r';\s*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]+))', re.ASCII)
DISPOSITION = re.compile(r"^Content-Disposition:(.*)$", re.ASCII | re.IGNORECASE | re.MULTILINE)


class Refused(ValueError):
    """A request that is not answered."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class NotAForm(ValueError):
    """A body that is not multipart/form-data."""


class Server(ThreadingHTTPServer):
    """Holds its port from the start, and serves once a run is open."""

    request_queue_size = 1024
    """Connections that may wait while others are taken in; the default, 5, resets the rest."""
    opened: OpenRun
    name: str
    """The run's name."""

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self._bodies, self._changed = 0, Condition()

    @contextmanager
    def room_for(self, size: int) -> Iterator[None]:
        """Inside, a request's body of `size` bytes has its place.

        Errors: Refused if there is none in PATIENCE.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._bodies + size <= MAX_BODIES, PATIENCE):
                raise Refused(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "too many requests wait; send it again later",
                )
            self._bodies += size
        try:
            yield
        finally:
            with self._changed:
                self._bodies -= size
                self._changed.notify_all()

    def handle_error(self, request: object, client_address: object) -> None:
        """Report the server's own faults, but not a sender that has gone."""
        kind, error, trace = sys.exc_info()
        if kind is not None and error is not None and not isinstance(error, ConnectionError):
            tell_exception(kind, error, trace)


def serve(run: Path, port: int, changes: Sequence[str] = ()) -> int:
    """Open a run and answer until a signal asks for an end. Exit code.

    Errors: ValueError for what is wrong with the run or the port, before the model is loaded.
    """
    # Before the model, which takes long to load: mistakes, and a port that is taken.
    check_changes(changes)
    if read_recipe(artifact_folder(run), changes).image is None:
        raise ValueError(
            "--serve: the run's vision encoder reads stored features, not pictures; answer data "
            "sets with --data"
        )
    with bound(port) as server:
        server.opened, server.name = open_run(run, changes), run.resolve().name
        tell(f"http://{HOST}:{server.server_port}/ answers questions; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        finally:
            # A thread that computes while Python shuts down aborts the process.
            server.opened.close()
    return 0


def bound(port: int) -> Server:
    """A server that has its port.

    Errors: ValueError if it cannot have it.
    """
    try:
        return Server((HOST, port), Handler)
    except OverflowError:
        raise ValueError(f"--port: got {port}; give a number from 0 to 65535") from None
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "is taken by another program" if in_use else f"is not free ({error.strerror})"
        raise ValueError(
            f"--port: {port} {reason}; give another, or --port 0 for any that is free"
        ) from None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vlds", ""
    timeout = PATIENCE
    num_unread = 0
    """Bytes of the request's body that are still to be read."""

    def do_GET(self) -> None:
        """Send the page."""
        self._respond()

    def do_POST(self) -> None:
        """Send an answer."""
        self._respond()

    def _content(self) -> tuple[str, str]:
        """Type and text of what is asked for: the page (GET), or an answer (POST).

        Errors: Refused, NotAForm, ValueError.
        """
        # A web site may point its own host name at this machine, and would then pass as this
        # server's origin.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in LOCAL_NAMES:
            raise Refused(HTTPStatus.FORBIDDEN, f"Host: name {' or '.join(LOCAL_NAMES[:2])}")
        path = self.path.partition("?")[0]
        if self.command == "GET":
            if path == ANSWER:
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{ANSWER}: send a POST; {USAGE}")
            if path != "/":
                raise Refused(HTTPStatus.NOT_FOUND, USAGE)
            return "text/html", page(
                TEMPLATE,
                TEMPLATE.with_name("serve.js"),
                POLICY,
                title=self.server.name,
                tasks=self.server.opened.tasks,
                max_body=MAX_BODY,
            )
        # Pages of other sites may not ask; programs name no origin.
        origin = self.headers.get("Origin")
        foreign = origin not in (None, f"http://{self.headers['Host']}")
        if foreign or self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            raise Refused(HTTPStatus.FORBIDDEN, "Origin: only this server's own page may ask")
        if path != ANSWER:
            raise Refused(HTTPStatus.NOT_FOUND, USAGE)
        length = self._checked_length()
        with self.server.room_for(length):
            body = self._body(length)
            form = parse_form(self.headers.get("Content-Type", ""), body, ("image",))
            pictures = form.files.get("image", [])
            if not pictures:
                raise ValueError(f"image: is missing; {USAGE}")
            texts = form.texts
            answer = self.server.opened.answer(
                pictures, texts.get("question", ""), texts.get("task") or None
            )
            return "application/json", json.dumps(vars(answer)) + "\n"

    def _length(self) -> int | None:
        """Bytes of the request's body, as its head says; None if it does not say."""
        digits = self.headers.get("Content-Length", "")
        if not (digits.isascii() and digits.isdecimal()):
            return None
        # Python refuses to convert thousands of digits.
        return int(digits.lstrip("0")[:DIGITS] or "0")

    def _checked_length(self) -> int:
        """Bytes of the request's body. Errors: Refused if it says none, or is too large."""
        # With both headers, this server and a proxy could see different ends of the request.
        length = self._length()
        if length is None or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length: is missing; send it")
        if length > MAX_BODY:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request is too large: at most {MAX_BODY:,} bytes are taken; send a smaller "
                "picture",
            )
        return length

    def _body(self, length: int) -> bytes:
        """The request's body. Errors: Refused if it is cut."""
        body, end = bytearray(), time.monotonic() + BODY_S
        while len(body) < length and (data := self.rfile.read1(length - len(body))):
            body += data
            if time.monotonic() > end:
                self.close_connection = True
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"its body took over {BODY_S:.0f} s")
        self.num_unread = 0
        if len(body) < length:
            raise Refused(HTTPStatus.BAD_REQUEST, "the request is cut; send it again")
        return bytes(body)

    def _respond(self) -> None:
        """Send what is asked for, or why nothing is given."""
        self.num_unread = min(self._length() or 0, MAX_DRAINED)
        try:
            status, (kind, text) = HTTPStatus.OK, self._content()
        except ConnectionError:  # its sender has gone: there is nobody to answer
            raise
        except Refused as refusal:
            status, (kind, text) = refusal.status, complaint(refusal)
        except NotAForm as error:
            status, (kind, text) = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, complaint(error)
        except ValueError as error:
            status, (kind, text) = HTTPStatus.BAD_REQUEST, complaint(error)
        except TimeoutError:
            self.close_connection = True
            return
        except Exception as error:  # one question's fault must not end the server
            tell_exception(type(error), error, error.__traceback__)
            fault = Exception("the model could not answer; the server's terminal says why")
            status, (kind, text) = HTTPStatus.INTERNAL_SERVER_ERROR, complaint(fault)
        self._send(status, kind, text.encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        # Closed after each answer: nothing of a refused request can be taken for the next one.
        for name, value in (headers | SAFE_HEADERS | {"Connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        # To close a socket with unread bytes resets it, and the sender never reads the reason.
        while self.num_unread > 0 and (piece := self.rfile.read(min(self.num_unread, 1 << 16))):
            self.num_unread -= len(piece)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses, such as other methods: as JSON too."""
        reason = (message or HTTPStatus(code).phrase)[:LONGEST_REASON]
        kind, text = complaint(ValueError(reason))
        self._send(HTTPStatus(code), kind, text.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing: questions are private."""


def complaint(error: Exception) -> tuple[str, str]:
    """An error as JSON. Options of the command line have the names of the form's fields."""
    return "application/json", json.dumps({"error": visible(error).removeprefix("--")}) + "\n"


@dataclass(frozen=True)
class RunAnswer:
    """What a run says: `vlds.models.model.Answer`, its task and the time."""

    text: str
    confidence: float
    """Probability that the model gives to the whole answer."""
    token_confidence: float | None
    """The geometric mean over the tokens of a text, which tells more of a long one. None for one
    token, and where answers are restricted."""
    prompt_cut: bool
    """True if the question was longer than the task reads."""
    task: str
    seconds: float
    """From the pictures' bytes to the answer, without waiting for other questions; of answers that
    are computed together, an equal share of the computing."""


class OpenRun:
    """A loaded run; any number of threads may ask."""

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        self._lock = Lock()  # a model answers one question at a time

    def close(self) -> None:
        """Wait until no thread computes, and let none begin."""
        self._lock.acquire()

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The run's tasks by name."""
        return self._loaded.recipe.tasks

    def answer(
        self, pictures: Sequence[bytes], question: str = "", task: str | None = None
    ) -> RunAnswer:
        """Answer a question about encoded pictures; `task` is required if the run has several.

        Errors: ValueError for what is not a picture, an unknown task, or a missing question.
        """
        # Mistakes are answered at once, without waiting for the questions before.
        name = choose_task(self._loaded.recipe, task, question)
        with self._lock:
            begin = time.perf_counter()
            answer = predict(self._loaded, name, pictures, question)
            return RunAnswer(*answer, name, time.perf_counter() - begin)

    @property
    def batch_size(self) -> int:
        """Questions that the run's recipe answers together."""
        return self._loaded.recipe.data.eval_batch_size

    def read(self, pictures: Sequence[bytes], question: str, task: str) -> Question:
        """A question for `answer_all`, with the name of its task.

        Errors: as `answer`.
        """
        return read_question(
            self._loaded, choose_task(self._loaded.recipe, task, question), pictures, question
        )

    def answer_all(self, questions: Sequence[Question], task: str) -> list[RunAnswer]:
        """Answer questions of a task as one batch; each gets an equal share of its time.

        Errors: RefusedRows for pictures that the model's processor refuses.
        """
        with self._lock:
            begin = time.perf_counter()
            answers = answer_questions(self._loaded, task, questions)
            seconds = (time.perf_counter() - begin) / max(1, len(questions))
            return [RunAnswer(*answer, task, seconds) for answer in answers]


def open_run(run: Path, changes: Sequence[str] = ()) -> OpenRun:
    """Load a run or an artifact, onto a GPU if there is one.

    Errors: ValueError as `load_run` has them.
    """
    loaded = load_run(run, changes=changes)
    loaded.model.to(device_of())
    return OpenRun(loaded)


@dataclass(frozen=True)
class Form:
    """What was filled in."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


def parse_form(content_type: str, body: bytes, file_fields: tuple[str, ...]) -> Form:
    """The fields of a form; those of `file_fields` are bytes, and are left out if empty.

    Errors: NotAForm; ValueError for a text that is too long or is not UTF-8.
    """
    form = Form()
    for name, content in parts(content_type, body):
        if name in file_fields:
            if content:
                form.files.setdefault(name, []).append(content)
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{name[:80]}: is not UTF-8; send it as UTF-8") from None
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{name[:80]}: has {len(text):,} characters, at most {LONGEST_TEXT:,}")
        form.texts[name] = text
    return form


def parts(content_type: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each part.

    Errors: NotAForm.
    """
    boundary = parameters(content_type[:LONGEST_HEAD]).get("boundary", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data" or not boundary:
        raise NotAForm("send multipart/form-data, as `curl -F` does")
    if len(boundary) > LONGEST_BOUNDARY:
        raise NotAForm(
            f"the form's boundary has {len(boundary):,} characters, at most {LONGEST_BOUNDARY}"
        )
    separator = b"\r\n--" + boundary.encode("latin-1", "replace")
    # The body begins with a separator without its line break; a good form ends with SEPARATOR--.
    first, *pieces = (b"\r\n" + body).split(separator, MOST_PARTS + 1)
    if first or not pieces or not pieces[-1].startswith(b"--") or len(pieces) > MOST_PARTS:
        raise NotAForm(f"the form is cut, or has more than {MOST_PARTS} parts; send it again")
    for piece in pieces[:-1]:
        head, blank, content = piece.lstrip(b" \t").partition(b"\r\n\r\n")
        if len(head) > LONGEST_HEAD:
            raise NotAForm(
                f"a part of the form has {len(head):,} bytes of headers, at most {LONGEST_HEAD:,}"
            )
        # A header may continue on lines that begin with a blank.
        unfolded = re.sub(r"\r\n[ \t]+", " ", head.decode("utf-8", "replace"))
        disposition = DISPOSITION.search(unfolded.replace("\r\n", "\n"))
        name = parameters(disposition[1]).get("name", "") if disposition else ""
        if not blank or not name:
            raise NotAForm("a part of the form has no name; send it as `curl -F` does")
        yield name, content


def parameters(header: str) -> dict[str, str]:
    """The `; name=value` pairs of a header's value by lower-case name; the first of a name counts.

    The time is linear in the header's length.
    """
    pairs: dict[str, str] = {}
    for name, quoted, token in PARAMETER.findall(header):
        pairs.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or token)
    return pairs
