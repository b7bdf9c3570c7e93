"""Work through an Executor: one result for each item, in order, from workers fit for it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from vlds.cli.words import split_words
from vlds.runtime.cluster import (
    Cluster,
    LostWorker,
    Needs,
    Seen,
    UnfitWorker,
    executor_name,
    software,
)
from vlds.runtime.workers import ordered_map


class TwiceExecutor(Executor):
    """A scheduler that runs every task twice, and gives the later result."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(2)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.pool.submit(lambda: (fn(*args, **kwargs), fn(*args, **kwargs))[1])


class Forgetful(TwiceExecutor):
    """A scheduler that forgets the tasks of some numbers, as one that was started again does."""

    def __init__(self, forgotten: set[int], refused: set[int] | None = None) -> None:
        super().__init__()
        self.forgotten, self.refused, self.count = forgotten, refused or set(), -1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count += 1
        if self.count in self.refused:
            raise RuntimeError("no connection")
        if self.count in self.forgotten:
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future
        return super().submit(fn, *args, **kwargs)


class Toy(Cluster):
    name = "toy"

    def __init__(self, executor: Executor, reconnects: bool = True) -> None:
        self.executor, self.reconnects, self.lost = executor, reconnects, 0

    def size(self) -> int:
        return 2

    def look(self, at_once: bool = False) -> None:
        """All workers are there."""

    def explain(self, error: Exception) -> Exception:
        return error

    def reconnect(self) -> None:
        self.lost += 1
        if not self.reconnects:
            raise LostWorker("toy: it stays away")


def double(number: int) -> int:
    if number == 77:
        raise ValueError("bad number")
    return 2 * number


def test_an_error_of_the_function_is_that_of_the_command() -> None:
    done = ordered_map(double, range(100), 1, chunk=3, cluster=Toy(TwiceExecutor()))
    with pytest.raises(ValueError, match=r"^bad number$"):
        list(done)


@pytest.mark.parametrize("seed", range(12))
def test_forgotten_tasks_are_done_again(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Some are forgotten, others cannot even be handed over."""
    draw = random.Random(seed)
    forgotten, refused = (set(draw.sample(range(10), draw.randint(1, 4))) for _ in range(2))
    cluster = Toy(Forgetful(forgotten, refused))
    assert list(ordered_map(double, range(30), 1, chunk=3, cluster=cluster)) == [*range(0, 60, 2)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == cluster.lost >= 1
    assert all(line.endswith("done again") for line in said)


def test_what_a_worker_needs(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    needs = Needs(software(), os.getcwd(), (Seen.of(file),))
    file.write_bytes(b"two")
    assert f"has another file at {file} than" in needs.unmet()
    file.write_bytes(b"one")
    assert needs.unmet() == ""
    other = replace(needs, software={**software(), "pillow": "1.0"}).unmet()
    assert f"(pillow: {software()['pillow']} there, 1.0 here); install the same" in other
    assert (
        "sources of vlds" in replace(needs, software={**software(), "sources of vlds": "0"}).unmet()
    )
    assert "does not see the folder /nowhere" in replace(needs, folder="/nowhere").unmet()
    file.unlink()
    assert f"does not see {file} as this command does (No such file" in needs.unmet()


def vanish(file: Path) -> str:
    """What a file system does that goes away while a worker reads from it."""
    file.unlink()
    return "the picture is missing"


def test_files_that_vanish_are_not_taken_for_missing_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    done = ordered_map(vanish, [file], 1, cluster=Toy(TwiceExecutor()), files=[file])
    with pytest.raises(UnfitWorker, match=r"the worker on .* \(process \d+\) does not see"):
        list(done)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dusk=tcp://a:1", "no such executor; did you mean 'dask'"),
        ("dask=", "give dask=ADDRESS, such as"),
    ],
)
def test_a_mistaken_executor(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        executor_name(text)
    assert main(["verify", str(tmp_path), "--executor", text]) == 2
    assert message in capsys.readouterr().err


def test_features_on_a_cluster_start_no_ranks() -> None:
    words = ["features", "--config", "a.yaml", "--data", "b", "--out", "c"]
    assert split_words(words).starts_ranks
    assert split_words([*words, "--executor", "local"]).starts_ranks
    assert not split_words([*words, "--executor", "dask=a:1"]).starts_ranks
    assert not split_words([*words, "--executor=dask=tcp://a:1"]).starts_ranks
    with pytest.raises(ValueError, match="--ranks: the workers of --executor do the work"):
        split_words([*words, "--executor", "dask=a:1", "--ranks", "2"])
