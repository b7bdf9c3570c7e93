"""`vlds features` on several machines: by a Dask cluster's workers, and by ranks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
import torch

from data_prep.packing.writer import write_dataset
from tests.toys.dask_processes import DaskProcesses
from tests.toys.deadly_encoder import DIES_AT, DeadlyNet
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import records, world_recipe
from vlds.evaluation.features import ATTEMPT, compute_features, remove_attempts
from vlds.recipe.config import Recipe
from vlds.runtime.cluster import open_cluster

SHARDS, BATCHES = 8, 32
"""Shards of eight samples, in batches of two."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in `data`, weights of the encoder, and in `marks` the batches that it counts."""
    folder = tmp_path_factory.mktemp("machines")
    write_dataset(
        folder / "data", name="vqa", kind="vqa", split="train", records=records("vqa", 8 * SHARDS),
        shard_samples=8,
    )  # fmt: skip
    for name in ("marks", "net"):
        (folder / name).mkdir()
    deadly(folder)
    torch.manual_seed(3)
    net = DeadlyNet(image_size=16, grid=2, widths=[4, 8, 8], folder=str(folder / "marks"))
    net.export(net.build(torch.float32), folder / "net")
    return folder


@pytest.fixture
def recipe(place: Path, world: Path, tmp_path: Path) -> Recipe:
    encoder = DeadlyNet(
        image_size=16, grid=2, widths=[4, 8, 8], folder=str(place / "marks"),
        weights=str(next((place / "net").glob("*.safetensors"))),
    )  # fmt: skip
    deadly(place)
    recipe = with_model(world_recipe(world, tmp_path / "run"), vision=encoder)
    return replace(recipe, data=replace(recipe.data, eval_batch_size=2))


def deadly(place: Path, *numbers: int) -> None:
    """Let the batches of these numbers kill, and count from 0."""
    for old in (place / "marks").glob("batch-*"):
        old.unlink()
    (place / "marks" / DIES_AT).write_text(" ".join(map(str, numbers)))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(recipe: Recipe, place: Path, ranks1: RankPool) -> dict[str, bytes]:
    out = place / "whole"
    ranks1.run(compute_features, recipe, str(place / "data"), out, None, timeout=120)
    return files(out)


def test_what_is_left_of_attempts_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, ending in (("a-train-00001.tar", ""), ("a-train-00002.tar", ".done")):
        attempt = tmp_path / f".{name}@host-7-aaaa{ATTEMPT}"
        attempt.mkdir()
        (attempt / f"{name}{ending}").touch()
    remove_attempts(tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        "a-train-00001.tar was left half written by worker host-7-aaaa, and is removed: another "
        "computed it",
        "a-train-00002.tar was computed twice: the copy of worker host-7-aaaa is removed",
    ]
    assert list(tmp_path.iterdir()) == []


def compute_on(recipe: Recipe, folder: str, out: Path, executor: str) -> tuple[int, str]:
    """On a rank: the exit code of the command on a cluster, and what it says on stderr."""
    with redirect_stderr(StringIO()) as said, open_cluster(executor) as cluster:
        code = compute_features(recipe, folder, out, None, cluster)
    return code, said.getvalue()


dask_only = pytest.mark.skipif(
    find_spec("distributed") is None, reason="Dask is missing: pip install 'vlds[dask]'"
)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    cluster = DaskProcesses(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.stop()


@dask_only
@pytest.mark.slow
@pytest.mark.parametrize("kill", range(4))
def test_workers_that_die_in_a_shard(
    kill: int,
    recipe: Recipe,
    place: Path,
    whole: dict[str, bytes],
    dask: DaskProcesses,
    ranks1: RankPool,
    tmp_path: Path,
) -> None:
    """At a batch that the seed draws: the shard is begun, and another worker computes it."""
    deadly(place, *random.Random(kill).sample(range(BATCHES), 1 + kill % 2))
    out = tmp_path / "out"
    words = (recipe, str(place / "data"), out, dask.executor)
    ((code, said),) = ranks1.run(compute_on, *words, timeout=280)
    assert code == 0
    assert files(out) == whole
    assert said.count(" is gone; ") == 1 + kill % 2
    assert said.count("was left half written by worker") == 1 + kill % 2
