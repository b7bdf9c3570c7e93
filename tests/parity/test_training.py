"""Six optimizer steps from the recorded weights follow the original code's, weight by weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from tests.parity.recorded_case import FOLDER, RecordedCase
from tests.parity.reference_adamw import ReferenceAdamW, undecayed

RECORDS = sorted(FOLDER.rglob("*.train6.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_trajectory(path: Path, tmp_path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    case = RecordedCase(path.with_name(f"{record['case']}.json"))
    model = case.build(tmp_path)
    slices = case.trainable(model)
    decayed = [named.key for named in slices if not undecayed(named.key)]
    assert sorted(decayed) == sorted(record["weight_decay_names"])
    optimizer = ReferenceAdamW(slices, weight_decay=0.01)
    for step in record["steps"]:
        task = step["task"]
        model.zero_grad()
        loss = case.loss(model, task)
        loss.backward()
        norm = clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 5.0)
        assert abs(loss.item() - step["loss"]) < 1e-7
        assert abs(norm.item() - step["grad_norm_before_clip"]) < 1e-7
        optimizer.step(step["lr_used"], case.tasks.index(task))
        for named in slices:
            weight = named.of(named.parameter.data).flatten()
            cosine = torch.arange(len(weight), dtype=weight.dtype).cos()
            length, dot = step["params_norm_and_dotcos"][named.key]
            assert abs(weight.norm().item() - length) < 1e-7, named.key
            assert abs((weight * cosine).sum().item() - dot) < 1e-7, named.key
