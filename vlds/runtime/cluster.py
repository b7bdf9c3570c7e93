"""Work on several machines, through Dask.

Schedulers start a task again when its worker is gone, and may run it twice. So a task is a function
whose result alone counts, and `Cluster.map` takes one result for each, in order: nothing is lost,
nothing comes twice. Before a worker does anything, it compares its software with the command's and
looks for a few of the command's files.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from threading import Lock
from typing import Any, TypeVar

from vlds.runtime.checks import guess
from vlds.runtime.json_files import read_json
from vlds.runtime.process import PACKAGE, LostContact, answered
from vlds.runtime.terminal import tell

Item = TypeVar("Item")
Result = TypeVar("Result")
LOCAL, DASK = "local", "dask"
AHEAD = 3
"""Tasks per worker that may wait for the reader: they bound the memory."""
LOOK_S = 1.0
"""Seconds between looks at the workers."""
ANSWER_S, WORKERS_S = 10.0, 30.0
"""Seconds in which a scheduler answers, and then has a worker at the start."""
QUIET_S = 60.0
"""Seconds in which the oldest task has no result, after which the user hears of it."""
CLOSE_S = 2.0
"""Seconds that a scheduler has to take its leave."""
RETURN_S = 60.0
"""Seconds in which a lost scheduler, or the last worker, comes back."""
SAME = ("vlds", "numpy", "pillow", "simplejpeg", "torch", "av")
"""Packages that decide the bytes of an output."""
LOOKED_AT = 1 << 20
"""Bytes of a file by which a worker shows that it sees the same one."""


class LostWorker(ValueError):
    """Workers ended in the middle of their work, and nobody takes it over."""


class UnfitWorker(ValueError):
    """A worker has other software than the command, or does not see its files."""


@cache
def software() -> dict[str, str]:
    """What decides the bytes of an output: versions, and a hash of vlds' own sources, because a
    checkout changes without another version."""
    versions = {"Python": python_version()}
    for name in SAME:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    digest = sha256()
    # data_prep lies inside the package in a wheel, and next to it in a checkout.
    roots = [PACKAGE, *[PACKAGE.parent / "data_prep"] * (not (PACKAGE / "data_prep").is_dir())]
    for file in sorted(file for root in roots for file in root.rglob("*.py")):
        digest.update(str(file.relative_to(PACKAGE.parent)).encode() + file.read_bytes())
    return {**versions, "sources of vlds": digest.hexdigest()[:12]}


@dataclass(frozen=True)
class Seen:
    """A file as the command sees it."""

    path: str
    size: int
    digest: str
    """sha256 of its beginning."""

    @classmethod
    def of(cls, path: Path) -> Seen:
        """Errors: OSError."""
        with path.open("rb") as file:
            beginning = file.read(LOOKED_AT)
            return cls(str(path), os.fstat(file.fileno()).st_size, sha256(beginning).hexdigest())


@dataclass(frozen=True)
class Needs:
    """What a worker must have in common with the command."""

    software: Mapping[str, str]
    folder: str
    """The command's working directory, to which paths may be relative."""
    files: tuple[Seen, ...] = ()

    def unmet(self) -> str:
        """Why this process cannot do the work, in words that follow its name; "" if it can."""
        mine = software()
        for name in dict.fromkeys((*self.software, *mine)):
            here, there = mine.get(name, "missing"), self.software.get(name, "missing")
            if here != there:
                return (
                    f"has another software than this command ({name}: {here} there, {there} here); "
                    "install the same on all machines"
                )
        if not os.path.isdir(self.folder):
            return f"does not see the folder {self.folder}; {SHARED}"
        return self.unseen()

    def unseen(self) -> str:
        """Which file this process does not see, in words that follow its name; "" for none."""
        for file in self.files:
            try:
                # The bytes once: tasks are short, and files lie on a network.
                known = file in _seen_before and os.stat(file.path).st_size == file.size
                if not known and Seen.of(Path(file.path)) != file:
                    return f"has another file at {file.path} than this command; {SHARED}"
                _seen_before.add(file)
            except OSError as error:
                reason = error.strerror or error
                return f"does not see {file.path} as this command does ({reason}); {SHARED}"
        return ""


