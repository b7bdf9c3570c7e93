"""Files from servers and object stores, by fsspec: whole, or a range of their bytes.

A download ends whatever the server does: at the expected size, or when it almost stops. A request
that broke is repeated here and by nobody else, until the server has been away for AWAY_S seconds.
Pauses have a random length, because a thousand ranks whose requests broke together would otherwise
come back together. A login in a web address goes into the header of
the request, so that no library's error can show it. An address without login may have one in
~/.netrc; object stores find credentials where their own clients look for them.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import netrc
import os
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from random import uniform
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from fsspec.asyn import sync
from fsspec.callbacks import Callback
from fsspec.config import conf
from fsspec.core import url_to_fs

from vlds.data.errors import FetchError, FullDisk
from vlds.data.shards.info import DATASET_FILE
from vlds.runtime.files import LARGEST_FILE
from vlds.runtime.json_files import sha256 as file_sha256
from vlds.runtime.terminal import Away, lost_credentials, tell, without_credentials

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


SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "hf", "http", "https", "file"})
"""Of addresses of data. fsspec knows others that run a command or unpickle an answer."""
ADDED_SCHEMES = "VLDS_SCHEMES"
"""Environment variable with more schemes, such as "sftp pipe"; a recipe cannot add any."""
AWAY_S = 300.0
"""For so long a request that broke is tried again. Less than ranks wait for each other."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 16.0
"""Mean seconds before the first new try, which double with each, and at most."""
ENDPOINT = "AWS_ENDPOINT_URL"
"""Names the server of s3:// if it is not Amazon's."""
SLOWEST = 1000
"""Bytes a second. A server that sends fewer for PATIENCE_S seconds counts as broken."""
PATIENCE_S = 60.0
CONNECT_S, SILENCE_S = 30.0, 60.0
"""Seconds after which a server that does not answer, or stops sending, counts as broken."""
FULL = (errno.ENOSPC, errno.EDQUOT)
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


class Cut(OSError):
    """Fewer bytes than were asked for."""


def fetch(folder: str, name: str, path: Path, expected: tuple[str, int] | None = None) -> None:
    """Write a file of the folder at a URL to `path`. With `expected`, check its sha256 and size;
    without, read at most LARGEST_FILE bytes.

    Errors: as `retried`.
    """
    files, root = open_address(folder)
    url = below(without_credentials(folder), name)
    limit = expected[1] if expected else LARGEST_FILE
    cure = "check the connection and start again: what has been fetched is kept"
    if expected is None:
        retried(lambda: download(files, below(root, name), path, limit), url, cure, path)
        return
    came: list[str] = []
    # A file that came whole but wrong is fetched once more: the transfer may have damaged it.
    for _ in range(2):
        retried(lambda: download(files, below(root, name), path, limit), url, cure, path)
        actual, length = file_sha256(path), path.stat().st_size
        if (actual, length) == expected:
            return
        came.append(f"sha256 {actual[:12]} and {length} bytes")
    stated = f"{DATASET_FILE} says {expected[0][:12]} and {expected[1]} bytes"
    if came[0] == came[1]:
        raise FetchError(
            f"{url}: came with {came[1]}, {stated}: it is not the file that was prepared"
            f"{_told_by_store(files, below(root, name))}; upload the whole data set again"
        )
    raise FetchError(
        f"{url}: came with {came[0]}, then with {came[1]}, {stated}: it is damaged on its way; "
        "check the connection and the store"
    )


def read_range(folder: str, name: str, offset: int, size: int, whole: int) -> bytes:
    """Bytes of a file of `whole` bytes in the folder at a URL; not of a web server.

    Errors: as `retried`; FetchError at once if the file has another size.
    """
    files, root = open_address(folder)
    source, url = below(root, name), below(without_credentials(folder), name)

    def read() -> bytes:
        if files.async_impl:
            data: bytes = sync(
                files.loop, files._cat_file, source, start=offset, end=offset + size,
                timeout=PATIENCE_S + size / SLOWEST,
            )  # fmt: skip
        else:
            # Without a cache: by default, fsspec reads megabytes ahead.
            with files.open(source, "rb", cache_type="none") as file:
                file.seek(offset)
                data = file.read(size)
        if len(data) < size:
            raise Cut(f"{len(data):,} of {size:,} bytes came")
        return data

    def read_known() -> bytes:
        try:
            return read()
        except Exception:  # each sort of storage raises its own exceptions
            actual = file_size(files, source)
            if actual is not None and actual != whole:
                raise FetchError(
                    f"{url}: has {actual} bytes, {DATASET_FILE} says {whole}: it is not the file "
                    f"that was prepared{_told_by_store(files, source)}; upload the whole data set "
                    "again"
                ) from None
            raise

    return retried(read_known, url, "check the connection", Path())


