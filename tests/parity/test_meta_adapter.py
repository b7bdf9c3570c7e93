"""Outer steps over tasks are those of MetaAdapter's code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.toys.recorded.related import RelatedCase, recorded
from vlds.training.meta import Half, MetaSteps, outer_rate


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
