"""Where the time of some steps goes: a table, and a trace that opens in a browser."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from vlds.runtime.devices import finish_work, profiled_activities
from vlds.runtime.disk import check_writable, finish, make_folder
from vlds.runtime.files import half_made

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
GPU_SENDS = "ncclDevKernel"
"""The same of a GPU's own work, with the time that it waits for other ranks."""
FOLDER, TRACE = "profile", "trace.json"
"""The folder in a run's folder, and the file in it."""

_active: StepProfile | None = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """A part of a step; costs a microsecond while nothing is profiled."""
    if (profile := _active) is None:
        yield
        return
    with record_function(f"vlds: {name}"):
        began = now()
        yield
        profile.seconds[name] += now() - began


def now() -> float:
    """Seconds, once a GPU has done what it was told so far."""
    # Kernels run behind Python: without this, times would be those of launching them.
    finish_work()
    return time.perf_counter()


@contextmanager
def between_steps() -> Iterator[None]:
    """Saving and evaluation, which no step's time holds."""
    global _active
    if _active is None:
        yield
        return
    # Spans inside, such as an evaluation's forward passes, must not count.
    profile, _active, began = _active, None, now()
    try:
        yield
    finally:
        _active = profile
        profile.seconds_between += now() - began


def takes(num_steps: int) -> int:
    """Steps that pass until so many are profiled."""
    return WARM_UP + num_steps if num_steps else 0


def check_profile(num_steps: int, run: Path, steps: int | None) -> None:
    """Check what a profile needs, before long work. `steps`: a new run's; None if it is resumed.

    Errors: ValueError if these are too few, or if the trace cannot be written to the run's folder.
    """
    if steps is not None and steps < takes(num_steps):
        most = steps - WARM_UP
        raise ValueError(
            f"--profile is {num_steps} and takes {takes(num_steps)} steps, but the run has "
            f"{steps}; {f'give at most {most}' if most > 0 else 'leave --profile out'}, or raise "
            "training.steps"
        )
    trace = run / FOLDER / TRACE
    if num_steps and trace.is_dir():
        raise ValueError(f"--profile: {trace} is a folder; move it away, or leave --profile out")
    if num_steps:
        try:
            check_writable(trace.parent, "--profile")
        except ValueError as error:
            raise ValueError(f"{error} as output, or leave --profile out") from error


class StepProfile:
    """Profiles some of a rank's steps. Close it when the run ends: it may be under way."""

    def __init__(self, num_steps: int, folder: Path, vision: nn.Module | None) -> None:
        """`vision`: the part of the model that reads pictures; `folder`: where the trace goes."""
        self.num_steps = num_steps
        self.trace = folder / TRACE
        self.seconds: dict[str, float] = defaultdict(float)
        self.seconds_between = 0.0
        self._vision = vision
        self._num_taken = 0
        self._profiler: Any = None
        self._open = ExitStack()

    def after_step(self) -> list[str]:
        """Count a step; lines for the user once the last one is taken."""
        self._num_taken += 1
        if self._num_taken == WARM_UP:
            self._begin()
        return self._end() if self._num_taken == WARM_UP + self.num_steps else []

    def close(self) -> None:
        """End a profile that is under way."""
        global _active
        _active = None
        self._open.close()

    def _begin(self) -> None:
        global _active
        if self._vision is not None:
            # Its forward pass is a span inside the model's. A stack, because hooks cannot share a
            # `with`.
            spans: list[AbstractContextManager[None]] = []

            def enter(*_: Any) -> None:
                spans.append(span("vision"))
                spans[-1].__enter__()

            def leave(*_: Any) -> None:
                spans.pop().__exit__(None, None, None)

            for hook in (
                self._vision.register_forward_pre_hook(enter),
                self._vision.register_forward_hook(leave, always_call=True),
            ):
                self._open.callback(hook.remove)
        # Without torch's tensorboard_trace_handler (2.13), which would end the run if its folder
        # cannot be made, write a part when the run is stopped, and be silent about a full disk.
        profiler = torch.profiler.profile(activities=profiled_activities())
        self._profiler = self._open.enter_context(profiler)
        self._began, _active = now(), self

    def _end(self) -> list[str]:
        whole = now() - self._began - self.seconds_between
        self.close()
        events = self._profiler.key_averages()
        # In microseconds. A GPU sends while the host goes on, which has only told it to.
        on_gpu = sum(e.self_device_time_total for e in events if e.key.startswith(GPU_SENDS))
        on_host = sum(e.self_cpu_time_total for e in events if e.key.startswith(COMMUNICATION))
        between = (on_gpu or on_host) / 1e6
        lines = [*table(self.seconds, whole, between, self.num_steps), self._write_trace()]
        self._profiler = None  # it holds every operation of the steps
        return lines

    def _write_trace(self) -> str:
        """Write the trace, if the system allows it; a line for the user."""
        try:
            make_folder(self.trace.parent)
            with half_made(self.trace) as unfinished:
                unfinished.mkdir()  # torch puts its own temporary file beside the trace
                file = unfinished / TRACE
                self._profiler.export_chrome_trace(str(file))
                with file.open("ab+") as written:
                    written.seek(max(0, written.tell() - 8))
                    is_whole = written.read().rstrip().endswith(b"}")
                    if not is_whole:
                        # Torch at most logs what has stopped it (a full disk). Writing more than
                        # a buffer raises that error.
                        written.write(bytes(1 << 20))
                if not is_whole:
                    raise OSError("torch has not written all of it")
                finish(file)
                os.replace(file, self.trace)
        except (OSError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or error
            return f"no trace is written to {self.trace.parent}: {why}; the run goes on"
        return (
            f"trace of {self.num_steps} steps: {self.trace}; open it at ui.perfetto.dev or "
            "chrome://tracing"
        )


def table(seconds: Mapping[str, float], whole: float, between: float, num_steps: int) -> list[str]:
    """Milliseconds of a step and their shares. `between`: seconds of operations between ranks,
    which other rows hold too."""
    parts = {SPANS[name]: seconds[name] for name in SPANS if name in seconds}
    # Vision lies inside forward, and would count twice.
    parts[SPANS["forward"]] = seconds["forward"] - seconds["vision"]
    parts["all else"] = whole - sum(parts.values())

    def row(name: str, value: float) -> str:
        return f"  {name:<30}{1000 * value / num_steps:>10,.1f} ms{value / whole:>8.1%}"

    return [
        f"a step takes {1000 * whole / num_steps:,.1f} ms (mean of {num_steps}, on the first rank)",
        *(row(name, value) for name, value in parts.items()),
        *([row("between ranks (inside these)", between)] if between else []),
    ]
