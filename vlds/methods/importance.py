"""How important the weights of a model are: the sum of their squared gradients over single
examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def squared_gradients(model: Any, examples: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Name of each parameter -> its importance, for Hugging Face's encoder-decoder `model` and
    token ids and labels, (1, l) and (1, t), of one example after another. The loss is the mean
    over the labels' tokens, in evaluation mode."""
    model.eval().requires_grad_(True)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for input_ids, labels in examples:
        model.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.square()
    return sums


def read_importance(file: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `vlds importance` wrote for a backbone with these weights.

    Errors: ValueError if the file is missing, damaged, or of another backbone.
    """
    if not file.is_file():
        raise ValueError(f"importance: no such file: {file}; `vlds importance` writes it")
    try:
        found = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"importance: {file} cannot be read: {error}; write it again") from None
    for name, tensor in found.items():
        if name not in weights or tensor[:1].shape[1:] != weights[name][:1].shape[1:]:
            raise ValueError(
                f"importance: {file} has a tensor {name} {tuple(tensor.shape)} that the backbone "
                "has not; write it for this backbone"
            )
    return found
