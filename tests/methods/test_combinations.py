"""Methods act together, in pairs, on both backbones."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from tests.toys.method_cases import METHOD_CASES
from tests.toys.models import backbone, batch, build
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods import Method

NAMES = (
    "Adapter per task", "Compacter", "LowRankAdapter", "Hyperformer", "LoRA per task",
    "IA3 per task", "BitFit new", "PromptTuning", "PrefixTuning per task", "Full",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", [T5, Bart])
def test_every_pair_trains(family: type[Backbone], tmp_path: Path) -> None:
    """Each weight that trains belongs to one method and takes part in the loss; an example has the
    loss that it has in another batch."""
    source, examples = backbone(family, tmp_path), batch()
    for names in combinations(NAMES, 2):
        methods: dict[str, Method] = {
            f"m{n}": METHOD_CASES[name].method for n, name in enumerate(names)
        }
        model = build(source, methods, dtype=torch.float64).eval()
        output = model(examples, torch.ones(4))
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert (name in model.trained_by) == parameter.requires_grad, (names, name)
            assert (parameter.grad is not None) == parameter.requires_grad, (names, name)
        assert set(model.trained_by.values()) >= set(methods) or "Full" in names, names
        with torch.no_grad():
            alone = model(examples.select(torch.tensor([2])), torch.ones(1)).token_nll_sum
        assert (alone - output.token_nll_sum[2]).abs().max() < 1e-9, names


def test_three_prompts_stand_in_a_row(tmp_path: Path) -> None:
    methods = {name: METHOD_CASES["PromptTuning"].method for name in ("a", "b", "c")}
    model = build(backbone(T5, tmp_path), methods).eval()
    bare = build(backbone(T5, tmp_path)).eval()
    states, mask = model.encode(batch())
    assert states.shape[1] == bare.encode(batch())[0].shape[1] + 9
    assert mask.shape == states.shape[:2]
    assert mask[:, :9].all()
