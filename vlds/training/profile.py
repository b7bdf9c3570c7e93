"""Where the time of some steps goes: a table, and a trace that opens in a browser."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

WARM_UP = 2
"""Steps before those that count: the first ones allocate memory."""
SPANS = {
    "data": "wait for data",
    "vision": "vision encoder",
    "forward": "the rest of the forward pass",
    "backward": "backward pass",
    "optimizer": "optimizer",
}
"""Parts of a step, and what the table calls them. Vision lies inside forward."""
COMMUNICATION = ("c10d::", "gloo:", "nccl:")
"""What names of operations between ranks begin with."""
VIEWERS = "open it at ui.perfetto.dev or chrome://tracing"

_active: StepProfile | None = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """A part of a step; costs a microsecond while nothing is profiled."""
    if _active is None:
        yield
        return
    with record_function(f"vlds: {name}"):
        began = now()
        yield
        _active.seconds[name] += now() - began


def now() -> float:
    """Seconds, once a GPU has done what it was told so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def between_steps() -> Iterator[None]:
    """Saving and evaluation, which no step's time holds."""
    global _active
    if _active is None:
        yield
        return
    profile, _active, began = _active, None, now()
    yield
    profile.seconds_between += now() - began
    _active = profile


def check_profile(num_steps: int, left: int) -> None:
    """Errors: ValueError if a run has fewer steps left than a profile of so many takes."""
    if num_steps and left < WARM_UP + num_steps:
        raise ValueError(
            f"--profile is {num_steps}, but the run has {left:,} steps left: it begins to count "
            f"after {WARM_UP} steps; give at most {max(0, left - WARM_UP):,}, or raise "
            "training.steps"
        )


class StepProfile:
    """Profiles some of a rank's steps."""

    def __init__(self, num_steps: int, folder: Path, vision: nn.Module | None) -> None:
        """`vision`: the part of the model that reads pictures; `folder`: where the trace goes."""
        self.num_steps = num_steps
        self.trace = folder / "trace.json"
        self.seconds: dict[str, float] = defaultdict(float)
        self.seconds_between = 0.0
        self._vision = vision
        self._num_taken = 0
        self._hooks: list[Any] = []
        self._profiler: Any = None

    def after_step(self) -> list[str]:
        """Count a step; lines for the user once the last one is taken."""
        self._num_taken += 1
        if self._num_taken == WARM_UP:
            self._begin()
        return self._end() if self._num_taken == WARM_UP + self.num_steps else []

    def _begin(self) -> None:
        global _active
        if self._vision is not None:
            self._hooks = spans_around(self._vision)
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profiler.__enter__()
        self._began, _active = now(), self

    def _end(self) -> list[str]:
        global _active
        whole, _active = now() - self._began - self.seconds_between, None
        self._profiler.__exit__(None, None, None)
        for hook in self._hooks:
            hook.remove()
        between = sum(
            event.self_cpu_time_total / 1e6
            for event in self._profiler.key_averages()
            if event.key.startswith(COMMUNICATION)
        )
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.trace))
        lines = table(self.seconds, whole, between, self.num_steps)
        return [*lines, f"trace of {self.num_steps} steps: {self.trace}; {VIEWERS}"]


def spans_around(module: nn.Module) -> list[Any]:
    """Let a module's forward pass be a span; the hooks."""
    open_spans: list[AbstractContextManager[None]] = []

    def enter(*_: Any) -> None:
        open_spans.append(span("vision"))
        open_spans[-1].__enter__()

    def leave(*_: Any) -> None:
        open_spans.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


def table(seconds: Mapping[str, float], whole: float, between: float, num_steps: int) -> list[str]:
    """Milliseconds of a step and their shares. `between`: seconds of operations between ranks,
    which other rows hold too."""
    parts = {SPANS[name]: seconds[name] for name in SPANS if name in seconds}
    parts[SPANS["forward"]] = seconds["forward"] - seconds["vision"]
    parts["all else"] = whole - sum(parts.values())

    def row(name: str, value: float) -> str:
        return f"  {name:<30}{1000 * value / num_steps:>10,.1f} ms{value / whole:>8.1%}"

    return [
        f"a step takes {1000 * whole / num_steps:,.1f} ms (mean of {num_steps}, on the first rank)",
        *(row(name, value) for name, value in parts.items()),
        *([row("between ranks (inside these)", between)] if between else []),
    ]
