"""The report as Markdown tables, to paste into a paper's repository, an issue or a page."""

from __future__ import annotations

from collections.abc import Sequence

from vlds.report.compute.baselines import FREQUENT
from vlds.report.compute.beside import frequent_scores
from vlds.report.compute.collect import Report, RunReport
from vlds.report.compute.facts import MADE, held_text, share_text, training_speed_text
from vlds.report.compute.results import Difference
from vlds.report.numbers import Interval, difference_text, interval_text, score_text
from vlds.runtime.shown import visible


def markdown(report: Report) -> str:
    """Runs beside each other, their differences to the first, and what the brackets are."""
    data = "; ".join(f"{task}: {text}" for task, text in report.data_texts.items())
    blocks = [runs_table(report), *([f"Data: {cell(data)}."] if data else [])]
    rows = [[name, *map(difference_cell, found)] for name, found in report.differences.items()]
    if rows:
        heads = [f"minus {report.baseline}", *headline_heads(report)]
        blocks.append(markdown_table(heads, rows, numbers_from=1))
    blocks += report.interval_notes
    blocks += [f"{name}: {note}" for name, run in report.runs.items() for note in run.notes]
    blocks += [f"{name}: {made}" for name, run in report.runs.items() if (made := how_made(run))]
    return "\n\n".join(blocks) + "\n"


def runs_table(report: Report) -> str:
    """One row a run."""
    heads = ["run", "method", "trains", "bytes per rank", "examples/s", *headline_heads(report)]
    frequent = frequent_scores(report)
    known = any(score is not None for score in frequent)
    rows = [[FREQUENT, *[""] * 4, *map(score_text, frequent)]] if known else []
    for name, run in report.runs.items():
        rows.append(
            [
                f"{name} ({run.stopped})" if run.stopped else name,
                run.facts.get("method", ""),
                share_text(run.scores.trainable),
                held_text(run.scores.bytes_per_rank),
                training_speed_text(run.scores.samples_per_second),
                *(score_cell(run, task, metric) for task, metric in report.headlines),
            ]
        )
    return markdown_table(heads, rows, numbers_from=2)


def how_made(run: RunReport) -> str:
    """When, where and with what a run was trained, in one line."""
    names = ("seed", *MADE)
    return "; ".join(f"{name} {cell(run.facts[name])}" for name in names if name in run.facts)


def score_cell(run: RunReport, task: str, metric: str) -> str:
    """A score and its interval."""
    result = run.result(task, metric)
    return with_interval(score_text(run.score(task, metric)), result.interval if result else None)


def difference_cell(found: Difference | str) -> str:
    """A difference and its interval, or why there is none."""
    if isinstance(found, str):
        return f"- ({found})"
    return with_interval(difference_text(found.value), found.interval)


def with_interval(text: str, interval: Interval | None) -> str:
    """A number, and behind it its interval where there is one."""
    return f"{text} {interval_text(interval)}" if interval else text


def headline_heads(report: Report) -> list[str]:
    """Heads of the columns of scores."""
    return [f"{task} {metric}" for task, metric in report.headlines]


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    """A table; numbers stand to the right."""
    rule = ["---:" if place >= numbers_from else "---" for place in range(len(heads))]
    lines = [list(map(cell, heads)), rule, *(list(map(cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text that stays within its cell and is no markup."""
    kept = " ".join(visible(text).split())
    for sign in "\\`*|<":
        kept = kept.replace(sign, f"\\{sign}")
    return kept
