"""What a run would read, said before it: the numbers of a real stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.pictures import jpeg
from tests.toys.streams import ToyTask, train_stream
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source


def asked(number: int) -> list[dict[str, str]]:
    return [{"id": f"{number}-{n}", "question": "?", "answer": "x"} for n in range(2)]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two data sets of 32 and 8 shards with four annotations each."""
    made = []
    for name, num_shards in (("many", 32), ("few", 8)):
        records = [
            SampleRecord(
                id=f"{name}-{n}", members=[("jpg", jpeg())], json={"annotations": asked(n)}
            )
            for n in range(2 * num_shards)
        ]
        write_dataset(tmp_path / name, name=name, kind="vqa", split="train", records=records,
                      shard_samples=2)  # fmt: skip
        made.append(tmp_path / name)
    return made


@pytest.fixture
def simulated(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    """Run the command: the cells of each line."""

    def run(*words: object) -> list[list[str]]:
        capsys.readouterr()
        assert main(["simulate-order", *map(str, words)]) == 0
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 80
        return [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if line.strip()]

    return run


def test_mixture_and_epochs(folders: list[Path], simulated: Any) -> None:
    rows = simulated(*folders, "--weights", 3, 1, "--global-batch-size", 8, "--steps", 16)
    assert ["many-train", "128", "75.00%", "96", "21.3"] in rows
    assert ["few-train", "32", "25.00%", "32", "16.0"] in rows
    (node,) = [row for row in rows if row[0] == "0"]
    assert re.fullmatch(r"\d+ of 40", node[1])


def test_batches_of_one_task(folders: list[Path], simulated: Any) -> None:
    """128 annotations in 16 batches of 8 and 32 in 16 of 2."""
    rows = simulated(*folders, "--unit", "global_batch", "--batch-sizes", 8, 2,
                     "--temperature", 1, "--nodes", 2, "--steps", 64)  # fmt: skip
    assert ["steps 0 to 64, 2 or 8 examples each, on 2 x 1 ranks"] in rows
    assert ["many-train", "128", "50.00%", "256", "32.0"] in rows
    assert ["few-train", "32", "50.00%", "64", "32.0"] in rows


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("lanes", "least", "most"), [(1, 25, 40), (4, 9, 12)])
def test_lanes_keep_nodes_apart(
    lanes: int, least: int, most: int, folders: list[Path], simulated: Any
) -> None:
    """One epoch of each data set: a node with two of eight ranks needs a quarter of the shards."""
    given = ["--temperature", 1, "--global-batch-size", 16, "--nodes", 4, "--ranks-per-node", 2]
    rows = simulated(*folders, *given, "--lanes", lanes, "--steps", 10)
    found = [row[1] for row in rows if row[0] in "0123" and len(row) == 4]
    assert len(found) == 4
    assert all(least <= int(number.split()[0]) <= most for number in found), found


def test_the_examples_are_those_of_a_stream(folders: list[Path], simulated: Any) -> None:
    given = ["--global-batch-size", 4, "--steps", 3, "--window", 2, "--from", 5]
    rows = simulated(folders[0], *given)
    source = Source("many-train", ToyTask(), [open_dataset(folders[0])])
    stream = train_stream([source], global_batch_size=4, window=2, seed=0)
    numbers = [id.split("-")[0] for batch in islice(stream, 5, 8) for id in batch.ids]
    shards = {int(number) // 2 for number in numbers}
    assert rows[-1][1] == f"{len(shards)} of 32"


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "1"], "--weights: 1 for 2 data sets"),
        (["--nodes", "0"], "--nodes: got 0; give 1 or more"),
        (["--nodes", "128"], "--global-batch-size: 64 examples for 128 ranks; give at least one"),
        (["--nodes", "-1", "--ranks-per-node", "-1"], "--nodes: got -1; give 1 or more"),
        (["--batch-sizes", "8", "4"], "batches mix tasks; add --unit global_batch"),
        (["--unit", "global_batch", "--batch-sizes", "8"], "--batch-sizes [8]: 2 data sets; give"),
        (["--from", "-5"], "--from: got -5; give 0 or more"),
        (["--lanes", "7"], "lanes: 7 do not divide global_batch_size 64"),
    ],
)
def test_impossible_plans(
    words: list[str], message: str, folders: list[Path], refused: Any
) -> None:
    refused(main(["simulate-order", *map(str, folders), *words]), message)
