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
    extension = EXTENSION.fullmatch(name)
    if extension is None:
        return [ReferenceTensor(rest, None)]
    return adapter_tensors(controller_of(extension["place"]), extension["leaf"], length, tasks)


def controller_of(place: str) -> str:
    """The original's adapter controller behind a linear layer."""
    for pattern, controller in ADAPTER_PLACES.items():
        if match := re.fullmatch(pattern, place):
            return match.expand(controller)
    raise ValueError(f"{place}: the original code has no adapters there")


def adapter_tensors(
    controller: str, leaf: str, length: int, tasks: Sequence[str]
) -> list[ReferenceTensor]:
    """Tensors of an adapter: `leaf` is down_weight, up_bias, pre_norm.weight, ..."""
    if norm := re.fullmatch(r"(pre|post)_norm\.(\w+)", leaf):
        return [ReferenceTensor(f"{controller}.{norm[1]}_layer_norm.{norm[2]}", None)]
    half = re.fullmatch(r"(down|up)_(weight|bias)", leaf)
    if half is None:
        raise ValueError(
            f"{controller}: the original code has no {leaf} there; only adapters are known"
        )
    return [
        ReferenceTensor(
            f"{controller}.adapters.{task}.{half[1]}_sampler.{half[2]}",
            number,
            number if length > 1 else None,
        )
        for number, task in enumerate(tasks[:length])
    ]


def with_root(key: str, state: Mapping[str, object]) -> str:
    """A key as a checkpoint has it: BART's visual embedding lies below `model.`, T5's does not."""
    return key if key in state or f"model.{key}" not in state else f"model.{key}"


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
            key = with_root(entry.key, bare)
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
