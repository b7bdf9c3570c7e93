"""Mixtures of experts compute what AdaMix' code computed, in Hugging Face's RoBERTa and GPT-2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from tests.toys.recorded.related import RelatedCase, check_gradient, recorded
from vlds.models.methods import Adapter, LoRA, Mixture
from vlds.models.methods.base import Sharing
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import Host
from vlds.models.methods.mixture import symmetric_kl
from vlds.schema import TargetModules

Route = Sequence[int]


class Routes(BatchContext):
    """Draws what was recorded: each layer's expert of the first and of the second half."""

    def __init__(self, layers_of: dict[str, int]) -> None:
        """`layers_of`: what a draw's key begins with -> the number of the layer."""
        super().__init__()
        self.layers_of = layers_of
        self.routes: Sequence[Route] = []

    def draw(self, key: str, count: int) -> int:
        module, _, half = key.rpartition("/")
        drawn = self.routes[self.layers_of[module]][int(half)]
        assert drawn < count
        return drawn


def attach(case: RelatedCase, model: nn.Module, mixture: Mixture, **roles: str) -> Routes:
    """Attach a mixture; one draw a layer, whatever its number of linear layers."""
    per_layer = len(roles)
    keys = {f"mix/{n}": n // per_layer for n in range(per_layer * case["layers"])}
    context = Routes(keys)
    targets = TargetModules({role: (path,) for role, path in roles.items()})
    mixture.attach(Host("mix", model, targets, ["task"], context))
    return context


def adapter_weights(case: RelatedCase, place: str, ours: str) -> dict[str, Tensor]:
    """The experts behind a layer at a path `place` with `{n}` for its number, under our names."""
    weights = case.under("weights/")
    stacked = {}
    for layer in range(case["layers"]):
        soup = f"{place.format(n=layer)}.ExpertSoup"
        for half, original in (("down", "MoA_A"), ("up", "MoA_B")):
            for leaf in ("weight", "bias"):
                prefix = f"{soup}.{original}.deepspeed_experts"
                names = sorted(n for n in weights if n.startswith(prefix) and n.endswith(leaf))
                stack = torch.stack([weights[name] for name in names])
                stacked[f"{ours.format(n=layer)}.extensions.mix.{half}_{leaf}"] = stack
    return stacked


def experts_sharing(first: int, second: int) -> Sharing:
    """What the halves' experts have in common: 1 where there is one expert."""
    if first:
        return "half_shared_down"
    return "half_shared_up" if second else "multiple"


def check_experts(case: RelatedCase, model: nn.Module, place: str, ours: str) -> None:
    """Gradients of each expert."""
    for layer in range(case["layers"]):
        module = model.get_submodule(f"{ours.format(n=layer)}.extensions.mix")
        for half, original in (("down", "MoA_A"), ("up", "MoA_B")):
            for leaf in ("weight", "bias"):
                gradient = module.get_parameter(f"{half}_{leaf}").grad
                assert gradient is not None
                for number, own in enumerate(gradient):
                    soup = f"{place.format(n=layer)}.ExpertSoup.{original}"
                    name = f"{soup}.deepspeed_experts.{number}.{leaf}"
                    check_gradient(own, case["grads"][name], name)


def encoder_loss(case: RelatedCase, logits: Tensor) -> Tensor:
    """The loss of classes, or of numbers."""
    if case["num_labels"] == 1:
        return F.mse_loss(logits.flatten(), case["labels"].double())
    return F.cross_entropy(logits, case["labels"])


@recorded("adamix_roberta")
def test_an_encoder(path: Path) -> None:
    case = RelatedCase(path)
    config = RobertaConfig(
        vocab_size=case["vocab"], hidden_size=case["hidden"], num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"], intermediate_size=case["ffn"],
        max_position_embeddings=len(
            case["weights/roberta.embeddings.position_embeddings.weight"]
        ),
        type_vocab_size=len(case["weights/roberta.embeddings.token_type_embeddings.weight"]),
        layer_norm_eps=case["layer_norm_eps"], pad_token_id=case["pad_token_id"],
        num_labels=case["num_labels"], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).double()
    adapter = Adapter(
        reduction=case["hidden"] // case["bottleneck"], activation="gelu", attention=False,
        cross_attention=False,
        sharing=experts_sharing(case["sharing_down"], case["sharing_up"]),
    )  # fmt: skip
    mixture = Mixture(of=adapter, experts=case["experts"])
    place = "roberta.encoder.layer.{n}.output"
    context = attach(case, model, mixture, ffn_out=place.format(n="*") + ".dense")
    own = {n: t for n, t in case.under("weights/").items() if "ExpertSoup" not in n}
    state = own | adapter_weights(case, place, place + ".dense")
    model.load_state_dict(state)
    model.train()

    def run() -> Tensor:
        logits: Tensor = model(case["input_ids"], attention_mask=case["attention_mask"]).logits
        return logits

    context.training, passes = True, []
    for number, context.routes in enumerate(case["routing_pass_layer_downup"], 1):
        passes.append(run())
        assert (passes[-1] - case[f"train/logits_pass{number}"]).abs().max() < 1e-9
    distance = symmetric_kl(*passes).mean()
    loss = encoder_loss(case, passes[0]) + distance
    assert abs(loss.item() - case["loss"]) < 1e-9
    assert abs(distance.item() - case["symmetric_kl"]) < 1e-9
    loss.backward()
    check_experts(case, model, place, place + ".dense")
    for name in case["trainable"]:
        if "ExpertSoup" not in name:
            check_gradient(model.get_parameter(name).grad, case["grads"][name], name)
    context.training = False
    before = run()
    mixture.merge("mix", model, ["task"])
    for logits in (before, run()):
        assert abs(encoder_loss(case, logits).item() - case["eval_merged_loss"]) < 1e-9
        # One task's scores are never below 0: its code clamps what it returns.
        shown = logits.clamp(min=0) if case["finetuning_task"] == "stsb" else logits
        assert (shown - case["eval/merged_logits"]).abs().max() < 1e-9


class SplitAttention(nn.Module):
    """GPT-2's one layer for queries, keys and values, as three."""

    def __init__(self, layer: Conv1D) -> None:
        super().__init__()
        width = layer.nx
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: Tensor) -> Tensor:
        return torch.cat([self.q(states), self.k(states), self.v(states)], -1)


