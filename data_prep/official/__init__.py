"""Publishers' data sets, one file each. A new one adds an import and a line to COMMANDS."""

from __future__ import annotations

from typing import Any, Protocol

from data_prep.official import easy_vqa, pretraining, vg
from data_prep.official.aokvqa import A_OKVQA
from data_prep.official.coco import CAPTIONS, KARPATHY
from data_prep.official.flickr30k import FLICKR30K_CAPTIONS
from data_prep.official.gqa import GQA
from data_prep.official.nlvr2 import NLVR2
from data_prep.official.okvqa import OK_VQA
from data_prep.official.refcoco import SETS as REFCOCO
from data_prep.official.scienceqa import SCIENCE_QA
from data_prep.official.snli_ve import SNLI_VE
from data_prep.official.textvqa import TEXT_VQA
from data_prep.official.value import SETS as VALUE
from data_prep.official.vqav2 import VQA_V2


class Command(Protocol):
    """A module or an `OfficialSet` that adds commands."""

    def add_command(self, commands: Any) -> None:
        """Add them to the parsers of all commands."""


# Modules are those whose options or outputs `OfficialSet` cannot declare.
COMMANDS: tuple[Command, ...] = (
    A_OKVQA, KARPATHY, CAPTIONS, easy_vqa, FLICKR30K_CAPTIONS, GQA, NLVR2, OK_VQA, pretraining,
    *REFCOCO, SCIENCE_QA, SNLI_VE, TEXT_VQA, *VALUE, vg, VQA_V2,
)  # fmt: skip
