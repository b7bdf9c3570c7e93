"""Opens a model of Hugging Face that becomes a backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed

from vlds.models.backbones.base import unique_state
from vlds.models.loading.gate import bounded, unpartitioned
from vlds.models.loading.model_files import reading
from vlds.models.loading.quantised import Bits, load_language, pack_shapes
from vlds.models.vision.base import on_meta

# Tables that a model computes from its sizes, such as the frequencies of rotary positions.
#
# No checkpoint holds them. Casting a model to bfloat16 would round them, and positions with them.


@contextmanager
def steady_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, the model may be cast or moved: its computed tables move, but keep their type."""
    tables = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set and buffer.is_floating_point()
    ]
    yield
    for module, name, buffer in tables:
        setattr(module, name, buffer.to(module.get_buffer(name).device))


# Stage 3 partitions the frozen backbone while it is loaded; a tensor of it can be made whole.


class LoadingHint:
    """What transformers asks of its HfDeepSpeedConfig, without the `accelerate` package that class
    needs."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        """Asked by transformers before it creates a model."""
        return bool(self.config["zero_optimization"]["stage"] == 3)


@contextmanager
def partitioned_loading(config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `from_pretrained` partitions each weight as it comes from disk, if DeepSpeed's
    config says stage 3.

    No rank ever holds the whole model. The hint is taken back afterwards: it is global to
    transformers.
    """
    hint = LoadingHint(config)
    hf_deepspeed.set_hf_deepspeed_config(hint)
    try:
        with tying_by_value():
            yield
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()


@contextmanager
def tying_by_value() -> Iterator[None]:
    """Inside, transformers ties partitioned weights of a checkpoint only if they are equal.

    It means to do so, but what it compares is the empty tensor that stands for a partitioned
    weight, so that it would replace any output head by the token table.
    """
    tie_all = PreTrainedModel.tie_weights

    def tie_weights(
        model: Any, missing_keys: set[str] | None = None, recompute_mapping: bool = True
    ) -> None:
        if missing_keys is not None:  # a checkpoint has been loaded
            forget_unequal_ties(model, missing_keys)
        tie_all(model, missing_keys, recompute_mapping)

    PreTrainedModel.tie_weights = tie_weights
    try:
        yield
    finally:
        PreTrainedModel.tie_weights = tie_all


def forget_unequal_ties(model: Any, missing_keys: set[str]) -> None:
    """Strike pairs of partitioned weights that differ off the model's list of ties."""
    for target, source in list(model.all_tied_weights_keys.items()):
        pair = model.get_parameter(target), model.get_parameter(source)
        partitioned = hasattr(pair[0], "ds_tensor") and hasattr(pair[1], "ds_tensor")
        if missing_keys.isdisjoint((target, source)) and partitioned and not equal_parts(*pair):
            del model.all_tied_weights_keys[target]


def equal_parts(source: Any, target: Any) -> bool:
    """True if two partitioned weights are equal. Collective."""
    if source.ds_shape != target.ds_shape:
        return False
    # The last ranks' parts end in padding.
    size = source.ds_tensor.ds_numel
    start = size * distributed.get_rank(source.ds_process_group)
    length = min(max(source.ds_numel - start, 0), size)
    equal = torch.equal(source.ds_tensor[:length], target.ds_tensor[:length])
    verdict = torch.tensor(int(equal), device=source.ds_tensor.device)
    distributed.all_reduce(verdict, distributed.ReduceOp.MIN, source.ds_process_group)
    return bool(verdict)


@contextmanager
def whole(tensor: Tensor) -> Iterator[None]:
    """Inside, a tensor that stage 3 has partitioned is whole on every rank. What was written into
    it is partitioned again; the first rank's values count. Collective."""
    if not hasattr(tensor, "ds_tensor"):
        yield
        return
    import deepspeed  # seconds, and needed only here

    with deepspeed.zero.GatheredParameters(tensor, modifier_rank=0):
        yield


# Rows of text that are longer than the table of positions that a language model has learned.
#
# Models with rotary positions read rows of any length; a table ends, and what lies behind its end
# stops a run in the middle with an index error.


class Longest(NamedTuple):
    """The most that a row of a task can hold."""

    pictures: int
    prompt: int
    """Tokens of the text before the answer, without pictures and template."""
    answer: int
    """Tokens of the answer."""


def num_positions(
    model_class: Any,
    config: Any,
    language: Callable[[Any], nn.Module] = lambda model: model,
) -> int | None:
    """Positions that a model's language part has learned; None if it has no table of them. The
    shapes of the model tell, which costs no memory."""
    text = config.get_text_config()
    most: int | None = getattr(text, "max_position_embeddings", None)
    if most is None or getattr(text, "rope_parameters", None):
        return None
    with torch.device("meta"), unpartitioned(), bounded():
        part = language(model_class(config))
    tables = (name for name, module in part.named_modules() if isinstance(module, nn.Embedding))
    return most if any(map(is_positions, tables)) else None


def is_positions(path: str) -> bool:
    """True for the path of a table of positions, such as OPT's and GPT-2's."""
    name = path.rpartition(".")[2]
    return "pos" in name or name == "wpe"


def check_fits(task: str, tokens: Mapping[str, int], most: int, *fields: str) -> None:
    """Compare a row's tokens, by where they come from, with the positions that there are. `fields`
    of the model can make rows shorter, as those of the task can.

    Errors: ValueError that names the task's longest row and the numbers.
    """
    if (total := sum(tokens.values())) > most:
        terms = " + ".join(f"{number} ({where})" for where, number in tokens.items() if number)
        cure = ", ".join([*fields, f"{task}.max_prompt_tokens", "max_target_tokens"])
        raise ValueError(
            f"{task}: its longest row has {total} tokens: {terms}; the model has learned {most} "
            f"positions; lower {cure} or decoding.max_new_tokens"
        )


def load_backbone(
    model_class: Any,
    config: Any,
    path: str | None,
    dtype: torch.dtype,
    bits: Bits | None = None,
) -> tuple[Any, set[str]]:
    """The model with the weights of a folder or hub name, and the names of its tensors that come
    from there. Without a path, random weights; on the meta device, shapes. `bits`: those of packed
    layers.

    Errors: SourceError that begins with `model`.
    """
    names: set[str] = set()
    if path is None or on_meta():
        field = "model.config: it" if path is None else f"model.path: {path}"
        with reading(f"{field} describes no model"):
            model = model_class(config)
        with steady_buffers(model):
            model.to(dtype)
        pack_shapes(model, bits)
    else:
        model, missing = load_language(model_class, path, config, dtype, bits)
        names = {name for name, _ in unique_state(model)} - missing
    # Values of the checkpoint would leak into `generate` wherever ours are None.
    model.generation_config = GenerationConfig()
    return model, names