def gpt2(case: RelatedCase) -> nn.Module:
    """GPT-2 of linear layers, with the recorded weights."""
    config = GPT2Config(
        vocab_size=case["vocab"], n_positions=case["positions"], n_embd=case["hidden"],
        n_layer=case["layers"], n_head=case["heads"], layer_norm_epsilon=case["layer_norm_eps"],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    weights = {
        name: tensor
        for name, tensor in case.under("weights/").items()
        if not any(word in name for word in ("ExpertSoup", "expert", "lm_head"))
    }
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, Conv1D):
            continue
        weight, bias = weights.pop(f"{path}.weight"), weights.pop(f"{path}.bias")
        if path.endswith("c_attn"):
            model.set_submodule(path, SplitAttention(layer))
            for part, rows, biases in zip("qkv", weight.T.chunk(3), bias.chunk(3), strict=True):
                weights |= {f"{path}.{part}.weight": rows, f"{path}.{part}.bias": biases}
        else:
            model.set_submodule(path, nn.Linear(*weight.shape))
            weights |= {f"{path}.weight": weight.T, f"{path}.bias": bias}
    missing, unexpected = model.double().load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    return model.train()


def task_loss(case: RelatedCase, logits: Tensor) -> Tensor:
    """The mean over real tokens, whose number has a small constant added."""
    mask, log_p = case["lm_mask"], F.log_softmax(logits, -1)
    errors = -log_p.gather(-1, case["lm_labels"][..., None])[..., 0]
    smooth = case["label_smooth"]
    errors = (1 - smooth) * errors + smooth * -log_p.mean(-1)
    return (mask * errors).sum() / (mask.sum() + 0.0001)


def check_two_passes(
    case: RelatedCase, model: nn.Module, context: Routes, routes: Sequence[Sequence[Route]]
) -> None:
    """Logits and loss; leaves gradients."""
    context.training, passes = True, []
    for number, context.routes in enumerate(routes, 1):
        passes.append(model(case["input_ids"]).logits)
        assert (passes[-1] - case[f"train/logits_pass{number}"]).abs().max() < 1e-9
    first, second = (logits[case["lm_mask"] == 1] for logits in passes)
    distance = symmetric_kl(first, second).mean()
    assert abs(distance.item() - case["symmetric_kl"]) < 1e-9
    loss = task_loss(case, passes[0]) + case["consistency_weight"] * distance
    assert abs(loss.item() - case["loss"]) < 1e-9
    loss.backward()
    context.training = False


def check_merged(case: RelatedCase, model: nn.Module, mixture: Mixture) -> None:
    """Evaluation, and the model after merging."""
    before = model(case["input_ids"]).logits
    mixture.merge("mix", model, ["task"])
    after = model(case["input_ids"]).logits
    for logits in (before, after):
        assert (logits - case["eval/merged_logits"]).abs().max() < 1e-9
        assert abs(task_loss(case, logits).item() - case["eval_merged_loss"]) < 1e-9


@recorded("adamix_gpt2_lora")
def test_lora_in_a_decoder(path: Path) -> None:
    case = RelatedCase(path)
    lora = LoRA(
        rank=case["lora_r"], alpha=case["lora_alpha"], dropout=0.0, train_biases=False,
        sharing=experts_sharing(case["share_A"], case["share_B"]),
    )  # fmt: skip
    mixture, model = Mixture(of=lora, experts=case["experts"]), gpt2(case)
    place = "transformer.h.{n}.attn.c_attn"
    layers = {role: place.format(n="*") + end for role, end in (("attn_q", ".q"), ("attn_v", ".v"))}
    context = attach(case, model, mixture, **layers)
    weights = case.under("weights/")
    experts: dict[str, list[nn.Parameter]] = {}
    for layer in range(case["layers"]):
        for half, leaf in (("A", "a"), ("B", "b")):
            prefix = f"{place.format(n=layer)}.experts_lora_{half}"
            stack = torch.stack([weights[n] for n in sorted(weights) if n.startswith(prefix)])
            experts[prefix] = [
                model.get_submodule(f"{place.format(n=layer)}.{part}.extensions.mix").get_parameter(
                    leaf
                )
                for part in "qv"
            ]
            for parameter, rows in zip(experts[prefix], stack.chunk(2, 1), strict=True):
                parameter.data.copy_(rows)
    check_two_passes(case, model, context, case["routing_pass_layer_AB"])
    for prefix, (q, v) in experts.items():
        assert q.grad is not None
        assert v.grad is not None
        for number, gradient in enumerate(torch.cat([q.grad, v.grad], 1)):
            check_gradient(gradient, case["grads"][f"{prefix}.{number}"], prefix)
    check_merged(case, model, mixture)
