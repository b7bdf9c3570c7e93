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
from rich.text import Text

from data_prep.command import new_command
from vlds.data.config import DataConfig, Unit
from vlds.data.order.batch_cut import BatchCut
from vlds.data.order.epoch_order import EpochOrder
from vlds.data.order.mixed_order import MixedOrder
from vlds.data.order.mixture import mixed_order
from vlds.data.shards.store import Dataset, open_dataset
from vlds.runtime.shown import visible
from vlds.runtime.terminal import tell

UNITS: tuple[Unit, ...] = get_args(Unit)
STEPS_AT_ONCE = 256
"""So many steps are worked out together: they bound the memory."""


@dataclass(frozen=True)
class Plan:
    """How a run cuts the stream."""

    cut: BatchCut
    nodes: int
    ranks_per_node: int

    def nodes_of(self, slots: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The node that reads each slot of a global batch of so many examples."""
        ranks = np.empty_like(slots)
        for size in np.unique(sizes).tolist():
            ranks[sizes == size] = self.cut.ranks_of(slots[sizes == size], size)
        return ranks // self.ranks_per_node


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
        positions = np.arange(begin * order.stride, end * order.stride)
        batches, slots = np.divmod(positions, order.stride)
        sizes = order.sizes_at(batches * order.stride)
        used = slots < sizes
        positions, slots, sizes = positions[used], slots[used], sizes[used]
        sources, samples, _ = order.at(positions)
        reading.examples += np.bincount(sources, minlength=len(datasets))
        nodes = plan.nodes_of(slots, sizes)
        for source, first in enumerate(first_samples):
            for node in range(plan.nodes):
                own = samples[(sources == source) & (nodes == node)]
                shards = np.searchsorted(first, own, side="right") - 1
                reading.shards[node][source].update(np.unique(shards).tolist())
    return reading


def tables(order: MixedOrder, datasets: Sequence[Dataset], reading: Reading) -> list[Table]:
    """One line a source; then one line a node."""
    mixture = Table("data set", box=box.SIMPLE_HEAD)
    for title in ("annotations", "share", "examples", "steps an epoch"):
        mixture.add_column(title, justify="right")
    steps_an_epoch = order.steps_an_epoch()
    for epoch_order, dataset, share, examples in zip(
        order.orders, datasets, order.shares, reading.examples.tolist(), strict=True
    ):
        mixture.add_row(
            Text(visible(epoch_order.name)),
            f"{dataset.num_annotations:,}",
            f"{float(share):.2%}",
            f"{examples:,}",
            f"{steps_an_epoch[epoch_order.name]:,.1f}",
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
        examples=["simulate-order shards/a shards/b --weights 3 1"],
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="data sets")
    parser.add_argument("--weights", type=float, nargs="+", help="one a data set (default: 1)")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--global-batch-size", type=int, default=64, metavar="N")
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        metavar="N",
        help="tasks' batch_size, one per data set, with --unit global_batch",
    )
    parser.add_argument("--unit", choices=UNITS, default=UNITS[0])
    parser.add_argument("--window", type=int, default=DataConfig.window, metavar="N")
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
    sizes = _batch_sizes(args, len(datasets))
    for size in sizes or [args.global_batch_size]:
        plan.cut.check(size, "--batch-sizes" if args.batch_sizes else "--global-batch-size")
    orders = [
        EpochOrder(
            dataset.label,
            dataset.counts,
            seed=args.seed,
            window=args.window,
            group=args.group,
            lanes=args.lanes,
        )
        for dataset in datasets
    ]
    order = mixed_order(
        orders,
        weights,
        seed=args.seed,
        temperature=args.temperature,
        global_batch_size=args.global_batch_size,
        batch_sizes=sizes,
        lanes=args.lanes,
    )
    reading = simulate(order, datasets, plan, range(args.first, args.first + args.steps))
    told = sorted(set(sizes or [args.global_batch_size]))
    tell(
        f"steps {args.first:,} to {args.first + args.steps:,}, "
        f"{' or '.join(f'{size:,}' for size in told)} examples each, on {plan.nodes} x "
        f"{plan.ranks_per_node} ranks"
    )
    for table in tables(order, datasets, reading):
        Console().print(table)


def _plan(args: argparse.Namespace) -> Plan:
    _check_numbers(args)
    return Plan(BatchCut(args.nodes * args.ranks_per_node), args.nodes, args.ranks_per_node)


def _batch_sizes(args: argparse.Namespace, num_datasets: int) -> list[int] | None:
    """Examples of each data set's batches, where batches are of one task."""
    if args.unit == "example":
        if args.batch_sizes:
            raise ValueError(
                f"--batch-sizes {args.batch_sizes}: batches mix tasks; add --unit global_batch"
            )
        return None
    sizes: list[int] = args.batch_sizes or [args.global_batch_size] * num_datasets
    if len(sizes) != num_datasets or min(sizes) < 1:
        raise ValueError(
            f"--batch-sizes {sizes}: {num_datasets} data sets; give a size of 1 or more for each"
        )
    return sizes


def _check_numbers(args: argparse.Namespace) -> None:
    least = {name: 1 for name in ("nodes", "ranks_per_node", "steps", "global_batch_size")}
    least["first"] = 0
    for name, smallest in least.items():
        given = getattr(args, name)
        if given is not None and given < smallest:
            option = "from" if name == "first" else name.replace("_", "-")
            raise ValueError(f"--{option} {given}: give {smallest} or more")
