"""METER's co-attention, encoders, heads, schedule and optimizer steps follow the original code,
value by value."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel

from tests.toys.cross_modal import cross_modal_recipe
from tests.toys.kinds import built
from tests.toys.recorded.plain_meter import write_case
from tests.toys.recorded.related import RelatedCase, paths_by_kind, recorded
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kinds.cross_modal_model import CoAttention, CoAttentionConfig, Fused, WordHead
from vlds.models.loading.resizing import resized_positions
from vlds.models.methods.context import ClassesPredicted
from vlds.models.task_heads import ranked
from vlds.models.vision.clip import ClipTokensModule
from vlds.recipe.config import OptimizerConfig
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
    weights = fusion_weights(case)
    num_images = len(weights["types.weight"]) - 1
    fusion = CoAttention(config, text, image, True, num_images).double()
    if "text_projection.weight" not in weights:  # the stack alone: projections that change nothing
        eye, zeros = torch.eye(config.width), torch.zeros(config.width)
        for stream in ("text", "image"):
            weights |= {f"{stream}_projection.weight": eye, f"{stream}_projection.bias": zeros}
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


class Piece(NamedTuple):
    """Some rows of a weight of ours."""

    parameter: nn.Parameter
    rows: slice = slice(None)


Named = dict[str, list[Piece]]
"""The original code's name of a weight -> ours, which are its rows one after the other."""


def joined(named: Named) -> dict[str, Tensor]:
    """Gradients of those that have one."""
    found: dict[str, Tensor] = {}
    for name, pieces in named.items():
        parts = [p.parameter.grad[p.rows] for p in pieces if p.parameter.grad is not None]
        if parts:
            found[name] = torch.cat(parts)
    return found


