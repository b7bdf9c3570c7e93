"""A mixture takes one expert in each pass, and their mean when it does not train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.models import backbone, batch, build, shake
from vlds.models.backbones import T5
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import LoRA, Mixture
from vlds.models.methods.context import BatchContext
from vlds.models.methods.mixture import ExpertRouting, of_ffn
from vlds.recipe.build import build as built
from vlds.recipe.build import to_tree
from vlds.schema import IGNORED_LABEL


def first_stack(states: Tensor, weight: Tensor, bias: Tensor, last: Tensor) -> Tensor:
    return torch.cat([weight.flatten(), bias.flatten(), last.flatten()])


def test_a_half_takes_one_expert() -> None:
    context = BatchContext()
    routing = ExpertRouting(context, "m/0")
    weight, bias = (torch.arange(4.0)[:, None], torch.arange(4.0)[:, None])
    last, shared = torch.arange(4.0)[:, None], torch.full((1, 1), 7.0)
    states, pairs = torch.zeros(2, 3), set()
    context.training = True
    for step in range(100):
        context.begin_step(0, step)
        down, same, up = routing.apply_stacked(
            first_stack, states, (weight, bias), (last,)
        ).tolist()
        assert down == same
        pairs.add((down, up))
        assert routing.apply_stacked(first_stack, states, (weight, bias), (shared,))[2] == 7
    assert len(pairs) == 16  # the halves draw on their own
    context.training = False
    means = routing.apply_stacked(first_stack, states, (weight, bias), (last,))
    assert means.tolist() == [1.5, 1.5, 1.5]


"""Model's class and config, width of the adapters, weights in training and after merging."""


def mixture_model(folder: Path, consistency: float = 1.0) -> JointModel:
    """Of experts that begin unlike each other; nothing else trains."""
    mixture = Mixture(of=replace(of_ffn(), reduction=4), consistency=consistency)
    source = backbone(T5, folder, dropout=0.0)
    model = build(source, {"mix": mixture}, train_visual_embedding=False)
    shake(model, spread=0.5)
    return model.train()


def test_padding_changes_no_distance(tmp_path: Path) -> None:
    """Longer prompts and answers of padding add nothing, while other answers do."""
    model, examples = mixture_model(tmp_path), batch()
    assert examples.labels is not None
    longer = replace(
        examples,
        input_ids=F.pad(examples.input_ids, (0, 3), value=1),
        attention_mask=F.pad(examples.attention_mask, (0, 3)),
        labels=F.pad(examples.labels, (0, 4), value=IGNORED_LABEL),
    )
    cut = examples.labels.clone()
    cut[:, -1] = IGNORED_LABEL
    found = []
    for case in (examples, longer, replace(examples, labels=cut)):
        model.context.begin_step(0, 0)
        found.append(model(case, torch.ones(4)).added["mix"])
    assert (found[0] > 0).all()
    assert torch.allclose(found[1], found[0], rtol=1e-5)
    assert not torch.allclose(found[2], found[0], rtol=1e-2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"of": LoRA()}, "of.sharing: got single"),
        ({"of": Mixture()}, "of: got Mixture; choose Adapter or LoRA"),
        ({"of": LoRA(sharing="multiple", learning_rate=1.0)}, "of: set part and learning_rate"),
    ],
)
def test_bad_mixtures(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        built(Mixture, to_tree(fields))
