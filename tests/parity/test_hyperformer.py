"""Generated adapters with generated norms compute what the paper's own code computed."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.toys.recorded.related import RelatedCase, check_gradient, recorded
from vlds.models.methods import Hyperformer
from vlds.models.methods.bottleneck import BottleneckPlace, Nonlinearity
from vlds.models.methods.context import TaskRouting
from vlds.models.methods.hyperformer import (
    KINDS,
    HyperformerModule,
    HyperNetworks,
    original_name,
)
from vlds.schema import Role

NONLINEARITIES: dict[str, Nonlinearity] = {"swish": "silu", "gelu_new": "gelu_tanh"}
SUBLAYERS: dict[str, Role] = {"self_attention": "attn_out", "feed_forward": "ffn_out"}
"""In the order in which they act."""
TABLE = "task_embeddings.weight"


class Generated:
    """Our networks with recorded weights, and the adapters that they make."""

    def __init__(self, case: RelatedCase) -> None:
        self.tasks: list[str] = case["tasks"]
        config = Hyperformer(
            reduction=case["dim"] // case["bottleneck"],
            task_dim=case["task_embedding_dim"],
            hidden_dim=case["task_hidden"],
            projected_dim=case["projected"],
            kind_embeddings=case["efficient"],
            cross_attention=False,
            activation=NONLINEARITIES[case["activation"]],
            layer_norm_before=case["norm_before"],
            layer_norm_after=case["norm_after"],
        )
        linear = nn.Linear(case["dim"], case["dim"], dtype=torch.float64)
        places = {
            (kind, layer): BottleneckPlace(role, f"encoder.{layer}.{kind}", linear)
            for layer in range(case["layers"])
            for kind, role in SUBLAYERS.items()
        }
        self.networks = HyperNetworks(config, list(places.values()), len(self.tasks), None)
        weights = case.under("weights/")
        tables = torch.stack([case[f"task_embedding/{task}"] for task in self.tasks])
        # The paper's own code has no kind for cross-attention, the last row of ours.
        if (kinds := weights.get("adapters_block_type.weight")) is not None:
            rows = len(KINDS) - len(kinds)
            weights["adapters_block_type.weight"] = F.pad(kinds, (0, 0, 0, rows))
        self.networks.load_state_dict(
            {
                name: tables if name == TABLE else weights[theirs(name)]
                for name in self.networks.state_dict()
            }
        )
        routing, rows = TaskRouting(), len(case["x"])
        routing.set(torch.arange(len(self.tasks)).repeat_interleave(rows))
        self.modules = {
            place: HyperformerModule(config, found, self.networks.generated, routing)
            for place, found in places.items()
        }


def theirs(name: str) -> str:
    """The recorded name of a tensor of our networks."""
    return original_name(name).removeprefix("encoder.adapter_layers_hyper_net.")


@recorded("hyperformer_controller")
def test_adapters_and_norms_of_all_layers(path: Path) -> None:
    case = RelatedCase(path)
    generated, num_checked = Generated(case), 0
    generated.networks()
    states: Tensor = torch.cat([case["x"]] * len(generated.tasks))
    for (kind, layer), module in generated.modules.items():
        states = module(states, states)
        halves = generated.networks.generated.value[module.key]
        for number, task in enumerate(generated.tasks):
            place = f"{task}/layer{layer}/{kind}"
            out = states.chunk(len(generated.tasks))[number]
            assert (out - case[f"{place}/out"]).abs().max() < 1e-9, place
            (down_weight, *_), (_, up_bias, *_) = halves
            made = {"down.weight": down_weight[number], "up.bias": up_bias[number]}
            for name, tensor in made.items():
                if f"{place}/{name}" in case.tensors:
                    assert (tensor - case[f"{place}/{name}"]).abs().max() < 1e-9, place
                    num_checked += 1
    assert num_checked
    loss = sum((out * case["coef"]).sum() for out in states.chunk(len(generated.tasks)))
    assert isinstance(loss, Tensor)
    assert abs(loss.item() - case["loss"]) < 1e-9
    loss.backward()
    parameters = dict(generated.networks.named_parameters())
    gradient = parameters.pop(TABLE).grad
    assert gradient is not None
    for number, task in enumerate(generated.tasks):
        assert (gradient[number] - case[f"grad/task_embedding/{task}"]).abs().max() < 1e-9
    assert {theirs(name) for name in parameters} == case["grads"].keys()
    for name, parameter in parameters.items():
        check_gradient(parameter.grad, case["grads"][theirs(name)], name)
