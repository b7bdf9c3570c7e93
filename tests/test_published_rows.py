"""docs/published.md lists every row of the papers' tables, and every row has a command."""

from __future__ import annotations

import re

import pytest

from benchmarks.published_rows import BESIDE, ROWS, Count, count, page, sweep_of
from tests.toys.files import ROOT
from vlds.runtime.process import find, shipped

PAGE = ROOT / "docs/published.md"
FROM_PAPERS = ("sweeps/vl_adapter", "sweeps/vl_pet", "sweeps/lst")


def counts_on_page() -> dict[tuple[str, str], Count]:
    """Sweep and row -> what the page says trains."""
    lines = PAGE.read_text("utf-8").splitlines()
    counts = {}
    for table, row in ROWS:
        # The third and fourth cell behind them, whatever the list says in the others.
        start = f"| {table.title} | {row} | "
        (cells,) = {tuple(line.split(" | ")[3:5]) for line in lines if line.startswith(start)}
        counts[table.sweep, row] = Count(int(cells[0].replace(",", "")), float(cells[1]))
    return counts


def test_the_page_is_that_of_the_lists() -> None:
    """All but the counts, which test_as_many_weights_train compares."""
    text = PAGE.read_text("utf-8")
    assert page(counts_on_page()) == text
    assert len(text.splitlines()) <= 150
    for recipe in re.findall(r"`((?:vl_adapter|vl_pet|lst)/\w+\.yaml)`", text):
        assert find(f"recipes/{recipe}").is_file()


def test_every_row_of_a_table_is_a_row_of_its_sweep_and_the_reverse() -> None:
    tables = {table.sweep: table for table, _ in ROWS}
    for name, table in tables.items():
        assert list(table.rows) == list(sweep_of(name).recipes), name
    sweeps = {n for n in shipped("sweeps") if n.startswith(FROM_PAPERS)}
    assert sweeps == {f"sweeps/{name}.yaml" for name in (*tables, *BESIDE)}


@pytest.mark.sampled(40)
@pytest.mark.parametrize(("name", "row"), dict.fromkeys((table.sweep, row) for table, row in ROWS))
def test_as_many_weights_train_as_the_page_and_the_paper_say(name: str, row: str) -> None:
    sweep = sweep_of(name)
    counted = count(sweep, row)
    trainable, percent = counts_on_page()[name, row]
    assert (counted.trainable, round(counted.percent, 3)) == (trainable, percent)
    if (published := sweep.published.get(row, {}).get("trains")) is not None:
        # The published share of multiple LoRA is 17.72, that of the script 17.714.
        assert counted.percent == pytest.approx(published, abs=0.0065)
