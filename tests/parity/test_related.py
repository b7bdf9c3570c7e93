"""Related systems compute what their own code computed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from tests.toys.recorded.case import FOLDER, exact_t5_norm
from tests.toys.recorded.related import RelatedCase, check_gradient, recorded
from vlds.convert.transport import COSTS, Cost, Neurons, aligned, distances, transport_plan
from vlds.models.methods import Hyperformer
from vlds.models.methods.bottleneck import BottleneckPlace, Nonlinearity
from vlds.models.methods.context import TaskRouting
from vlds.models.methods.hyperformer import (
    KINDS,
    HyperformerModule,
    HyperNetworks,
    original_name,
)
from vlds.models.methods.importance import squared_gradients
from vlds.models.methods.lst import Pruning, reference_units, sorted_units
from vlds.models.methods.shrinking import importance, survivors
from vlds.schema import Role
from vlds.training.meta import Half, MetaSteps, outer_rate

# Generated adapters with generated norms compute what the paper's own code computed.

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


# Importance and pruning give the side network that LST's code began with.

CASES = [
    path
    for path in sorted(FOLDER.rglob("*.json"))
    if "overwritten_side_keys" in json.loads(path.read_text(encoding="utf-8"))
]
SKIPPED = pytest.param(None, marks=pytest.mark.skip("no recorded start of LST in VLDS_GOLDENS"))


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors under a prefix, in float64."""
    return {n.removeprefix(prefix): t.double() for n, t in tensors.items() if n.startswith(prefix)}


