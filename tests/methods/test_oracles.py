"""Our LoRA and (IA)^3 are peft's, our bottleneck and Compacter those of the library `adapters`: on
the same weights, the same logits. tests/oracles/record.py has recorded theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.toys.files import ROOT
from vlds.models.backbones import T5
from vlds.models.methods import IA3, Adapter, Compacter, LoRA, Method
from vlds.models.methods.context import BatchContext, TaskRouting
from vlds.models.methods.host import Host

FOLDER = ROOT / "tests/oracles"
SIZES = {
    "vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "dropout_rate": 0.0, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
CASES: dict[str, Method] = {
    "peft_lora": LoRA(rank=4, alpha=6, dropout=0.0, train_biases=False),
    "peft_ia3": IA3(),
    "adapters_adapter": Adapter(reduction=4),
    "adapters_compacter": Compacter(reduction=4, rule="everywhere", block_rank=1),
    "adapters_phm": Compacter(reduction=4),
}
LEAVES = {
    "lora_A.default.weight": "extensions.m.a",
    "lora_B.default.weight": "extensions.m.b",
    "ia3_l.default": "extensions.m.factors",
    "weight": "weight", "bias": "bias", "phm_rule": "rule", "W": "blocks", "b": "bias",
    "W_left": "left", "W_right": "right",
}  # fmt: skip
PLACES = {("encoder", "0"): "SelfAttention.o", ("encoder", "1"): "DenseReluDense.wo"}
PLACES |= {("decoder", "0"): "SelfAttention.o", ("decoder", "1"): "EncDecAttention.o"}
PLACES |= {("decoder", "2"): "DenseReluDense.wo"}
RULE = "encoder.block.0.layer.0.SelfAttention.o.extensions.m.down_rule"


def ours(name: str) -> str:
    """Our name of a tensor of theirs."""
    name = re.sub(r"^base_model\.model\.|\.base_layer", "", name)
    if "shared_parameters" in name:
        return RULE
    pattern = r"((\w+)\.block\.\d+\.layer\.(\d))\.adapters\.a\.adapter_(down|up)(\.0)?\.(\w+)"
    if match := re.fullmatch(pattern, name):
        layer, stack, number, half, _, leaf = match.groups()
        return f"{layer}.{PLACES[stack, number]}.extensions.m.{half}_{LEAVES[leaf]}"
    own = next((leaf for leaf in LEAVES if "default" in leaf and name.endswith(leaf)), None)
    if own is None:
        return name
    place = name.removesuffix(f".{own}")
    before = "input_" if "DenseReluDense" in place and own == "ia3_l.default" else ""
    return f"{place}.{before}{LEAVES[own]}"


def fill(state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Copy every tensor of theirs into ours; none of ours is left out."""
    seen = set()
    with torch.no_grad():
        for name, tensor in theirs.items():
            key = ours(name)
            state[key].copy_(tensor.reshape(state[key].shape))
            seen.add(key)
    assert seen == set(state)


@pytest.mark.parametrize("name", CASES)
def test_same_weights_same_logits(name: str) -> None:
    recorded = load_file(FOLDER / f"{name}.safetensors")
    model = T5.model_class(T5.config_class.from_dict(SIZES)).eval()
    routing = TaskRouting()
    targets = T5(path="-").target_modules
    CASES[name].attach(Host("m", model, targets, ["task"], BatchContext(routing)))
    weights = {k.removeprefix("weights/"): v for k, v in recorded.items() if "weights/" in k}
    fill(dict(model.named_parameters()), weights)
    routing.set(torch.zeros(3, dtype=torch.long))
    ids = {key: recorded[key] for key in ("input_ids", "decoder_input_ids")}
    with torch.no_grad():
        logits = model(**ids).logits
    assert (logits - recorded["logits"]).abs().max() < 1e-6 * recorded["logits"].abs().max()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if "extensions" in key:
                tensor.add_(0.1)
        moved = model(**ids).logits
    assert (moved - logits).abs().max() > 1e-3 * logits.abs().max()
