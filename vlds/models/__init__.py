"""Kinds of models. A new one is imported here, which makes recipes know it."""

from __future__ import annotations

from vlds.models.causal import Causal
from vlds.models.cross_modal import CrossModal
from vlds.models.dual_encoder import DualEncoder
from vlds.models.image_text import ImageTextToText
from vlds.models.joint import JointSeq2Seq
from vlds.models.joint_encoder import JointEncoder
from vlds.models.kind import ModelKind

__all__ = [
    "Causal",
    "CrossModal",
    "DualEncoder",
    "ImageTextToText",
    "JointEncoder",
    "JointSeq2Seq",
    "ModelKind",
]
