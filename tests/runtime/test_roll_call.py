"""Ranks on two hosts report to the first one before they join, and afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.toys.rank_pool import RankPool
from vlds.runtime import roll_call
from vlds.runtime.cluster import software
from vlds.runtime.rank_environment import RankPlace, free_port
from vlds.runtime.ranks import rank_from_environment


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
