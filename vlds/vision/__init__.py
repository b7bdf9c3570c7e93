"""Vision encoders, one file each. A new one is imported here, which makes recipes know it."""

from __future__ import annotations

from vlds.vision.base import VisionEncoder
from vlds.vision.clip import ClipVision
from vlds.vision.clip_tokens import ClipTokens
from vlds.vision.conv_net import ConvNet
from vlds.vision.stored_features import StoredFeatures
from vlds.vision.timm_model import Timm

__all__ = ["ClipTokens", "ClipVision", "ConvNet", "StoredFeatures", "Timm", "VisionEncoder"]
