"""Vision encoders, one file each. A new one is imported here, which makes recipes know it."""

from __future__ import annotations

from vlds.models.vision.base import VisionEncoder
from vlds.models.vision.clip import ClipTokens, ClipVision
from vlds.models.vision.conv_net import ConvNet
from vlds.models.vision.stored_features import StoredFeatures
from vlds.models.vision.timm_model import Timm

__all__ = ["ClipTokens", "ClipVision", "ConvNet", "StoredFeatures", "Timm", "VisionEncoder"]
