"""The table of `vlds compare` as text: for a terminal, as Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from vlds.report import charts
from vlds.report.charts import Bar, Chart, Spot, look, spot_chart
from vlds.report.comparison import (
    ANSWERS,
    AVERAGE,
    CIDER,
    MEMORY,
    SPEED,
    STORED,
    TIME,
    TRAINS,
    ComparedRow,
    Comparison,
)
from vlds.report.numbers import FEWEST_SEEDS, Number, bytes_text
from vlds.report.report import speed_text
from vlds.report.tables import Cell, Row, Table, markdown_table, markdown_text, terminal_table
from vlds.runtime.limited import page
from vlds.runtime.terminal import duration_text, open_console, visible
from vlds.tasks.metrics.caption_scores import CIDERS

# The table of `vlds compare`: its columns, what is in its cells, and what the numbers mean.


PUBLISHED = "paper "


@dataclass(frozen=True)
class Heading:
    """How a cost is shown."""

    title: str
    text: Callable[[float], str]
    unit: str


COSTS: Mapping[str, Heading] = {
    TRAINS: Heading("trains", lambda value: f"{value:.2f} %", "percent"),
    STORED: Heading("stores", bytes_text, "bytes"),
    MEMORY: Heading("peak memory", bytes_text, "bytes"),
    SPEED: Heading("samples/s", speed_text, "samples_per_second"),
    ANSWERS: Heading("answers/s", speed_text, "answers_per_second"),
    TIME: Heading("time to", duration_text, "seconds"),
}


def comparison_table(comparison: Comparison) -> Table:
    """What trains, then scores, then the other costs; the best of each score is marked."""
    order = [n for n in comparison.costs if n == TRAINS] + comparison.values
    order += [name for name in comparison.costs if name != TRAINS]
    rows = [
        Row(row.name, [cell(comparison, row, name) for name in order], [seeds_text(row)])
        for row in comparison.rows
    ]
    return Table(["", *(head(comparison, name) for name in order)], rows)


def head(comparison: Comparison, name: str) -> str:
    """The head of a column; a task's metric stands below it."""
    if name == TIME and comparison.target is not None:
        target = comparison.target
        score = f"{target.percent:g}" if target.row is None else f"of {target.row}"
        return f"{COSTS[TIME].title}\n{target.task} {score}"
    if name in COSTS:
        return COSTS[name].title
    return "\n".join(filter(None, [name, comparison.metrics.get(name)]))


def seeds_text(row: ComparedRow) -> str:
    """How many runs a row is the mean of."""
    seeds = f"{row.wanted} seed{'s' * (row.wanted != 1)}"
    return seeds if len(row.runs) == row.wanted else f"{len(row.runs)} of {seeds}"


def cell(comparison: Comparison, row: ComparedRow, name: str) -> Cell:
    """A mean cost; or mean, deviation and interval of a score. With the published value."""
    number = row.numbers[name]
    if (heading := COSTS.get(name)) is not None:
        text = "-" if number.mean is None else heading.text(number.mean)
        some = name == TIME and 0 < len(number.values) < len(row.runs)
        reached = [f"{len(number.values)} of {len(row.runs)} runs"] if some else []
        shared = [row.partition] if name == MEMORY and comparison.partitions_differ else []
        return Cell(text, notes=[*published(number, heading.text), *reached, *filter(None, shared)])
    interval = number.interval
    return Cell(
        score_text(number),
        "number best" if comparison.best(name) is row else "number",
        f"[{interval.low:.1f}, {interval.high:.1f}]" if interval else "",
        published(number, lambda value: f"{value:.1f}"),
    )


def score_text(number: Number) -> str:
    """ "65.2 +/- 0.3"; without the deviation for one seed."""
    if number.mean is None:
        return "-"
    deviation = "" if number.deviation is None else f" \u00b1 {number.deviation:.1f}"
    return f"{number.mean:.1f}{deviation}"


def published(number: Number, text: Callable[[float], str]) -> list[str]:
    """A note with the published value, if there is one."""
    return [] if number.published is None else [f"{PUBLISHED}{text(number.published)}"]


