"""A mixture takes one expert in each pass, and their mean when it does not train."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlds.methods import LoRA, Mixture
from vlds.methods.batch_loss import Predicted
from vlds.methods.context import BatchContext
from vlds.methods.mixture import Consistency, ExpertRouting, symmetric_kl
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


def test_the_distance_is_the_mean_of_both_divergences() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 7, generator=draw, dtype=torch.float64).requires_grad_()
    p, q = first.softmax(-1), second.softmax(-1)
    expected = ((p * (p.log() - q.log())).sum(-1) + (q * (q.log() - p.log())).sum(-1)) / 2
    assert torch.allclose(symmetric_kl(first, second), expected, atol=1e-12)
    assert symmetric_kl(first, first).abs().max() == 0


def test_the_distance_moves_both_passes() -> None:
    """The distribution in front of a logarithm is a constant: the gradient of KL(p || q) is
    q - p, at q."""
    draw = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(5, 7, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)
    ]
    symmetric_kl(*logits).sum().backward()  # type: ignore[no-untyped-call]
    p, q = (x.detach().softmax(-1) for x in logits)
    assert logits[1].grad is not None
    assert logits[0].grad is not None
    assert torch.allclose(logits[1].grad, (q - p) / 2, atol=1e-12)
    assert torch.allclose(logits[0].grad, (p - q) / 2, atol=1e-12)


def test_padding_has_no_distance() -> None:
    labels = torch.tensor([[1, 2, IGNORED_LABEL], [3, IGNORED_LABEL, IGNORED_LABEL]])
    draw = torch.Generator().manual_seed(0)
    passes = [Predicted(torch.randn(3, 7, generator=draw), labels) for _ in range(2)]
    tokens = symmetric_kl(passes[0].logits, passes[1].logits)
    found = Consistency(2.0).of_examples(passes)
    assert torch.allclose(found, 2 * torch.stack([tokens[:2].sum(), tokens[2]]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"experts": 1}, "experts: got 1; give at least 2"),
        ({"consistency": -1.0}, "consistency: got -1.0; give at least 0"),
        ({"of": LoRA()}, "of.sharing: got single"),
        ({"of": Mixture()}, "of: got Mixture; choose Adapter or LoRA"),
        ({"of": LoRA(sharing="multiple", learning_rate=1.0)}, "of: set part and learning_rate"),
    ],
)
def test_bad_mixtures(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mixture(**fields)  # type: ignore[arg-type]
