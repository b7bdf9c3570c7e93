"""Parts: rows of similar shape, computed apart, with the same loss."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.toys.engines import NUM_EXAMPLES, case_recipe, global_batch, make_case, recipe_model
from vlds.schema import IGNORED_LABEL, NO_IMAGE
from vlds.training.optimizer import cheapest_cuts, similar_rows

VISUAL_TOKENS = 9


@pytest.mark.parametrize("parts", [2, 4, NUM_EXAMPLES])
def test_parts_have_every_row_once_and_the_same_loss(tmp_path: Path, parts: int) -> None:
    model = recipe_model(case_recipe(make_case(tmp_path)))
    batch, scale = global_batch(5), torch.linspace(0.1, 1, NUM_EXAMPLES)
    rows = similar_rows(model.sizes(batch), parts)
    assert sorted(torch.cat(rows).tolist()) == list(range(NUM_EXAMPLES))
    assert len(rows) == parts
    found = []
    for cut in ([], rows):
        model.zero_grad()
        output = model(batch, scale, cut)
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((output, gradients))
    (whole, whole_gradients), (cut_up, cut_gradients) = found
    assert torch.allclose(cut_up.token_nll_sum, whole.token_nll_sum, rtol=1e-5)
    assert torch.allclose(cut_up.loss, whole.loss, rtol=1e-5)
    for one, other in zip(whole_gradients, cut_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_selected_rows_keep_their_words_and_pictures() -> None:
    batch = global_batch(7)
    batch.samples = [f"picture {n // 2}" for n in range(len(batch))]
    assert batch.labels is not None
    rows = torch.tensor([11, 2, 5])
    chosen = batch.select(rows)
    assert chosen.ids == [batch.ids[n] for n in rows.tolist()]
    assert chosen.samples == ["picture 5", "picture 1", "picture 2"]
    for place, row in enumerate(rows.tolist()):
        words = chosen.input_ids[place][chosen.attention_mask[place]]
        assert words.tolist() == batch.input_ids[row][batch.attention_mask[row]].tolist()
        target = chosen.labels[place]  # type: ignore[index]
        wanted = batch.labels[row]
        assert target[target != IGNORED_LABEL].tolist() == wanted[wanted != IGNORED_LABEL].tolist()
        for old, new in zip(batch.image_index[row], chosen.image_index[place], strict=False):
            assert (old == NO_IMAGE) == (new == NO_IMAGE)
            if old != NO_IMAGE:
                assert torch.equal(chosen.features[new], batch.features[old])  # type: ignore[index]
    longest = int(chosen.attention_mask.sum(1).max())
    assert chosen.input_ids.shape[1] == longest


@given(
    st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=9),
    st.integers(1, 5),
)
def test_no_other_cuts_are_cheaper(shapes: list[tuple[int, int, int]], parts: int) -> None:
    sizes = np.array(sorted(shapes), np.int64)
    parts = min(parts, len(sizes))

    def tokens(cuts: tuple[int, ...] | list[int]) -> int:
        return sum((b - a) * int(sizes[a:b].max(0).sum()) for a, b in pairwise(cuts))

    found = cheapest_cuts(sizes, np.arange(len(sizes) + 1), parts)
    every = [(0, *inner, len(sizes)) for inner in combinations(range(1, len(sizes)), parts - 1)]
    assert tokens(found) == min(map(tokens, every))