def fusion_names(fusion: CoAttention) -> Named:
    """Of the co-attention."""
    theirs = {ours: name for name, ours in OURS.items()}
    named: Named = {}
    for name, parameter in fusion.named_parameters():
        module, _, rest = name.partition(".")
        named[f"{theirs[module]}.{rest}"] = [Piece(parameter)]
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
        self.last = sizes["num_top_layer"] - 1
        self.heads: dict[str, nn.Module] = {}
        """By the names of the original code; their gradients are compared, too."""
        self.eval()

    def fuse(self, ids: Tensor, mask: Tensor, pictures: Tensor, number: int = 0) -> Fused:
        """The streams of texts (b, l) and pictures (b, 3, h, w), which are normalised; `number`:
        which of an example's pictures they are."""
        text = self.text(ids, attention_mask=mask).last_hidden_state
        image = self.vision.features(pictures)
        seen = image.new_ones(image.shape[:2]).bool()
        fused: Fused = self.fusion(text, mask.bool(), image, seen, number)
        return fused

    def names(self) -> Named:
        """Of the model and its heads."""
        named = fusion_names(self.fusion) | vision_names(self.vision.net)
        for prefix, module in {"text_transformer": self.text, **self.heads}.items():
            for name, parameter in module.named_parameters():
                named[f"{prefix}.{WORDS.get(name, name)}"] = [Piece(parameter)]
        # The rank is the score of the second of our head's two classes.
        for name in ("weight", "bias"):
            for piece in named.pop(f"rank.{name}", []):
                named[f"rank_output.{name}"] = [piece._replace(rows=slice(1, 2))]
        return named

    def head(self, name: str, module: nn.Module) -> nn.Module:
        """A head under the original code's name."""
        self.heads[name] = module.double()
        return self.heads[name]

    def classifier(self, case: RelatedCase, name: str, states: Tensor) -> Tensor:
        """Logits of a head of two layers."""
        weights = case.under(f"weights/{name}.")
        classes = tuple(map(str, range(len(weights["3.bias"]))))
        kind = MLPHead(classes=classes, order="norm_gelu", hidden=len(weights["0.bias"]))
        head = kind.build(states.shape[1]).double()
        head.load_state_dict(weights)
        logits: Tensor = self.head(name, head)(states)
        return logits

    def losses(self, case: RelatedCase) -> dict[str, Tensor]:
        """Those that the case has, by name; what it has recorded on the way is compared."""
        ways = {
            "vqa_loss": self.vqa,
            "itm_loss": self.itm,
            "mlm_loss": self.mlm,
            "nlvr2_loss": self.nlvr2,
            "snli_loss": self.snli,
            "irtr_loss": self.irtr,
        }
        return {name: ways[name](case) for name in case["losses"]}

    def compare(self, case: RelatedCase, recorded: str, ours: Tensor) -> None:
        """With what a case has under this name, if it has it."""
        if recorded in case.tensors:
            assert (ours - case[recorded]).abs().max() < 1e-9, recorded

    def vqa(self, case: RelatedCase) -> Tensor:
        """The mean over examples of the sum over answers."""
        fused = self.fuse(case["text_ids"], case["text_masks"], case["image_0"])
        self.compare(case, f"act/text_layer{self.last}", fused.text)
        self.compare(case, f"act/image_layer{self.last}", fused.image)
        logits = self.classifier(case, "vqa_classifier", fused.pooled)
        self.compare(case, "out/vqa_logits", logits)
        targets = torch.zeros_like(logits)
        pairs = zip(case["vqa_labels"], case["vqa_scores"], strict=True)
        for row, (labels, scores) in enumerate(pairs):
            targets[row, labels] = torch.tensor(scores, dtype=torch.float64)
        assert torch.equal(targets, case["out/vqa_targets"])
        rows = torch.arange(len(logits))
        return ClassesPredicted(logits, rows, targets, is_binary=True).losses().mean()

    def nlvr2(self, case: RelatedCase) -> Tensor:
        """The two pictures' pooled pairs stand side by side."""
        text = case["text_ids"], case["text_masks"]
        pairs = [self.fuse(*text, case[f"image_{n}"], n).pooled for n in range(2)]
        return self.one_class(case, "nlvr2", torch.cat(pairs, 1))

    def snli(self, case: RelatedCase) -> Tensor:
        fused = self.fuse(case["text_ids"], case["text_masks"], case["image_0"])
        return self.one_class(case, "snli", fused.pooled)

    def one_class(self, case: RelatedCase, task: str, states: Tensor) -> Tensor:
        """The cross-entropy of a head's classes."""
        logits = self.classifier(case, f"{task}_classifier", states)
        self.compare(case, f"out/{task}_logits", logits)
        labels = case[f"out/{task}_labels"].long().flatten()
        rows, targets = torch.arange(len(labels)), F.one_hot(labels, logits.shape[1])
        return ClassesPredicted(logits, rows, targets, is_binary=False).losses().mean()

    def irtr(self, case: RelatedCase) -> Tensor:
        """Texts of which the first is each picture's: their rows stand below each other."""
        texts = [(case["text_ids"], case["text_masks"])]
        while f"false_text_{len(texts) - 1}_ids" in case.tensors:
            name = f"false_text_{len(texts) - 1}"
            texts.append((case[f"{name}_ids"], case[f"{name}_masks"]))
        pairs = [self.fuse(*text, case["image_0"]).pooled for text in texts]

        head = LinearHead(classes=("false", "true")).build(pairs[0].shape[1]).double()
        for name, weight in head.named_parameters():
            weight.data = case[f"weights/itm_score.fc.{name}"].clone()
            weight.data[1:] = case[f"weights/rank_output.{name}"]
        num = len(pairs[0])
        contests = torch.arange(num)[:, None] + num * torch.arange(len(texts))
        scores = self.head("rank", head)(torch.cat(pairs))[:, -1]
        found = ranked(scores, torch.arange(len(scores)), contests)
        assert found.rows.tolist() == list(range(num))
        return found.losses().mean()

    def itm(self, case: RelatedCase) -> Tensor:
        """Every second picture is a false one."""
        order = case["itm_permutation"]
        half = len(order) // 2
        labels = torch.tensor([1] * half + [0] * (len(order) - half))[order]
        assert torch.equal(labels.double(), case["out/itm_labels"])
        shown = torch.where(
            labels[:, None, None, None] == 1, case["image_0"], case["false_image_0"]
        )
        pooled = self.fuse(case["text_ids"], case["text_masks"], shown).pooled

        matching = nn.Linear(pooled.shape[1], 2).double()
        matching.load_state_dict(case.under("weights/itm_score.fc."))
        logits = self.head("itm_score.fc", matching)(pooled)
        self.compare(case, "out/itm_logits", logits)
        return F.cross_entropy(logits, labels)

    def mlm(self, case: RelatedCase) -> Tensor:
        """The words that are masked."""
        states = self.fuse(case["text_ids_mlm"], case["text_masks"], case["image_0"]).text

        words = WordHead(states.shape[2], case["config"]["vocab_size"]).double()
        words.load_state_dict(
            {name: case[f"weights/mlm_score.{theirs}"] for name, theirs in WORDS.items()}
        )
        logits = self.head("mlm_score", words)(states)
        self.compare(case, "out/mlm_logits", logits)
        return F.cross_entropy(logits.flatten(0, 1), case["text_labels_mlm"].flatten())


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
                named.setdefault(f"vit_model.visual.{name}", []).append(Piece(parameter))
    return named


