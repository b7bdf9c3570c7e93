"""METER's co-attention, encoders, heads, schedule and optimizer steps follow the original code,
value by value."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel

from tests.toys.cross_modal import cross_modal_recipe
from tests.toys.kinds import built
from tests.toys.recorded.related import RelatedCase, recorded
from tests.toys.whole_adamw import WholeAdamW
from vlds.models.heads import MLPHead
from vlds.models.kinds.cross_modal_model import CoAttention, CoAttentionConfig, Fused, WordHead
from vlds.models.vision.clip import ClipTokensModule, resized_positions
from vlds.recipe.config import AdamWUpdate, OptimizerConfig
from vlds.training.optimizer import parameter_groups, schedule_factor, set_learning_rate

OURS = {
    "cross_modal_text_layers": "text_layers",
    "cross_modal_image_layers": "image_layers",
    "cross_modal_text_pooler": "text_pooler",
    "cross_modal_image_pooler": "image_pooler",
    "cross_modal_text_transform": "text_projection",
    "cross_modal_image_transform": "image_projection",
    "token_type_embeddings": "types",
}
"""Module of the original code -> ours."""
WORDS = {
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "words.weight": "decoder.weight",
    "words.bias": "bias",
}
"""Our names in the head of words -> those of the original code."""
VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "transformer.resblocks": "encoder.layers",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""CLIP's names in OpenAI's code -> Hugging Face's."""


def fusion_weights(case: RelatedCase) -> dict[str, Tensor]:
    """The co-attention's weights under our names."""
    weights = {}
    for name, tensor in case.under("weights/").items():
        module, _, rest = name.partition(".")
        if module in OURS:
            weights[f"{OURS[module]}.{rest}"] = tensor
    return weights


def build_fusion(case: RelatedCase, sizes: dict[str, int], text: int, image: int) -> CoAttention:
    """A co-attention with the recorded weights."""
    config = CoAttentionConfig(**sizes, dropout=0.0)
    fusion = CoAttention(config, text, image, class_token=True).double()
    weights = fusion_weights(case)
    if "text_projection.weight" not in weights:  # the stack alone: projections that change nothing
        eye, zeros = torch.eye(config.width), torch.zeros(config.width)
        for stream in ("text", "image"):
            weights |= {f"{stream}_projection.weight": eye, f"{stream}_projection.bias": zeros}
    if len(weights["types.weight"]) == 2:  # no third type where no task shows two pictures
        weights["types.weight"] = F.pad(weights["types.weight"], (0, 0, 0, 1))
    fusion.load_state_dict(weights)
    return fusion


def check_gradients(case: RelatedCase, named: dict[str, Tensor]) -> int:
    """Compare gradients, by the original code's names; how many there were."""
    checked = 0
    for name, expected in case["grads"].items():
        if name not in named:
            continue
        gradient = named[name]
        index = torch.arange(gradient.numel(), dtype=torch.float64)
        dot = (gradient.flatten() * index.cos()).sum()
        assert float(gradient.norm()) == pytest.approx(expected["grad_norm"], rel=1e-7, abs=1e-12)
        assert float(dot) == pytest.approx(expected["grad_dot_cos"], rel=1e-6, abs=1e-9)
        checked += 1
    return checked


Named = dict[str, list[nn.Parameter]]
"""The original code's name of a weight -> ours, which are its rows one after the other."""


def joined(named: Named) -> dict[str, Tensor]:
    """Gradients of those that have one."""
    found: dict[str, Tensor] = {}
    for name, parameters in named.items():
        parts = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if parts:
            found[name] = torch.cat(parts)
    return found


def fusion_names(fusion: CoAttention) -> Named:
    """Of the co-attention."""
    theirs = {ours: name for name, ours in OURS.items()}
    named: Named = {}
    for name, parameter in fusion.named_parameters():
        module, _, rest = name.partition(".")
        named[f"{theirs[module]}.{rest}"] = [parameter]
    return named


