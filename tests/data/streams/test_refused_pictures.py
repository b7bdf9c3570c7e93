"""Pictures that a model's processor refuses make bad samples, like those that cannot be decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from data_prep.packing.writer import write_dataset
from tests.toys.files import read_lines
from tests.toys.image_text.rows import Tiny, tiny
from tests.toys.pictures import noise
from tests.toys.streams import ToyTask, records, red_source, train_stream
from tests.toys.world import world_recipe
from vlds.artifact import LoadedRun
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.sequential import SequentialStream, StreamedSource, open_streamed
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.evaluation.evaluator import predict

LENIENT = ErrorPolicy(max_bad_fraction=1.0)
THIN = noise(0, (300, 1))
REASON = (
    "the model's processor refuses a picture (300 x 1 pixels): absolute aspect ratio must be "
    "smaller than 200, got 300.0"
)


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny("qwen2_vl")


def source(folder: Path, is_thin: Callable[[int], bool], num_samples: int = 12) -> Source:
    """A data set in which some samples have a thin picture."""
    pictures = records("thin", num_samples, lambda n: THIN if is_thin(n) else noise(n))
    write_dataset(folder, name="thin", kind="vqa", split="train", records=pictures, shard_samples=6)
    return red_source(folder)


def assert_replaced(stream: TrainStream | SequentialStream) -> None:
    batches = list(islice(stream, 8))  # 64 of 33 examples: nearly two epochs
    ids = [id for batch in batches for id in batch.ids]
    assert len(ids) == 64
    assert not any(id.startswith("thin-4-") for id in ids)
    assert all(len(batch.media) == len(batch) for batch in batches)
    assert stream.num_bad >= 5


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_thin_picture_is_replaced_counted_and_listed(
    model: Tiny, num_workers: int, tmp_path: Path
) -> None:
    stream = train_stream(
        [source(tmp_path / "data", lambda n: n == 4)],
        errors=LENIENT,
        ledger=tmp_path / "errors.jsonl",
        num_workers=num_workers,
        collator=model.collator,
        image=model.kind.image,
    )
    assert_replaced(stream)
    (line,) = read_lines(tmp_path / "errors.jsonl")
    assert (line["key"], line["id"], line["reason"]) == ("000000004", "thin-4", REASON)


def test_streamed_shards_go_on_with_what_comes_next(model: Tiny, tmp_path: Path) -> None:
    source(tmp_path / "data", lambda n: n == 4)
    streamed = open_streamed(str(tmp_path / "data"), ("vqa",), None)
    config = DataConfig(reader="sequential", global_batch_size=8, errors=LENIENT)
    setup = StreamSetup(collator=model.collator, image=model.kind.image)
    sources = [StreamedSource("red", ToyTask(), [streamed])]  # type: ignore[arg-type]
    stream = SequentialStream(sources, config, setup)
    assert_replaced(stream)


def test_a_prediction_names_the_picture(model: Tiny, world: Path, tmp_path: Path) -> None:
    recipe = replace(world_recipe(world, tmp_path), model=model.kind)
    run = LoadedRun(recipe, model.processor, model.build().eval())
    assert isinstance(predict(run, "vqa", [noise(1)], "what?").text, str)
    with pytest.raises(ValueError, match=r"^image: the model's processor refuses .*300 x 1 pixels"):
        predict(run, "vqa", [THIN], "what?")