PLAIN = ("nlvr2_loss", "snli_loss", "irtr_loss")
"""Cases of our own, by the plain reference."""
CASES = [*paths_by_kind().get("meter_model", []), *PLAIN]


@pytest.fixture(params=CASES, ids=lambda path: Path(path).stem)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> RelatedCase:
    """Each recorded case of a whole model, and each of our own."""
    if request.param in PLAIN:
        return RelatedCase(write_case(tmp_path, request.param))
    return RelatedCase(request.param)


def test_a_whole_model(case: RelatedCase) -> None:
    model = Recorded(case)
    found = model.losses(case)
    for name, loss in found.items():
        assert float(loss.detach()) == pytest.approx(case["losses"][name], abs=1e-9)
    torch.stack(list(found.values())).sum().backward()
    gradients = joined(model.names())
    # The original code freezes the head for matching where texts are ranked.
    wanted = {name for name, expected in case["grads"].items() if expected is not None}
    assert wanted - gradients.keys() == set()
    assert check_gradients(case, {n: g for n, g in gradients.items() if n in wanted}) == len(wanted)


def plain_schedule(of_head: float, of_streams: float) -> dict[str, Any]:
    """METER's schedule with other factors: 2 of 20 steps of warm-up, then a line to 0."""
    factors = [1.0, 1.0, of_head, of_head, of_streams, of_streams]
    shares = [step / 2 if step < 2 else (20 - step) / 18 for step in range(21)]
    return {
        "max_steps": 20, "warmup_steps": 0.1, "decay_power": 1, "end_lr": 0, "base_lr": 1e-5,
        "lr_mult_head": of_head, "group_multipliers": factors, "weight_decays": [0.01, 0.0] * 3,
        "lr_over_base_by_step_and_group": [[f * share for f in factors] for share in shares],
    }  # fmt: skip


SCHEDULES = [
    *(c for path in paths_by_kind().get("meter_schedule", []) for c in RelatedCase(path)["cases"]),
    plain_schedule(10, 5),
    plain_schedule(1, 3),
]


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedule(case: dict[str, Any], world: Path, tmp_path: Path) -> None:
    """Rates of all groups at every step. METER's runs fall in a line to 0; vlds has no other power
    and no other end, and shows here what its line would become with them."""
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
    recipe = replace(cross_modal_recipe(world, tmp_path), optimizer=config)
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
