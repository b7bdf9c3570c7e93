"""Parameter-efficient methods, one file each. A new one is imported here, so that recipes and the
contract tests know it (docs/add_a_method.md).
"""

from __future__ import annotations

from vlds.models.methods.adapter import Adapter
from vlds.models.methods.apollo import APoLLo
from vlds.models.methods.base import Method
from vlds.models.methods.bitfit import BitFit, Full
from vlds.models.methods.compacter import Compacter, LowRankAdapter
from vlds.models.methods.hyper_pelt import HyperPELT
from vlds.models.methods.hyperformer import Hyperformer
from vlds.models.methods.ia3 import IA3
from vlds.models.methods.lora import LoRA
from vlds.models.methods.lst import LST
from vlds.models.methods.mixture import Mixture
from vlds.models.methods.peft_method import Peft
from vlds.models.methods.prefix_tuning import PrefixTuning
from vlds.models.methods.prompt_tuning import DecoderPromptTuning, PromptTuning
from vlds.models.methods.shrinking import Shrinking
from vlds.models.methods.sim_adapter import SimAdapter
from vlds.models.methods.simnl import SimNL
from vlds.models.methods.tip_adapter import TipAdapter
from vlds.models.methods.vl_pet import VLPET

__all__ = [
    "IA3",
    "LST",
    "VLPET",
    "APoLLo",
    "Adapter",
    "BitFit",
    "Compacter",
    "DecoderPromptTuning",
    "Full",
    "HyperPELT",
    "Hyperformer",
    "LoRA",
    "LowRankAdapter",
    "Method",
    "Mixture",
    "Peft",
    "PrefixTuning",
    "PromptTuning",
    "Shrinking",
    "SimAdapter",
    "SimNL",
    "TipAdapter",
]
