"""The tasks, one file each: prompt, target, decoding, score. A new one adds a line here."""

from vlds.tasks.base import Task
from vlds.tasks.caption import Caption
from vlds.tasks.direct_answer import DirectAnswer
from vlds.tasks.entailment import Entailment
from vlds.tasks.gqa import GQA
from vlds.tasks.grounded_caption import GroundedCaption
from vlds.tasks.grounding import Grounding
from vlds.tasks.image_class import ImageClass
from vlds.tasks.masked_words import MaskedWords
from vlds.tasks.matching import Matching
from vlds.tasks.multiple_choice import MultipleChoice
from vlds.tasks.nlvr2 import NLVR2
from vlds.tasks.refer import Refer
from vlds.tasks.span_prediction import SpanPrediction
from vlds.tasks.text_vqa import TextVQA
from vlds.tasks.video_caption import VideoCaption
from vlds.tasks.video_qa import VideoQA
from vlds.tasks.visual_grounding import VisualGrounding
from vlds.tasks.vqa import VQA

__all__ = [
    "GQA",
    "NLVR2",
    "VQA",
    "Caption",
    "DirectAnswer",
    "Entailment",
    "GroundedCaption",
    "Grounding",
    "ImageClass",
    "MaskedWords",
    "Matching",
    "MultipleChoice",
    "Refer",
    "SpanPrediction",
    "Task",
    "TextVQA",
    "VideoCaption",
    "VideoQA",
    "VisualGrounding",
]
