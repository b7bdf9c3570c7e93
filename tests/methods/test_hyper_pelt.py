"""Networks that make prefixes and adapters from task, layer, block and picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.models import TASKS, backbone, batch, build, hf_config, shake
from vlds.backbones import T5, Backbone, Bart
from vlds.methods import Hyperformer
from vlds.methods.hyper_pelt import HyperPELT, PELTNetworks
from vlds.models.joint_model import JointModel
from vlds.schema import Decoding

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])
SMALL: dict[str, Any] = {"reduction": 4, "task_dim": 6, "hidden_dim": 5, "projected_dim": 4}
PELT = HyperPELT(**SMALL, prefix_length=3)
PLAIN = HyperPELT(
    **SMALL, prefix_length=0, visual=False, parallel=False, attention=True, cross_attention=True,
    kind_embeddings=False,
)  # fmt: skip


def networks_of(model: JointModel) -> PELTNetworks:
    """The networks beside a model's backbone."""
    networks = model.backbone.extensions["method"]
    assert isinstance(networks, PELTNetworks)
    return networks


@FAMILIES
@torch.no_grad()
def test_without_pictures_prefixes_and_the_place_beside_it_is_hyperformer(
    family: type[Backbone], tmp_path: Path
) -> None:
    source = backbone(family, tmp_path)
    ours, theirs = (
        build(source, {"method": method}).eval() for method in (PLAIN, Hyperformer(**SMALL))
    )
    names = [dict(model.named_parameters()).keys() for model in (ours, theirs)]
    assert names[0] == names[1]
    losses = [model(batch(), torch.ones(4)).loss for model in (ours, theirs)]
    assert torch.equal(*losses)


@FAMILIES
@torch.no_grad()
def test_what_is_made_differs_for_each_task_layer_and_block(
    family: type[Backbone], tmp_path: Path
) -> None:
    model = build(backbone(family, tmp_path), {"method": replace(PELT, hidden_dim=64)}).eval()
    model(batch(), torch.ones(4))
    networks = networks_of(model)
    made: list[torch.Tensor] = []
    for _, (keys, values) in sorted(networks.prefixes.value.items()):
        assert len(keys) == len(TASKS)
        made += [*keys, *values]
    assert len(made) == len(TASKS) * 2 * (2 + 2 * 2)
    for first, one in enumerate(made):
        assert not any(torch.equal(one, other) for other in made[first + 1 :])
    before = networks.prefixes.value
    model(batch(), torch.ones(4))
    for key, pair in networks.prefixes.value.items():
        assert all(map(torch.equal, pair, before[key]))


@FAMILIES
@torch.no_grad()
def test_rows_of_one_batch_are_what_they_are_alone(family: type[Backbone], tmp_path: Path) -> None:
    """With other pictures an example gets other adapters, and its neighbours do not matter."""
    model = build(backbone(family, tmp_path), {"method": PELT}).eval()
    shake(model)
    examples = batch()
    together = model.token_nll(examples).sum(1)
    for row in range(len(examples)):
        alone = model.token_nll(examples.select(torch.tensor([row]))).sum(1)
        assert alone.item() == pytest.approx(together[row].item(), rel=1e-5)
    weights = networks_of(model).of_pictures.value
    assert weights.keys() == {(stack, "ffn_out", layer) for stack, _, layer in weights}
    assert examples.features is not None
    other = replace(examples, features=examples.features.flip(0))
    assert not torch.allclose(model.token_nll(other).sum(1), together)


@FAMILIES
@torch.no_grad()
def test_beams_and_finished_examples_keep_their_pictures(
    family: type[Backbone], tmp_path: Path
) -> None:
    model = build(backbone(family, tmp_path), {"method": PELT}).eval()
    shake(model)
    examples = batch()
    decoding = Decoding(num_beams=3, max_new_tokens=6)
    together = model.generate(examples, decoding)[0]
    alone = [
        model.generate(examples.select(torch.tensor([row])), decoding)[0][0]
        for row in range(len(examples))
    ]
    assert together == alone


def test_only_layer_embeddings_grow_with_layers(tmp_path: Path) -> None:
    counts = []
    for layers in (2, 4):
        sizes = {"num_layers": layers, "num_decoder_layers": layers}
        config = tmp_path / "config.json"
        config.write_text(json.dumps(hf_config(T5) | sizes))
        source = T5(config=str(config), extra_tokens=0, visual_tokens=12)
        model = build(source, {"method": PELT})
        counts.append(model.count_parameters().by_part["method"].trainable)
    # Two stacks, for tasks and for pictures.
    assert counts[1] - counts[0] == 2 * 2 * 2 * PELT.task_dim


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_length": -1}, "prefix_length: got -1"),
        ({"attention": True}, "parallel: got true, and adapters stand beside feed-forward layers"),
        ({"part": "vision"}, "sharing: got one set of weights per task for the vision encoder"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PELT, **fields)