SHARED = "all workers must see the command's files under the same paths (a shared file system)"
_seen_before: set[Seen] = set()
_one_at_a_time = Lock()
"""Workers of Dask may have several threads, and the working directory belongs to the process."""


def this_worker() -> str:
    """Name of this process in a message."""
    return f"the worker on {socket.gethostname()} (process {os.getpid()})"


def perform(needs: Needs, work: bytes) -> bytes:
    """On a worker: call a function for each of some items, both pickled; the results, pickled. Dask
    would look into lists and tuples that it is given, and rebuild them.

    Errors: UnfitWorker; those of the function.
    """
    with _one_at_a_time:
        if fault := needs.unmet():
            raise UnfitWorker(f"{this_worker()} {fault}")
        os.chdir(needs.folder)
        function, items = pickle.loads(work)
        results = [function(item) for item in items]
        # A file system that went away in the meantime makes files look as if they were missing.
        if fault := needs.unseen():
            raise UnfitWorker(f"{this_worker()} {fault}")
        return pickle.dumps(results, pickle.HIGHEST_PROTOCOL)


@dataclass
class Task:
    """Some items, and the result that is expected for them."""

    work: bytes
    future: Future[bytes]


def _is_whole(future: Future[bytes]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _tasks(number: int) -> str:
    return f"{number} task{' is' if number == 1 else 's are'}"


class DaskExecutor(Executor):
    """Dask's own executor takes a result for an error, and fails, if the worker that had it ends
    while it is handed over."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        # Not pure: Dask would take two tasks with the same arguments for one.
        theirs = self._client.submit(fn, *args, pure=False, **kwargs)
        ours: Future[Result] = Future()

        async def hand_over() -> None:
            with suppress(InvalidStateError):  # cancelled here in the meantime
                try:
                    ours.set_result(await self._client.gather(theirs, asynchronous=True))
                except CancelledError as error:  # by the scheduler, or as the client closes
                    ours.set_exception(error)
                except Exception as error:
                    # Others are of the connection, before the client knows that it is closed.
                    of_task = theirs.status == "error"
                    ours.set_exception(error if of_task else CancelledError(str(error)))

        ours.add_done_callback(lambda ours: theirs.cancel() if ours.cancelled() else None)
        self._client.loop.add_callback(hand_over)
        return ours


class Cluster:
    """The workers of a Dask scheduler."""

    executor: Executor
    name: str
    """As the command line names it."""

    def __init__(self, address: str) -> None:
        self.name, self.address = f"{DASK}={address}", address
        try:
            import dask
            import distributed
        except ImportError:
            raise ValueError(
                f"--executor {self.name} needs the package distributed: pip install 'vlds[dask]'"
            ) from None
        # It reports each lost connection by a traceback; what matters is said here, in one line.
        for name in logging.root.manager.loggerDict:  # each has a level of its own
            if name.partition(".")[0] == "distributed":
                logging.getLogger(name).setLevel(logging.CRITICAL)
        dask.config.set({"distributed.comm.timeouts.connect": f"{ANSWER_S / 2:g}s"})

        class Client(distributed.Client):
            def __del__(self) -> None:
                """Dask's own waits 20 s for a connection that never was; `close` ends others."""

        self._library, self._new_client = distributed, Client
        self._known: set[str] = set()
        self._gone = deque[str]()
        """Workers of which the scheduler has told that they are gone, and the user not yet."""
        self._looked = time.monotonic()
        self._alone_since: float | None = None
        """When a look first found no worker."""
        try:
            self._open(ANSWER_S, WORKERS_S)
        except LostContact as error:
            raise ValueError(
                f"--executor {self.name}: no Dask scheduler answers there ({error}); start one "
                "with `dask scheduler`, and give the address that it prints"
            ) from None
        except LostWorker:
            raise ValueError(
                f"--executor {self.name}: the scheduler has had no worker for {WORKERS_S:.0f} s; "
                f"start some with `dask worker {address} --nthreads 1`"
            ) from None
        except UnfitWorker as error:
            self.close()
            raise ValueError(str(error)) from None

    def _open(self, seconds: float, seconds_for_workers: float) -> None:
        """Connect, wait for a worker, and check all that are there.

        Errors: LostContact; LostWorker without a worker; UnfitWorker.
        """
        address = self.address
        if address.endswith(".json"):  # Dask would wait for ever for a file that is not there
            try:
                written = read_json(Path(address))
            except OSError as error:
                raise LostContact(f"{address}: {error.strerror}") from None
            except ValueError:
                written = None
            known = written.get("address") if isinstance(written, dict) else None
            if not known or not isinstance(known, str):
                raise LostContact(f"{address} is not a scheduler's file: it tells no address")
            address = known
        connect = partial(self._new_client, address, timeout=seconds, set_as_default=False)
        try:
            # Dask's own timeout bounds the connection alone.
            self._client = answered(connect, seconds + LOOK_S, "what listens there")
        except Exception as error:  # not an address; no answer; whatever another server's made
            raise LostContact(str(error).split("\n")[0] or type(error).__name__) from None
        # A look would miss a worker that came and went since the last one. The scheduler tells of
        # it before it sends results of the tasks that others did in its place.
        self._client.subscribe_topic("all", self._hear)
        self.executor = DaskExecutor(self._client)
        end = time.monotonic() + seconds_for_workers
        while not (workers := self._workers()):
            if time.monotonic() > end:
                raise LostWorker
            time.sleep(0.1)
        self._known, self._alone_since = workers, None
        needs = Needs(software(), os.getcwd())
        ask = partial(self._client.run, needs.unmet, on_error="return")
        try:
            replies: dict[str, Any] = answered(ask, WORKERS_S, "a worker")
        except LostContact:
            for worker in sorted(workers):
                try:
                    answered(partial(ask, workers=[worker]), ANSWER_S, f"the worker {worker}")
                except LostContact as error:
                    cure = "end it, or start it again"
                    raise UnfitWorker(f"--executor {self.name}: {error}; {cure}") from None
            raise
        for worker, fault in replies.items():
            if isinstance(fault, OSError):  # it is gone by now
                continue
            if isinstance(fault, Exception):
                fault = f"cannot load vlds as this command does ({fault}); install the same there"
            if fault:
                raise UnfitWorker(f"--executor {self.name}: the worker {worker} {fault}")

    def _hear(self, event: tuple[float, Any]) -> None:
        """Note an event of the scheduler, in a thread of Dask's client."""
        _, told = event
        if isinstance(told, Mapping) and told.get("action") == "remove-worker":
            self._gone.append(told["worker"])

    def _workers(self) -> set[str]:
        """Addresses of the workers. Errors: LostContact."""
        try:
            return set(answered(self._client.nthreads, ANSWER_S, "the scheduler"))
        except Exception as error:  # OSError, its own classes, or a client that closed itself
            raise LostContact(str(error)) from None

    def size(self) -> int:
        return max(1, len(self._known))

    def look(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if now < self._looked + LOOK_S and not at_once:
            return
        if self._client.status != "running":
            raise LostContact(f"the connection is {self._client.status}")
        workers = self._workers()
        self._looked = time.monotonic()
        while self._gone:
            worker = self._gone.popleft()
            rest = "others do" if workers else f"one that comes within {RETURN_S:.0f} s does"
            tell(f"{self.name}: worker {worker} is gone; {rest} its work", error=True, flush=True)
        self._known = workers
        if workers:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = self._looked
        elif self._looked > self._alone_since + RETURN_S:
            raise LostWorker(f"{self.name}: no worker is left, and none came; start some")

    def reconnect(self) -> None:
        tell(
            f"{self.name}: the scheduler is gone; waiting up to {RETURN_S:.0f} s for it",
            error=True,
            flush=True,
        )
        end = time.monotonic() + RETURN_S
        while True:
            self.close()
            try:
                left = max(1.0, end - time.monotonic())
                self._open(left, left)
            except (LostContact, LostWorker):
                if time.monotonic() > end:
                    raise LostWorker(
                        f"{self.name}: the scheduler or its workers did not come back within "
                        f"{RETURN_S:.0f} s; start them again"
                    ) from None
                time.sleep(LOOK_S)
                continue
            tell(f"{self.name}: the scheduler is back, with {_count(self)}", error=True, flush=True)
            return

    def map(
        self,
        function: Callable[[Item], Result],
        chunks: Iterable[Sequence[Item]],
        files: Iterable[Path] = (),
    ) -> Iterator[Result]:
        """`function` of all items, in order. A chunk goes to a worker at once; the function must be
        picklable. `files` exist, and workers must see the same ones.

        Errors: UnfitWorker; LostWorker; those of the function.
        """
        seen = tuple(Seen.of(path.absolute()) for path in files)
        needs = Needs(software(), os.getcwd(), seen)
        waiting: deque[Task] = deque()

        def submit(work: bytes) -> Task:
            try:
                return Task(work, self.executor.submit(perform, needs, work))
            except Exception:  # the scheduler is gone, as whoever waits for the task finds out
                never: Future[bytes] = Future()
                never.cancel()
                never.set_running_or_notify_cancel()  # else `wait` waits for it
                return Task(work, never)

        def first() -> Iterator[Result]:
            """The results of the oldest chunk, even if later ones are done."""
            while True:
                try:
                    self.look()
                    begin, told = time.monotonic(), False
                    while not wait([waiting[0].future], LOOK_S).done:
                        self.look()
                        if not told and time.monotonic() > begin + QUIET_S:
                            told = True
                            text = f"a task has no result after {QUIET_S:.0f} s; still waiting"
                            tell(f"{self.name}: {text}", error=True, flush=True)
                    results: list[Result] = pickle.loads(waiting[0].future.result())
                    break
                except (CancelledError, LostContact):
                    # The scheduler has forgotten all that it had not handed over.
                    self.reconnect()
                    again = [n for n, task in enumerate(waiting) if not _is_whole(task.future)]
                    tell(f"{self.name}: {_tasks(len(again))} done again", error=True, flush=True)
                    for number in again:
                        waiting[number] = submit(waiting[number].work)
                except Exception as error:
                    raise self.explain(error) from None
            waiting.popleft()
            yield from results

        try:
            for chunk in chunks:
                waiting.append(submit(pickle.dumps((function, chunk), pickle.HIGHEST_PROTOCOL)))
                if len(waiting) >= self.size() * AHEAD:
                    yield from first()
            while waiting:
                yield from first()
            with suppress(LostContact, LostWorker):  # all results are here
                self.look(at_once=True)
        finally:
            for task in waiting:
                task.future.cancel()

    def explain(self, error: Exception) -> Exception:
        if isinstance(error, self._library.KilledWorker):
            return LostWorker(
                f"{self.name}: {error.allowed_failures + 1} workers ended in the same task, the "
                f"last at {error.last_worker.address}; give them more memory (dask worker "
                "--memory-limit), and see their logs"
            )
        return error

    def close(self) -> None:
        with suppress(Exception):  # a client whose scheduler is gone may raise anything
            answered(partial(self._client.close, timeout=CLOSE_S), 2 * CLOSE_S, "the scheduler")


def _count(cluster: Cluster) -> str:
    return f"{cluster.size()} worker{'s' * (cluster.size() > 1)}"


def executor_name(text: str) -> str:
    """Check the value of --executor. Errors: ValueError that begins with it."""
    kind, equals, address = text.partition("=")
    if (kind == DASK and address) or (kind == LOCAL and not equals):
        return text
    if kind == DASK:
        raise ValueError(f"{text!r}: give dask=ADDRESS, such as dask=tcp://10.0.0.1:8786")
    hint = guess(kind, (LOCAL, DASK))
    raise ValueError(f"{text!r}: no such executor; {hint}give local or dask=ADDRESS")


@contextmanager
def open_cluster(name: str) -> Iterator[Cluster | None]:
    """The cluster that --executor names, while the block runs; None if this machine does the work.

    Errors: ValueError if it does not answer, has no workers, or unfit ones.
    """
    kind, _, address = executor_name(name).partition("=")
    if kind == LOCAL:
        yield None
        return
    cluster = Cluster(address)
    try:
        tell(f"--executor {name}: {_count(cluster)}", error=True, flush=True)
        yield cluster
    finally:
        cluster.close()
