"""The table of `vlds compare` in each of its formats (terminal, Markdown, HTML, CSV, LaTeX): its
cells, and notes on what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from vlds.report import charts
from vlds.report.charts import Bar, Chart, ScatterPoint, look, scatter_chart
from vlds.report.comparison import (
    ANSWERS,
    AVERAGE,
    CIDER,
    MEMORY,
    SHARES,
    SPEED,
    STORED,
    TIME,
    TRAINS,
    Comparison,
)
from vlds.report.numbers import Number, best_note
from vlds.report.tables import (
    BEST,
    Cell,
    Table,
    TableRow,
    csv_lines,
    latex_table,
    markdown_table,
    markdown_text,
    speed_text,
    terminal_tables,
)
from vlds.runtime.limited import page
from vlds.runtime.terminal import bytes_text, duration_text, open_console, visible
from vlds.tasks.metrics.caption_scores import CIDERS


class CostFormat(NamedTuple):
    """How a cost is shown."""

    title: str
    text: Callable[[float], str]
    unit: str


COSTS: Mapping[str, CostFormat] = {
    TRAINS: CostFormat("trains", lambda value: f"{value:.2f} %", "percent"),
    STORED: CostFormat("stores", bytes_text, "bytes"),
    MEMORY: CostFormat("peak memory", bytes_text, "bytes"),
    SPEED: CostFormat("samples/s", speed_text, "samples_per_second"),
    ANSWERS: CostFormat("answers/s", speed_text, "answers_per_second"),
    TIME: CostFormat("time to", duration_text, "seconds"),
}
TEMPLATES = Path(__file__).with_name("templates")


def comparison_table(comparison: Comparison, *, in_brackets: bool = False) -> Table:
    """What trains, then scores, then the other costs; the best of each score is marked. With
    `in_brackets`, notes in cells are short, "(65.9)" and not "paper 65.9"."""
    order = [n for n in comparison.costs if n == TRAINS] + comparison.values
    order += [name for name in comparison.costs if name != TRAINS]
    heads = [""]
    for name in order:
        if name == TIME and comparison.target is not None:
            target = comparison.target
            score = f"{target.percent:g}" if target.row is None else f"of {target.row}"
            heads.append(f"{COSTS[TIME].title}\n{target.task} {score}")
        elif name in COSTS:
            heads.append(COSTS[name].title)
        else:
            heads.append("\n".join(filter(None, [name, comparison.metrics.get(name)])))
    rows = []
    for row in comparison.rows:
        cells = []
        for name in order:
            number, cost = row.numbers[name], COSTS.get(name)
            # Costs have no best: a cheap row may score badly.
            is_best = cost is None and comparison.best(name) is row
            notes = []
            if number.published is not None:
                sign = "" if comparison.minus is None else "+"
                text = cost.text(number.published) if cost else f"{number.published:{sign}.1f}"
                notes.append(text if in_brackets else f"paper {text}")
            # Runs that never reach the score have no time, so this mean flatters the row.
            if name == TIME and 0 < len(number.values) < len(row.runs):
                notes.append(f"{len(number.values)} of {len(row.runs)} runs")
            if name == MEMORY and comparison.partitions_differ and row.partition:
                notes.append(row.partition)
            if cost is None:
                text, interval = percent_text(number), number.interval
                if comparison.minus is not None:
                    # Of a difference, its interval is what a reader asks for first.
                    text, interval = difference_text(number), None
            else:
                text, interval = "-" if number.mean is None else cost.text(number.mean), None
            cells.append(
                Cell(
                    text,
                    BEST if is_best else "number",
                    f"[{interval.low:.1f}, {interval.high:.1f}]" if interval else "",
                    [f"({note})" for note in notes] if in_brackets else notes,
                )
            )
        seeds = f"{row.wanted} seed{'s' * (row.wanted != 1)}"
        seeds = seeds if len(row.runs) == row.wanted else f"{len(row.runs)} of {seeds}"
        rows.append(TableRow(row.name, cells, [seeds]))
    return Table(heads, rows)


def percent_text(number: Number) -> str:
    """ "65.2 +/- 0.3", with one sign for +/-; without the deviation for one seed."""
    if number.mean is None:
        return "-"
    deviation = "" if number.deviation is None else f" \u00b1 {number.deviation:.1f}"
    return f"{number.mean:.1f}{deviation}"


def difference_text(number: Number) -> str:
    """ "+1.2 +/- 0.8", with one sign for +/-: the mean, and half of its 95 % interval."""
    if number.mean is None:
        return "-"
    half = "" if number.interval is None else f" \u00b1 {number.interval.high - number.mean:.1f}"
    return f"{number.mean:+.1f}{half}"


def notes(comparison: Comparison, *, in_brackets: bool = False) -> list[str]:
    """What the numbers mean, and what is missing. `in_brackets`: for a table without intervals,
    whose brackets hold published values."""
    metrics = ", ".join(f"{metric} of {task}" for task, metric in comparison.metrics.items())
    scales = comparison.scales
    others = [scale for scale in scales if scale not in (SHARES, CIDER)]
    unlimited = [f"{scale.partition(',')[0]}, which has no upper end" for scale in others]
    up_to = ["CIDEr, which goes up to 1,000"] if CIDER in scales else []
    but = f", but for {' and '.join(up_to + unlimited)}" if up_to or unlimited else ""
    lines = [f"Scores are 100 times their value, so percents{but}: {metrics}."] if metrics else []
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
        lines.append(best_note(is_any))
    if comparison.partitions_differ:
        lines.append(
            "Peak memory is that of one rank. The rows do not divide it over ranks alike, as each "
            "says, so compare it within those that do."
        )
    if comparison.minus is not None:
        lines.append(
            f"All scores are those of the row less those of {comparison.minus}, seed by seed. "
            "\u00b1: 95 % confidence interval of the mean difference (Student's t)."
        )
    elif any(len(row.runs) > 1 for row in comparison.rows):
        spread = "\u00b1: standard deviation of the sample (n - 1) over the seeds."
        interval = " Brackets: 95 % confidence interval of the mean (Student's t)."
        lines.append(spread + interval * (not in_brackets))
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
    lines += comparison.notes
    if in_brackets and has_published(comparison):
        lines.append("(65.9): a published value.")
    return lines


def has_published(comparison: Comparison) -> bool:
    """True if a value was published."""
    numbers = [number for row in comparison.rows for number in row.numbers.values()]
    return any(number.published is not None for number in numbers)


def terminal_text(comparison: Comparison) -> str:
    """For a terminal: one table if its width allows, else scores above costs."""
    console = open_console()
    table = comparison_table(comparison, in_brackets=True)
    # Names of metrics stand in the notes; only the time's head needs its second line.
    heads = [head if head.startswith("time") else head.split("\n")[0] for head in table.heads]
    first = 1 + (TRAINS in comparison.costs)
    scores = range(first, first + len(comparison.values))
    costs = [column for column in range(1, len(heads)) if column not in scores]
    table = Table(heads, table.rows)
    with console.capture() as captured:
        for part in terminal_tables(table, [scores, costs], console):
            console.print(part)
            console.print()
        lines = notes(comparison, in_brackets=True)
        console.print(Text("\n".join(map(visible, lines))))
    return captured.get()


def markdown(comparison: Comparison) -> str:
    """To paste into a repository or an issue."""
    table = comparison_table(comparison)
    return "\n\n".join([markdown_table(table), *map(markdown_text, notes(comparison))]) + "\n"


def html(comparison: Comparison) -> str:
    """A page: the table, what each row costs and scores as a picture, and each score as bars."""
    # Every row's average over its trainable share, as in VL-Adapter's figure, and the published
    # ones; without an average, each score.
    names = [AVERAGE] if comparison.has_average else comparison.columns
    # Differences may lie on both sides of 0, which neither picture shows.
    are_scores = comparison.minus is None
    spots = [cost_chart(comparison, name) for name in names if are_scores]
    bars = []
    for name in comparison.values if are_scores else []:
        numbers = [row.numbers[name] for row in comparison.rows]
        lengths = [abs(number.mean or 0.0) for number in numbers]
        # All means may be 0 or missing, and bars are shares of the longest one.
        highest = max(lengths) or 1.0
        bars.append(
            Chart(
                name,
                bars=[
                    Bar(row.name, look(index), percent_text(number), length / highest)
                    for index, (row, number, length) in enumerate(
                        zip(comparison.rows, numbers, lengths, strict=True)
                    )
                ],
            )
        )
    return page(
        TEMPLATES / "compare.html",
        title=f"{comparison.title}: {len(comparison.rows)} rows on {', '.join(comparison.columns)}",
        table=comparison_table(comparison),
        notes=notes(comparison),
        spots=[chart for chart in spots if chart is not None],
        bars=bars,
        rows=[f"{number}: {row.name}" for number, row in enumerate(comparison.rows, 1)],
        published=has_published(comparison),
        frame=charts,
    )


def cost_chart(comparison: Comparison, name: str) -> Chart | None:
    """A score of every row over its trainable share, ours and the published one; None where fewer
    than two are known."""
    points = []
    for index, row in enumerate(comparison.rows):
        share, score = row.numbers[TRAINS], row.numbers[name]
        if share.mean and score.mean is not None:
            text = f"{row.name}: {percent_text(score)}, trains {share.mean:.2f} %"
            spread, label = score.deviation or 0.0, str(index + 1)
            points.append(ScatterPoint(share.mean, score.mean, spread, look(index), text, label))
        if share.published and score.published is not None:
            text = f"{row.name}, published: {score.published:.1f}, trains {share.published:.2f} %"
            hollow = f"{look(index)} hollow"
            points.append(ScatterPoint(share.published, score.published, 0.0, hollow, text))
    return scatter_chart(name, points, "% of the weights train") if len(points) > 1 else None


CSV_NAMES = (
    "row", "name", "metric", "unit", "runs", "mean", "deviation", "low", "high", "published",
    "best", "partition",
)  # fmt: skip
"""Columns of the CSV: one number a line, and everything that identifies it."""


def csv_text(comparison: Comparison) -> str:
    """Costs and scores of each row, unrounded."""
    lines = []
    for row in comparison.rows:
        for name in (*comparison.costs, *comparison.values):
            number, metric = row.numbers[name], comparison.metrics.get(name)
            interval = number.interval
            unit = "times 100" if metric in CIDERS else "percent"
            is_best = name in comparison.values and comparison.best(name) is row
            lines.append({
                "row": row.name,
                "name": name,
                "metric": metric,
                "unit": COSTS[name].unit if name in COSTS else unit,
                "runs": len(number.values),
                "mean": number.mean,
                "deviation": number.deviation,
                "low": interval and interval.low,
                "high": interval and interval.high,
                "published": number.published,
                "best": "best" if is_best else None,
                "partition": row.partition if name == MEMORY else None,
            })  # fmt: skip
    return csv_lines(CSV_NAMES, lines)


def latex(comparison: Comparison) -> str:
    """A table of booktabs; published values stand in brackets behind ours, the best is bold."""
    table = comparison_table(comparison, in_brackets=True)
    return latex_table(table, notes(comparison, in_brackets=True))


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "terminal": terminal_text,
    "md": markdown,
    "html": html,
    "csv": csv_text,
    "tex": latex,
}
"""Format, which is the file's suffix except for the terminal's -> what makes its text."""