def read_bytes(folder: str, name: str, *, most: int = LARGEST_FILE) -> bytes | None:
    """A small file in the folder at a URL; None if there is none. Not of a web server.

    Errors: FetchError.
    """
    files, root = open_address(folder)
    source = below(root, name)

    def read() -> bytes | None:
        try:
            if (size := files.info(source)["size"]) > most:
                raise TooMuch(f"it has {size:,} bytes; at most {most:,} are read")
            data: bytes = files.cat_file(source)
        except FileNotFoundError:
            return None
        return data

    return retried(read, below(without_credentials(folder), name), "check the address", Path())


def file_size(files: Any, path: str) -> int | None:
    """Bytes of a file now; None if that cannot be told."""
    try:
        files.invalidate_cache()
        size = files.info(path)["size"]
    except Exception:  # each sort of storage raises its own exceptions
        return None
    return size if isinstance(size, int) else None


def _told_by_store(files: Any, path: str) -> str:
    """What an object store says of the version that it holds: " (ETag ..., modified ...)"."""
    if is_web(path):  # whose libraries fetch the file once more to say this
        return ""
    told = {}
    with suppress(Exception):
        files.invalidate_cache()
        told = files.info(path)
    tag = next((told[name] for name in VERSIONS if told.get(name)), None)
    time = next((told[name] for name in TIMES if told.get(name)), None)
    words = [f"its ETag is now {tag}"] * (tag is not None)
    words += [f"modified {time}"] * (time is not None)
    return f" ({', '.join(words)})" if words else ""


VERSIONS = ("ETag", "etag", "generation", "blob_id")
TIMES = ("LastModified", "updated", "last_modified", "mtime", "last_commit")
"""Names that S3, Google Cloud, Hugging Face and others have for these."""


def retried(action: Callable[[], Value], url: str, cure: str, path: Path) -> Value:
    """The result of an action that reads from or writes to a server. What broke is tried again.

    `url` is for messages, without credentials; `path`: of the file that is written here. Errors:
    FetchError for what another try would not mend; Away AWAY_S seconds after it broke first.
    """
    end: float | None = None
    for number in count():
        try:
            return action()
        except (FetchError, Away):
            raise
        except Exception as error:  # each sort of storage raises its own exceptions
            reason = _final_reason(error, path)
            # The class and the text: the `repr` of aiohttp's errors shows the request's headers,
            # with the login.
            shown = f"{type(error).__name__}({str(error)!r})"
            # Threads that copy in the background may outlive the work that wanted it.
            now = time.monotonic()
            end = now + AWAY_S if end is None else end
            if reason is None and now < end and not _ending.is_set():
                _tell_trouble(error, f"{url}: {{}} ({shown}); it is asked again for {AWAY_S:g} s")
                pause = min(PAUSE_S * 2.0 ** min(number, 9), LONGEST_PAUSE_S) * uniform(0.5, 1.5)
                _ending.wait(min(pause, end - now))
                continue
            kind: type[FetchError | Away] = FetchError
            if reason is None:
                kind = Away
                reason = f"away for {AWAY_S:g} s; request {number + 1} broke with {shown}; {cure}"
            elif isinstance(error, OSError) and error.errno in FULL:
                kind = FullDisk
            if kind is not FullDisk and url.startswith("s3") and ENDPOINT in os.environ:
                reason += f"; {ENDPOINT} is {os.environ[ENDPOINT]}"
            failure = kind(f"{url}: {without_credentials(reason)}")
        # Behind the `except`: the library's error must not be its context. A traceback would show
        # the whole URL, and where Dask is loaded pickle takes contexts along, of which those with
        # aiohttp's headers cannot be pickled: a loader's process would answer nothing.
        raise failure
    raise AssertionError


SLOW = ("TooSlow", "TimeoutError", "FSTimeoutError", "ReadTimeoutError", "SocketTimeoutError",
        "ServerTimeoutError", "ConnectTimeoutError")  # fmt: skip
BROKEN_OFF = ("Cut", "ClientPayloadError", "IncompleteReadError", "IncompleteRead",
              "ServerDisconnectedError", "ConnectionResetError", "ResponseStreamingError",
              "ConnectionClosedError")  # fmt: skip
_troubles: Counter[str] = Counter()
_ending = threading.Event()
"""Set when the interpreter ends: nothing is asked again, nor said."""
atexit.register(_ending.set)


def _tell_trouble(error: Exception, line: str) -> None:
    """Say what a server did; `line` has a place for it."""
    name = type(error).__name__
    what = "the server refused or failed"
    if name in SLOW:
        what = "the server is too slow"
    elif name in BROKEN_OFF:
        what = "the body was cut off"
    tell_rarely(what, line.replace("{}", what, 1))


def tell_rarely(sort: str, line: str) -> None:
    """Say what has happened: the first time, the tenth, the hundredth, ... of its sort in this
    process."""
    _troubles[sort] += 1
    count = _troubles[sort]
    if count == 10 ** (len(str(count)) - 1):
        times = f" ({count:,} times so far)" if count > 1 else ""
        tell(f"{line}{times}", error=True, flush=True)


