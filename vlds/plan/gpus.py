"""What GPUs have and can do, from their makers' data sheets, for `vlds plan --gpu`.

Rates are peaks, dense and not sparse, which a program comes near only in large products. `link` is
one direction of NVLink, or of PCIe where a card has none. Sources: NVIDIA's data sheets of each
card; for the RTX 3090 and 4090, the white papers of Ampere (GA102) and Ada, with sums in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

from vlds.runtime.checks import guess


class Gpu(NamedTuple):
    """One card."""

    memory: float
    """GB."""
    half: float
    """10^12 operations a second of products in bf16."""
    single: float
    """The same in fp32, which vlds computes without tensor cores' TF32."""
    bandwidth: float
    """GB a second of its memory."""
    link: float
    """GB a second to another card."""


GPUS = {
    "a10-24g": Gpu(24, 125, 31.2, 600, 32),
    "a100-40g": Gpu(40, 312, 19.5, 1555, 300),
    "a100-80g": Gpu(80, 312, 19.5, 2039, 300),
    "b200-180g": Gpu(180, 2250, 75, 7700, 900),
    "h100-80g": Gpu(80, 989, 67, 3350, 450),
    "h100-pcie-80g": Gpu(80, 756, 51, 2000, 64),
    "h200-141g": Gpu(141, 989, 67, 4800, 450),
    "l4-24g": Gpu(24, 121, 30.3, 300, 32),
    "l40s-48g": Gpu(48, 362, 91.6, 864, 32),
    "rtx-3090-24g": Gpu(24, 71, 35.6, 936, 32),
    "rtx-4090-24g": Gpu(24, 165, 82.6, 1008, 32),
    "rtx-a6000-48g": Gpu(48, 155, 38.7, 768, 32),
}
"""Name -> card."""


def gpu_of(name: str) -> Gpu:
    """Errors: ValueError for an unknown name."""
    if name not in GPUS:
        raise ValueError(
            f"--gpu: '{name}' is unknown; {guess(name, GPUS)}choose from: {', '.join(GPUS)}"
        )
    return GPUS[name]
