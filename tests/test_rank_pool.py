"""The pool of test processes reports results, errors, hangs and deaths, and survives them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed

from tests.toys.rank_pool import RankError, RankPool


@dataclass(frozen=True)
class Point:
    """A class of this module, to be pickled to the processes and back."""

    x: int


def total(point: Point) -> tuple[int, Point, torch.Tensor]:
    global_rank = torch.distributed.get_rank()
    value = torch.tensor([float(global_rank + point.x)])
    torch.distributed.all_reduce(value)
    return global_rank, Point(point.x + global_rank), value


def fail_on_last() -> None:
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        raise KeyError("the last one")
    torch.distributed.barrier()


def hang() -> None:
    time.sleep(600)


def die() -> None:
    if torch.distributed.get_rank() == 1:
        os._exit(7)
    torch.distributed.barrier()


def process_id() -> int:
    return os.getpid()


def test_results_of_every_process(ranks2: RankPool) -> None:
    results = ranks2.run(total, Point(10))
    assert [(r, p) for r, p, _ in results] == [(0, Point(10)), (1, Point(11))]
    assert [float(v) for _, _, v in results] == [21.0, 21.0]


def test_processes_are_kept(ranks2: RankPool) -> None:
    first = ranks2.run(process_id)
    assert len(set(first)) == 2
    assert ranks2.run(process_id) == first


@pytest.mark.slow
def test_failures_are_readable_and_survived(ranks2: RankPool) -> None:
    with pytest.raises(RankError, match=r"global_rank 1(?s:.*)KeyError: 'the last one'"):
        ranks2.run(fail_on_last)
    with pytest.raises(RankError, match=r"global_rank 1: died with code 7"):
        ranks2.run(die)
    ranks2.run(process_id)  # the time limit is for the job alone
    with pytest.raises(RankError, match=r"no answer(?s:.*)in hang"):
        ranks2.run(hang, timeout=1)
    assert len(ranks2.run(process_id)) == 2


def test_a_nested_function_is_refused(ranks2: RankPool) -> None:
    with pytest.raises(TypeError, match="top of a file"):
        ranks2.run(lambda: None)


@pytest.mark.slow
def test_four_processes(ranks4: RankPool) -> None:
    assert [float(v) for _, _, v in ranks4.run(total, Point(0))] == [6.0] * 4
