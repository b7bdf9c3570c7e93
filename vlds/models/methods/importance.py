"""How important the weights of a model are: the sum of their squared gradients over single
examples. `vlds importance` computes and writes it (vlds/training/importance.py); LST reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vlds.models.loading.model_files import check_tensors, reading

BACKBONE = "backbone"
"""Key of `layers_hash` in the file's metadata. Missing where the backbone's weights are random,
which each start draws again."""
TABLES = {"shared", "embed_tokens", "lm_head"}
"""Words in the names of token tables."""


def squared_gradients(model: Any, examples: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Name of each parameter -> its importance, for Hugging Face's encoder-decoder `model` and
    token ids and labels, (1, l) and (1, t), of one example after another. The loss is the mean
    over the labels' tokens, in evaluation mode."""
    model.eval().requires_grad_(True)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    # One at a time: the square of a batch's gradient is not the sum of its examples' squares.
    for input_ids, labels in examples:
        model.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.square()
    return sums


def layers_hash(weights: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """sha256 of a backbone's layers, rounded to bf16, so that it is the same in each precision.
    Token tables are left out: they grow with the tokenizer."""
    digest = sha256()
    for name in sorted(names):
        if TABLES.isdisjoint(name.split(".")):
            digest.update(name.encode())
            rounded = weights[name].detach().to("cpu", torch.bfloat16).contiguous()
            # numpy has no bf16, so the bytes are hashed.
            digest.update(rounded.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_importance(file: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The importance that `vlds importance` wrote for a backbone with these weights. On the meta
    device, shapes decide.

    Errors: ValueError if the file is missing, damaged, or of another backbone, or if a number in it
    is not a sum of squares.
    """
    if not file.exists():
        raise ValueError(f"importance: no such file: {file}; `vlds importance` writes it")
    shapes = check_tensors("importance", file, weights)
    # The model's names first, then those that the file has in addition.
    for name in [*weights, *sorted(shapes.keys() - weights.keys())]:
        found, wanted = (
            f"{tuple(shape)}" if shape is not None else "missing"
            for shape in (shapes.get(name), getattr(weights.get(name), "shape", None))
        )
        if found != wanted:
            raise ValueError(
                f"importance: {name} is {found} in {file}, and {wanted} in the backbone; write the "
                "file for this backbone, with `vlds importance`"
            )
    with reading(f"importance: {file} cannot be read"):
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            written_for = (opened.metadata() or {}).get(BACKBONE)
    for name, tensor in tensors.items():
        bad = tensor[~(tensor.isfinite() & (tensor >= 0))]
        if len(bad):
            raise ValueError(
                f"importance: {name} holds {bad[0].item()} in {file}, which is not a sum of "
                "squares; write the file again, with `vlds importance`"
            )
    if not any(tensor.any() for tensor in tensors.values()):
        raise ValueError(
            f"importance: {file} holds zeros alone, which tell no weight from another; write it "
            "again, with `vlds importance` over more samples"
        )
    # A hash needs values, which neither random backbones nor the meta device have.
    if written_for is None or any(weights[name].is_meta for name in tensors):
        return tensors
    if written_for != (present := layers_hash(weights, tensors)):
        raise ValueError(
            f"importance: {file} was written for another backbone (sha256 of its layers "
            f"{written_for[:12]}) than the model's ({present[:12]}); write it for this backbone"
        )
    return tensors
