"""Fusion over adapters computes what SimAdapter's code computed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.recorded.related import RelatedCase, check_gradient, recorded
from vlds.models.methods.sim_adapter import SELF, Fusion, guide_loss

EPS = 1e-12


def fusion_of(weights: dict[str, Tensor]) -> Fusion:
    """Our attention with recorded weights."""
    fusion = Fusion(len(weights["linear_q.bias"]), {"dtype": torch.float64})
    names = {"q": "linear_q", "k": "linear_k", "v": "linear_v"}
    fusion.load_state_dict(
        {
            f"{ours}.{leaf}": weights[f"{theirs}.{leaf}"]
            for ours, theirs in names.items()
            for leaf in ("weight", "bias")
            if f"{theirs}.{leaf}" in weights
        }
    )
    return fusion


class Layer:
    """A pre-norm layer of the original's toolkit, by its formulas, with our fusion at its end."""

    def __init__(self, case: RelatedCase, prefix: str) -> None:
        self.case, self.weights = case, case.under(f"weights/{prefix}.")
        self.names = case["fusion_languages_sorted"]
        place = f"sim_adapter.{'_'.join(self.names)}."
        fused = {n.removeprefix(place): t for n, t in self.weights.items() if n.startswith(place)}
        self.fusion, self.place = fusion_of(fused), f"{prefix}.{place}"
        self.attention: Tensor | None = None

    def linear(self, name: str, states: Tensor) -> Tensor:
        return F.linear(states, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, states: Tensor) -> Tensor:
        weights = (self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
        return F.layer_norm(states, states.shape[-1:], *weights, EPS)

    def attend(self, name: str, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Attention of several heads; masked probabilities are 0."""
        heads = self.case["heads"]

        def split(part: str, states: Tensor) -> Tensor:
            return self.linear(f"{name}.linear_{part}", states).unflatten(-1, (heads, -1))

        q, k, v = split("q", query), split("k", memory), split("v", memory)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        hidden = ~mask.bool()[:, None]
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(hidden, 0.0)
        return self.linear(
            f"{name}.linear_out", torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        )

    def adapter(self, language: str, states: Tensor) -> Tensor:
        """What a language's adapter makes of the layer's output."""
        place = f"adapters.{language}"
        narrow = self.linear(f"{place}.down_project", self.norm(f"{place}.layer_norm", states))
        return states + self.linear(f"{place}.up_project", narrow.relu())

    def finish(self, states: Tensor, norm: str) -> Tensor:
        """Feed-forward layer, then fusion."""
        residual = self.norm(norm, states)
        wide = self.linear("feed_forward.w_1", residual).relu()
        states = states + self.linear("feed_forward.w_2", wide)
        candidates = [states if name == SELF else self.adapter(name, states) for name in self.names]
        fused, log_attention = self.fusion(states, torch.stack(candidates, -2))
        self.attention = log_attention.exp()
        return fused + residual


@recorded("simadapter_layers")
def test_layers_and_losses(path: Path) -> None:
    case = RelatedCase(path)
    encoder = [Layer(case, f"encoder.encoders.{n}") for n in range(case["encoder_layers"])]
    decoder = [Layer(case, f"decoder.decoders.{n}") for n in range(case["decoder_layers"])]
    states, mask = case["encoder_input"], case["encoder_mask"]
    for number, layer in enumerate(encoder):
        normed = layer.norm("norm1", states)
        states = states + layer.attend("self_attn", normed, normed, mask)
        states = layer.finish(states, "norm2")
        assert (states - case[f"encoder{number}/out"]).abs().max() < 1e-9
        assert (layer.attention - case[f"encoder{number}/attention"]).abs().max() < 1e-9
    task, memory, states = (states * case["coef_encoder"]).sum(), states, case["decoder_input"]
    for number, layer in enumerate(decoder):
        normed = layer.norm("norm1", states)
        states = states + layer.attend("self_attn", normed, normed, case["decoder_self_mask"])
        normed = layer.norm("norm2", states)
        states = states + layer.attend("src_attn", normed, memory, mask)
        states = layer.finish(states, "norm3")
        assert (states - case[f"decoder{number}/out"]).abs().max() < 1e-9
        assert (layer.attention - case[f"decoder{number}/attention"]).abs().max() < 1e-9
    task = task + (states * case["coef_decoder"]).sum()
    assert abs(task.item() - case["task"]) < 1e-9
    layers = [*encoder, *decoder]
    regulariser = 0.01 * torch.stack([layer.fusion.distance() for layer in layers]).sum()
    assert abs(regulariser.item() - case["regulariser"]) < 1e-9
    own = torch.tensor([case["fusion_languages_sorted"].index(case["target_language"])])
    means = [layer.attention.mean((0, 1))[None] for layer in layers if layer.attention is not None]
    guide = torch.stack([guide_loss(mean.log(), own) for mean in means]).sum()
    assert abs(guide.item() - case["guide_proper_minus_log"]) < 1e-9
    coded = torch.stack([F.cross_entropy(mean.exp(), own) for mean in means]).sum()
    assert abs(coded.item() - case["guide_as_coded"]) < 1e-9
    for loss, grads in (
        (guide, "grads_guide_proper"),
        (coded, "grads_guide_as_coded"),
        (task + regulariser + case["guide_weight_now"] * coded, "grads_total"),
    ):
        for layer in layers:
            layer.fusion.zero_grad()
        loss.backward(retain_graph=True)
        for layer in layers:
            for ours, parameter in layer.fusion.named_parameters():
                part, _, leaf = ours.partition(".")
                name = f"{layer.place}linear_{part}.{leaf}"
                check_gradient(parameter.grad, case[grads][name], name)
    assert task.item() + regulariser.item() + coded.item() == pytest.approx(case["total"], abs=1e-9)