def check_scheme(url: str) -> None:
    """Errors: FetchError for an address of a scheme that is not known, or for a chain of them."""
    scheme = url.partition(":")[0]
    shown = without_credentials(url)
    if scheme != "pipe" and "::" in url:
        raise FetchError(f"{shown}: a chain of addresses (::) is not read; name the last one alone")
    if scheme not in SCHEMES and scheme not in os.environ.get(ADDED_SCHEMES, "").split():
        raise FetchError(
            f"{shown}: vlds reads {', '.join(sorted(SCHEMES))}, and not {scheme}; to allow it, set "
            f"{ADDED_SCHEMES}={scheme}"
        )


def open_address(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL of a folder or file, and the path in it.

    Errors: FetchError if there is none.
    """
    check_scheme(url)
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
            files, root = _object_store(url, os.getpid())
    except FetchError:
        raise
    except (ImportError, ValueError) as error:
        cure = "give an address that fsspec can open here, such as https://"
        extra = EXTRAS.get(url.partition("://")[0])
        if extra and isinstance(error, ImportError):
            cure = f"pip install 'vlds[{extra}]'"
        raise FetchError(without_credentials(f"data set {url}: {error}; {cure}")) from None
    return files, root


EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> our optional dependencies for it."""


# fsspec itself makes a client for each thread, which for S3 takes a tenth of a second. By process:
# a client does not survive a fork.
@lru_cache(maxsize=64)
def _object_store(url: str, process: int) -> tuple[Any, str]:
    scheme, options = url.partition("://")[0], {}
    if is_s3 := scheme in ("s3", "s3a"):
        # Its client and s3fs each try five times by themselves, so that ours would come 25-fold.
        # The other stores' tries cannot be turned off, only waited for.
        given = conf.get(scheme, {}).get("config_kwargs", {})
        options["config_kwargs"] = {**given, "retries": {"total_max_attempts": 1}}
    opened: tuple[Any, str] = url_to_fs(url, **options)
    if is_s3:
        opened[0].retries = 1
    return opened


class BytesReader(Protocol):
    """What reading a stream needs of a file."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""

    def close(self) -> None:
        """Close the file or connection."""


class Stream:
    """The bytes of a file at a URL, in order from its beginning. One that breaks is opened again
    where it was."""

    def __init__(self, url: str) -> None:
        """Errors: FetchError, Away."""
        self._files, self._path = open_address(url)
        self._url, self._at = without_credentials(url), 0
        self._open: BytesReader | None = None
        self.read(0)

    def read(self, size: int, /) -> bytes:
        """Errors: FetchError, Away."""
        data = retried(lambda: self._read(size), self._url, "check the address", Path())
        self._at += len(data)
        return data

    def _read(self, size: int) -> bytes:
        try:
            if self._open is None and is_web(self._path):
                self._open, left = WebStream(self._files, self._path), self._at
                while left > 0:  # servers of the web may not send ranges
                    if not (passed := self._open.read(min(left, SKIPPED))):
                        raise Cut("the file has become shorter")
                    left -= len(passed)
            elif self._open is None:
                self._open = file = self._files.open(self._path, "rb")
                file.seek(self._at)
            return self._open.read(size) if size else b""
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file or connection."""
        stream, self._open = self._open, None
        if stream is not None:
            stream.close()


SKIPPED = 1 << 20
"""Bytes that are read at once to come to a place."""


class WebStream:
    """The body of a web server's answer. fsspec's own stream asks for the size first, and has no
    limit for a server that sends a byte now and then."""

    def __init__(self, files: Any, url: str) -> None:
        """`files`: fsspec's file system."""
        self._loop = files.loop
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
        """Errors: those of aiohttp for a connection that breaks off; TooSlow."""
        start = time.monotonic()
        data: bytes = sync(self._loop, self._response.content.read, size)
        # Only the time that is spent here counts: the reader of the stream may be slow itself.
        self._waited += time.monotonic() - start
        self._came += len(data)
        if data and self._waited > PATIENCE_S:
            _check_rate(self._came, self._waited)
            self._waited, self._came = 0.0, 0
        return data

    def close(self) -> None:
        """Hang up."""
        # The response belongs to fsspec's thread; nothing may touch it from another one.
        self._loop.call_soon_threadsafe(self._response.close)


def _check_rate(came: int, seconds: float) -> None:
    """Errors: TooSlow."""
    if came < SLOWEST * seconds:
        raise TooSlow(f"{came:,} bytes came in {seconds:.2g} s, fewer than {SLOWEST:,} a second")


def download(files: Any, source: str, target: Path, limit: int) -> None:
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
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return f"{error}; give one with http:// or https://"
    # 408 and 429 (time-out, too many requests) pass, and so do the server's own errors from 500.
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return f"the server refuses it ({error}); check the address"
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            "there are no credentials; give them as for this store's own client: in its "
            "environment variables, its files, or ~/.config/fsspec"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"no space for it in {path.parent}; name a larger disk as data.cache, or keep less by "
            "data.cache_bytes"
        )
    return None
