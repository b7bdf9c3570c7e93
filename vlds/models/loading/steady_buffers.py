"""Tables that a model computes from its sizes, such as the frequencies of rotary positions.

No checkpoint holds them. Casting a model to bfloat16 would round them, and positions with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
