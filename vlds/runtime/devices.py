"""The device that this process computes on. No other room knows what a GPU is called."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch.profiler import ProfilerActivity

from vlds.runtime.folders import cpu_name


def uses_gpu() -> bool:
    """True if models run on a GPU here: there is one, and DeepSpeed was not told otherwise."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def device_of(number: int = 0) -> torch.device:
    """This machine's GPU of a number, or the CPU.

    Errors: ValueError if DS_ACCELERATOR asks for a GPU that is not there.
    """
    asked = os.environ.get("DS_ACCELERATOR") or "cpu"
    if asked != "cpu" and not torch.cuda.is_available():
        raise ValueError(
            f"DS_ACCELERATOR is {asked!r}, but this machine has no usable GPU; unset it to compute "
            "on the CPU"
        )
    return torch.device("cuda", number) if uses_gpu() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The name of a GPU or processor that a user knows."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def hardware(num_ranks: int) -> str:
    """What a run computes on, for its first line: "8 x NVIDIA H100", "CPU (AMD EPYC, 2 cores)"."""
    name = device_name(device_of())
    return f"{num_ranks} x {name}" if uses_gpu() else f"CPU ({name})"


def finish_work() -> None:
    """Wait until a GPU has done what it was told so far: a call only queues its work, and a time
    without this is that of queuing."""
    if uses_gpu():
        torch.cuda.synchronize()


class Stopwatch:
    """Times parts of what this process computes, without a wait for the GPU in between."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._passes: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """The work inside counts."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._passes.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """Seconds since this was last called; waits for a GPU that is not there yet."""
        seconds, self._seconds = self._seconds, 0.0
        for start, end in self._passes:
            end.synchronize()
            seconds += start.elapsed_time(end) / 1000
        self._passes.clear()
        return seconds


def most_memory(device: torch.device) -> int:
    """The most bytes that this process has used so far: of its GPU, or else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts ru_maxrss in KiB.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still ask for: of its GPU, or else of main memory, which all
    processes of the machine share."""
    if device.type == "cuda":
        # What torch keeps for its next tensors is free too.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return int(psutil.virtual_memory().available)


def emulates_bf16(device: torch.device) -> bool:
    """True for a GPU without bf16's instructions, which came with Ampere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def count_gpus() -> int:
    """GPUs of this machine that this process may use."""
    return torch.cuda.device_count()


def profiled_activities() -> list[ProfilerActivity]:
    """What torch's profiler can record here."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if uses_gpu() else [])]
