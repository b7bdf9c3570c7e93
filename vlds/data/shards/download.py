"""Downloads that end, whatever the server does: at the size that the file has, and where next to
nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.asyn import sync
from fsspec.callbacks import Callback

from vlds.data.shards.address import Login

SLOWEST = 1000
"""Bytes a second. A server that sends fewer for PATIENCE_S seconds counts as broken."""
PATIENCE_S = 60.0
CONNECT_S, SILENCE_S = 30.0, 60.0
"""Seconds after which a server that does not answer, or sends nothing more, counts as broken."""
MOST_REDIRECTS = 5


class TooMuch(ValueError):
    """More bytes than the file has."""

    def __init__(self, num_bytes: int, limit: int) -> None:
        super().__init__(f"the server sends {num_bytes:,} bytes or more, expected are {limit:,}")


class TooSlow(OSError):
    """A server that would hold the run for ever."""


def web_options(login: Login | None) -> dict[str, Any]:
    """fsspec's options for a web server."""
    from aiohttp import ClientTimeout

    # Unasked, compressed bytes would grow without bound as they are unpacked.
    headers = {"Accept-Encoding": "identity"}
    if login is not None:
        headers["Authorization"] = login.header()  # aiohttp leaves it out where it is redirected
    return {
        # Without this, aiohttp breaks off whatever takes longer than five minutes.
        "timeout": ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        "max_redirects": MOST_REDIRECTS,
        "headers": headers,
        "client_kwargs": {"auto_decompress": False},
    }


def download(files: Any, source: str, target: Path, limit: int) -> None:
    """Write a file of an fsspec file system to `target`.

    Errors: TooMuch where more than `limit` bytes come, TooSlow; whatever the storage raises.
    """
    counter = _Counter(limit)
    if not files.async_impl:
        files.get_file(source, str(target), callback=counter)
        return
    work = files._get_file(source, str(target), callback=counter)
    sync(files.loop, _watched, work, counter, target)


class _Counter(Callback):
    """Told by fsspec how many bytes have come."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        # The size that the server announces is not looked at before: a 404 has one as well.
        if (largest := max(self.value, self.size or 0)) > self.limit:
            raise TooMuch(largest, self.limit)


async def _watched(work: Coroutine[Any, Any, None], counter: _Counter, target: Path) -> None:
    """Cancel a download of which next to nothing comes, be it head or body."""
    task = asyncio.ensure_future(work)
    before = 0
    while not (await asyncio.wait({task}, timeout=PATIENCE_S))[0]:
        now = max(counter.value, _size(target))  # some storages do not tell the counter
        if now - before < SLOWEST * PATIENCE_S:
            task.cancel()
            await asyncio.wait({task})
            raise TooSlow(
                f"{now - before:,} bytes came in {PATIENCE_S:g} s, fewer than {SLOWEST:,} a second"
            )
        before = now
    task.result()


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
