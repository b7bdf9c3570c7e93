"""What a run would read, without reading it: the mixture, the epochs, and each node's shards."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep.command import new_command
from vlds.data import Dataset, open_dataset
from vlds.data.loader import check_batch
from vlds.data.mixture import MixedOrder, Unit, mixed_order

UNITS: tuple[Unit, ...] = get_args(Unit)
STEPS_AT_ONCE = 256
"""So many steps are worked out together: they bound the memory."""


@dataclass(frozen=True)
class Plan:
    """How a run cuts the stream."""

    global_batch_size: int
    micro_batch_size: int
    nodes: int
    ranks_per_node: int

    def node_of(self, positions: np.ndarray) -> np.ndarray:
        """Which node reads each position: ranks take micro-batches in turn."""
        world_size = self.nodes * self.ranks_per_node
        return positions // self.micro_batch_size % world_size // self.ranks_per_node


@dataclass
class Reading:
    """What the steps read."""

    examples: np.ndarray
    """Of each source."""
    shards: list[list[set[int]]]
    """Node -> source -> numbers of the shards."""


def simulate(order: MixedOrder, datasets: Sequence[Dataset], plan: Plan, steps: range) -> Reading:
    """Walk through the positions of the steps."""
    first_samples = [
        np.cumsum([0, *(len(counts) for counts in dataset.counts)]) for dataset in datasets
    ]
    reading = Reading(
        np.zeros(len(datasets), np.int64),
        [[set() for _ in datasets] for _ in range(plan.nodes)],
    )
    for begin in range(steps.start, steps.stop, STEPS_AT_ONCE):
        end = min(begin + STEPS_AT_ONCE, steps.stop)
        positions = np.arange(begin * plan.global_batch_size, end * plan.global_batch_size)
        sources, samples, _ = order.at(positions)
        reading.examples += np.bincount(sources, minlength=len(datasets))
        nodes = plan.node_of(positions)
        for source, first in enumerate(first_samples):
            for node in range(plan.nodes):
                own = samples[(sources == source) & (nodes == node)]
                shards = np.searchsorted(first, own, side="right") - 1
                reading.shards[node][source].update(np.unique(shards).tolist())
    return reading


def tables(
    order: MixedOrder, datasets: Sequence[Dataset], plan: Plan, reading: Reading
) -> list[Table]:
    """One line a source; then one line a node."""
    mixture = Table("data set", box=box.SIMPLE_HEAD)
    for title in ("annotations", "share", "examples", "steps an epoch"):
        mixture.add_column(title, justify="right")
    for epoch_order, dataset, share, examples in zip(
        order.orders, datasets, order.shares, reading.examples.tolist(), strict=True
    ):
        steps = dataset.num_annotations / (float(share) * plan.global_batch_size)
        mixture.add_row(
            epoch_order.name,
            f"{dataset.num_annotations:,}",
            f"{float(share):.2%}",
            f"{examples:,}",
            f"{steps:,.1f}",
        )
    sizes = [[shard.bytes for shard in dataset.info.shards] for dataset in datasets]
    total = sum(map(sum, sizes))
    nodes = Table("node", box=box.SIMPLE_HEAD)
    for title in ("shards", "bytes", "of all"):
        nodes.add_column(title, justify="right")
    for node, by_source in enumerate(reading.shards):
        read = sum(
            size[shard] for size, shards in zip(sizes, by_source, strict=True) for shard in shards
        )
        nodes.add_row(
            str(node),
            f"{sum(map(len, by_source)):,} of {sum(map(len, sizes)):,}",
            f"{read:,}",
            f"{read / total:.1%}",
        )
    return [mixture, nodes]


def add_command(commands: Any) -> None:
    """Add `simulate-order`."""
    parser = new_command(
        commands,
        "simulate-order",
        "what a run would read: mixture, epochs, each node's shards",
        "Works out the order of examples and reads no shard. The keys are those of a recipe's "
        "`data`; each data set stands for a task of its own.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="data sets")
    parser.add_argument("--weights", type=float, nargs="+", help="one a data set (default: 1)")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--global-batch-size", type=int, default=64, metavar="N")
    parser.add_argument(
        "--micro-batch-size", type=int, metavar="N", help="default: no accumulation"
    )
    parser.add_argument("--unit", choices=UNITS, default=UNITS[0])
    parser.add_argument("--window", type=int, default=64, metavar="N")
    parser.add_argument("--group", type=int, default=1, metavar="N")
    parser.add_argument("--lanes", type=int, default=1, metavar="N")
    parser.add_argument("--nodes", type=int, default=1, metavar="N")
    parser.add_argument("--ranks-per-node", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="STEP")
    parser.add_argument("--steps", type=int, default=1000, metavar="N")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    datasets = [open_dataset(folder) for folder in args.folders]
    weights = args.weights or [1.0] * len(datasets)
    if len(weights) != len(datasets):
        raise ValueError(
            f"--weights: {len(weights)} for {len(datasets)} data sets; give one for each"
        )
    plan = _plan(args)
    order = mixed_order(
        [dataset.label for dataset in datasets],
        [dataset.counts for dataset in datasets],
        weights,
        seed=args.seed,
        unit=args.unit,
        temperature=args.temperature,
        window=args.window,
        group=args.group,
        lanes=args.lanes,
        global_batch_size=plan.global_batch_size,
        micro_batch_size=plan.micro_batch_size,
    )
    reading = simulate(order, datasets, plan, range(args.first, args.first + args.steps))
    print(
        f"steps {args.first:,} to {args.first + args.steps:,}, {plan.global_batch_size:,} examples "
        f"each, on {plan.nodes} x {plan.ranks_per_node} ranks"
    )
    for table in tables(order, datasets, plan, reading):
        Console().print(table)


def _plan(args: argparse.Namespace) -> Plan:
    _check_numbers(args)
    world_size = args.nodes * args.ranks_per_node
    micro = args.micro_batch_size
    if micro is None:
        micro = _share(args.global_batch_size, world_size)
    check_batch(args.global_batch_size, micro, world_size)
    return Plan(args.global_batch_size, micro, args.nodes, args.ranks_per_node)


def _check_numbers(args: argparse.Namespace) -> None:
    least = {name: 1 for name in ("nodes", "ranks_per_node", "steps", "global_batch_size")}
    least |= {"micro_batch_size": 1, "first": 0}
    for name, smallest in least.items():
        given = getattr(args, name)
        if given is not None and given < smallest:
            option = "from" if name == "first" else name.replace("_", "-")
            raise ValueError(f"--{option} {given}: give {smallest} or more")


def _share(global_batch_size: int, world_size: int) -> int:
    """What each rank computes of a global batch, at once."""
    below = global_batch_size // world_size * world_size
    if below != global_batch_size:
        sizes = [str(size) for size in (below, below + world_size) if size]
        raise ValueError(
            f"--global-batch-size {global_batch_size} is no multiple of {world_size} ranks; "
            f"give {' or '.join(sizes)}, or other --nodes and --ranks-per-node"
        )
    return global_batch_size // world_size
