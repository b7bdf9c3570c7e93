"""Packed data as a torch data set."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import vlds
from vlds.tasks import VQA


def described(item: vlds.Item) -> tuple[str, str, str | None, tuple[int, ...]]:
    """What a loader can collate."""
    pixel = item.pictures[0].getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return item.id, item.question, item.answer, pixel


def as_list(batch: list[Any]) -> list[Any]:
    return batch


def test_items_have_pictures_questions_and_answers(run: Path, model: vlds.Model) -> None:
    data = vlds.dataset(run.parent / "world" / "vqa", "VQA")
    assert len(data) == 48
    items = list(data)
    assert len({item.id for item in items}) == 48
    assert items[0].pictures[0].size == (16, 16)
    assert items[0].question == "what colour is it ?"
    assert {item.answer for item in items} == {"red", "green", "blue"}
    assert items[0].example.prompt == "vqa: what colour is it ?"
    assert data[-1] == items[-1]
    with pytest.raises(IndexError):
        data[48]
    # They are what a model is asked.
    answers = list(model.answer_many((item.pictures, item.question) for item in items[:3]))
    assert len(answers) == 3


def test_a_data_loader_reads_them_with_workers(run: Path) -> None:
    data = vlds.dataset([run.parent / "world" / "vqa"], VQA(prompt=""), transform=described)
    alone = [data[number] for number in range(len(data))]
    loader = DataLoader(data, batch_size=5, num_workers=2, collate_fn=as_list)
    assert [item for batch in loader for item in batch] == alone
    again = pickle.loads(pickle.dumps(data))  # for workers that are spawned
    assert again[7] == alone[7]


def test_captions_are_one_item_a_picture(run: Path) -> None:
    data = vlds.dataset(run.parent / "world" / "caption", "Caption")
    assert len(data) == 10
    assert data[0].question == ""
    assert len(data[0].example.reference) == 2
    assert data[0].answer == data[0].example.reference[0]


@pytest.mark.parametrize(
    ("shards", "task", "options", "message"),
    [
        ("world/vqa", "VQAA", {}, "task: got 'VQAA'; did you mean 'VQA'"),
        ("world/vqa", 7, {}, "task: got 7; give the name of a task"),
        ("world/vqa", "Caption", {}, "shards: .*holds samples of kind 'vqa', Caption understands"),
        ("world/none", "VQA", {}, "shards: .*none"),
        ([], "VQA", {}, "shards: got .*give a folder, or a list"),
        (7, "VQA", {}, "shards: got 7; give a folder"),
        ("world/vqa", "VQA", {"transform": 7}, "transform: got int; give a function of an Item"),
    ],
)
def test_mistakes(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: Any,
    task: Any,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(ValueError, match=message):
        vlds.dataset(shards, task, **options)
