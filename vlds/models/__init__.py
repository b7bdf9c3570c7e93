"""Kinds of models. A new one is imported here, which makes recipes know it."""

from __future__ import annotations

from vlds.models.kinds.base import ModelKind
from vlds.models.kinds.causal import Causal
from vlds.models.kinds.cross_modal import CrossModal
from vlds.models.kinds.dual_encoder import DualEncoder
from vlds.models.kinds.image_text import ImageTextToText
from vlds.models.kinds.joint import JointSeq2Seq
from vlds.models.kinds.joint_encoder import JointEncoder

__all__ = [
    "Causal",
    "CrossModal",
    "DualEncoder",
    "ImageTextToText",
    "JointEncoder",
    "JointSeq2Seq",
    "ModelKind",
]
