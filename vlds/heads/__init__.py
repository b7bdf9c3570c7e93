"""Heads, one file each: from a model's states to the scores of classes. A new one is imported here,
which makes recipes know it."""

from __future__ import annotations

from vlds.heads.base import Head
from vlds.heads.linear import LinearHead
from vlds.heads.mlp import MLPHead
from vlds.heads.texts import TextHead

__all__ = ["Head", "LinearHead", "MLPHead", "TextHead"]
