"""Samples in the terminal, or in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from data_prep.preview.sample import SampleView


def print_views(title: str, counts: str, views: Sequence[SampleView]) -> None:
    """Print what is known of each sample; pictures by their sizes."""
    console = Console(highlight=False)
    console.print(Text(title, "bold"))
    console.print(Text(counts, "dim"))
    for view in views:
        console.print()
        console.print(Text.assemble((view.place, "cyan"), "  ", (f"id {view.id}", "bold")))
        if view.trouble:
            console.print(Padding(Text(f"cannot be read: {view.trouble}", "red"), (0, 0, 0, 2)))
            continue
        console.print(Padding(Text(view.facts, "dim"), (0, 0, 0, 2), expand=False))
        console.print(Padding(_table(view), (0, 0, 0, 2)))
        if view.num_left_out:
            console.print(Text(f"  and {view.num_left_out} more", "dim"))


def _table(view: SampleView) -> Table:
    """Questions left, answers right; captions over the whole width."""
    table = Table.grid(padding=(0, 2), expand=True)
    answered = any(answer for _, answer in view.annotations)
    table.add_column(ratio=3)
    if answered:
        table.add_column(ratio=2)
    for text, answer in view.annotations:
        cells = [Text(text)] + ([Text(answer, "green")] if answered else [])
        table.add_row(*cells)
    return table
