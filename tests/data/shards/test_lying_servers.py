"""Servers that send more than they should, or next to nothing, or lead elsewhere: an error that
names the address, and soon."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

import vlds.data.shards.download
from tests.toys.web import Handler, Web
from vlds.data.errors import ShardError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.shard_stream import read_shard
from vlds.data.shards.store import open_dataset
from vlds.runtime.terminal import Away

SHARD = "small-train-00000.tar"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries; patience with each ends after a fifth of a second."""
    monkeypatch.setattr(vlds.data.shards.download, "PAUSE_S", 0.01)
    monkeypatch.setattr(vlds.data.shards.download, "AWAY_S", 0.1)
    monkeypatch.setattr(vlds.data.shards.download, "PATIENCE_S", 0.2)


def head(handler: Handler, **headers: str) -> None:
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def drip(handler: Handler, text: bytes) -> None:
    """A byte now and then, until the other end has had enough."""
    for _ in range(200):
        handler.wfile.write(text)
        handler.wfile.flush()
        time.sleep(0.02)


def longer(handler: Handler) -> None:
    head(handler, Content_Length="100000000000")
    endless(handler, started=True)


def endless(handler: Handler, started: bool = False) -> None:
    if not started:
        head(handler)
    for _ in range(1 << 12):
        handler.wfile.write(bytes(1 << 16))


def slow_body(handler: Handler) -> None:
    head(handler, Content_Length="20480")
    drip(handler, b"x")


def slow_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    drip(handler, b"x")


def quiet(lie: Callable[[Handler], None]) -> Callable[[Handler], None]:
    """The client hangs up, which is what we want."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        with suppress(OSError):
            lie(handler)

    return answer


def redirect(place: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.mark.parametrize("lie", [longer, endless])
@pytest.mark.parametrize("name", [SHARD, f"{SHARD}.idx"])
def test_a_download_ends_at_the_size_of_the_file(
    web: Web, cache: ShardCache, lie: Callable[[Handler], None], name: str
) -> None:
    size = (web.root / "small" / name).stat().st_size
    web.lies[name] = quiet(lie)
    with pytest.raises(ShardError, match=rf"/small/{name}: the server sends .* {size:,}; it is"):
        open_dataset(web.url("small"), cache).read(0)
    assert web.requests[name] == 1
    assert not [path for path in cache.folder.iterdir() if path.suffix == ".partial"]


def test_a_description_ends_too(
    web: Web, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlds.data.shards.download, "LARGEST_FILE", 1 << 20)
    web.lies["dataset.json"] = quiet(endless)
    with pytest.raises(ValueError, match=r"dataset\.json: the server sends .* 1,048,576"):
        open_dataset(web.url("small"), cache)


@pytest.mark.parametrize(
    ("lie", "words"),
    [(slow_body, "fewer than 1,000 a second"), (slow_head, "no answer came in 0.2")],
)
def test_a_server_that_drips_is_left(
    web: Web, cache: ShardCache, lie: Callable[[Handler], None], words: str
) -> None:
    web.lies[SHARD] = quiet(lie)
    dataset = open_dataset(web.url("small"), cache)
    start = time.monotonic()
    with pytest.raises(Away, match=r"request 2 broke with TooSlow.* fewer than 1,000 a sec"):
        dataset.read(0)
    assert time.monotonic() - start < 3
    assert web.requests[SHARD] == 2
    with pytest.raises(Away, match=words):
        list(read_shard(f"{web.url('small')}/{SHARD}"))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (SHARD, "more than 5 times"),
        ("file:///etc/passwd", "to an address that is not of the web"),
        ("ftp://127.0.0.1/x", "to an address that is not of the web"),
    ],
)
def test_redirects_end_and_stay_in_the_web(
    web: Web, cache: ShardCache, place: str, words: str
) -> None:
    web.lies[SHARD] = redirect(place)
    with pytest.raises(ShardError, match=f"{SHARD}: the server redirects it {words}; check the"):
        open_dataset(web.url("small"), cache).read(0)
    with pytest.raises(ShardError, match=f"0 samples: the server redirects it {words}; check the"):
        list(read_shard(f"{web.url('small')}/{SHARD}"))


def test_compressed_bodies_are_not_unpacked(web: Web, cache: ShardCache) -> None:
    """A megabyte could become a gigabyte. Nobody has asked for it."""
    data = gzip.compress((web.root / "small" / "dataset.json").read_bytes())

    def bomb(handler: Handler) -> None:
        assert handler.headers["Accept-Encoding"] == "identity"
        head(handler, Content_Encoding="gzip", Content_Length=str(len(data)))
        handler.wfile.write(data)

    web.lies["dataset.json"] = quiet(bomb)
    with pytest.raises(ValueError, match=r"dataset\.json is not JSON"):
        open_dataset(web.url("small"), cache)
