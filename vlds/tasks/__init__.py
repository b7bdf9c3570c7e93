"""The tasks, one file each: prompt, target, decoding, score. A new one adds a line here."""

from vlds.tasks.answer_task import MultipleChoice
from vlds.tasks.base import Task
from vlds.tasks.caption import Caption
from vlds.tasks.chat import Chat
from vlds.tasks.gqa import GQA
from vlds.tasks.grounding import GroundedCaption, Grounding, Refer, VisualGrounding
from vlds.tasks.image_class import ImageClass
from vlds.tasks.masked_words import MaskedWords, SpanPrediction
from vlds.tasks.matching import Matching
from vlds.tasks.nlvr2 import NLVR2, Entailment
from vlds.tasks.retrieval import Retrieval
from vlds.tasks.video import VideoCaption, VideoQA
from vlds.tasks.vqa import VQA, DirectAnswer, TextVQA

__all__ = [
    "GQA",
    "NLVR2",
    "VQA",
    "Caption",
    "Chat",
    "DirectAnswer",
    "Entailment",
    "GroundedCaption",
    "Grounding",
    "ImageClass",
    "MaskedWords",
    "Matching",
    "MultipleChoice",
    "Refer",
    "Retrieval",
    "SpanPrediction",
    "Task",
    "TextVQA",
    "VideoCaption",
    "VideoQA",
    "VisualGrounding",
]
