"""Language models, one file each. A new one is imported here, which makes recipes know it."""

from __future__ import annotations

from vlds.models.backbones.bart import Bart
from vlds.models.backbones.base import Backbone
from vlds.models.backbones.t5 import T5

__all__ = ["T5", "Backbone", "Bart"]
