"""Files from a server, by fsspec, and their copies in a cache.

A download ends whatever the server does: at the expected size, or when it almost stops. A login in
a web address goes into the header of the request, so that no library's error can show it. An
address without login may have one in ~/.netrc.
"""

from __future__ import annotations

import asyncio
import errno
import netrc
import os
import time
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from filelock import FileLock
from fsspec.asyn import sync
from fsspec.callbacks import Callback
from fsspec.core import url_to_fs

from vlds.data.errors import FetchError
from vlds.data.shards.info import DATASET_FILE
from vlds.runtime.files import LARGEST_FILE, whole_file
from vlds.runtime.json_files import sha256 as file_sha256
from vlds.runtime.terminal import lost_credentials, without_credentials

Value = TypeVar("Value")


def is_web(url: str) -> bool:
    """True for a URL of a web server."""
    return url.startswith(("http://", "https://"))


def below(url: str, name: str) -> str:
    """The URL of a file in a folder. The query of a web address stays at the end: it may hold a
    signature for the whole folder."""
    if not is_web(url):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def split_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """A web address without its login, and user and password: from it, or else from ~/.netrc.

    Errors: FetchError if ~/.netrc cannot be read, or the address was stored without its secrets.
    """
    check_whole(url)
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if at:
        user, _, password = login.partition(":")
        return urlunsplit(parts._replace(netloc=host)), (unquote(user), unquote(password))
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        entry = netrc.netrc(file).authenticators(parts.hostname or "")
    except FileNotFoundError:
        return url, None
    except netrc.NetrcParseError as error:  # its message may hold the password
        raise FetchError(f"{file}, line {error.lineno}: not a line of netrc; correct it") from None
    except (OSError, UnicodeDecodeError):
        raise FetchError(f"{file}: cannot be read; make it a readable file") from None
    return url, (entry[0], entry[2]) if entry and entry[2] is not None else None


def check_whole(url: str) -> None:
    """Errors: FetchError for a URL from a run, which was stored without its secrets."""
    if lost_credentials(url):
        raise FetchError(
            f"{without_credentials(url)}: the secrets of this URL are not stored with a run; give "
            "the whole URL again, such as --tasks.TASK.train '[URL]'"
        )


