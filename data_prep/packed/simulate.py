"""`simulate-order`: the mixture, epochs and shards per node of a run, without reading a shard."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from vlds.data.config import DataConfig, Unit
from vlds.data.order.epoch_order import EpochOrder
from vlds.data.order.mixed_order import BatchCut, MixedOrder, mixed_order
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.streams.source import SourceCounts
from vlds.runtime.terminal import open_console, tell, visible

from ..command import at_least, new_command

UNITS: tuple[Unit, ...] = get_args(Unit)
STEPS_AT_ONCE = 256
"""Steps that are computed together: they bound the memory."""


@dataclass
class Reading:
    """What the steps read."""

    examples: np.ndarray
    """Number by source."""
    shards: list[list[set[int]]]
    """Node -> source -> indices of the shards."""


def simulate(
    order: MixedOrder, datasets: Sequence[Dataset], nodes: int, ranks_per_node: int, steps: range
) -> Reading:
    """Walk through the positions of the steps."""
    cut = BatchCut(nodes * ranks_per_node)
    first_samples = [np.cumsum([0, *dataset.shard_samples]) for dataset in datasets]
    shards = [[set[int]() for _ in datasets] for _ in range(nodes)]
    reading = Reading(np.zeros(len(datasets), np.int64), shards)
    for begin in range(steps.start, steps.stop, STEPS_AT_ONCE):
        end = min(begin + STEPS_AT_ONCE, steps.stop)
        # Each step has `stride` positions, and a smaller batch leaves its last ones unused: of
        # batches of 3 with a stride of 4, position 6 is slot 2 of step 1, and 7 is unused.
        positions = np.arange(begin * order.stride, end * order.stride)
        batches, slots = np.divmod(positions, order.stride)
        sizes = order.sizes_at(batches * order.stride)
        used = slots < sizes
        positions, slots, sizes = positions[used], slots[used], sizes[used]
        sources, samples, _ = order.at(positions)
        reading.examples += np.bincount(sources, minlength=len(datasets))
        ranks = np.empty_like(slots)
        # Which rank reads a slot depends on the batch size.
        for size in np.unique(sizes).tolist():
            ranks[sizes == size] = cut.ranks_of(slots[sizes == size], size)
        for source, first in enumerate(first_samples):
            for node in range(nodes):
                # Ranks are numbered node by node.
                of_node = samples[(sources == source) & (ranks // ranks_per_node == node)]
                # Shard n holds the samples from first[n] up to first[n + 1].
                # "right", because sample first[n] is in shard n and not in the one before.
                indices = np.searchsorted(first, of_node, side="right") - 1
                shards[node][source].update(np.unique(indices).tolist())
    return reading


def tables(order: MixedOrder, datasets: Sequence[Dataset], reading: Reading) -> list[Table]:
    """A table with one line a source, and one with a line a node."""
    mixture = _table("data set", "annotations", "share", "examples", "steps an epoch")
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
    nodes = _table("node", "shards", "bytes", "of all")
    sizes = [[shard.bytes for shard in dataset.info.shards] for dataset in datasets]
    num_shards, num_bytes = sum(map(len, sizes)), sum(map(sum, sizes))
    for node, by_source in enumerate(reading.shards):
        read = [
            size[shard] for size, shards in zip(sizes, by_source, strict=True) for shard in shards
        ]
        nodes.add_row(
            str(node),
            f"{len(read):,} of {num_shards:,}",
            f"{sum(read):,}",
            f"{sum(read) / num_bytes:.1%}",
        )
    return [mixture, nodes]


def _table(first: str, *titles: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD)
    for title in titles:
        table.add_column(title, justify="right")
    return table


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "simulate-order",
        "Computes the order of examples without reading a shard. The options are the keys of a "
        "recipe's `data`; each data set stands for a task.",
        examples=["simulate-order shards/a shards/b --weights 3 1"],
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="data sets")
    parser.add_argument("--weights", type=float, nargs="+", help="one a data set (default: 1)")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--global-batch-size", type=at_least(1), default=64, metavar="N")
    parser.add_argument(
        "--batch-sizes",
        type=at_least(1),
        nargs="+",
        metavar="N",
        help="tasks' batch_size, one per data set, with --unit global_batch",
    )
    parser.add_argument("--unit", choices=UNITS, default=UNITS[0])
    parser.add_argument("--window", type=int, default=DataConfig.window, metavar="N")
    parser.add_argument("--group", type=int, default=1, metavar="N")
    parser.add_argument("--lanes", type=int, default=1, metavar="N")
    parser.add_argument("--nodes", type=at_least(1), default=1, metavar="N")
    parser.add_argument("--ranks-per-node", type=at_least(1), default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=at_least(0), default=0, dest="first", metavar="STEP")
    parser.add_argument("--steps", type=at_least(1), default=1000, metavar="N")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    datasets = [open_dataset(folder) for folder in args.folders]
    weights = args.weights or [1.0] * len(datasets)
    if len(weights) != len(datasets):
        raise ValueError(
            f"--weights: {len(weights)} for {len(datasets)} data sets; give one for each"
        )
    batch_sizes: list[int] | None = None  # batches mix data sets
    if args.unit == "example" and args.batch_sizes:
        raise ValueError(
            f"--batch-sizes {args.batch_sizes}: batches mix tasks; add --unit global_batch"
        )
    if args.unit != "example":
        batch_sizes = args.batch_sizes or [args.global_batch_size] * len(datasets)
        if len(batch_sizes) != len(datasets):
            raise ValueError(
                f"--batch-sizes {batch_sizes}: {len(datasets)} data sets; give a size for each"
            )
    sizes = sorted(set(batch_sizes or [args.global_batch_size]))
    for size in sizes:
        option = "--batch-sizes" if args.batch_sizes else "--global-batch-size"
        BatchCut(args.nodes * args.ranks_per_node).check(size, option)
    common = {"seed": args.seed, "lanes": args.lanes}
    within = {"window": args.window, "group": args.group, **common}
    order = mixed_order(
        [EpochOrder(dataset.label, SourceCounts([dataset]), **within) for dataset in datasets],
        weights,
        temperature=args.temperature,
        global_batch_size=args.global_batch_size,
        batch_sizes=batch_sizes,
        **common,
    )
    steps = range(args.first, args.first + args.steps)
    reading = simulate(order, datasets, args.nodes, args.ranks_per_node, steps)
    tell(
        f"steps {steps.start:,} to {steps.stop:,}, "
        f"{' or '.join(f'{size:,}' for size in sizes)} examples each, on {args.nodes} x "
        f"{args.ranks_per_node} ranks"
    )
    for table in tables(order, datasets, reading):
        open_console().print(table)
