"""Methods of a user's own that need more than a place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.examples.picture_scale import PictureScale
from tests.examples.two_passes import TwoPasses
from tests.toys.files import ROOT
from tests.toys.method_cases import METHOD_CASES
from tests.toys.models import backbone, batch, build, shake
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.kernels.attention import step_kernels
from vlds.models.kernels.dropout import StepDropout
from vlds.models.methods import IA3, Adapter, Compacter, LoRA, Method
from vlds.models.methods.context import BatchContext, TaskRouting
from vlds.models.methods.host import Host

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])


@FAMILIES
def test_any_cut_of_a_batch_gives_the_same_loss_and_gradient(
    family: type[Backbone], tmp_path: Path
) -> None:
    """Of the second pass too, whose dropout draws anew for each example."""
    source = backbone(family, tmp_path, dropout=0.2)
    methods: dict[str, Method] = {"method": TwoPasses(reduction=4), "scale": PictureScale()}
    examples, found = batch(), []
    for pieces in ([[0, 1, 2, 3]], [[2], [0, 1, 3]]):
        model = build(source, methods).train()
        shake(model)
        total = torch.zeros(())
        for piece in pieces:
            with step_kernels(model, StepDropout(0, 0)):
                output = model(examples.select(torch.tensor(piece)), torch.ones(len(piece)))
                output.loss.backward()
            total = total + output.loss.detach()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((total, gradients))
    (whole, of_whole), (cut, of_cut) = found
    assert cut.item() == pytest.approx(whole.item(), rel=1e-5)
    for one, other in zip(of_whole, of_cut, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


# Methods act together, in pairs, on both backbones.

NAMES = (
    "Adapter per task", "Compacter", "LowRankAdapter", "Hyperformer", "LoRA per task",
    "IA3 per task", "BitFit new", "PromptTuning", "PrefixTuning per task", "Full",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", [T5, Bart])
def test_every_pair_trains(family: type[Backbone], tmp_path: Path) -> None:
    """Each weight that trains belongs to one method and takes part in the loss; an example has the
    loss that it has in another batch."""
    source, examples = backbone(family, tmp_path), batch()
    for names in combinations(NAMES, 2):
        methods: dict[str, Method] = {
            f"m{n}": METHOD_CASES[name].method for n, name in enumerate(names)
        }
        model = build(source, methods, dtype=torch.float64).eval()
        output = model(examples, torch.ones(4))
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert (name in model.trained_by) == parameter.requires_grad, (names, name)
            assert (parameter.grad is not None) == parameter.requires_grad, (names, name)
        assert set(model.trained_by.values()) >= set(methods) or "Full" in names, names
        with torch.no_grad():
            alone = model(examples.select(torch.tensor([2])), torch.ones(1)).token_nll_sum
        assert (alone - output.token_nll_sum[2]).abs().max() < 1e-9, names


# Our LoRA and (IA)^3 are peft's, our bottleneck and Compacter those of the library `adapters`: on
# the same weights, the same logits.

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
