"""Parameter-efficient methods, one file each. A new one is imported here, which makes recipes know
it."""

from __future__ import annotations

from vlds.methods.adapter import Adapter
from vlds.methods.base import Method
from vlds.methods.full import Full

__all__ = ["Adapter", "Full", "Method"]
