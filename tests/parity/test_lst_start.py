"""Importance and pruning give the side network that LST's code began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from tests.toys.recorded.case import FOLDER, exact_t5_norm
from vlds.models.methods.importance import squared_gradients
from vlds.models.methods.lst import Pruning, reference_units, sorted_units

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
