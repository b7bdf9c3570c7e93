"""Features computed once are those that the encoder gives in training."""

from __future__ import annotations

import random
import shutil
import socket
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.class_folders import CLASSES, write_classes
from tests.toys.dask_processes import DaskProcesses
from tests.toys.deadly_encoder import DIES_AT, DeadlyNet
from tests.toys.rank_pool import RankError, RankPool
from tests.toys.recipes import with_model
from tests.toys.world import picture, records, world_recipe
from vlds.cli.main import run_command
from vlds.data.shards.pictures import decode_image
from vlds.data.shards.store import open_dataset
from vlds.evaluation import features
from vlds.evaluation.features import ATTEMPT, compute_features, remove_attempts
from vlds.models.vision import ConvNet, StoredFeatures
from vlds.models.vision.base import GridEncoder
from vlds.recipe.config import Recipe, save_recipe
from vlds.runtime.cluster import open_cluster

NO_PROCESS = 1 << 22
"""No process of Linux has this number, or a larger one."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ConvNet:
    """A small net with weights in a file."""
    torch.manual_seed(3)
    random = ConvNet(image_size=16, grid=2, widths=[4, 8, 8])
    exported = random.export(random.build(torch.float32), tmp_path_factory.mktemp("net"))
    assert isinstance(exported, ConvNet)
    return exported


def compute(recipe: Recipe, folder: str, out: Path) -> int:
    """What `vlds features` does on a rank."""
    return compute_features(recipe, folder, out, None)


@pytest.fixture
def recipe(world: Path, encoder: ConvNet, tmp_path: Path) -> Recipe:
    return with_model(world_recipe(world, tmp_path / "run"), vision=encoder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_ranks_stores_what_the_encoder_gives(
    recipe: Recipe, world: Path, ranks2: RankPool, ranks4: RankPool, tmp_path: Path
) -> None:
    for pool, name in ((ranks2, "two"), (ranks4, "four")):
        done = pool.run(compute, recipe, str(world / "vqa"), tmp_path / name, timeout=120)
        assert done == [0] * pool.world_size
    assert files(tmp_path / "two") == files(tmp_path / "four")
    pictures, stored = open_dataset(world / "vqa"), open_dataset(tmp_path / "two")
    net = recipe.model.vision.build(torch.float32).eval()
    assert stored.info.features is not None
    assert (stored.info.features["grid"], stored.info.features["dim"]) == (2, 8)
    assert (stored.name, stored.kind, stored.num_samples) == ("vqa_features", "vqa", 24)
    for number in range(stored.num_samples):
        old, new = pictures.read(number), stored.read(number)
        assert (new.id, new.annotations, new.images) == (old.id, old.annotations, ())
        image = recipe.image
        assert image is not None
        pixels = decode_image(old.images[0], image)
        with torch.no_grad():
            expected = net(torch.from_numpy(pixels[None])).to(torch.float16)[0]
        np.testing.assert_allclose(new.features[0], expected.numpy(), rtol=2e-3, atol=1e-3)


def test_features_keep_the_classes(recipe: Recipe, ranks1: RankPool, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "toy")
    ranks1.run(compute, recipe, str(folder), tmp_path / "out", timeout=120)
    stored = open_dataset(tmp_path / "out")
    assert stored.info.classes == CLASSES
    assert stored.class_numbers().tolist() == open_dataset(folder).class_numbers().tolist()


def begun(recipe: Recipe, world: Path, out: Path, *shards: int) -> features.FeatureJob:
    """What `compute` does for the world's questions, and has done for some shards."""
    out.mkdir()
    net = recipe.encoder.build(torch.float32).eval()
    dataset, content = open_dataset(world / "vqa"), net.content_hash()
    job = features.FeatureJob(recipe, recipe.image, dataset, out, "vqa_features", content)
    for number in shards:
        job.write_shard(net, number, job.tars[number])
    return job


def with_a_bad_picture(folder: Path, num: int, **more: int) -> Path:
    """Questions about red pictures, of which the third is damaged."""
    records = [
        SampleRecord(
            id=f"id-{n}",
            members=[("jpg", picture("red", n)[: 200 if n == 2 else None])],
            json={"annotations": [{"id": str(n), "question": "?"}]},
        )
        for n in range(num)
    ]
    write_dataset(folder, name="bad", kind="vqa", split="val", records=records, **more)
    return folder


