"""Names of the original VL-Adapter code (`LAST.pth`) for the tensors of a VLModel.

One tensor of ours may be several of theirs: weights per task are stacked here and stand under the
task's name there, and what tasks share stands there once per task, as aliases of one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

VISUAL = {
    "feature_projection": "feat_embedding.0",
    "feature_norm": "feat_embedding.1",
    "box_projection": "absolute_vis_pos_embedding.0",
    "box_norm": "absolute_vis_pos_embedding.1",
    "image_order": "img_order_embedding",
}
ADAPTER_PLACES = {
    r"(model\.encoder\.layers\.\d+)\.self_attn\.out_proj": r"\1.attn_adapter",
    r"(model\.decoder\.layers\.\d+)\.self_attn\.out_proj": r"\1.self_attn_adapter",
    r"(model\.decoder\.layers\.\d+)\.encoder_attn\.out_proj": r"\1.enc_attn_adapter",
    r"(model\.\w+\.layers\.\d+)\.fc2": r"\1.ff_adapter",
    r"(\w+\.block\.\d+\.layer\.0)\.SelfAttention\.o": r"\1.attn_adapter",
    r"(\w+\.block\.\d+\.layer\.1)\.EncDecAttention\.o": r"\1.enc_attn_adapter",
    r"(\w+\.block\.\d+\.layer\.\d)\.DenseReluDense\.wo": r"\1.ff_adapter",
}
"""Linear layer of the backbone -> the module that holds its adapters in the original code."""
LEAVES = {
    "weight": "weight",
    "bias": "bias",
    "rule": "phm_rule",
    "blocks": "W",
    "left": "W_left",
    "right": "W_right",
}
"""What a half of a bottleneck is made of: ours -> theirs."""
GENERATOR_KINDS = {
    "ffn_out": "feed_forward_",
    "attn_out": "self_attention_",
    "cross_attn_out": "cross_attention_",
    "all": "",
}
HYPERNET = {
    r"layer_embeddings\.weight": r"layer_id_embeddings.weight",
    r"kind_embeddings\.weight": r"adapters_block_type.weight",
    r"hidden\.(\w+)": r"task_hypernet.task_embeding_generator.0.\2",
    r"project\.(\w+)": r"task_hypernet.task_embeding_generator.2.\2",
    r"norm\.(\w+)": r"LayerNorm.\2",
} | {
    rf"generators\.{ours}\.(down|up)_(\w+)\.(\w+)": (
        rf"{theirs}\2_sampler_hyper_net.\3_generator.0.\4"
    )
    for ours, theirs in GENERATOR_KINDS.items()
}
"""Tensors of a stack's network: ours -> theirs."""
PROMPT_OWNERS = {"network": "encoder.", "decoder_network": ""}
PROMPTS = {
    "table": "0.weight",
    "hidden_weight": "1.weight",
    "hidden_bias": "1.bias",
    "output_weight": "3.weight",
    "output_bias": "3.bias",
}
LORA = {"a": "lora_As", "b": "lora_Bs"}
EXTENSION = re.compile(r"backbone\.(?P<place>.+)\.extensions\.(?P<method>\w+)\.(?P<leaf>[\w.]+)")


@dataclass(frozen=True)
class ReferenceTensor:
    """A tensor of the original code, and where it is in ours."""

    key: str
    index: int | None
    """Number of the slice along our first dimension; None: the whole tensor."""
    task: int | None = None
    """Number of the task that alone uses it; None: all do."""


def reference_tensors(name: str, length: int, tasks: Sequence[str]) -> list[ReferenceTensor]:
    """What a tensor of ours, `length` long in its first dimension, is called in the original code.

    Tensors that tasks share have the first task's name. Errors: ValueError where the original has
    no such tensor.
    """
    part, _, rest = name.partition(".")
    if part == "visual_embedding":
        module, _, leaf = rest.partition(".")
        return [ReferenceTensor(f"encoder.visual_embedding.{VISUAL[module]}.{leaf}", None)]
    if part != "backbone":
        raise ValueError(f"{name}: the original code keeps no {part} in its checkpoints")
    if rest.startswith("extensions."):
        return model_tensors(rest.split(".", 2)[2], length, tasks)
    extension = EXTENSION.fullmatch(name)
    if extension is None:
        return [ReferenceTensor(rest, None)]
    place, leaf = extension["place"], extension["leaf"]
    if leaf in LORA:
        return per_task(f"{place}.{LORA[leaf]}.{{task}}", length, tasks)
    return adapter_tensors(controller_of(place), leaf, length, tasks)