SHARD_SUFFIX = ".tar"
"""The limit counts these copies; the files beside shards are small and stay."""
GONE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True)
class ShardCache:
    """Copies of remote files, in a folder that the processes of a machine share.

    A copy is there whole or not at all. One process fetches a file while the others wait for it.
    Every read opens the copy and sets its modification time, so that the least recently used copies
    make room for new ones. A copy that is removed while it is read stays readable to the end; a
    removed copy is fetched again. So removing is never wrong, only slow if the limit is too small.
    """

    # Read when a cache is made: the variable may be set after the import.
    folder: Path = field(
        default_factory=lambda: (
            Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlds"
        )
    )
    limit: int | None = None
    """Most bytes of shards; downloads in progress are not counted."""

    def path(self, url: str, version: str = "") -> Path:
        """Path of a file's copy.

        Its name is a hash of the whole URL, because data sets may have shards of one name, and of
        the file's `version`, because the file at a URL may change.
        """
        return self.folder / _name(url, version)

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Lock a copy for this process. A process that dies leaves no lock behind."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.lock").acquire()
        except OSError as error:
            raise FetchError(
                f"data.cache: {self.folder} cannot be written ({error.strerror}); name another "
                "folder"
            ) from None
        with lock:
            yield

    def add(self, path: Path, fetch: Callable[[Path], None]) -> None:
        """Make a copy: `fetch` writes a partial file, which then gets the copy's name."""
        # The lock on room is released after the copy has its name: exits run in reverse.
        with ExitStack() as room, whole_file(path) as partial:
            fetch(partial)
            if self.limit is not None and path.suffix == SHARD_SUFFIX:
                room.enter_context(self.alone(self.folder / "room"))
                self._make_room(partial.stat().st_size, self.limit)

    def read(self, path: Path, offset: int, size: int, whole: int) -> bytes | None:
        """Read bytes of a copy and mark it as used; None if there is none of `whole` bytes."""
        try:
            with open(path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != whole:
                    return None
                # By descriptor: the name may be another copy's by now, which keeps its own time.
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def _make_room(self, size: int, limit: int) -> None:
        """Remove the least recently used copies until `size` more bytes fit."""
        copies = []
        for path in self.folder.glob(f"*{SHARD_SUFFIX}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_mtime_ns, status.st_size, path))
        total = size + sum(bytes for _, bytes, _ in copies)
        for _, bytes, path in sorted(copies):  # the least recently used first
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= bytes


# Cached: every read of a sample asks for the path of its shard.
@lru_cache(maxsize=4096)
def _name(url: str, version: str) -> str:
    return sha256(f"{url}\n{version}".encode()).hexdigest() + Path(url.partition("?")[0]).suffix


PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each new try of a download that broke."""
SLOWEST = 1000
"""Bytes a second. A server that sends fewer for PATIENCE_S seconds counts as broken."""
PATIENCE_S = 60.0
CONNECT_S, SILENCE_S = 30.0, 60.0
"""Seconds after which a server that does not answer, or stops sending, counts as broken."""
MOST_REDIRECTS = 5
REDIRECTED = {
    "TooManyRedirects": f"more than {MOST_REDIRECTS} times",
    "NonHttpUrlRedirectClientError": "to an address that is not of the web",
    "InvalidUrlRedirectClientError": "to what is not an address",
}
"""aiohttp's exceptions by name: it is imported only for web servers."""


class TooMuch(ValueError):
    """More bytes than the file has."""


class TooSlow(OSError):
    """A server that would block the run forever."""


def fetch(folder: str, name: str, path: Path, expected: tuple[str, int] | None = None) -> None:
    """Write a file of the folder at a URL to `path`. With `expected`, check its sha256 and size;
    without, read at most LARGEST_FILE bytes.

    Errors: FetchError after the last try, or at once if another try would not help.
    """
    files, root = _open_address(folder)
    url = below(without_credentials(folder), name)
    limit = expected[1] if expected else LARGEST_FILE
    cure = "check the connection and start again: what has been fetched is kept"
    # A file that came whole but wrong is fetched once more: the transfer may have damaged it.
    for last_try in (False, True):
        _retried(lambda: _download(files, below(root, name), path, limit), url, cure, path)
        if expected is None:
            return
        actual, length = file_sha256(path), path.stat().st_size
        if (actual, length) == expected:
            return
        if last_try:
            raise FetchError(
                f"{url}: came with sha256 {actual[:12]} and {length} bytes, {DATASET_FILE} says "
                f"{expected[0][:12]} and {expected[1]} bytes: it is not the file that was "
                "prepared; upload the whole data set again"
            )


def open_stream(url: str) -> BytesReader:
    """The bytes of a file at a URL, in order from its beginning.

    Errors: FetchError that names the URL and what happened.
    """
    files, path = _open_address(url)

    def opened() -> BytesReader:
        stream: BytesReader = WebStream(files, path) if is_web(url) else files.open(path, "rb")
        return stream

    # A stream that has begun is not retried: what was read of it would come again.
    return _retried(opened, without_credentials(url), "check the address", Path())


def _retried(action: Callable[[], Value], url: str, cure: str, path: Path) -> Value:
    """The result of an action that reads from a server, tried again after each of PAUSES. `url` is
    for messages, without credentials."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except Exception as error:  # each sort of storage raises its own exceptions
            reason = _final_reason(error, path)
            if reason is None and pause is not None:
                time.sleep(pause)
                continue
            # The class and the text: the `repr` of aiohttp's errors shows the request's headers,
            # with the login.
            shown = f"{type(error).__name__}({str(error)!r})"
            tries = len(PAUSES) + 1
            reason = reason or f"{tries} downloads broke, the last one with {shown}; {cure}"
            # Not `from error`: a traceback would show the whole URL.
            raise FetchError(f"{url}: {without_credentials(reason)}") from None
    raise AssertionError


def _open_address(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL of a folder or file, and the path in it."""
    try:
        if is_web(url):
            from aiohttp import ClientTimeout  # only for web servers: importing it takes long

            plain, login = split_login(url)
            # A compressed answer that nobody asked for could grow without bound as it is unpacked.
            headers = {"Accept-Encoding": "identity"}
            if login is not None:
                # Not aiohttp's `auth`: it drops this header where it is redirected to another host.
                words = b64encode(":".join(login).encode()).decode()
                headers["Authorization"] = f"Basic {words}"
            files, root = url_to_fs(
                plain,
                # By default aiohttp stops downloads after five minutes.
                timeout=ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
                max_redirects=MOST_REDIRECTS,
                headers=headers,
                client_kwargs={"auto_decompress": False},
            )
        else:
            check_whole(url)
            files, root = url_to_fs(url)
    except FetchError:
        raise
    except (ImportError, ValueError) as error:
        raise FetchError(
            without_credentials(
                f"data set {url}: {error}; give an address that fsspec can open here, such as "
                "https://"
            )
        ) from None
    return files, root


class BytesReader(Protocol):
    """What reading a stream needs of a file."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""

    def close(self) -> None:
        """Close the file or connection."""


class WebStream:
    """The body of a web server's answer. fsspec's own stream asks for the size first, and has no
    limit for a server that sends a byte now and then."""

    def __init__(self, files: Any, url: str) -> None:
        """`files`: fsspec's file system."""
        self._loop, self._address = files.loop, without_credentials(url)
        self._waited, self._came = 0.0, 0

        async def answer() -> Any:
            session = await files.set_session()
            request = session.get(files.encode_url(url), **files.kwargs)
            try:
                response = await asyncio.wait_for(request, PATIENCE_S)
            except asyncio.TimeoutError:  # noqa: UP041 (another class in Python 3.10)
                raise TooSlow(f"no answer came in {PATIENCE_S:g} s") from None
            try:
                files._raise_not_found_for_status(response, url)
            except BaseException:  # whatever it is, nobody else knows this connection
                response.close()
                raise
            return response

        self._response = sync(self._loop, answer)

    def read(self, size: int) -> bytes:
        """Errors: FetchError for a connection that breaks off or almost stops."""
        start = time.monotonic()
        try:
            data: bytes = sync(self._loop, self._response.content.read, size)
            # Only the time that is spent here counts: the reader of the stream may be slow itself.
            self._waited += time.monotonic() - start
            self._came += len(data)
            if data and self._waited > PATIENCE_S:
                _check_rate(self._came, self._waited)
                self._waited, self._came = 0.0, 0
        except Exception as error:  # aiohttp's errors, which hold the headers that were sent
            shown = without_credentials(f"{type(error).__name__}({str(error)!r})")
            raise FetchError(f"{self._address}: the connection broke off with {shown}") from None
        return data

    def close(self) -> None:
        """Hang up."""
        # The response belongs to fsspec's thread; nothing may touch it from another one.
        self._loop.call_soon_threadsafe(self._response.close)


def _check_rate(came: int, seconds: float) -> None:
    """Errors: TooSlow."""
    if came < SLOWEST * seconds:
        raise TooSlow(f"{came:,} bytes came in {seconds:.2g} s, fewer than {SLOWEST:,} a second")


def _download(files: Any, source: str, target: Path, limit: int) -> None:
    """Write a file of an fsspec file system to `target`.

    Errors: TooMuch for more than `limit` bytes, TooSlow; whatever the storage raises.
    """
    counter = _Counter(limit)
    # Only asynchronous storages can be cancelled; the others have time limits of their clients.
    if not files.async_impl:
        files.get_file(source, str(target), callback=counter)
        return
    work = files._get_file(source, str(target), callback=counter)
    sync(files.loop, _watched, work, counter, target)


class _Counter(Callback):
    """Counts the bytes that arrive; called by fsspec."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        # Only now compare the announced size, too: a 404 page also announces one.
        if (largest := max(self.value, self.size or 0)) > self.limit:
            raise TooMuch(
                f"the server sends {largest:,} bytes or more, expected are {self.limit:,}"
            )


async def _watched(work: Coroutine[Any, Any, None], counter: _Counter, target: Path) -> None:
    """Cancel a download that almost stops, in its head or body."""
    # Not wait_for, which limits the whole download: here each minute must bring some bytes.
    task = asyncio.ensure_future(work)
    before = 0
    while not (await asyncio.wait({task}, timeout=PATIENCE_S))[0]:
        written = 0
        with suppress(FileNotFoundError):
            written = target.stat().st_size  # some storages do not call the counter
        now = max(counter.value, written)
        try:
            _check_rate(now - before, PATIENCE_S)
        except TooSlow:
            # Wait for the end of the cancelled task: it closes its connection and file.
            task.cancel()
            await asyncio.wait({task})
            raise
        before = now
    task.result()


def _final_reason(error: Exception, path: Path) -> str | None:
    """What is wrong, and the cure, if another try would not help."""
    # aiohttp's errors have a status, those of other clients a code; some raise Python's own errors.
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "there is no such file (404); check the address, and that all files were uploaded"
    if isinstance(error, PermissionError) or status in (401, 403):
        return (
            "access is refused (403); check the address, and give the credentials: for a web "
            "server in ~/.netrc, else in the environment variables of this sort of storage or a "
            "file in ~/.config/fsspec"
        )
    if isinstance(error, TooMuch):
        return f"{error}; it is not the file that was prepared: check the address and the server"
    if type(error).__name__ in REDIRECTED:
        return f"the server redirects it {REDIRECTED[type(error).__name__]}; check the address"
    # 408 and 429 (time-out, too many requests) pass, and so do the server's own errors from 500.
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return f"the server refuses it ({error}); check the address"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space for it in {path.parent}; name a larger disk as data.cache, or keep less by "
            "data.cache_bytes"
        )
    return None
