"""Sizes, random batches and measuring, for every environment: imports torch and transformers alone.

Shapes: b rows of a batch, l prompt tokens, v visual tokens, t label tokens.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

FEATURES = 2048
"""Numbers of a visual token before the connector, as CLIP's ResNet has."""
PROMPT, GRID, LABELS = 14, 6, 4
"""Prompt tokens, cells along a picture's side, label tokens."""
PICTURE = 192
"""Pixels along a picture's side, for a model that reads pictures itself."""
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """What one row of the table measures; a worker reads it from its command line."""

    model: str
    method: str
    batch: int
    precision: Literal["bf16", "fp32"]
    dropout: float

    @property
    def dtype(self) -> torch.dtype:
        """bf16 or fp32."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def device(self) -> torch.device:
        """This machine's GPU, or the CPU if there is none or DeepSpeed is told to use that."""
        uses_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        return torch.device("cuda" if uses_gpu else "cpu")

    @classmethod
    def from_command(cls) -> Case:
        """The case in the last argument."""
        return cls(**json.loads(sys.argv[-1]))


@dataclass(frozen=True)
class RandomBatch:
    """Rows of equal lengths."""

    prompts: Tensor
    """(b, l)."""
    features: Tensor
    """(b, v, FEATURES), or pictures (b, 3, PICTURE, PICTURE) for a model that reads them."""
    labels: Tensor
    """(b, t)."""

    def to(self, device: torch.device) -> RandomBatch:
        """The same rows elsewhere."""
        return RandomBatch(*(tensor.to(device) for tensor in vars(self).values()))


def random_batch(case: Case, number: int) -> RandomBatch:
    """Batch `number` of a case, the same in every environment."""
    draw = torch.Generator().manual_seed(number)
    prompts = torch.randint(100, 20_000, (case.batch, PROMPT), generator=draw)
    labels = torch.randint(100, 20_000, (case.batch, LABELS), generator=draw)
    seen = (3, PICTURE, PICTURE) if case.model == "image-text" else (GRID * GRID, FEATURES)
    features = torch.randn(case.batch, *seen, generator=draw)
    return RandomBatch(prompts, features, labels)


def serve(case: Case, step: Callable[[RandomBatch], object], trained: int) -> None:
    """Take warm-up steps, then as many as each line of stdin says; write their seconds.

    An empty line asks for what the process used at most.
    """
    on_gpu = case.device.type == "cuda"
    before = torch.cuda.memory_allocated() / 1e6 if on_gpu else memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for number in range(WARM_UP):
        step(random_batch(case, number))
    with FlopCounterMode(display=False) as flops:
        step(random_batch(case, WARM_UP))
    print(json.dumps({"trained": trained, "flops": flops.get_total_flops()}), flush=True)
    number = WARM_UP
    for line in sys.stdin:
        if not line.strip():
            break
        seconds = []
        for _ in range(int(line)):
            number += 1
            batch = random_batch(case, number)
            began = time.perf_counter()
            step(batch)
            if on_gpu:  # a call only queues its work
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)
    used = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else memory("VmHWM")
    print(json.dumps({"memory": used, "before": before}), flush=True)


def memory(name: str) -> float:
    """A number of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1000
