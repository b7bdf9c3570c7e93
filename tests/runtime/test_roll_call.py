"""Ranks on two hosts report to the first one before they join, and afterwards."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.cli import main
from tests.toys.rank_pool import RankPool
from vlds.cli.words import split_words
from vlds.runtime import roll_call
from vlds.runtime.cluster import (
    Cluster,
    LostWorker,
    Needs,
    Seen,
    UnfitWorker,
    executor_name,
    software,
)
from vlds.runtime.rank_environment import RankPlace, free_port
from vlds.runtime.ranks import rank_from_environment
from vlds.runtime.workers import ordered_map


def call(
    port: int, case: str, hosts: Sequence[int] = (0, 1), last: str = ""
) -> tuple[list[str], str]:
    """What this rank says, up to `last`, and how its call ends. `hosts`: that of each rank."""
    rank, said = int(os.environ["RANK"]), list[str]()
    if rank >= len(hosts):
        return said, ""
    host = hosts[rank]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_PORT", str(port))
        size = len(hosts) + (case == "other software")
        patch.setenv("SLURM_JOB_NODELIST", "gpu[1-3]" if case == "other software" else "gpu[1-2]")
        patch.setattr(roll_call, "MISSED_S", 20.0 if case == "other software" else 1.0)
        patch.setattr(roll_call, "BEAT_S", 0.2)
        patch.setattr(roll_call, "_say", said.append)
        if rank == 1 and case == "other software":
            patch.setattr(roll_call, "software", lambda: {**software(), "torch": "1.0"})
        if host == 1 and case == "silent":
            patch.setattr(roll_call, "BEAT_S", 3.0)
        if rank == 1 and case == "late":
            time.sleep(3)
        if rank == 1 and case == "lost":
            return said, ""
        try:
            place = RankPlace(rank, size, hosts[:rank].count(host), hosts.count(host))
            roll_call.call_roll(place, 4 if case == "lost" else 30)
        except (ValueError, SystemExit) as error:
            if rank == 1 and case == "other software":
                # A third host comes when the run has failed already.
                time.sleep(0.5)
                patch.setattr(roll_call, "software", software)
                with pytest.raises(SystemExit, match="2"):
                    roll_call.call_roll(RankPlace(2, size, 0, 1), 30)
            return said, f"{type(error).__name__} {error}"
        end = time.monotonic() + (8 if case == "silent" else 0)
        while last not in said and time.monotonic() < end:
            time.sleep(0.1)
        return said, "here"


def outcomes(ranks: RankPool, case: str) -> list[Any]:
    return ranks.run(call, free_port(), case)


def test_other_software(ranks2: RankPool) -> None:
    (said, end), other = outcomes(ranks2, "other software")
    (fault,) = said
    assert fault.startswith("gpu2 (rank 1) has other software than the first host (torch")
    assert "torch: 1.0 there, " in fault
    assert end == "SystemExit 2"
    assert other == ([], "SystemExit 2")


def test_a_host_that_comes_late(ranks2: RankPool) -> None:
    (said, end), other = outcomes(ranks2, "late")
    assert said[0].startswith("gpu2 (rank 1) has not come ")
    assert said[-1].startswith("all 2 ranks are here after ")
    assert end == "here"
    assert other == ([], "here")


def test_a_host_that_does_not_come(ranks2: RankPool) -> None:
    (said, end), _ = outcomes(ranks2, "lost")
    assert said[0].startswith("gpu2 (rank 1) has not come ")
    assert said[-1] == "gpu2 (rank 1) did not come in 4 s; start again"
    assert end == "SystemExit 1"


@pytest.mark.parametrize(
    ("hosts", "name"),
    [((0, 1), "(rank 1)"), ((0, 1, 1), "(ranks 1 to 2)"), ((0, 0, 1), "(rank 2)")],
)
def test_a_host_that_is_silent_during_the_run(
    ranks4: RankPool, hosts: tuple[int, ...], name: str
) -> None:
    (said, _), *_ = ranks4.run(call, free_port(), "silent", hosts, f"gpu2 {name} is back")
    # The watchers of earlier cases speak too: they live as long as their process.
    own = [line for line in said if f"gpu2 {name}" in line]
    assert own[0].startswith(f"nothing was heard of gpu2 {name} for 1 s: ")
    assert own[-1] == f"gpu2 {name} is back"
    assert not [line for line in said if "rank 0" in line or "machine " in line]


def test_ranks_that_are_not_numbered_machine_by_machine(ranks4: RankPool) -> None:
    (said, end), *others = ranks4.run(call, free_port(), "cyclic", (0, 1, 0, 1))
    assert said[0].startswith("rank 2 is not the first of its machine: number ranks machine by ")
    assert {end, *(end for _, end in others)} == {"SystemExit 2"}


def test_slow_ranks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[1-2]")
    pace = roll_call.Pace(RankPlace(0, 4, 0, 2))
    even = torch.tensor([[0.1, 0.1, 0.2, 0.1], [2.0, 2.1, 2.0, 3.0]])
    slow = torch.tensor([[0.1, 0.1, 4.0, 2.0], [2.0, 2.1, 2.0, 4.0]])
    assert pace.line(slow, 4) == ""  # too short to tell
    assert pace.line(slow, 8) == (
        "gpu2 (ranks 2 to 3): slow, and all others wait; of 12 s, 6 s went into waiting for data "
        "and 6 s into forward passes, for most ranks 0.2 and 4 s"
    )
    assert pace.line(slow, 12) == ""  # said before
    assert pace.line(even, 12) == "gpu2 (ranks 2 to 3): as fast as the others again"
    assert pace.line(even, 1000) == ""
    alone = roll_call.Pace(RankPlace(0, 2, 0, 2))
    assert alone.line(torch.tensor([[0.0, 0.0], [1.0, 9.0]]), 12).startswith("rank 1: slow, and")


# Values of all ranks on the first one, along a tree.


def gathered() -> Any:
    """Values of different sizes, one of them none."""
    ranks = rank_from_environment()
    value = {"rank": ranks.global_rank, "x": "y" * 1000 * ranks.global_rank}
    return ranks.gather(value), ranks.gather(None), os.environ["RANK"]


@pytest.mark.parametrize("size", [2, 4])
def test_values_come_in_the_order_of_ranks(ranks2: RankPool, ranks4: RankPool, size: int) -> None:
    first, *others = (ranks2 if size == 2 else ranks4).run(gathered)
    assert [value["rank"] for value in first[0]] == list(range(size))
    assert [len(value["x"]) for value in first[0]] == [1000 * n for n in range(size)]
    assert first[1] == [None] * size
    assert all(other[:2] == (None, None) for other in others)


# Work through an Executor: one result for each item, in order, from workers fit for it.


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
