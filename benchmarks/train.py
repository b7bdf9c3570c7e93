"""Compares training with `adapters`, `peft` and a bare loop over Hugging Face: speed and memory.

    python benchmarks/train.py --out runs/train --rounds 5
    python benchmarks/train.py --out runs/train --models bart-base --methods LoRA --batches 32
    python benchmarks/train.py --out runs/train --methods Adapter --without dropout attention norms

Models have random weights and real sizes: BART-base, T5-base, T5-large, a Llama of SmolLM2-135M's
sizes behind a projector, and a LLaVA of that Llama and CLIP's ViT-B/32, which reads pictures of 192
pixels itself. A row has 14 prompt tokens, 36 visual tokens (else stored features of 2,048 numbers)
and 4 label tokens; dropout is 0.1. Adapters have a reduction of 8, LoRA rank 128 on queries and
values.

    vlds      its engine (DeepSpeed, ZeRO-2, one rank)
    adapters  in an environment of its own, which the program makes
    peft      a plain loop over its LoRA
    hooks     a plain loop over Hugging Face's model, the method as a few lines of hooks

All programs of a row run beside each other; each waits while another takes its steps. So rounds
alternate within seconds. The ceiling is a product of (1600, 768) and (768, 3072), measured in each
round. `MB` is the most that the process held, `of steps` what of it came after imports and weights.
`planned` is the time that `vlds plan` gives a step, as a share of the step's. `--without` names
functions of `training/without.py`. Tables go to stdout.

On a GPU, MB are of its own memory, the ceiling is a product of two matrices of 8192 x 8192, and
`planned` is the memory that `vlds plan` gives a rank, as a share of what the step used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

HERE = Path(__file__).parent / "training"
WAYS = {
    "Adapter": ("vlds", "adapters", "hooks"),
    "LoRA": ("vlds", "adapters", "peft", "hooks"),
    "Compacter": ("vlds", "adapters"),
    "Full": ("vlds", "hooks"),
}
"""Method -> what trains it."""
MODELS = ("bart-base", "t5-base", "causal", "image-text", "t5-large")
WITHOUT = "without "
"""Begins the name of vlds without one of its computations."""
SECONDS = 4.0
"""Least time of a program's steps in a round."""


@dataclass
class Measured:
    """One program on one case."""

    way: str
    trained: int
    flops: float
    """Of a step."""
    seconds: list[float] = field(default_factory=list)
    """Medians of the rounds."""
    memory: float = 0.0
    """MB that the process used at most while training."""
    before: float = 0.0
    """MB that it used before its first step: imports, weights, masters."""


