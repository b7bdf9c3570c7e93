"""Real requests to a real server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Thread

import pytest

import vlds.evaluation.serve
from tests.toys.http_requests import FORM, ask, form_of
from tests.toys.processes import until
from tests.toys.world import picture, world_recipe
from vlds.artifact import load_run
from vlds.cli.main import main, run_command
from vlds.evaluation.evaluator import check_number, predict
from vlds.evaluation.serve import MAX_BODY, Server, bound, open_run
from vlds.runtime.rank_environment import free_port
from vlds.tasks import NLVR2

RED = picture("red", 1)
ASKED = (("image", RED), ("question", b"what colour is it?"), ("task", b"vqa"))


def test_it_answers_as_predict_does(server: Server, talkative: Path) -> None:
    told = ask(server, form_of(*ASKED)).json
    expected = predict(load_run(talkative), "vqa", [RED], "what colour is it?")
    assert expected.text
    assert told["text"] == expected.text
    assert told["confidence"] == pytest.approx(expected.confidence)
    assert told["task"] == "vqa"
    assert told["prompt_cut"]
    assert 0 < told["seconds"] < 60
    caption = ask(server, form_of(("image", RED), ("task", b"caption"))).json
    assert caption["task"] == "caption"
    assert not caption["prompt_cut"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
def test_many_ask_at_once(server: Server) -> None:
    bodies = [form_of(("image", picture(c, 1)), *ASKED[1:]) for c in ("red", "green", "blue")] * 4
    with ThreadPoolExecutor(12) as pool:
        told = [reply.json["text"] for reply in pool.map(lambda body: ask(server, body), bodies)]
    assert told == [ask(server, body).json["text"] for body in bodies]


@pytest.mark.slow
def test_none_of_many_connections_is_reset(talkative: Path) -> None:
    """While the server is busy, as many wait as it takes."""
    with bound(0) as server, ExitStack() as opened:
        server.opened, server.name = open_run(talkative, []), talkative.name
        address = ("127.0.0.1", server.server_port)
        waiting = [
            opened.enter_context(socket.create_connection(address, timeout=5)) for _ in range(200)
        ]
        thread = Thread(target=server.serve_forever)
        thread.start()
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for connection in waiting:
            connection.sendall(request)
        told = [connection.recv(12) for connection in waiting]
        with ThreadPoolExecutor(200) as pool:
            replies = list(pool.map(lambda _: ask(server, form_of(*ASKED)), range(200)))
        server.shutdown()
        thread.join()
    assert told == [b"HTTP/1.1 200"] * 200
    assert [reply.status for reply in replies] == [200] * 200


def test_an_artifact_is_a_run_too(talkative: Path) -> None:
    opened = open_run(talkative / "artifact", [])
    assert opened.answer([RED], "what colour is it?", "vqa").text
    with pytest.raises(ValueError, match="task: the run has several tasks"):
        opened.answer([RED], "what colour is it?")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (ASKED[:2], "task: the run has several tasks, say which: vqa, caption"),
        (
            (*ASKED[:2], ("task", b"vqaa")),
            "task: the run has no task vqaa; did you mean 'vqa'? its tasks: vqa, caption",
        ),
        ((*ASKED[:2], ("task", b"x")), "task: the run has no task x; its tasks: vqa, caption"),
        ((ASKED[0], ASKED[2]), "question: the task vqa needs one"),
        ((ASKED[0], ("question", b"  \r\n"), ASKED[2]), "question: the task vqa needs one"),
        ((ASKED[0], ("question", b"\xc2\xa0"), ASKED[2]), "question: the task vqa needs one"),
        ((ASKED[0], ("question", b"\0"), ASKED[2]), "question: the task vqa needs one"),
        (ASKED[1:], "image: is missing"),
        ((("image", b"GIF89a"), *ASKED[1:]), "image: picture number 1: truncated or damaged"),
        ((*ASKED, ASKED[0], ASKED[0]), "image: got 3, and the task vqa takes 1 to 2"),
    ],
)
def test_mistakes_are_said(
    server: Server, fields: tuple[tuple[str, bytes], ...], said: str
) -> None:
    reply = ask(server, form_of(*fields))
    assert reply.status == 400
    assert set(reply.json) == {"error"}
    assert reply.json["error"].startswith(said)
    assert "object at" not in reply.text


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (403, {"Host": "evil.example"}),
        (403, {"Host": "127.0.0.1.evil.example"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": "http://127.0.0.1:1"}),
        (403, {"Origin": "https://127.0.0.1:PORT"}),
        (403, {"Sec_Fetch_Site": "cross-site"}),
        (400, {"Host": "[::1"}),
        (200, {"Origin": "http://127.0.0.1:PORT", "Sec_Fetch_Site": "same-origin"}),
        (200, {"Host": "localhost:9", "Origin": "http://localhost:9"}),  # through a tunnel
    ],
)
def test_pages_of_others_cannot_ask(server: Server, status: int, headers: dict[str, str]) -> None:
    port = str(server.server_port)
    headers = {name: value.replace("PORT", port) for name, value in headers.items()}
    reply = ask(server, form_of(*ASKED), **headers)
    assert reply.status == status
    assert ("error" in reply.json) == (status != 200)


def test_the_page_is_refused_under_another_name_too(server: Server) -> None:
    assert ask(server, method="GET", path="/", Host="evil.example").status == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/answer", 405), ("GET", "/etc/passwd", 404), ("POST", "/", 404), ("PUT", "/", 501)],
)
def test_there_is_nothing_else(server: Server, method: str, path: str, status: int) -> None:
    reply = ask(server, form_of(*ASKED) if method == "POST" else None, method, path)
    assert reply.status == status
    assert reply.json["error"]


def test_bodies_are_bounded_and_whole(server: Server) -> None:
    large = ask(server, b"x" * (MAX_BODY + 1))
    assert large.status == 413
    assert "at most 33,554,432" in large.json["error"]
    assert ask(server, Transfer_Encoding="chunked").status == 411
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as plain:
        plain.sendall(b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx")
        plain.shutdown(socket.SHUT_WR)
        assert b"the request is cut" in plain.makefile("rb").read()
    assert ask(server, form_of(*ASKED)).status == 200


def test_bodies_wait_for_their_place(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty senders of large pictures must not take the machine's memory."""
    body = form_of(*ASKED)
    monkeypatch.setattr(vlds.evaluation.serve, "MAX_BODIES", len(body) + 9)
    monkeypatch.setattr(vlds.evaluation.serve, "PATIENCE", 0.5)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as plain:
        plain.sendall(b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
        until(lambda: server._bodies == 10, 20)
        refused = ask(server, body)
        assert refused.status == 503
        assert "too many requests wait" in refused.json["error"]
    until(lambda: server._bodies == 0, 20)
    assert ask(server, body).status == 200


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (413, {"Content_Length": "9" * 5_000}),
        (413, {"Content_Length": "0" * 5_000 + "9" * 10}),
        (415, {"Content_Type": "multipart/form-data; boundary=" + "(" * 5_000}),
        (415, {"Content_Type": "multipart/form-data" + ";" * 50_000}),
    ],
)
def test_hostile_headers_are_refused_at_once(
    server: Server, status: int, headers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.perf_counter()
    reply = ask(server, form_of(*ASKED), **headers)
    assert reply.status == status
    assert reply.json["error"]
    assert time.perf_counter() - begin < 5
    assert capsys.readouterr().err == ""


def test_a_hostile_name_of_a_field_is_refused(server: Server) -> None:
    for length, status in ((1_000, 400), (5_000, 415)):
        body = form_of(*ASKED).replace(b'name="image"', b"name=a" + b"(" * length)
        assert ask(server, body).status == status


def test_a_hostile_request_line_is_answered_at_once(server: Server) -> None:
    """Errors mask URLs' credentials; the library quotes the line in its own."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as plain:
        plain.sendall(b"http://x" + b"?" * 60_000 + b"\r\n\r\n")
        assert b'{"error": "Bad request syntax' in plain.makefile("rb").read()


def test_the_page(server: Server) -> None:
    reply = ask(server, method="GET", path="/?x")
    assert reply.status == 200
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "<h1>a &lt;b&gt;run</h1>" in reply.text
    options = re.findall(r'value="(\w+)" data-question="(\d)"', reply.text)
    assert options == [("vqa", "1"), ("caption", "0")]
    assert reply.text.count("<script>") == 1
    assert "script-src &#39;sha256-" in reply.text


def test_a_port_that_is_taken(
    server: Server, talkative: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--run", str(talkative), "--serve", "--port"]
    assert run_command([*words, str(server.server_port)]) == 2
    assert capsys.readouterr().err == (
        f"vlds predict: --port: {server.server_port} is taken by another program; give another, "
        "or --port 0 for any that is free\n"
    )
    assert run_command([*words, "99999"]) == 2
    assert "got 99999; give a number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--serve", "--image", "x"], "--image: not allowed with --serve"),
        (["--serve", "--task", "vqa"], "--task: goes with --image"),
        (["--image", "x", "--port", "1"], "--port: goes with --serve"),
        (["--serve", "--optimizer.eps", "1"], "--optimizer.eps: not an option of this command"),
    ],
)
def test_options_that_do_not_go_together(
    talkative: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["predict", "--run", str(talkative), *words]) == 2
    assert capsys.readouterr().err.startswith(f"vlds predict: {said}")


def test_ctrl_c_ends_it_with_a_line(talkative: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, as `vlds` runs it: no ranks are started."""
    port = free_port()

    def interrupt_once_it_answers() -> None:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60):
                    break
            except OSError:
                time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell's background job, as the tests may be, ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = Thread(target=interrupt_once_it_answers)
    thread.start()
    try:
        code = main(["predict", "--run", str(talkative), "--serve", "--port", str(port)])
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    told = capsys.readouterr()
    assert code == 128 + signal.SIGINT
    assert told.out == f"http://127.0.0.1:{port}/ answers questions; Ctrl-C ends it\n"
    assert told.err == "vlds: ended by Ctrl-C\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_answers_ends_it_cleanly(number: int, talkative: Path) -> None:
    """Python aborts if threads compute while it shuts down."""
    port = free_port()
    words = ["predict", "--run", str(talkative), "--serve", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlds", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as the tests may be, ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert "answers questions" in process.stdout.readline()
    body = form_of(*ASKED)

    def ask_on() -> None:
        with suppress(OSError, HTTPException):  # until the server has gone
            while True:
                connection = HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("POST", "/answer", body, FORM)
                connection.getresponse().read()
                connection.close()

    threads = [Thread(target=ask_on) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    for thread in threads:
        thread.join()
    assert (process.returncode, said.count("\n")) == (128 + number, 1), said


def test_pairs_need_two_pictures(world: Path, tmp_path: Path) -> None:
    recipe = replace(world_recipe(world, tmp_path), tasks={"nlvr": NLVR2()})
    check_number(recipe, "nlvr", 2)
    with pytest.raises(ValueError, match=r"^image: got 1, and the task nlvr takes 2"):
        check_number(recipe, "nlvr", 1)
