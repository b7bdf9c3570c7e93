"""Names of the original VL-Adapter code (`LAST.pth`) for the tensors of a VLModel.

One tensor of ours may be several of theirs: weights per task are stacked here and stand under the
task's name there, and what tasks share stands there once per task, as aliases of one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

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
OBJECT_ORDER = "encoder.visual_embedding.obj_order_embedding.weight"
TOKEN_TABLES = {"shared.weight": "", "model.shared.weight": "model."}
"""The token table, of T5 and of BART -> what stands there before the visual embedding, which reads
the table too."""
EXTENSION = re.compile(r"backbone\.(?P<place>.+)\.extensions\.(?P<method>\w+)\.(?P<leaf>[\w.]+)")


@dataclass(frozen=True)
class ReferenceTensor:
    """A tensor of the original code, and where it is in ours."""

    key: str
    index: int | None
    """Number of the slice along our first dimension; None: the whole tensor."""
    task: int | None = None
    """Number of the task that alone uses it; None: all do."""
    aliases: tuple[str, ...] = ()
    """Its other names there."""


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
        prefix = TOKEN_TABLES.get(rest)
        aliases = () if prefix is None else (f"{prefix}{OBJECT_ORDER}",)
        return [ReferenceTensor(rest, None, aliases=aliases)]
    place, leaf = extension["place"], extension["leaf"]
    if leaf in LORA:
        return per_task(f"{place}.{LORA[leaf]}.{{task}}", length, tasks)
    if leaf == "bias":  # Ladder Side-Tuning's code gives T5's layers one
        return [ReferenceTensor(f"{place}.bias", None)]
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
        found = per_task("shared_task_embed.task_to_embeddings.{task}", length, tasks)
        return [replace(t, aliases=(*t.aliases, *in_stacks(t.key))) for t in found]
    for pattern, place in HYPERNET.items():
        if match := re.fullmatch(rf"stacks\.\w*(encoder|decoder)\w*\.{pattern}", leaf):
            return [
                ReferenceTensor(f"{match[1]}.adapter_layers_hyper_net.{match.expand(place)}", None)
            ]
    raise ValueError(f"{leaf}: the original code has no such tensor beside its model")


def in_stacks(key: str) -> list[str]:
    """The names that both stacks have for the embedding of a task."""
    task = key.removeprefix("shared_task_embed.")
    return [f"{stack}.task_embed.{task}" for stack in ("encoder", "decoder")]


def per_task(key: str, length: int, tasks: Sequence[str]) -> list[ReferenceTensor]:
    """The slices of a tensor that is stacked over tasks; `key` has {task} where theirs names it."""
    return [
        ReferenceTensor(
            key.format(task=task),
            number,
            number if length > 1 else None,
            () if length > 1 else tuple(key.format(task=other) for other in tasks[1:]),
        )
        for number, task in enumerate(tasks[:length])
    ]


def spelled(key: str, state: Container[str]) -> str:
    """A key as a checkpoint has it: BART's visual embedding lies below `model.`, T5's does not; the
    bias of a PHM or low-rank layer is called b."""
    return next((spelling for spelling in spellings(key) if spelling in state), key)


def spellings(key: str) -> tuple[str, str, str]:
    """As T5's checkpoints have a key, as BART's may have it, and with a bias that is called b."""
    return key, f"model.{key}", re.sub(r"(_sampler\.)bias$", r"\1b", key)