def notes(comparison: Comparison, has_intervals: bool = True) -> list[str]:
    """What the numbers mean, and what is missing."""
    metrics = ", ".join(f"{metric} of {task}" for task, metric in comparison.metrics.items())
    scales = comparison.scales
    but = ", but for CIDEr, which goes up to 1,000" if CIDER in scales else ""
    lines = [f"Scores are 100 times their value, so percents{but}: {metrics}."]
    listed = "; ".join(f"{', '.join(tasks)} ({scale})" for scale, tasks in scales.items())
    if comparison.has_average:
        mixed = "" if len(scales) == 1 else (
            f", although their scales differ: {listed}. It is as papers publish it, and mostly "
            "their largest score"
        )  # fmt: skip
        lines.append(f"The average is the mean of the columns before it{mixed}.")
    elif len(comparison.columns) > 1:
        lines.append(f"There is no average, because the scales of the scores differ: {listed}.")
    if len(comparison.rows) > 1:
        is_any = any(comparison.best(name) for name in comparison.values)
        lines.append(
            f"{'Bold: a best mean' if is_any else 'No best mean is bold, because each'} needs "
            f"{FEWEST_SEEDS} seeds or more in common with every other row, and a 95 % interval "
            "(Student's t) of the differences seed by seed that does not hold 0."
        )
    if comparison.partitions_differ:
        lines.append(
            "Peak memory is that of one rank. The rows do not divide it over ranks alike, as each "
            "says, so compare it within those that do."
        )
    if any(len(row.runs) > 1 for row in comparison.rows):
        spread = "\u00b1: standard deviation of the sample (n - 1) over the seeds."
        interval = " Brackets: 95 % confidence interval of the mean (Student's t)."
        lines.append(spread + interval * has_intervals)
    if TIME in comparison.costs:
        lines.append(
            "Time: of training alone, until the first evaluation that reaches the score; runs that "
            "never do are left out."
        )
    if comparison.target is not None and comparison.target.row is not None:
        target = comparison.target
        lines.append(f"The score to reach is the mean of {target.row}, {target.percent:.1f}.")
    if ANSWERS in comparison.costs:
        lines.append("Answers/s: of the evaluations, with whatever a method adds to the model.")
    return [*lines, *comparison.notes]


def has_published(comparison: Comparison) -> bool:
    """True if a value was published."""
    numbers = [number for row in comparison.rows for number in row.numbers.values()]
    return any(number.published is not None for number in numbers)


# The page of `vlds compare`: the table, what each row costs and scores as a picture, bars.


TEMPLATES = Path(__file__).with_name("templates")


def html(comparison: Comparison) -> str:
    """A page: the table, what each row costs and scores as a picture, and each score as bars."""
    return page(
        TEMPLATES / "compare.html",
        title=comparison.title,
        table=comparison_table(comparison),
        notes=notes(comparison),
        spots=cost_and_score(comparison),
        bars=[score_bars(comparison, name) for name in comparison.values],
        rows=[f"{number}: {row.name}" for number, row in enumerate(comparison.rows, 1)],
        published=has_published(comparison),
        frame=charts,
    )


def cost_and_score(comparison: Comparison) -> list[Chart]:
    """Every row's average over its trainable share, as in the paper's figure, and the published
    ones; without an average, each score. Left out if fewer than two rows are known."""
    names = [AVERAGE] if comparison.has_average else comparison.columns
    charts = [cost_and(comparison, name) for name in names]
    return [chart for chart in charts if chart is not None]


def cost_and(comparison: Comparison, name: str) -> Chart | None:
    """That of one score."""
    spots = []
    for index, row in enumerate(comparison.rows):
        share, score = row.numbers[TRAINS], row.numbers[name]
        if share.mean and score.mean is not None:
            text = f"{row.name}: {score_text(score)}, trains {share.mean:.2f} %"
            spread = score.deviation or 0.0
            spots.append(Spot(share.mean, score.mean, spread, look(index), text, str(index + 1)))
        if share.published and score.published is not None:
            text = f"{row.name}, published: {score.published:.1f}, trains {share.published:.2f} %"
            spots.append(Spot(share.published, score.published, 0.0, f"{look(index)} hollow", text))
    return spot_chart(name, spots, "% of the weights train") if len(spots) > 1 else None


def score_bars(comparison: Comparison, name: str) -> Chart:
    """A score of every row, as bars from 0."""
    means = {row.name: row.numbers[name].mean or 0.0 for row in comparison.rows}
    highest = max(map(abs, means.values())) or 1.0
    bars = [
        Bar(row.name, look(index), score_text(row.numbers[name]), abs(means[row.name]) / highest)
        for index, row in enumerate(comparison.rows)
    ]
    return Chart(name, bars=bars)


UNBOUNDED = 10_000
"""Characters of a line that holds any table."""
BRACKETS = "(65.9): a published value."
LATEX_SIGNS = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "|": "\\textbar{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "\u00b1": "$\\pm$",
}
"""Sign -> how LaTeX writes it."""


def in_brackets(table: Table) -> Table:
    """The table with published values in brackets, to save room."""
    rows = [
        replace(
            row,
            cells=[
                replace(cell, notes=[f"({note.removeprefix(PUBLISHED)})" for note in cell.notes])
                for cell in row.cells
            ],
        )
        for row in table.rows
    ]
    return replace(table, rows=rows)


