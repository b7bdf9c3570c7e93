"""Rows that are longer than the positions that a model has learned are named before training."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.toys.causal import batch, build, causal_recipe, kind_in, rows, write_config
from tests.toys.image_text.rows import tiny
from tests.toys.rank_jobs import check_complaint, ranks_of
from tests.toys.recipes import with_model, with_task
from tests.toys.world import world_recipe
from vlds.models.backbones import Bart
from vlds.models.loading.load_backbone import Longest
from vlds.recipe.config import Recipe
from vlds.schema import Turn
from vlds.training.prepare import prepare


def opt_recipe(world: Path, folder: Path, prompt: int, answer: int = 24) -> Recipe:
    """Rows of four visual tokens, a template of four, and these numbers of tokens."""
    recipe = causal_recipe(folder, world, folder / "run")
    recipe = with_model(recipe, config=str(write_config(folder, "opt")))
    return with_task(recipe, "vqa", max_prompt_tokens=prompt, max_target_tokens=answer)


def test_the_longest_row_is_compared_before_training(world: Path, tmp_path: Path) -> None:
    prepare(opt_recipe(world, tmp_path, 128 - 4 - 4 - 24), ranks_of(2), False)
    message = check_complaint(opt_recipe(world, tmp_path, 128 - 4 - 4 - 24 + 1))
    assert message == (
        "tasks.vqa: its longest row has 129 tokens: 4 (pictures) + 4 (around the prompt) + 97 "
        "(prompt) + 24 (answer); the model has learned 128 positions; lower model.grid, "
        "model.num_images, tasks.vqa.max_prompt_tokens, max_target_tokens or "
        "decoding.max_new_tokens"
    )


def test_written_answers_count_where_they_are_longer(world: Path, tmp_path: Path) -> None:
    recipe = opt_recipe(world, tmp_path, 24)
    decoding = replace(recipe.tasks["vqa"].decoding, max_new_tokens=110)
    long = with_task(recipe, "vqa", decoding=decoding)
    assert "24 (prompt) + 110 (answer)" in check_complaint(long)
    listed = with_task(recipe, "vqa", decoding=replace(decoding, answers=("red", "blue")))
    prepare(listed, ranks_of(2), False)


def test_the_longest_row_that_fits_runs(saved: Path) -> None:
    """And one more token does not: the numbers are those of the model."""
    kind = kind_in(saved / "opt", num_images=1)
    model, row = build(kind).eval(), rows()[0]

    def long(limit: int, **fields: Any) -> Any:
        example = replace(row.example, prompt="it is red " * 99, target="red " * 99, **fields)
        cut = row._replace(example=example, max_prompt_tokens=limit, max_target_tokens=24)
        return batch(kind, [cut])

    kind.check_length("t", Longest(1, 96, 24))
    assert int(model.sizes(long(96))) == 128
    assert model.token_nll(long(96)).isfinite().all()
    with pytest.raises(ValueError, match=r"^t: its longest row has 129 tokens"):
        kind.check_length("t", Longest(1, 97, 24))
    # What the template writes around two more turns counts, too.
    turns = [Turn(("user", "assistant")[n % 2], ("it is red " * 9,)) for n in range(3)]
    turns[0] = Turn("user", (None, *turns[0].texts))
    limit = kind.chat_format(kind.load_processor()).turns_length(turns)
    talk = long(limit, turns=tuple(turns))
    answer = 128 - int(model.sizes(talk)) + 24
    kind.check_length("t", Longest(1, limit, answer, turns=3))
    with pytest.raises(ValueError, match=r"^t: its longest row has 129 tokens"):
        kind.check_length("t", Longest(1, limit, answer + 1, turns=3))


def test_an_encoder_decoder_has_a_table_for_each(world: Path, tmp_path: Path) -> None:
    kind = tiny("florence2").kind
    kind.check_length("t", Longest(1, 505, 512))
    for longest in (Longest(1, 506, 8), Longest(1, 8, 513)):
        with pytest.raises(ValueError, match=r"^t: its longest row has 513 tokens: .* 512 posit"):
            kind.check_length("t", longest)
    tiny("llava").kind.check_length("t", Longest(2, 9999, 9999))
    recipe = world_recipe(world, tmp_path)
    recipe.model.check_length("t", Longest(2, 9999, 9999))
    bart = with_model(recipe, backbone=Bart(path=None, config=str(write_bart(tmp_path)))).model
    bart.check_length("t", Longest(2, 64, 64))
    with pytest.raises(
        ValueError, match=re.escape("65 tokens: 65 (answer); the model has learned")
    ):
        bart.check_length("t", Longest(2, 64, 65))


def write_bart(folder: Path) -> Path:
    """A small config with 64 positions."""
    sizes = {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 64, "vocab_size": 50,
    }  # fmt: skip
    AutoConfig.for_model("bart", **sizes).to_json_file(folder / "bart.json", use_diff=False)
    return folder / "bart.json"
