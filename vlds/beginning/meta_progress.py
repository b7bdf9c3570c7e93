"""What a user sees of meta-learning, and what the run's metrics keep of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlds.config import Recipe
from vlds.runtime.durations import clock
from vlds.runtime.progress import Pace
from vlds.runtime.terminal import tell

Losses = dict[str, tuple[float, float]]
"""Task -> loss on one half, and on the other half after a step on the first one."""


class MetaProgress:
    """Collects the losses of outer steps, and tells their means every `log_every` steps."""

    def __init__(self, recipe: Recipe, num_steps: int, *, silent: bool) -> None:
        self.num_steps, self.log_every = num_steps, recipe.training.log_every
        self.silent = silent
        self.steps_with = dict.fromkeys(recipe.tasks, 0)
        """Task -> outer steps in which it had enough examples."""
        self._pace = Pace()
        self._interval: dict[str, list[tuple[float, float]]] = {}
        self._means: Losses = {}

    def after_step(self, step: int, losses: Losses) -> None:
        """Take the losses of outer step number `step`, from 1 on."""
        for task, pair in losses.items():
            self.steps_with[task] += 1
            self._interval.setdefault(task, []).append(pair)
        if step % self.log_every == 0 or step == self.num_steps:
            self._means |= {task: mean(pairs) for task, pairs in self._interval.items()}
            self._interval = {}
            left = self._pace.seconds / step * (self.num_steps - step)
            shown = "  ".join(f"{t} {a:.3f} then {b:.3f}" for t, (a, b) in self._means.items())
            self._say(f"meta-learning {step}/{self.num_steps}  {shown}  {clock(left)} left")

    def end(self, num_skipped: int) -> dict[str, Any]:
        """Print notices about what went wrong; returns what the metrics keep."""
        for notice in self._notices(num_skipped):
            self._say(notice)
        return {
            "steps": self.num_steps,
            "skipped": num_skipped,
            "seconds": self._pace.seconds,
            **{f"loss_{n}": {t: pair[n - 1] for t, pair in self._means.items()} for n in (1, 2)},
        }

    def _notices(self, num_skipped: int) -> Iterator[str]:
        if num_skipped:
            yield (
                f"meta-learning: {num_skipped} steps inside tasks were skipped, because loss or "
                "gradient was not finite; a lower meta.learning_rate may help"
            )
        for task, steps in self.steps_with.items():
            if steps < self.num_steps:
                yield (
                    f"meta-learning: {task} took part in {steps} of {self.num_steps} steps; in "
                    "the others it had fewer than two examples"
                )

    def _say(self, text: str) -> None:
        if not self.silent:
            tell(text, flush=True)


def mean(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the losses on both halves."""
    first, second = (sum(losses) / len(pairs) for losses in zip(*pairs, strict=True))
    return first, second
