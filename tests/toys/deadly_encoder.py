"""A vision encoder that kills the worker which computes its n-th batch."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlds.models.vision import ConvNet
from vlds.models.vision.base import GridEncoder

DIES_AT = "dies_at"


@dataclass(frozen=True)
class DeadlyNet(ConvNet):
    """Counts the batches of all workers by files in a folder. In the file DIES_AT there are the
    numbers of those that kill."""

    folder: str = ""

    def build(self, dtype: torch.dtype) -> GridEncoder:
        net = super().build(dtype)
        net.register_forward_pre_hook(self.count)
        return net

    def count(self, *_: Any) -> None:
        place = Path(self.folder)
        deadly = {int(word) for word in (place / DIES_AT).read_text().split()}
        for number in range(10_000):
            with suppress(FileExistsError):
                (place / f"batch-{number}").touch(exist_ok=False)
                if number in deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
                return
