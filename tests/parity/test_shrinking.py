"""MiMi's importance and its survivors follow the formulas, cycle by cycle."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.toys.recorded.related import RelatedCase, recorded
from vlds.models.methods.shrinking import importance, survivors


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
