"""Makes a run compute the same bits on every x86-64 processor.

ATen, oneDNN and MKL choose their kernels by the processor, and each kernel adds in another order.
After some hundred steps this moves scores by points. `SAME_BITS` leaves one choice: AVX2 for
ATen and oneDNN, whose kernels then do the same on Intel's and AMD's processors, and the only branch
of MKL that does (its AVX2 branch differs between the two). That branch is slow, so oneDNN
multiplies matrices instead. Threads would cut sums, so each rank has one.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import warnings
from functools import cache

import torch
from torch import Tensor

from vlds.runtime.process import ASKING, python
from vlds.runtime.rank_environment import SAME_BITS
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import tell


def pin_arithmetic(ranks: Ranks) -> None:
    """Make all sums of this process the same on any x86-64 processor with AVX2; elsewhere, say that
    they are not. The libraries read their variables once, when they are loaded: if one is not set
    yet, the process starts again."""
    capability = torch.backends.cpu.get_cpu_capability()
    if ranks.device.type != "cpu":
        obstacle = f"this run uses a {ranks.device.type} device"
    elif platform.machine() != "x86_64":
        obstacle = f"this is a {platform.machine()} processor"
    elif any(os.environ.get(name) != value for name, value in SAME_BITS.items()):
        os.environ |= SAME_BITS
        sys.stdout.flush()
        sys.stderr.flush()
        # In place: the launcher watches this process, and the open files stay its own. As at the
        # first start, a signal waits until a rank can answer (rank.run_rank).
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        again = python(*sys.orig_argv[1:])
        os.execv(again[0], again)
    elif capability != "AVX2":
        obstacle = f"torch finds {capability} instructions, not AVX2"
    else:
        multiply_by_onednn()
        return
    if ranks.is_first:
        tell(
            f"training.reproducible: {obstacle}, so the weights will not be those of x86-64 CPUs "
            "to the bit",
            flush=True,
        )


KERNELS = torch.library.Library("aten", "IMPL")  # what it registers lives as long as this object


@cache
def multiply_by_onednn() -> None:
    """Replace torch's products of two fp32 matrices by oneDNN's. Other types keep theirs, as a
    batch of one."""

    # A private name of torch, which its compiler calls for linear layers; tests fail if it changes.
    onednn_linear = torch.ops.mkldnn._linear_pointwise

    def for_onednn(*tensors: Tensor) -> bool:
        return all(t.dtype is torch.float32 and t.numel() for t in tensors)

    def mm(a: Tensor, b: Tensor) -> Tensor:
        if for_onednn(a, b) and a.shape[1] == b.shape[0]:
            # A linear layer multiplies by the transpose of its weight, so b.t() gives a @ b.
            by_rows: Tensor = onednn_linear(a, b.t(), None, "none", [], "")
            return by_rows
        # Not torch.mm, which is this function by now. Wrong shapes come here, too: torch explains
        # them better.
        return torch.bmm(a[None], b[None])[0]

    def addmm(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not for_onednn(added, a, b) or a.shape[1] != b.shape[0]:
            return torch.baddbmm(added, a[None], b[None], beta=beta, alpha=alpha)[0]
        # The usual case, a bias for each column: oneDNN adds it while it multiplies.
        if added.shape == b.shape[1:] and beta == alpha == 1:
            with_bias: Tensor = onednn_linear(a, b.t(), added, "none", [], "")
            return with_bias
        result = mm(a, b) if alpha == 1 else alpha * mm(a, b)
        if beta == 0:  # torch then ignores what is added, a NaN too
            return result
        return result + (added if beta == 1 else beta * added)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch's own kernels are replaced
        KERNELS.impl("mm", mm, "CPU")
        KERNELS.impl("addmm", addmm, "CPU")
