"""Language models, one file each. A new one is imported here, which makes recipes know it."""

from __future__ import annotations

from vlds.backbones.bart import Bart
from vlds.backbones.base import Backbone
from vlds.backbones.t5 import T5

__all__ = ["T5", "Backbone", "Bart"]