class Program:
    """A program that takes steps when it is told to."""

    def __init__(self, way: str, case: dict[str, Any], pythons: dict[str, str], threads: int):
        is_ours = way == "vlds" or way.startswith(WITHOUT)
        file = HERE / ("ours.py" if is_ours else "peers.py")
        names = [] if way == "vlds" else [way.removeprefix(WITHOUT)]
        command = [pythons.get(way, sys.executable), str(file), *names, json.dumps(case)]
        variables = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        first = self.answer()
        self.measured = Measured(way, first["trained"], first["flops"])

    def tell(self, line: str) -> None:
        """Send a line."""
        stream: IO[str] = self.process.stdin  # type: ignore[assignment]
        stream.write(f"{line}\n")
        stream.flush()

    def answer(self) -> Any:
        """The next line of JSON; other lines are a library's."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        raise SystemExit(f"a program ended with exit code {self.process.wait()}")

    def round(self) -> None:
        """One round of steps."""
        self.tell("1")
        (once,) = self.answer()
        self.tell(str(max(2, round(SECONDS / once))))
        self.measured.seconds.append(statistics.median(self.answer()))

    def end(self) -> None:
        """Ask for the memory and let the program end."""
        self.tell("")
        used = self.answer()
        self.measured.memory, self.measured.before = used["memory"], used["before"]
        self.process.wait()


def main() -> None:
    """Measure all rows and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=MODELS[:4], choices=MODELS)
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--methods", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ways", nargs="+", help="only these programs")
    parser.add_argument(
        "--without", nargs="+", help="instead of others: vlds without each of these computations"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cpu or not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    pythons = {}
    if options.without is None and (options.ways is None or "adapters" in options.ways):
        pythons["adapters"] = environment(options.out / "adapters", ["adapters>=1.3"])
    print(
        "| model | method | batch | | trained | samples/s | range | ceiling | MB | of steps "
        "| ratio | planned |"
    )
    print("|---" * 12 + "|")
    for model in options.models:
        for method in options.methods:
            for batch in options.batches:
                case = {
                    "model": model, "method": method, "batch": batch,
                    "precision": options.precision, "dropout": options.dropout,
                }  # fmt: skip
                ways = [w for w in WAYS[method] if options.ways is None or w in options.ways]
                if model in ("causal", "image-text"):
                    ways = [way for way in ways if way != "adapters"]
                if options.without is not None:
                    ways = ["vlds", *(WITHOUT + change for change in options.without)]
                measure(case, ways, pythons, options)


def measure(
    case: dict[str, Any], ways: Sequence[str], pythons: dict[str, str], options: Any
) -> None:
    """Print the rows of one case."""
    programs = [Program(way, case, pythons, options.threads) for way in ways]
    ceilings, plans = [], []
    for _ in range(options.rounds):
        ceilings.append(ceiling(options.precision))
        plans.append(planned(case, options.threads))
        for program in programs:
            program.round()
    for program in programs:
        program.end()
    first = programs[0].measured
    for program in programs:
        own = program.measured
        speeds = [case["batch"] / seconds for seconds in own.seconds]
        ratios = [a / b for a, b in zip(own.seconds, first.seconds, strict=True)]
        share = own.flops / statistics.median(own.seconds) / statistics.median(ceilings)
        cells = [
            case["model"], case["method"], str(case["batch"]), own.way, f"{own.trained:,}",
            f"{statistics.median(speeds):.1f}", f"{min(speeds):.1f} to {max(speeds):.1f}",
            f"{share:.0%}", f"{own.memory:,.0f}", f"{own.memory - own.before:,.0f}",
            "" if own is first else f"{statistics.median(ratios):.2f}",
            share_of(plans, own) if own is first else "",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def share_of(plans: Sequence[dict[str, float]], measured: Measured) -> str:
    """The planned time, or on a GPU the planned memory, as a share of the measured one."""
    if "memory" in plans[0]:
        return f"{plans[0]['memory'] / measured.memory:.2f}"
    seconds = statistics.median(plan["seconds"] for plan in plans)
    return f"{seconds / statistics.median(measured.seconds):.2f}"


def planned(case: dict[str, Any], threads: int) -> dict[str, float]:
    """What `vlds plan` says of a step."""
    found = subprocess.run(
        [sys.executable, str(HERE / "planned.py"), json.dumps(case)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    plan: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return plan


def ceiling(precision: str) -> float:
    """Operations per second of a matrix product."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    on_gpu = os.environ.get("DS_ACCELERATOR") != "cpu"
    rows, inner, columns = (8192, 8192, 8192) if on_gpu else (1600, 768, 3072)
    options: dict[str, Any] = {"dtype": dtype, "device": "cuda" if on_gpu else "cpu"}
    a, b = torch.randn(rows, inner, **options), torch.randn(inner, columns, **options)
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * rows * inner * columns / statistics.median(seconds)


def environment(folder: Path, packages: Sequence[str]) -> str:
    """Python of an environment with these packages, made if it does not exist."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch_version = torch.__version__.split("+")[0]
        command = [str(python), "-m", "pip", "install", "-q", f"torch=={torch_version}", *packages]
        subprocess.run(command, check=True)
    return str(python.absolute())


if __name__ == "__main__":
    main()