@pytest.mark.parametrize("path", CASES or [SKIPPED], ids=lambda path: path and path.stem)
def test_importance_and_pruned_weights(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    tensors, size = load_file(path.with_suffix(".safetensors")), record["config"]
    config = T5Config(
        vocab_size=size["vocab"], d_model=size["d_model"], d_kv=size["d_kv"], d_ff=size["d_ff"],
        num_layers=size["layers"], num_decoder_layers=size["layers"], num_heads=size["heads"],
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).double().eval()
    weights = part(tensors, "hf/")
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    samples = [
        {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.startswith(name)}
        for name in (f"sample{n}/" for n in range(record["samples"]))
    ]
    with exact_t5_norm():
        found = squared_gradients(
            model, ((sample["input_ids"], sample["target_ids"]) for sample in samples)
        )
    importance = part(tensors, "fisher/")
    for name, tensor in importance.items():
        assert (found[name] - tensor).abs().max() < 1e-9, name
    pruning = Pruning(weights, importance, record["reduction_factor"], reference_units)
    pruned = pruning.run(size["layers"], size["layers"])
    side = part(tensors, "side/")
    for key in record["overwritten_side_keys"]:
        name = key.replace("side_block", "block").replace("final_side_layer", "final_layer")
        assert torch.equal(pruned[name], side[key]), key
    in_order = Pruning(weights, importance, record["reduction_factor"], sorted_units)
    assert in_order.run(size["layers"], size["layers"]).keys() == pruned.keys()


# Outer steps over tasks are those of MetaAdapter's code.


class Line(nn.Module):
    """(W x + b) * scale."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        outputs, inputs = weights["lin.weight"].shape
        self.lin = nn.Linear(inputs, outputs)
        self.scale = nn.Parameter(torch.zeros_like(weights["scale"]))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.lin(inputs) * self.scale
        return outputs


@recorded("metaadapter_step")
def test_outer_steps(path: Path) -> None:
    case = RelatedCase(path)
    model = Line(case.under("weights/")).double()
    model.load_state_dict(case.under("weights/"))
    weights = list(model.parameters())
    optimizer = torch.optim.Adam(
        weights, lr=case["adam_lr"], betas=tuple(case["betas"]), eps=case["eps"],
        weight_decay=case["weight_decay"],
    )  # fmt: skip
    steps = MetaSteps(weights, optimizer, case["grad_clip"])

    def half_of(inputs: Tensor, targets: Tensor) -> Half:
        def backward() -> float:
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            return float(loss.detach())

        return backward

    for number in range(case["iterations"]):
        tasks = []
        for language in case["languages"]:
            halves = (case[f"iter{number}/{language}/{part}"].chunk(2) for part in "xy")
            first, second = zip(*halves, strict=True)
            tasks.append((half_of(*first), half_of(*second)))
        step = number + (case["epoch"] - 1) * case["iterations"]
        rate = outer_rate(case["meta_lr"], step, case["epochs"] * case["iterations"])
        assert abs(rate - case["outer_rate"][number]) < 1e-12
        losses = torch.tensor(steps.step(tasks, rate), dtype=torch.float64)
        expected = torch.tensor(case["losses_iteration_language_half"][number]).double()
        assert (losses - expected).abs().max() < 1e-6
        for name, weight in model.named_parameters():
            assert (weight - case[f"iter{number}/after/{name}"]).abs().max() < 1e-9
    for name, weight in model.named_parameters():
        found = optimizer.state[weight]["exp_avg_sq"]
        assert (found - case[f"adam_state/{name}/exp_avg_sq"]).abs().max() < 1e-9


# MiMi's importance and its survivors follow the formulas, cycle by cycle.


@recorded("mimi_shrink")
def test_survivors_of_every_cycle(path: Path) -> None:
    case = RelatedCase(path)
    layers = range(len(case["widths"]))
    down, bias, up = (
        [case[f"adapter{n}/{part}"] for n in layers] for part in ("down", "bdown", "up")
    )
    alive = [list(range(width)) for width in case["widths"]]
    share = 1.0
    for cycle, expected in enumerate(case["cycles"]):
        share *= 1 - case["rho"]
        scores = [
            importance([down[n][alive[n]], up[n].T[alive[n]]], case["per_adapter_max_normalised"])
            for n in layers
        ]
        for n in layers:
            whole = torch.zeros(case["widths"][n], dtype=torch.float64)
            whole[alive[n]] = torch.tensor(scores[n], dtype=torch.float64)
            assert (whole - case[f"cycle{cycle}/score{n}"]).abs().max() < 1e-12
        number = math.floor(sum(case["widths"]) * share + 1e-9)
        assert number == expected["kept"]
        kept = survivors(scores, number)
        alive = [[alive[n][place] for place in kept[n]] for n in layers]
        assert [len(places) for places in alive] == expected["kept_per_adapter"]
        for n in layers:
            assert case[f"cycle{cycle}/mask{n}"].nonzero().flatten().tolist() == alive[n]
            narrow = F.gelu(case["x"] @ down[n][alive[n]].T + bias[n][alive[n]])
            out = case["x"] + narrow @ up[n][:, alive[n]].T + case[f"adapter{n}/bup"]
            assert (out - case[f"cycle{cycle}/out{n}"]).abs().max() < 1e-9


# Merging by transport follows the formulas, value by value.


def neurons(case: RelatedCase, number: int) -> Neurons:
    """One recorded adapter."""
    return Neurons(*(case[f"adapter{number}/{part}"] for part in ("down", "bdown", "up")))


def output(inputs: Tensor, merged: Neurons, bias: Tensor) -> Tensor:
    """What an adapter computes."""
    narrow = F.gelu(inputs @ merged.down.T + merged.bias)
    return inputs + narrow @ merged.up.T + bias


@pytest.mark.parametrize("cost", COSTS)
@recorded("mera_merge")
def test_plans_and_merged_adapters(path: Path, cost: Cost) -> None:
    pytest.importorskip("ot", reason="needs the extra `transport`")
    case = RelatedCase(path)
    if cost not in case["costs"]:
        pytest.skip(f"recorded without the cost {cost}")
    first, *others = (neurons(case, number) for number in range(case["adapters"]))
    biases = [case[f"adapter{number}/bup"] for number in range(case["adapters"])]
    features = first.features(cost, case["probe"])
    for kind, regularisation in (
        ("exact", None),
        ("entropic", case["entropic_reg_of_max_normalised_cost"]),
    ):
        moved = [first]
        for number, other in enumerate(others, 1):
            between = distances(features, other.features(cost, case["probe"]))
            assert (between - case[f"{cost}/cost{number}"]).abs().max() < 1e-9
            plan = transport_plan(between, regularisation)
            recorded_plan = case[f"{cost}/{kind}/plan{number}"]
            assert (plan / len(plan) - recorded_plan).abs().max() < 1e-9
            moved.append(aligned(first, other, cost, case["probe"], regularisation))
        merged = Neurons(*(torch.stack(parts).mean(0) for parts in zip(*moved, strict=True)))
        bias = torch.stack(biases).mean(0)
        for ours, name in zip((*merged, bias), ("down", "bdown", "up", "bup"), strict=True):
            assert (ours - case[f"{cost}/{kind}/merged/{name}"]).abs().max() < 1e-9
        out = output(case["x"], merged, bias)
        assert (out - case[f"{cost}/{kind}/out"]).abs().max() < 1e-9
