"""Main memory that loading takes, compared with what `vlds plan` says."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tests.toys.models import build
from tests.toys.rank_pool import RankPool
from vlds.models.backbones import T5
from vlds.models.methods import Adapter
from vlds.models.partitioned import partitioned_loading
from vlds.plan.needs import loading_bytes, planned
from vlds.runtime.deepspeed_start import start_ranks

MB = 1_000_000
NOISE = 100 * MB
"""Modules that loading imports, and what glibc keeps of freed memory."""


def config_of(stage: int) -> dict[str, Any]:
    zero = {"zero_optimization": {"stage": stage}}
    return zero | {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}}


def own_memory() -> int:
    """Bytes of this process that are in no file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def load(source: T5, stage: int) -> tuple[int, int]:
    """Bytes that loading adds at most, and the plan's."""
    ranks = start_ranks(60)
    most, is_over = 0, threading.Event()
    before = own_memory()

    def watch() -> None:
        nonlocal most
        while not is_over.is_set():
            most = max(most, own_memory())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with partitioned_loading(config_of(stage)):
        build(source, {"adapter": Adapter(reduction=8)}, dtype=torch.bfloat16)
    is_over.set()
    watcher.join()
    with torch.device("meta"):
        shapes = build(source, {"adapter": Adapter(reduction=8)}, dtype=torch.bfloat16)
    zero = config_of(stage)["zero_optimization"]
    held = planned(shapes, [], zero, ranks.world_size)
    return most - before, loading_bytes(shapes, held, zero)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_loading_takes_what_the_plan_says(stage: int, ranks2: RankPool, tmp_path: Path) -> None:
    """A checkpoint in fp32 whose weights become bf16; at stage 2, one in bf16 takes next to
    nothing, because ranks read the file's pages."""
    config = T5Config(
        vocab_size=60, d_model=1024, d_kv=64, d_ff=4096, num_heads=16, num_layers=6,
        num_decoder_layers=6, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    for precision in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(precision)
        model.to(precision).save_pretrained(folder)
        source = T5(path=str(folder), extra_tokens=0, visual_tokens=12, tokenizer="none")
        ranks2.close()  # new processes, which have freed nothing yet
        for found, plan in ranks2.run(load, source, stage, timeout=240):
            assert found < plan + NOISE
            if stage == 2 and precision == torch.bfloat16:
                assert found < plan / 2
            else:
                assert found > plan / 2
