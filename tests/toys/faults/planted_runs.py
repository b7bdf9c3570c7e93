"""Runs of `vlds train` that a property starts: ranks that are forked at once, each with a planted
fault."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import vlds.cli.rank
from tests.toys.files import ROOT
from tests.toys.forks import free_port, rank_environment, start
from vlds.cli.main import run_command
from vlds.prove.started import Launch

Plant = Callable[[], None]
"""Breaks something in a rank before it works."""
SECONDS = 240.0


def forked(plant: Plant) -> Launch:
    """Starts ranks that a plant has broken; none of them are supervised."""

    def launch(words: Sequence[str], log: Path, stop: Callable[[], bool]) -> int:
        at = words.index("--ranks")
        num, port = int(words[at + 1]), free_port()
        rest = [*words[:at], *words[at + 2 :]]
        logs = [log.with_name(f"{log.name}{rank or ''}") for rank in range(num)]
        ranks = [
            start(
                _rank, plant, rest, log=file,
                environment=rank_environment(rank, num, port) | {"VLDS_GRACE_S": "20"},
            )
            for rank, file in enumerate(logs)
        ]  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while any(rank.exit_code() is None for rank in ranks):
            failed = any(rank.exit_code() for rank in ranks)
            if stop() or failed or time.monotonic() > deadline:
                for rank in ranks:
                    rank.kill()
            time.sleep(0.005)
        return next((code for rank in ranks if (code := rank.exit_code())), 0)

    return launch


def _rank(plant: Plant, words: list[str]) -> None:
    os.chdir(ROOT)
    plant()
    vlds.cli.rank.run_rank(words, run_command)


def nothing() -> None:
    """Plants no fault."""


def dropout_by_rank() -> None:
    """Each rank draws its own dropout."""
    from vlds.models.kernels.dropout import StepDropout

    drawn: Any = StepDropout.__init__

    def init(self: StepDropout, seed: int, step: int) -> None:
        drawn(self, seed + int(os.environ["RANK"]), step)

    StepDropout.__init__ = init  # type: ignore[method-assign]


def weights_by_ranks() -> None:
    """New weights are drawn by the number of ranks too."""
    import vlds.models.build as build

    draw: Any = build.draw_by_name

    def draw_by_name(model: Any, tape: Any, seed: int, keep: Any) -> None:
        draw(model, tape, seed + int(os.environ["WORLD_SIZE"]), keep=keep)

    build.draw_by_name = draw_by_name


def averaged_gradients() -> None:
    """The loss lacks the factor that turns ZeRO's mean over ranks into a sum."""
    from vlds.training.loss import StepLoss

    right: Any = StepLoss.backward_loss

    def backward_loss(self: StepLoss, output: Any) -> Any:
        return right(self, output) / self.ranks.world_size

    StepLoss.backward_loss = backward_loss  # type: ignore[method-assign]


def lost_moments() -> None:
    """A resumed run begins with moments of zero."""
    import vlds.training.checkpoint as checkpoint

    read: Any = checkpoint.load

    def load(folder: Path) -> Any:
        state, progress = read(folder)
        for tensors in state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[key] = torch.zeros_like(tensors[key])
        return state, progress

    checkpoint.load = load


def replayed_examples() -> None:
    """A resumed run reads the examples from the beginning."""
    from vlds.data.streams.stream import TrainStream

    load, pieces, resumed_at = TrainStream.load_state, TrainStream._pieces, [0]

    def load_state(stream: TrainStream, *given: Any, **named: Any) -> None:
        load(stream, *given, **named)
        resumed_at[0] = stream.consumed

    TrainStream.load_state = load_state  # type: ignore[method-assign]
    TrainStream._pieces = lambda stream, start: pieces(stream, start - resumed_at[0])  # type: ignore[method-assign]


def half_an_artifact() -> None:
    """The artifact holds zeros in place of some trained weights."""
    import vlds.training.run as run

    right: Any = run.own_tensors

    def own_tensors(model: Any, masters: Any) -> dict[str, torch.Tensor]:
        tensors = right(model, masters)
        for name in sorted(masters)[::2]:
            tensors[name] = torch.zeros_like(tensors[name])
        return dict(tensors)

    run.own_tensors = own_tensors