def controller_of(place: str) -> str:
    """The original's adapter controller behind a linear layer."""
    for pattern, controller in ADAPTER_PLACES.items():
        if match := re.fullmatch(pattern, place):
            return match.expand(controller)
    raise ValueError(f"{place}: the original code has no adapters there")


def adapter_tensors(
    controller: str, leaf: str, length: int, tasks: Sequence[str]
) -> list[ReferenceTensor]:
    """Tensors of a bottleneck: `leaf` is down_weight, up_bias, down_rule, pre_norm.weight, ..."""
    if norm := re.fullmatch(r"(pre|post)_norm\.(\w+)", leaf):
        return [ReferenceTensor(f"{controller}.{norm[1]}_layer_norm.{norm[2]}", None)]
    half = re.fullmatch(rf"(down|up)_({'|'.join(LEAVES)})", leaf)
    if half is None:
        raise ValueError(f"{controller}: the original code has no {leaf} there")
    key = f"{controller}.adapters.{{task}}.{half[1]}_sampler.{LEAVES[half[2]]}"
    return per_task(key, length, tasks)


def model_tensors(leaf: str, length: int, tasks: Sequence[str]) -> list[ReferenceTensor]:
    """Tensors beside the model: of prompts, where `leaf` is network.table, ..., and of
    Hyperformer's networks, task_embeddings.weight, stacks.encoder_block.hidden.weight, ..."""
    owner, _, rest = leaf.partition(".")
    if owner in PROMPT_OWNERS:
        prompts = f"{PROMPT_OWNERS[owner]}prompt_modules.prompts"
        return per_task(f"{prompts}.{{task}}.prefix_embedding.{PROMPTS[rest]}", length, tasks)
    if leaf == "task_embeddings.weight":
        return per_task("shared_task_embed.task_to_embeddings.{task}", length, tasks)
    for pattern, place in HYPERNET.items():
        if match := re.fullmatch(rf"stacks\.\w*(encoder|decoder)\w*\.{pattern}", leaf):
            return [
                ReferenceTensor(f"{match[1]}.adapter_layers_hyper_net.{match.expand(place)}", None)
            ]
    raise ValueError(f"{leaf}: the original code has no such tensor beside its model")


def per_task(key: str, length: int, tasks: Sequence[str]) -> list[ReferenceTensor]:
    """The slices of a tensor that is stacked over tasks; `key` has {task} where theirs names it."""
    return [
        ReferenceTensor(key.format(task=task), number, number if length > 1 else None)
        for number, task in enumerate(tasks[:length])
    ]


def spelled(key: str, state: Mapping[str, object]) -> str:
    """A key as a checkpoint has it: BART's visual embedding lies below `model.`, T5's does not; the
    bias of a PHM or low-rank layer is called b."""
    spellings = (key, f"model.{key}", re.sub(r"(_sampler\.)bias$", r"\1b", key))
    return next((spelling for spelling in spellings if spelling in state), key)


def from_reference(
    state: Mapping[str, Tensor], wanted: Iterable[tuple[str, Tensor]], tasks: Sequence[str]
) -> dict[str, Tensor]:
    """Our tensors, named as `wanted` (name, tensor of the right shape), from a state dict of the
    original code.

    Errors: ValueError that names a tensor that the state dict lacks or has in another shape.
    """
    bare = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    found: dict[str, Tensor] = {}
    for name, target in wanted:
        length = target.shape[0] if target.dim() else 1
        pieces = []
        for entry in reference_tensors(name, length, tasks):
            key = spelled(entry.key, bare)
            if key not in bare:
                raise ValueError(
                    f"{key}: not in the checkpoint; the recipe's methods and tasks must be its own"
                )
            pieces.append(bare[key] if entry.index is None else bare[key][None])
        tensor = torch.cat(pieces)
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name}: {tuple(tensor.shape)} in the checkpoint, {tuple(target.shape)} by the "
                "recipe; the "
                "recipe's sizes must be those of the checkpoint"
            )
        found[name] = tensor
    return found
