"""Starts the process group of a run's ranks through DeepSpeed."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from datetime import timedelta
from importlib import import_module

import deepspeed
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler

from vlds.runtime.devices import count_gpus
from vlds.runtime.ranks import Ranks, rank_from_environment
from vlds.runtime.roll_call import call_roll

EAGER_RANKS = 32
"""So many ranks connect to each other before the first collective."""
LONGEST_WAIT = 24 * 3600.0
"""Seconds that a rank may wait for a rank that has more to do; if one dies, the launcher ends the
run."""


def import_muon() -> None:
    """Import DeepSpeed's optimizer Muon without the compiler that it starts.

    Every stage of ZeRO imports it when it is built. Its functions are compiled as they are
    imported, which takes two to three seconds and 40 MB of each rank.
    """
    # DeepSpeed 0.19 decorates them with `compiler.compile()`.
    own = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = own


def computes_fp16() -> bool:
    """True if DeepSpeed trains in fp16 on this device."""
    return bool(get_accelerator().is_fp16_supported())


def use_gpu(device: torch.device) -> None:
    """Let this process compute on a GPU as a rank does."""
    torch.cuda.set_device(device)
    # torch lets convolutions, but not products, round fp32 numbers to TF32.
    torch.backends.cudnn.allow_tf32 = False


def start_ranks(collective_timeout: float) -> Ranks:
    """Join the run's process group. `collective_timeout` is in seconds."""
    ranks = replace(rank_from_environment(), collective_timeout=collective_timeout)
    if ranks.device.type == "cpu":
        # Building its op for shared memory takes a compiler and up to minutes, and gloo does not
        # need it. To ask which ops could be built starts compilers too.
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    else:
        if ranks.local_rank >= (count := count_gpus()):
            raise ValueError(
                f"rank {ranks.local_rank} of this machine needs its own GPU, and may use {count}: "
                "start one rank for each GPU, and let all ranks see all of them "
                "(CUDA_VISIBLE_DEVICES; SLURM's --gpus-per-node, not --gpus-per-task)"
            )
        # Before the process group: NCCL opens its connections on the current device.
        use_gpu(ranks.device)
    import_muon()
    # It reports each skipped step, and so do the run's own lines, which say what to do.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    ranks = replace(ranks, machine_sizes=call_roll(ranks, collective_timeout))
    if ranks.world_size > EAGER_RANKS:
        # Each rank connects to those that it sends to, about twice the logarithm of their number,
        # and not to all: 512 ranks of one machine joined in 15 s, and with all connections in 83 s.
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    deepspeed.init_distributed(
        # NCCL knows no tensors of the host. Gloo sums those without a word to the GPU, which works
        # on meanwhile.
        dist_backend="cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=collective_timeout),
        rank=ranks.global_rank,
        world_size=ranks.world_size,
    )
    return ranks
