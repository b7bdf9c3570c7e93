"""How the cost of a step grows: with the batch, the tokens, the tasks and the ranks.

    python benchmarks/growth.py --rounds 5
    python benchmarks/growth.py --rounds 5 --grows tasks

BART-base of random weights, Adapter with a reduction of 8, bf16, dropout 0.1. Where nothing else is
said, a step has 32 rows of 14 prompt tokens, 36 visual tokens and 4 label tokens, one task and one
rank. With several tasks each has an adapter of its own, and rows are spread over them. Ranks have
one thread each and share the rows (ZeRO-2, gloo).

Programs of one table run beside each other and take their steps in turn, so that rounds alternate
within seconds. Tables go to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent / "training"))

from ours import batch_of, recipe_of
from shapes import FEATURES, GRID, LABELS, PROMPT, Case, RandomBatch

from vlds.models.build import build_model
from vlds.models.methods import Adapter
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.rank_environment import free_port, local_rank
from vlds.tasks import VQA
from vlds.training import profile
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups, set_learning_rate

STORED = 4
"""Bytes of a trained weight in an artifact."""
WARM_UP = 3
STEPS = 3
"""In a round."""


@dataclass(frozen=True)
class Size:
    """What a row of a table measures."""

    batch: int = 32
    tokens: int = PROMPT
    tasks: int = 1
    ranks: int = 1


class Seconds(NamedTuple):
    """Of a step."""

    forward: float
    backward: float
    whole: float

    @property
    def passes(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


TABLES = {
    "batch": [Size(batch=batch) for batch in (8, 16, 32, 64, 128)],
    "tokens": [Size(tokens=tokens) for tokens in (14, 50, 100, 200)],
    "tasks": [Size(tasks=tasks) for tasks in (1, 4, 16, 64)],
    "ranks": [Size(ranks=ranks) for ranks in (1, 2, 4)],
}


def work(size: Size) -> None:
    """One rank: take as many steps as each line of stdin says, and write their seconds."""
    case = Case("bart-base", "Adapter", size.batch, "bf16", 0.1)
    ranks = start_ranks(60)
    with tempfile.TemporaryDirectory() as folder:
        recipe, words = recipe_of(case, Path(folder))
        names = [f"task_{number}" for number in range(size.tasks)]
        adapter = Adapter(reduction=8, sharing="multiple" if size.tasks > 1 else "single")
        recipe = replace(recipe, tasks=dict.fromkeys(names, VQA()), methods={"adapter": adapter})
        config = complete_deepspeed_config(
            Path(recipe.training.deepspeed), recipe, cut_batches(recipe, size.ranks)
        )
        model = build_model(recipe.model_setup, names, case.dtype, words)
        engine = Engine(
            model, parameter_groups(model, recipe), config, ranks=ranks,
            tasks=list(recipe.tasks.values()),
        )  # fmt: skip
        set_learning_rate(engine.parameter_groups, 1.0)
    own = replace(case, batch=size.batch // size.ranks)
    number = 0

    def step() -> Seconds:
        nonlocal number
        number += 1
        batch = batch_of(own, rows(own, size.tokens, number))
        spread = replace(batch, task_index=torch.arange(own.batch) % size.tasks)
        parts = timed()
        began = time.perf_counter()
        engine.step([spread])
        return Seconds(parts["forward"], parts["backward"], time.perf_counter() - began)

    for _ in range(WARM_UP):
        step()
    trained = model.count_parameters().trainable
    tell({"trained": trained}, ranks.global_rank)
    for line in sys.stdin:
        tell([step() for _ in range(int(line))], ranks.global_rank)


def timed() -> dict[str, float]:
    """Seconds of each part of the steps that follow, which grow with every step."""
    times = SimpleNamespace(seconds=defaultdict(float))
    profile._active = times  # type: ignore[assignment]
    seconds: dict[str, float] = times.seconds
    return seconds


def rows(case: Case, tokens: int, number: int) -> RandomBatch:
    """Random rows of so many prompt tokens."""
    draw = torch.Generator().manual_seed(number)
    return RandomBatch(
        torch.randint(100, 20_000, (case.batch, tokens), generator=draw),
        torch.randn(case.batch, GRID * GRID, FEATURES, generator=draw),
        torch.randint(100, 20_000, (case.batch, LABELS), generator=draw),
    )


def tell(answer: Any, global_rank: int) -> None:
    """Rank 0 writes a line of JSON."""
    if global_rank == 0:
        print(json.dumps(answer), flush=True)


class Program:
    """The ranks that measure one size."""

    def __init__(self, size: Size) -> None:
        port = free_port()
        threads = max(1, (os.cpu_count() or 1) // size.ranks)
        common = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--work", json.dumps(asdict(size))]
        self.size = size
        self.ranks = [
            subprocess.Popen(
                command, env=common | local_rank(rank, size.ranks, port), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
            for rank in range(size.ranks)
        ]  # fmt: skip
        self.trained = int(self.answer()["trained"])
        self.seconds: list[Seconds] = []

    def answer(self) -> Any:
        """The next line of JSON of rank 0; other lines are a library's."""
        stream: IO[str] = self.ranks[0].stdout  # type: ignore[assignment]
        for line in stream:
            if line.startswith(("{", "[")):
                return json.loads(line)
        raise SystemExit(f"a program ended with exit code {self.ranks[0].wait()}")

    def round(self) -> None:
        """One round of steps."""
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(f"{STEPS}\n")
            rank.stdin.flush()
        steps = zip(*self.answer(), strict=True)
        self.seconds.append(Seconds(*map(statistics.median, steps)))

    def end(self) -> None:
        """Let the ranks end."""
        for rank in self.ranks:
            rank.kill()
            rank.wait()


def main() -> None:
    """Measure all sizes and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grows", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(Size(**json.loads(options.work)))
        return
    for name in options.grows:
        measure(name, TABLES[name], options.rounds)


def measure(name: str, sizes: list[Size], rounds: int) -> None:
    """Print one table."""
    programs = [Program(size) for size in sizes]
    for _ in range(rounds):
        for program in programs:
            program.round()
    heads = ["trained weights", "MB stored", "forward", "backward", "times the first"]
    heads = [name, *heads, "step", "range", "times the first"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    first = programs[0].seconds
    for program in programs:
        program.end()
        forward, backward, whole = zip(*program.seconds, strict=True)
        pairs = list(zip(program.seconds, first, strict=True))
        passes = statistics.median(own.passes / other.passes for own, other in pairs)
        steps = statistics.median(own.whole / other.whole for own, other in pairs)
        cells = [
            f"{getattr(program.size, name)}",
            f"{program.trained:,}",
            f"{program.trained * STORED / 1e6:.1f}",
            f"{statistics.median(forward):.2f}",
            f"{statistics.median(backward):.2f}",
            f"{passes:.2f}",
            f"{statistics.median(whole):.2f}",
            f"{min(whole):.2f} to {max(whole):.2f}",
            f"{steps:.2f}",
        ]
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
