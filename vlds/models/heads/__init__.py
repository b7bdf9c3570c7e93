"""Heads, one file each: from a model's states to the scores of classes. A new one is imported here,
which makes recipes know it.
"""

from __future__ import annotations

from vlds.models.heads.linear import LinearHead, MLPHead
from vlds.models.heads.texts import TextHead
from vlds.tasks.class_output import Head

__all__ = ["Head", "LinearHead", "MLPHead", "TextHead"]
