"""The page of `vlds compare`: the table, what each row costs and scores as a picture, bars."""

from __future__ import annotations

from pathlib import Path

from vlds.report.compute.compared_columns import AVERAGE, TRAINS
from vlds.report.compute.comparison import Comparison
from vlds.report.render import charts
from vlds.report.render.charts import Bar, Chart, Spot, look, spot_chart
from vlds.report.render.comparison import comparison_table, has_published, notes, score_text
from vlds.runtime.templating import page

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
