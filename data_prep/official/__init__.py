"""Publishers' data sets, one file each. A new one adds an import, a line to COMMANDS, and one to
catalogue.py."""

from __future__ import annotations

from typing import Any, Protocol

from . import easy_vqa, pretraining, vg
from .aokvqa import A_OKVQA
from .coco import CAPTIONS, KARPATHY
from .flickr30k import FLICKR30K_CAPTIONS
from .gqa import GQA
from .nlvr2 import NLVR2
from .okvqa import OK_VQA
from .refcoco import SETS as REFCOCO
from .scienceqa import SCIENCE_QA
from .snli_ve import SNLI_VE
from .textvqa import TEXT_VQA
from .value import SETS as VALUE
from .vqav2 import VQA_V2


class Command(Protocol):
    """A module or an `OfficialSet` that adds commands."""

    def add_command(self, commands: Any) -> None:
        """Add them to the parsers of all commands."""


# Modules are those whose options or outputs `OfficialSet` cannot declare.
COMMANDS: tuple[Command, ...] = (
    A_OKVQA, KARPATHY, CAPTIONS, easy_vqa, FLICKR30K_CAPTIONS, GQA, NLVR2, OK_VQA, pretraining,
    *REFCOCO, SCIENCE_QA, SNLI_VE, TEXT_VQA, *VALUE, vg, VQA_V2,
)  # fmt: skip


def add_command(commands: Any) -> None:
    """Add the commands of all publishers' data sets."""
    for command in COMMANDS:
        command.add_command(commands)
