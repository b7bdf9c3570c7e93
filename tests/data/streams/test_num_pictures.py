"""Samples with more or fewer pictures than the model takes are named before training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.pictures import noise
from tests.toys.recipes import with_model
from tests.toys.streams import COLLATOR, SPEC, ToyTask, records, train_stream
from tests.toys.world import world_recipe
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy
from vlds.data.shards.store import open_dataset as opened
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.sequential import SequentialStream, StreamedSource, open_streamed
from vlds.data.streams.source import NumPictures, Source
from vlds.evaluation.sources import picture_limits
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.tasks import NLVR2

TWO = NumPictures(1, 2, "raise the number")


def odd(folder: Path, at: int, pictures: int) -> Path:
    """Ten samples, of which one has another number of pictures."""

    def samples() -> Iterator[SampleRecord]:
        for number, record in enumerate(records("odd", 10)):
            members = [(f"{n}.png", noise(n)) for n in range(pictures)]
            yield replace(record, members=members) if number == at else record

    write_dataset(folder, name="odd", kind="vqa", split="train", records=samples(), shard_samples=4)
    return folder


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (3, "it has 3 pictures, 1 to 2 expected; raise the number"),
        (0, "it has 0 pictures, 1 to 2 expected; prepare the data set without such samples"),
    ],
)
def test_one_sample_with_another_number(tmp_path: Path, pictures: int, message: str) -> None:
    folder = odd(tmp_path / "data", 6, pictures)
    source = Source("red", ToyTask(), [opened(folder)], num_pictures=TWO)
    where = rf"source red: data set {folder}, sample 6 \(in odd-train-00001\.tar\): "
    with pytest.raises(ValueError, match=f"^{where}{message}$"):
        train_stream([source])
    (folder / "quarantine.jsonl").write_text(
        '{"shard": "odd-train-00001.tar", "i": 2, "reason": "odd"}\n', encoding="utf-8"
    )
    train_stream([replace(source, datasets=[opened(folder)])])


@pytest.mark.parametrize("at", [0, 6])
def test_streamed_shards_have_no_index(tmp_path: Path, at: int) -> None:
    """There one of them is a bad sample, and the first ones are looked at."""
    streamed = open_streamed(str(odd(tmp_path / "data", at, 3)), ("vqa",), None)
    source = StreamedSource("red", ToyTask(), [streamed], num_pictures=TWO)  # type: ignore[arg-type]
    policy, ledger = ErrorPolicy(max_bad_fraction=1.0), tmp_path / "ledger"
    config = DataConfig(reader="sequential", global_batch_size=8, errors=policy)
    setup = StreamSetup(collator=COLLATOR, image=SPEC, seed=0, ledger=ledger)
    stream = SequentialStream([source], config, setup)
    ids = [id for batch in islice(stream, 12) for id in batch.ids]
    assert not any(id.startswith(f"odd-{at}-") for id in ids)
    assert "it has 3 pictures" in ledger.read_text("utf-8")


def test_what_a_recipe_takes(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path)
    limits = picture_limits(recipe, "vqa")
    assert (limits.fewest, limits.most) == (1, 2)
    assert "raise model.visual_embedding.num_images, or" in limits.fault(3)
    recipe = replace(recipe, tasks={"pairs": NLVR2()})
    assert picture_limits(recipe, "pairs").fault(1) == (
        "it has 1 picture, 2 expected; prepare the data set without such samples"
    )
    one = with_model(recipe, visual_embedding=VisualEmbeddingConfig(num_images=1))
    message = r"visual_embedding\.num_images: got 1, but tasks\.pairs \(NLVR2\) has 2 pictures"
    with pytest.raises(ValueError, match=message):
        picture_limits(one, "pairs")