def terminal_text(comparison: Comparison) -> str:
    """For a terminal: one table if its width allows, else scores above costs."""
    console = open_console()
    table = in_brackets(comparison_table(comparison))
    heads = [head if head.startswith("time") else head.split("\n")[0] for head in table.heads]
    table = replace(table, heads=heads)
    lines = notes_without_intervals(comparison)
    whole = terminal_table(table)
    parts = [whole]
    if width_of(whole, console) > console.width:
        last = heads.index(comparison.values[-1])
        scores = range(last + 1 - len(comparison.values), last + 1)
        costs = [column for column in range(1, len(heads)) if column not in scores]
        parts = [part for some in (scores, costs) for part in fitting(table, some, console)]
    with console.capture() as captured:
        for part in parts:
            console.print(part)
            console.print()
        console.print(Text("\n".join(map(visible, lines))))
    return captured.get()


def width_of(table: RichTable, console: Console) -> int:
    """Characters of a line of the table."""
    return Measurement.get(console, console.options.update(width=UNBOUNDED), table).maximum


def fitting(table: Table, columns: Sequence[int], console: Console) -> list[RichTable]:
    """Tables of these columns, in order, each as wide as the terminal allows; the words of a head
    stand below each other."""
    heads = [head if "\n" in head else head.replace(" ", "\n") for head in table.heads]
    table = replace(table, heads=heads)
    parts: list[list[int]] = []
    for column in columns:
        longer = [*parts[-1], column] if parts else []
        shown = terminal_table(with_columns(table, longer)) if longer else None
        if shown is not None and width_of(shown, console) <= console.width:
            parts[-1] = longer
        else:
            parts.append([column])
    return [terminal_table(with_columns(table, part)) for part in parts]


def with_columns(table: Table, columns: Sequence[int]) -> Table:
    """Some columns of a table, beside the names of its rows."""
    rows = [replace(row, cells=[row.cells[column - 1] for column in columns]) for row in table.rows]
    return replace(table, heads=[table.heads[column] for column in (0, *columns)], rows=rows)


def markdown(comparison: Comparison) -> str:
    """To paste into a repository or an issue."""
    table = comparison_table(comparison)
    return "\n\n".join([markdown_table(table), *map(markdown_text, notes(comparison))]) + "\n"


def csv_rows(comparison: Comparison) -> str:
    """One number a row, unrounded."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            "row", "name", "metric", "unit", "runs", "mean", "deviation", "low", "high",
            "published", "best", "partition",
        )
    )  # fmt: skip
    for row in comparison.rows:
        for name in (*comparison.costs, *comparison.values):
            number = row.numbers[name]
            interval = number.interval
            is_cider = comparison.metrics.get(name) in CIDERS
            unit = "times 100" if is_cider else "percent"
            unit = COSTS[name].unit if name in COSTS else unit
            is_best = name in comparison.values and comparison.best(name) is row
            writer.writerow((
                row.name, name, comparison.metrics.get(name), unit, len(number.values),
                number.mean, number.deviation, interval and interval.low,
                interval and interval.high, number.published, "best" if is_best else None,
                row.partition if name == MEMORY else None,
            ))  # fmt: skip
    return text.getvalue()


def latex(comparison: Comparison) -> str:
    """A table of booktabs; published values stand in brackets behind ours, the best is bold."""
    table = in_brackets(comparison_table(comparison))
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
        "\\toprule",
        " & ".join(latex_text(text.replace("\n", " ")) for text in table.heads) + r" \\",
        "\\midrule",
    ]
    for row in table.rows:
        cells = [latex_text(row.head), *map(latex_cell, row.cells)]
        lines.append(" & ".join(cells) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {one_line(note)}" for note in notes_without_intervals(comparison)]
    return "\n".join(lines) + "\n"


def latex_cell(cell: Cell) -> str:
    """A cell with its published value."""
    text = latex_text(cell.text)
    text = f"\\textbf{{{text}}}" if "best" in cell.look else text
    return " ".join([text, *map(latex_text, cell.notes)])


def latex_text(text: str) -> str:
    """Text without markup."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in one_line(text))


def one_line(text: str) -> str:
    """Text without ends of lines, which would end a comment."""
    return " ".join(visible(text).split())


def notes_without_intervals(comparison: Comparison) -> list[str]:
    """The notes on a table whose brackets hold published values."""
    lines = notes(comparison, has_intervals=False)
    return [*lines, BRACKETS] if has_published(comparison) else lines


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "terminal": terminal_text,
    "md": markdown,
    "html": html,
    "csv": csv_rows,
    "tex": latex,
}
"""Format -> what makes its text; but for the terminal's, it is the suffix of the file."""
