"""What tests show of each tested type. Tests take their cases from here, and the page of types
(docs/types.md) its rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tests.toys.image_text import TYPES
from tests.toys.image_text.rows import NUMBERS
from tests.toys.image_text.words import WORDS
from vlds.models.kinds.picture_forms import PACKED, UNPARTITIONED

SEVERAL = tuple(t for t in TYPES if max(NUMBERS.get(t, (2,))) > 1)
"""Types whose rows may have several pictures."""
TEXT_ALONE = tuple(t for t in TYPES if min(NUMBERS.get(t, (0,))) == 0)
"""Types whose rows may have none."""
TALKING = tuple(name for name, words in WORDS.items() if words.template is not None)
"""Types whose toys have a chat template."""
BARE = ("llava_onevision", "llava_next", "blip-2")
"""Types whose connector has a parameter in no module of its own, which peft folders cannot hold."""
EXPERTS_ALONE = ("qwen3_vl_moe",)
"""Types whose feed-forward layers are experts in one tensor, and no linear layers."""
IN_PEFT = tuple(t for t in TYPES if t not in BARE)
IN_ZERO3 = tuple(t for t in TYPES if t not in UNPARTITIONED)
CLAIMS: Mapping[str, Collection[str]] = {
    "several pictures": SEVERAL,  # tests/models/test_image_text.py
    "text alone": TEXT_ALONE,
    "talks": TALKING,  # tests/models/test_conversations.py
    "`pack`": PACKED,  # tests/models/test_packing.py
    "LoRA in peft": TYPES,  # tests/convert/test_image_text.py
    "connector in peft": IN_PEFT,
    "merged": TYPES,
    "ZeRO-3": IN_ZERO3,  # tests/training/test_image_text_zero.py
    "resumed": IN_ZERO3,
}
"""Claim -> types of which a test shows it."""
