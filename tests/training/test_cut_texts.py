"""Texts that a task's limits cut are told before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.kinds import ALL_KINDS, kind_recipe
from vlds.evaluation.evaluator import cut_texts, num_cut, turns_left_out
from vlds.evaluation.sources import training_sources
from vlds.recipe.config import Recipe
from vlds.schema import Turn


def told(recipe: Recipe) -> list[str]:
    collator = recipe.model.collator(recipe.model.load_processor())
    return cut_texts(training_sources(recipe), collator)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_of_each_kind(kind: str, world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe(kind, world, tmp_path)
    long = {
        name: replace(task, max_prompt_tokens=100, max_target_tokens=100)
        for name, task in recipe.tasks.items()
    }
    assert told(replace(recipe, tasks=long)) == []
    short = long | {"vqa": replace(long["vqa"], max_prompt_tokens=2, max_target_tokens=1)}
    prompts, answers = told(replace(recipe, tasks=short))
    assert prompts == "tasks.vqa.max_prompt_tokens: 2 cuts 48 of the first 48 prompts"
    assert answers == "tasks.vqa.max_target_tokens: 1 cuts 48 of the first 48 answers"


def test_only_longer_ones_count() -> None:
    def lengths(texts: list[tuple[str, int]]) -> list[int]:
        return [min(len(text), most) for text, most in texts]

    assert num_cut(lengths, ["", "abc", "abcd", "abcde"], 4) == 1
    assert num_cut(lengths, [], 4) == 0


class Words:
    """Counts words."""

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return sum(len(text.split()) for turn in turns for text in turn.texts)


def test_turns_that_are_left_out_of_conversations(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)
    (source, *_) = training_sources(recipe)
    talks = [
        [Turn("user", ("a b c",)), Turn("assistant", ("d",)), Turn("user", ("e f",))],
        [Turn("user", ("a b c d e f g",))],
        [Turn("user", ("a",))],
    ]
    short = replace(source, task=replace(source.task, max_prompt_tokens=4))
    assert list(turns_left_out(short, talks, Words())) == [  # type: ignore[arg-type]
        "tasks.vqa.max_prompt_tokens: 4 leaves out 2 turns, the oldest, of 1 of the first 3 "
        "conversations",
        "tasks.vqa.max_prompt_tokens: 4 cuts the last question of 1 of the first 3 conversations",
    ]