def test_what_is_interrupted_goes_on(
    recipe: Recipe, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    ranks2.run(compute, recipe, str(world / "vqa"), whole, timeout=120)
    job = begun(recipe, world, half, 1)
    name = f".vqa_features-train-00000.tar@{socket.gethostname()}-{NO_PROCESS}-0.partial"
    (half / name).write_bytes(b"half a shard")
    written = job.tars[1].stat().st_mtime_ns
    ranks2.run(compute, recipe, str(world / "vqa"), half, timeout=120)
    assert job.tars[1].stat().st_mtime_ns == written
    assert files(half) == files(whole)
    assert ranks2.run(compute, recipe, str(world / "vqa"), half, timeout=120) == [0, 0]


def test_other_settings_do_not_go_on(recipe: Recipe, world: Path, tmp_path: Path) -> None:
    job = begun(recipe, world, tmp_path / "out", 0)
    other = replace(recipe, training=replace(recipe.training, precision="bf16"))
    with pytest.raises(ValueError, match="was begun with other pictures or another encoder"):
        replace(job, recipe=other).is_done()
    shutil.copytree(world / "vqa", tmp_path / "taken")
    with pytest.raises(ValueError, match=r"taken holds another data set: .* name another one"):
        replace(job, out=tmp_path / "taken").is_done()


def other_weights(folder: Path) -> GridEncoder:
    """Write an encoder of the same sizes, with other weights, into a folder; what it computes."""
    torch.manual_seed(4)
    random = ConvNet(image_size=16, grid=2, widths=[4, 8, 8])
    net = random.build(torch.float32).eval()
    random.export(net, folder)
    return net


@pytest.mark.parametrize("is_whole", [True, False])
def test_other_weights_under_the_same_name_do_not_go_on(
    is_whole: bool, recipe: Recipe, world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    weights = shutil.copy(str(recipe.encoder.source), tmp_path / "vision.safetensors")
    recipe = with_model(recipe, vision=replace(recipe.encoder, weights=str(weights)))
    out = tmp_path / "out"
    if is_whole:
        ranks1.run(compute, recipe, str(world / "vqa"), out, timeout=120)
    else:
        begun(recipe, world, out, 1)
    other_weights(tmp_path)
    what = r"encoder \(sha256\) is [0-9a-f]{64} there, and [0-9a-f]{64} for .*/vqa and "
    with pytest.raises(RankError, match=rf"--out: {out} .*: {what}{weights}; bring back"):
        ranks1.run(compute, recipe, str(world / "vqa"), out, timeout=120)


def test_bad_pictures_are_dropped_and_listed(
    recipe: Recipe, ranks2: RankPool, tmp_path: Path
) -> None:
    bad = with_a_bad_picture(tmp_path / "bad", 5, shard_samples=2)
    ranks2.run(compute, recipe, str(bad), tmp_path / "out", timeout=120)
    info = open_dataset(tmp_path / "out").info
    assert info.samples == 4
    (dropped,) = info.dropped
    assert dropped["id"] == "id-2"
    assert "truncated or damaged" in dropped["reason"]


def test_a_shard_with_bad_pictures_is_not_computed_again(recipe: Recipe, tmp_path: Path) -> None:
    with_a_bad_picture(tmp_path / "bad/vqa", 4)
    job = begun(recipe, tmp_path / "bad", tmp_path / "out", 0)
    assert not job.still_to_do(0, job.tars[0])


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        (StoredFeatures(dim=8, grid=2), "StoredFeatures computes nothing"),
        (ConvNet(image_size=16, grid=2, widths=[4, 8, 8]), "its weights are random"),
    ],
)
def test_encoders_that_cannot(
    vision: StoredFeatures | ConvNet, message: str, recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        compute_features(with_model(recipe, vision=vision), str(world / "vqa"), tmp_path, None)


def test_a_name_that_no_file_can_have(recipe: Recipe, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name 'a/b': it becomes part of file names"):
        compute_features(recipe, str(world / "vqa"), tmp_path / "out", "a/b")


@pytest.mark.slow
def test_the_command(recipe: Recipe, world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    """With a key of the recipe overridden, and data at a URL."""
    save_recipe(recipe, tmp_path / "recipe.yaml")
    words = ["features", "--config", str(tmp_path / "recipe.yaml"), "--name", "mine",
             "--data", f"file://{world}/vqa", "--out", str(tmp_path / "out"),
             "--data.cache", str(tmp_path / "cache"), "--data.eval_batch_size", "5"]  # fmt: skip
    assert ranks2.run(run_command, words, timeout=120) == [0, 0]
    ranks2.run(compute, recipe, str(world / "vqa"), tmp_path / "direct", timeout=120)
    assert open_dataset(tmp_path / "out").name == "mine"
    command, direct = (
        [open_dataset(tmp_path / name).read(n).features[0] for n in range(24)]
        for name in ("out", "direct")
    )
    for one, other in zip(command, direct, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-3)


# `vlds features` on several machines: by a Dask cluster's workers, and by ranks.

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
def deadly_recipe(place: Path, world: Path, tmp_path: Path) -> Recipe:
    encoder = DeadlyNet(
        image_size=16, grid=2, widths=[4, 8, 8], folder=str(place / "marks"),
        weights=str(next((place / "net").glob("*.safetensors"))),
    )  # fmt: skip
    deadly(place)
    deadly_recipe = with_model(world_recipe(world, tmp_path / "run"), vision=encoder)
    return replace(deadly_recipe, data=replace(deadly_recipe.data, eval_batch_size=2))


def deadly(place: Path, *numbers: int) -> None:
    """Let the batches of these numbers kill, and count from 0."""
    for old in (place / "marks").glob("batch-*"):
        old.unlink()
    (place / "marks" / DIES_AT).write_text(" ".join(map(str, numbers)))


@pytest.fixture
def whole(deadly_recipe: Recipe, place: Path, ranks1: RankPool) -> dict[str, bytes]:
    out = place / "whole"
    ranks1.run(compute_features, deadly_recipe, str(place / "data"), out, None, timeout=120)
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


def compute_on(deadly_recipe: Recipe, folder: str, out: Path, executor: str) -> tuple[int, str]:
    """On a rank: the exit code of the command on a cluster, and what it says on stderr."""
    with redirect_stderr(StringIO()) as said, open_cluster(executor) as cluster:
        code = compute_features(deadly_recipe, folder, out, None, cluster)
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
    deadly_recipe: Recipe,
    place: Path,
    whole: dict[str, bytes],
    dask: DaskProcesses,
    ranks1: RankPool,
    tmp_path: Path,
) -> None:
    """At a batch that the seed draws: the shard is begun, and another worker computes it."""
    deadly(place, *random.Random(kill).sample(range(BATCHES), 1 + kill % 2))
    out = tmp_path / "out"
    words = (deadly_recipe, str(place / "data"), out, dask.executor)
    ((code, said),) = ranks1.run(compute_on, *words, timeout=280)
    assert code == 0
    assert files(out) == whole
    assert said.count(" is gone; ") == 1 + kill % 2
    assert said.count("was left half written by worker") == 1 + kill % 2
