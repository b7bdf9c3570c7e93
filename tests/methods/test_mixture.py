"""A mixture takes one expert in each pass, and their mean when it does not train."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from tests.toys.models import backbone, batch, build, shake
from vlds.models.backbones import T5
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import LoRA, Mixture
from vlds.models.methods.context import BatchContext, Predicted
from vlds.models.methods.host import Host, added_tensors
from vlds.models.methods.mixture import Consistency, ExpertRouting, of_ffn, symmetric_kl
from vlds.recipe.build import build as built
from vlds.recipe.build import to_tree
from vlds.schema import IGNORED_LABEL, TargetModules


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


def test_experts_are_drawn_equally_often() -> None:
    context = BatchContext()
    context.training = True
    stack = torch.arange(4.0)[:, None]
    for layer in range(3):
        routing = ExpertRouting(context, f"m/{layer}")
        counts: Counter[float] = Counter()
        for step in range(500):
            context.begin_step(0, step)
            for number in range(2):
                with context.in_pass(number):
                    taken = routing.apply_stacked(lambda _, taken: taken, stack, [stack])
                    counts[taken.item()] += 1
        assert counts.total() == 1000
        assert counts.keys() == {0, 1, 2, 3}
        assert all(200 <= count <= 300 for count in counts.values()), counts


SIZES = {
    "BERT-base": (BertModel, BertConfig(), 48, 2_223_360, 894_528),
    "RoBERTa-large": (
        RobertaModel,
        RobertaConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        ),
        16, 1_992_192, 811_392,
    ),
}  # fmt: skip
"""Model's class and config, width of the adapters, weights in training and after merging."""


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_papers(name: str) -> None:
    family, config, width, in_training, merged = SIZES[name]
    with torch.device("meta"):
        model = family(config)
    adapter = replace(of_ffn(), reduction=config.hidden_size // width, activation="gelu")
    targets = TargetModules({"ffn_out": ("encoder.layer.*.output.dense",)})
    mixture = Mixture(of=adapter, experts=4)
    trained = mixture.attach(Host("mix", model, targets, ["task"], BatchContext()))
    assert sum(parameter.numel() for parameter in trained) == in_training
    mixture.merge("mix", model, ["task"])
    left = [model.get_parameter(tensor.name) for tensor in added_tensors(model, "mix")]
    assert sum(parameter.numel() for parameter in left) == merged


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


def mean_distances(model: JointModel) -> list[float]:
    """Nats a token between the passes, in 200 steps on one batch."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    (loss,), examples, distances = model.batch_losses.values(), batch(), []
    assert isinstance(loss, Consistency)
    for step in range(200):
        model.context.begin_step(0, step)
        output = model(examples, torch.full((4,), 1 / 20))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        distances.append(output.added["mix"].sum().item() / 20 / loss.weight)
    return distances


@pytest.mark.slow
def test_the_passes_come_nearer_to_each_other(tmp_path: Path) -> None:
    """More so than with a term that is too small to count."""
    with_term = mean_distances(mixture_model(tmp_path))
    without = mean_distances(mixture_model(tmp_path, consistency=1e-6))
    first, last = sum(with_term[:40]), sum(with_term[-40:])
    assert last < 0.5 * first
    assert last < 0.8 * sum(without[-40:])


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
    places = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    draw = torch.Generator().manual_seed(0)
    passes = [Predicted(torch.randn(3, 7, generator=draw), labels, places) for _ in range(2)]
    tokens = symmetric_kl(passes[0].logits, passes[1].logits)
    found = Consistency(2.0).of_examples(passes)
    assert torch.allclose(found, 2 * torch.stack([tokens[:2].sum(), tokens[2]]))


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