@recorded("meter_coattention_stack")
def test_co_attention(path: Path) -> None:
    case = RelatedCase(path)
    sizes = {"width": case["hidden"], "layers": case["layers"], "heads": case["heads"]}
    fusion = build_fusion(case, sizes, case["hidden"], case["hidden"])
    text, image = case["text"].requires_grad_(), case["image"].requires_grad_()
    masks = case["text_masks"].bool(), case["image_masks"].bool()
    fused = fusion(text, masks[0], image, masks[1], case["image_token_type"] - 1)
    last = case["layers"] - 1
    real = masks[0][..., None], masks[1][..., None]
    for ours, name, mask in (
        (fused.text, f"act/text_layer{last}", real[0]),
        (fused.image, f"act/image_layer{last}", real[1]),
    ):
        assert ((ours - case[name]) * mask).abs().max() < 1e-9
    assert (fused.pooled - case["act/cls_feats"]).abs().max() < 1e-9
    loss = (fused.pooled * case["coef"]).sum()
    assert float(loss) == pytest.approx(case["loss"], abs=1e-9)
    loss.backward()
    assert (text.grad - case["grad/text"]).abs().max() < 1e-9
    assert (image.grad - case["grad/image"]).abs().max() < 1e-9
    assert check_gradients(case, joined(fusion_names(fusion))) > 100


