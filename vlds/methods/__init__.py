"""Parameter-efficient methods, one file each. A new one is imported here, which makes recipes know
it."""

from __future__ import annotations

from vlds.methods.adapter import Adapter
from vlds.methods.apollo import APoLLo
from vlds.methods.base import Method
from vlds.methods.bitfit import BitFit
from vlds.methods.compacter import Compacter
from vlds.methods.decoder_prompt_tuning import DecoderPromptTuning
from vlds.methods.full import Full
from vlds.methods.hyper_pelt import HyperPELT
from vlds.methods.hyperformer import Hyperformer
from vlds.methods.ia3 import IA3
from vlds.methods.lora import LoRA
from vlds.methods.low_rank_adapter import LowRankAdapter
from vlds.methods.lst import LST
from vlds.methods.mixture import Mixture
from vlds.methods.peft_method import Peft
from vlds.methods.prefix_tuning import PrefixTuning
from vlds.methods.prompt_tuning import PromptTuning
from vlds.methods.shrinking import Shrinking
from vlds.methods.sim_adapter import SimAdapter
from vlds.methods.simnl import SimNL
from vlds.methods.tip_adapter import TipAdapter
from vlds.methods.vl_pet import VLPET

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
