"""Activation checkpointing of Hugging Face's models."""

from __future__ import annotations

from typing import Any


def recompute_layers(model: Any) -> None:
    """Let a frozen model of Hugging Face recompute each layer in the backward pass."""
    # Versions of transformers differ in the name of the switch.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(model, name) for name in names if hasattr(model, name))
    enable({"use_reentrant": False})
    # Some versions let the embeddings require gradients too, which only reentrant recomputing
    # needs; it would differentiate frozen layers for nothing.
    model.disable_input_require_grads()