@recorded("meter_position_interpolation")
def test_resized_positions(path: Path) -> None:
    case = RelatedCase(path)
    for number, sizes in enumerate(case["cases"]):
        before = case[f"case{number}/before"]
        after = resized_positions(before, sizes["after"] // sizes["patch"])
        assert after.shape == (sizes["rows_after"], before.shape[1])
        assert (after - case[f"case{number}/after"]).abs().max() < 1e-9
        assert torch.equal(after, before) == sizes["identical"]
        assert torch.equal(after[0], before[0])
    constant = resized_positions(torch.ones(1 + 4 * 4, 3, dtype=torch.float64), 7)
    assert (constant - 1).abs().max() < 1e-12


class Recorded(nn.Module):
    """A whole recorded model: encoders, co-attention, heads."""

    def __init__(self, case: RelatedCase) -> None:
        super().__init__()
        sizes, text, vision = case["config"], case["text_encoder"], case["vision"]
        self.text = RobertaModel(RobertaConfig(**text), add_pooling_layer=False).double()
        config = CLIPVisionConfig(
            hidden_size=vision["width"],
            intermediate_size=4 * vision["width"],
            num_hidden_layers=vision["blocks_used"],
            num_attention_heads=vision["heads"],
            image_size=sizes["image_size"],
            patch_size=vision["patch"],
            layer_norm_eps=vision["layer_norm_eps"],
            hidden_act="quick_gelu",
        )
        self.vision = ClipTokensModule(CLIPVisionModel(config)).double()
        fields = {"width": "hidden_size", "layers": "num_top_layer", "heads": "num_heads"}
        self.fusion = build_fusion(
            case,
            {ours: sizes[theirs] for ours, theirs in fields.items()},
            text["hidden_size"],
            vision["width"],
        )
        weights = case.under("weights/text_transformer.")
        self.text.load_state_dict({n: t for n, t in weights.items() if "pooler" not in n})
        self.vision.net.load_state_dict(vision_weights(case.under("weights/vit_model.visual.")))
        self.eval()

    def fuse(self, ids: Tensor, mask: Tensor, pictures: Tensor) -> Fused:
        """The streams of texts (b, l) and pictures (b, 3, h, w), which are normalised."""
        text = self.text(ids, attention_mask=mask).last_hidden_state
        image = self.vision.features(pictures)
        seen = image.new_ones(image.shape[:2]).bool()
        fused: Fused = self.fusion(text, mask.bool(), image, seen)
        return fused

    def names(self, heads: dict[str, nn.Module]) -> Named:
        """Of the model and its heads."""
        named = fusion_names(self.fusion) | vision_names(self.vision.net)
        for prefix, module in {"text_transformer": self.text, **heads}.items():
            for name, parameter in module.named_parameters():
                named[f"{prefix}.{WORDS.get(name, name)}"] = [parameter]
        return named

    def questions(self, case: RelatedCase) -> tuple[nn.Module, Fused]:
        """The head of VQA, and what it reads."""
        weights = case.under("weights/vqa_classifier.")
        width, classes = len(weights["0.bias"]), len(weights["3.bias"])
        head = MLPHead(classes=tuple(map(str, range(classes))), order="norm_gelu", hidden=width)
        built = head.build(2 * case["config"]["hidden_size"]).double()
        built.load_state_dict({name: t for name, t in weights.items()})
        return built, self.fuse(case["text_ids"], case["text_masks"], case["image_0"])


def vision_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names of CLIP's weights -> Hugging Face's."""
    weights: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        for old, new in VISION.items():
            name = name.replace(old, new)
        if "in_proj" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                weights[name.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = rows
        else:
            weights[name] = tensor
    return weights


def vision_names(net: nn.Module) -> Named:
    """Of CLIP's transformer, whose queries, keys and values are one matrix there."""
    named: Named = {}
    for part in ("q_proj", "k_proj", "v_proj", ""):
        for name, parameter in net.named_parameters():
            if part in name and (part or not re.search("[qkv]_proj", name)):
                name = name.replace(f"self_attn.{part}.", "attn.in_proj_")
                for old, new in VISION.items():
                    name = name.replace(new, old)
                named.setdefault(f"vit_model.visual.{name}", []).append(parameter)
    return named


def vqa_loss(case: RelatedCase, logits: Tensor) -> Tensor:
    """The mean over examples of the sum over answers."""
    entropy = F.binary_cross_entropy_with_logits(logits, case["out/vqa_targets"], reduction="none")
    return entropy.sum(1).mean()


@recorded("meter_model")
def test_a_whole_model(path: Path) -> None:
    case = RelatedCase(path)
    model = Recorded(case)
    losses = case["losses"]
    found: dict[str, Tensor] = {}
    heads: dict[str, nn.Module] = {}
    if "vqa_loss" in losses:
        head, fused = model.questions(case)
        assert (fused.text - case["act/text_layer1"]).abs().max() < 1e-9
        assert (fused.image - case["act/image_layer1"]).abs().max() < 1e-9
        logits = head(fused.pooled)
        assert (logits - case["out/vqa_logits"]).abs().max() < 1e-9
        targets = torch.zeros_like(logits)
        for row, (labels, scores) in enumerate(
            zip(case["vqa_labels"], case["vqa_scores"], strict=True)
        ):
            targets[row, labels] = torch.tensor(scores, dtype=torch.float64)
        assert torch.equal(targets, case["out/vqa_targets"])
        found["vqa_loss"], heads["vqa_classifier"] = vqa_loss(case, logits), head
    if "itm_loss" in losses:
        order = case["itm_permutation"]
        half = len(order) // 2
        labels = torch.tensor([1] * half + [0] * (len(order) - half))[order]
        assert torch.equal(labels.double(), case["out/itm_labels"])
        shown = torch.where(
            labels[:, None, None, None] == 1, case["image_0"], case["false_image_0"]
        )
        pooled = model.fuse(case["text_ids"], case["text_masks"], shown).pooled
        matching = nn.Linear(pooled.shape[1], 2).double()
        matching.load_state_dict(case.under("weights/itm_score.fc."))
        logits = matching(pooled)
        assert (logits - case["out/itm_logits"]).abs().max() < 1e-9
        found["itm_loss"], heads["itm_score.fc"] = F.cross_entropy(logits, labels), matching
    if "mlm_loss" in losses:
        states = model.fuse(case["text_ids_mlm"], case["text_masks"], case["image_0"]).text
        words = WordHead(states.shape[2], case["config"]["vocab_size"]).double()
        words.load_state_dict(
            {name: case[f"weights/mlm_score.{theirs}"] for name, theirs in WORDS.items()}
        )
        logits = words(states)
        assert (logits - case["out/mlm_logits"]).abs().max() < 1e-9
        labels = case["text_labels_mlm"]
        found["mlm_loss"] = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        heads["mlm_score"] = words
    assert found.keys() == losses.keys()
    for name, loss in found.items():
        assert float(loss.detach()) == pytest.approx(losses[name], abs=1e-9)
    torch.stack(list(found.values())).sum().backward()
    gradients = joined(model.names(heads))
    wanted = {name for name, expected in case["grads"].items() if expected is not None}
    assert wanted - gradients.keys() == set()
    assert check_gradients(case, {n: g for n, g in gradients.items() if n in wanted}) == len(wanted)


@recorded("meter_schedule")
def test_schedule(path: Path, world: Path, tmp_path: Path) -> None:
    """Rates of all groups at every step. METER's runs fall in a line to 0; vlds has no other power
    and no other end, and shows here what its line would become with them."""
    for number, case in enumerate(RelatedCase(path)["cases"]):
        steps, warmup = case["max_steps"], case["warmup_steps"]
        power, end = case["decay_power"], case["end_lr"] / case["base_lr"]
        multipliers, weight_decays = case["group_multipliers"], case["weight_decays"]
        # Groups come in pairs: encoders, heads, and last the co-attention's streams.
        base, of_head, of_streams = case["base_lr"], case["lr_mult_head"], multipliers[-1]
        config = OptimizerConfig(
            learning_rate=base,
            connector_learning_rate=of_streams * base,
            heads_learning_rate=of_head * base,
            weight_decay=max(weight_decays),
            warmup_ratio=warmup if warmup < 1 else warmup / steps,
            decay="cosine" if power == "cosine" else "linear",
        )
        recipe = replace(cross_modal_recipe(world, tmp_path / str(number)), optimizer=config)
        groups = parameter_groups(built(recipe), recipe)
        expected = set(zip(multipliers, weight_decays, strict=True))
        assert {(round(g["peak_lr"] / base, 9), g["weight_decay"]) for g in groups} == expected
        rates = case["lr_over_base_by_step_and_group"]
        for step in range(steps + 1):
            factor = schedule_factor(step, steps, config)
            if power != "cosine" and step >= config.warmup_ratio * steps:
                factor = (1 - end) * factor**power + end
            set_learning_rate(groups, factor)
            of_groups = dict(zip(multipliers, rates[step], strict=True))
            for group in groups:
                wanted = of_groups[round(group["peak_lr"] / base, 9)]
                assert group["lr"] / base == pytest.approx(wanted, abs=1e-9)


def trajectory(case: RelatedCase, update: AdamWUpdate) -> float:
    """The largest deviation of recorded steps' losses, gradients' norms and weights, relative where
    above 1."""
    model, train = Recorded(case), case["train"]
    head, _ = model.questions(case)
    named = model.names({"vqa_classifier": head})
    groups: list[dict[str, Any]] = [
        {
            "params": [p for name in group["names"] for p in named.get(name, [])],
            "peak_lr": case["config"]["learning_rate"] * group["lr_multiplier"],
            "weight_decay": group["weight_decay"],
        }
        for group in case["param_groups"]
    ]
    optimizer = WholeAdamW(groups, update=update, betas=tuple(train["betas"]), eps=train["eps"])
    schedule = OptimizerConfig(warmup_ratio=case["config"]["warmup_steps"])
    found: list[tuple[float, float]] = []
    for step, expected in enumerate(train["steps"]):
        for parameters in named.values():
            for parameter in parameters:
                parameter.grad = None
        fused = model.fuse(case["text_ids"], case["text_masks"], case["image_0"])
        loss = vqa_loss(case, head(fused.pooled))
        loss.backward()
        gradient = torch.cat([tensor.flatten() for tensor in joined(named).values()])
        found += [(loss.item(), expected["loss"]), (gradient.norm().item(), expected["grad_norm"])]
        factor = schedule_factor(step, train["max_steps"], schedule)
        set_learning_rate(optimizer.parameter_groups, factor)
        rates = [group["lr"] for group in optimizer.parameter_groups]
        assert rates == pytest.approx(expected["lr"], abs=1e-12)
        optimizer.step()
        with torch.no_grad():
            for name, parameters in named.items():
                flat = torch.cat([p.flatten() for p in parameters])
                cosine = torch.arange(len(flat), dtype=flat.dtype).cos()
                ours = flat.norm().item(), (flat * cosine).sum().item()
                found += zip(ours, expected["params"][name], strict=True)
    assert len(found) > 1000
    return max(abs(ours - theirs) / max(1.0, abs(theirs)) for ours, theirs in found)


@recorded("meter_model", "train")
def test_optimizer_steps(path: Path) -> None:
    """METER's AdamW is transformers'; torch's update stays close."""
    case = RelatedCase(path)
    assert trajectory(case, "transformers") < 1e-9
    assert 1e-7 < trajectory(case, "torch") < 1e-4
