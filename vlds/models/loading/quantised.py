"""Frozen linear layers whose weights are packed in 4 or 8 bits, by the library bitsandbytes.

4 bits are nf4 of QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314) without double
quantisation; 8 bits are LLM.int8() (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339).
Weights are packed on the CPU while they are loaded, in the model's number type, so every process
packs a source into the same codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.versions import require_version

from vlds.models.loading.gate import CORRECT, load_weights, unpartitioned
from vlds.models.loading.model_files import SourceError, reading

Bits = Literal[4, 8]
LIBRARIES = {"bitsandbytes": "0.46.1", "accelerate": "1.1.0"}
"""Libraries that transformers needs for packed weights, and the lowest versions that it takes."""
BLOCK = 64
"""Weights that share a scale in 4 bits. In 8 bits a row of the matrix does."""
SCALE_BYTES = 4
"""Scales are float32."""


def check_libraries(bits: Bits | None) -> None:
    """Errors: ValueError if packed weights need a library that is missing or too old."""
    for name, lowest in LIBRARIES.items() if bits is not None else ():
        try:
            require_version(f"{name}>={lowest}")
        except ImportError:
            raise ValueError(
                f"model.bits: {bits} needs {name}>={lowest}, which is not installed; install "
                "vlds[quantise], or set bits to null"
            ) from None


def check_has_source(bits: Bits | None, config: str | None) -> None:
    """Errors: ValueError if random weights are to be packed."""
    if bits is not None and config is not None:
        raise ValueError(
            f"bits: {bits}, config: {config}; random weights are not packed: name pretrained ones "
            "with `path`, or set bits to null"
        )


def check_writable_whole(bits: Bits | None) -> None:
    """Errors: ValueError for packed weights, which can neither be written nor folded into."""
    if bits is not None:
        raise ValueError(
            f"model.bits: the run has weights in {bits} bits, which are neither written nor folded "
            "into; convert it on the unquantised weights (--model.bits null), or write its method "
            "alone (`vlds convert peft`)"
        )


def skipped_layers(model: Any, part: str, bits: Bits) -> list[str]:
    """Paths of the layers that stay floats, so that only linear layers of a part are packed.

    `part` is a path in a model that is not packed yet. Rows that are not whole blocks stay floats
    in 4 bits: bitsandbytes 0.50 unpacks them wrongly on CPUs. Errors: ValueError if no layer is
    left.
    """
    layers = {p: m for p, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    head = model.get_output_embeddings()
    packed = {
        path
        for path, module in layers.items()
        if type(module) is nn.Linear
        and module is not head
        and (not part or path.startswith(f"{part}."))
        and (bits == 8 or module.in_features % BLOCK == 0)
    }
    if not packed:
        raise ValueError(
            f"model.bits: {bits}, but no linear layer of {type(model).__name__} can be packed "
            f"(in 4 bits, rows must be multiples of {BLOCK} wide); set bits to null"
        )
    return [*(path for path in layers if path not in packed), *(model._keep_in_fp32_modules or ())]


PartOf = Callable[[Any], str]
"""A model that is not packed -> path of the part whose linear layers can be, empty for all."""


def load_language(
    model_class: Any,
    path: str,
    config: Any,
    dtype: torch.dtype,
    bits: Bits | None,
    part_of: PartOf = lambda model: "",
) -> tuple[Any, set[str]]:
    """Load the recipe's `model.path` by `load_weights`; `bits`: pack the linear layers of a part.

    Errors: ValueError if a library is missing, no layer can be packed, or as `load_weights`.
    """
    if bits is None:
        return load_weights(model_class, path, config, dtype, "model.path")
    check_libraries(bits)
    message = f"model.path: the config in {path} does not describe a model"
    with reading(message, CORRECT), torch.device("meta"), unpartitioned():
        shapes = model_class(config)
    packing = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped_layers(shapes, part_of(shapes), bits),
    )
    model, missing = load_weights(
        model_class,
        path,
        config,
        dtype,
        "model.path",
        quantization_config=packing,
        device_map={"": "cpu"},
    )
    names = {id(module): name for name, module in model.named_modules()}
    for linear in packed_linears(model):
        # The codes hide weights that were NaN or infinite; the scales do not.
        holder: Any = linear.weight
        scales = holder.SCB if holder.dtype == torch.int8 else holder.quant_state.absmax
        if not scales.isfinite().all():
            raise SourceError(
                f"model.path: {path}: {names[id(linear)]}.weight holds "
                f"{scales[~scales.isfinite()][0].item()}, finite numbers expected; copy the "
                "weights again, or name others"
            )
        # On some CPUs bitsandbytes 0.50 would reorder the codes of 4 bits in an evaluation, and
        # then have no gradient in the training steps after it.
        linear.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model, missing


def pack_shapes(model: Any, bits: Bits | None, part_of: PartOf = lambda model: "") -> None:
    """Give a part's linear layers, in a model on the meta device, weights as large as those that
    `load_language` packs.

    Errors: ValueError if no layer can be packed.
    """
    if bits is None:
        return
    skipped = skipped_layers(model, part_of(model), bits)
    for path, module in model.named_modules():
        if type(module) is nn.Linear and should_convert_module(path, skipped):
            size = module.weight.numel()
            # Two codes of 4 bits a byte, in one column, as bitsandbytes lays them out.
            packed = (
                torch.empty((size + 1) // 2, 1, dtype=torch.uint8, device="meta")
                if bits == 4
                else torch.empty(module.weight.shape, dtype=torch.int8, device="meta")
            )
            module.weight = nn.Parameter(packed, requires_grad=False)


def follow_weights(model: nn.Module) -> None:
    """Move what 8-bit layers keep beside their weights to where the weights are. It is neither a
    parameter nor a buffer, so torch does not move it."""
    for linear in packed_linears(model):
        holders: tuple[Any, ...] = (linear.weight, getattr(linear, "state", None))
        for holder in holders:
            if getattr(holder, "SCB", None) is not None:
                holder.CB, holder.SCB = linear.weight.data, holder.SCB.to(linear.weight.device)


def packed_linears(model: nn.Module) -> Iterator[nn.Linear]:
    """The layers whose weights are packed, each once."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point():
            yield module


def scale_bytes(model: nn.Module) -> int:
    """Bytes of the scales of a model's packed weights, which are not parameters."""
    return SCALE_BYTES * sum(
        linear.out_features
        if linear.weight.dtype == torch.int8
        else -(-linear.in_features * linear.out_features // BLOCK)  # rounded up
        for linear in packed_linears(model)
    )


def unpacked_sizes(model: nn.Module) -> dict[int, int]:
    """Id of each packed weight -> how many weights it holds."""
    return {
        id(linear.weight): linear.in_features * linear.out_features
        for linear in packed_linears(model)
    }
