"""The report as one HTML file (no network, pictures inside; one script explores predictions, and
the rest works without it), as Markdown, or as CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlds.report import charts, run_tables
from vlds.report.cards import (
    FIRST,
    FOLDER,
    SURE,
    CardRow,
    Found,
    Key,
    Pick,
    Pictures,
    Runs,
    card_of,
    differing,
    gallery,
    look_up,
    mistakes,
)
from vlds.report.charts import confusions, training_charts
from vlds.report.collect import report_on
from vlds.report.examples import answers_of
from vlds.report.lead import WEAKEST_NOTE, pair_leads, run_leads
from vlds.report.read import RunInputs
from vlds.report.report import MADE, Report
from vlds.report.run_tables import (
    csv_text,
    difference_table,
    fact_table,
    folded_details,
    headline_heads,
    own_first,
    runs_table,
    score_table,
    seed_notes,
)
from vlds.report.scores import RESAMPLES, SIGNIFICANT
from vlds.report.tables import markdown_table, markdown_text
from vlds.runtime.disk import check_writable
from vlds.runtime.files import whole_folder, write_whole
from vlds.runtime.limited import POLICY, page, visible_tree

MOST_EXAMPLES = 20_000
"""Examples on the page, over all tasks."""
MOST_SURE_WRONG = 5_000
"""Examples in addition: the surest mistakes."""
MOST_BYTES = 24_000_000
"""Bytes of pictures and examples on a page."""
MOST_TEXT = 300
"""Characters of a text that are shown."""

TEST_NOTE = (
    "Paired differences: the same examples are drawn for both runs. p: how often chance makes a "
    "difference as large if the two runs are equally good. The test flips the signs of the "
    "differences of what is drawn, such as pictures; where each has one answer that is right or "
    f"wrong, it is McNemar's exact test. Bold: p below {SIGNIFICANT:g}, for each difference by "
    "itself."
)
"""What stands below differences."""
TEMPLATES = Path(__file__).with_name("templates")


class Explorer(NamedTuple):
    """All predictions, bounded, for the page's script to filter and search."""

    data: object
    """JSON for the script."""
    notes: Sequence[str]


def listed_examples(runs: Runs) -> list[Key]:
    """The examples among which readers can search: of all tasks by id."""
    by_task: dict[str, set[str]] = {}
    for tasks in runs.values():
        for task, answers in tasks.items():
            by_task.setdefault(task, set()).update(answers.examples)
    ids = {task: sorted(keys) for task, keys in by_task.items()}
    # The first examples of each task: all of small tasks, equally many of the others.
    first: set[Key] = set()
    # The smallest first, since what it leaves goes to the others: [10, 500] of 100 -> 10 and 90.
    by_size = sorted(ids.items(), key=lambda entry: len(entry[1]))
    for index, (task, keys) in enumerate(by_size):
        share = (MOST_EXAMPLES - len(first)) // (len(by_size) - index)
        first |= {(task, key) for key in keys[:share]}
    mistakes = [
        (-entry.confidence, (task, key))
        for tasks in runs.values()
        for task, answers in tasks.items()
        for key, entry in answers.examples.items()
        if entry.correct is False and entry.confidence is not None and entry.confidence >= SURE
    ]
    # Several runs may make the same mistake: a dict keeps the place of the surest one.
    surest = dict.fromkeys(key for _, key in sorted(mistakes) if key not in first)
    chosen = [*first, *list(surest)[:MOST_SURE_WRONG]]
    task_index = {task: index for index, task in enumerate(ids)}
    return sorted(chosen, key=lambda key: (task_index[key[0]], key[1]))


def explore(runs: Runs, listed: Sequence[Key], found: Found) -> Explorer | None:
    """The predictions of all runs together; None where there are none."""
    if not listed:
        return None
    ids: dict[str, set[str]] = {}
    ways: dict[str, Sequence[str]] = {}  # of the first run that has the task
    for tasks in runs.values():
        for task, answers in tasks.items():
            ids.setdefault(task, set()).update(answers.examples)
            ways.setdefault(task, answers.ways)
    task_index = {task: index for index, task in enumerate(ids)}
    rows = script_rows(runs, listed, task_index, found)
    data = visible_tree({
        "runs": list(runs),
        "tasks": [{"name": task, "ways": ways[task]} for task in ids],
        "sure": SURE,
        "rows": rows,
    })  # fmt: skip
    assert isinstance(data, dict)
    notes = list(found.notes)
    total = sum(map(len, ids.values()))
    if len(rows) < total:
        notes.append(
            f"{len(rows):,} of {total:,} examples: the first ones of each task, and up to "
            f"{MOST_SURE_WRONG:,} of the surest mistakes. All are in the run's folder, in "
            "predictions/."
        )
    return Explorer({**data, "pictures": found.urls}, notes)


def script_rows(
    runs: Runs, listed: Sequence[Key], task_index: Mapping[str, int], found: Found
) -> list[list[object]]:
    """Examples as the script reads them, until they are too many bytes for a page: index of the
    task, id, input, answer, groups; for each run its prediction, whether that is right, and how
    sure the run was, or null; indices of its pictures."""
    rows: list[list[object]] = []
    size = found.num_bytes
    for task, key in listed:
        entries = [
            tasks[task].examples.get(key) if task in tasks else None for tasks in runs.values()
        ]
        example = next(entry for entry in entries if entry is not None)
        row = [
            task_index[task],
            key,
            # The question of a conversation stands at its end.
            clipped(found.prompts.get((task, key), ""), at_end=(task, key) in found.last_turns),
            clipped(example.references),
            example.groups,
            [
                entry and [clipped(entry.prediction), entry.correct, entry.confidence]
                for entry in entries
            ],
            found.thumbnails.get((task, key), []),
        ]
        # About what the row takes on the page, which has the same JSON without spaces.
        size += len(json.dumps(row))
        if size > MOST_BYTES:
            break
        rows.append(row)
    return rows


def clipped(text: str, at_end: bool = False) -> str:
    """A text, cut to fit its line; `at_end`: its end stays."""
    if len(text) <= MOST_TEXT:
        return text
    return f"... {text[-MOST_TEXT:].lstrip()}" if at_end else f"{text[:MOST_TEXT].rstrip()} ..."


def build_page(report: Report, pictures: Pictures = "few", folder: Path | None = None) -> str:
    """The page about one or several runs. `folder`: where thumbnails of all predictions go, with
    `pictures` "folder"."""
    several = len(report.runs) > 1
    answers = {name: answers_of(run) for name, run in report.runs.items()}
    recipes = {name: run.recipe for name, run in report.runs.items() if run.recipe is not None}
    picks = {task: [pick] for task, pick in mistakes(answers).items()}
    differ = differing(report, answers)
    listed = listed_examples(answers)
    on_cards = [
        (task, key)
        for by_task in (picks, differ)
        for task, of_task in by_task.items()
        for pick in of_task
        for key in pick.ids
    ]
    found = look_up(answers, recipes, listed, on_cards, pictures, folder)

    def rows_of(by_task: Mapping[str, Sequence[Pick]]) -> dict[str, list[CardRow]]:
        return {
            task: [
                CardRow(pick.text, [card_of((task, k), answers, found, pictures) for k in pick.ids])
                for pick in of_task
            ]
            for task, of_task in by_task.items()
        }

    confused = {name: confusions(by_task) for name, by_task in answers.items()}
    confused = {name: tables for name, tables in confused.items() if tables}
    explorer = explore(answers, listed, found)
    groups = training_charts(report)
    all_scores = report.merged() if several else report.only.scores
    scores = runs_table(report, on_page=True) if several else score_table(report.only)
    differences = difference_table(report, ["run", *headline_heads(report)])
    own_leads = {n: run_leads(run, report.resamples) for n, run in report.runs.items()}
    leads = own_leads.pop(report.baseline) if not several else []
    if len(report.runs) == 2:
        leads = pair_leads(report)
        # Tasks that cannot be compared have each run's own sentence there.
        compared = {lead.task for lead in leads}
        for name, of_run in own_leads.items():
            leads += [
                lead._replace(task=f"{lead.task} of {name}")
                for lead in of_run
                if lead.task not in compared
            ]
            own_leads[name] = [lead for lead in of_run if lead.task in compared]
    cards = {} if pictures == "none" else gallery(report)
    # Id of a part -> its title; parts with nothing to show get no link.
    parts = {
        "differ": "Where they differ" if differ else "",
        "mistakes": "Mistakes" if picks or confused else "",
        "scores": "Scores" if scores.rows else "",
        "differences": "Differences" if differences.rows else "",
        **{group.id: group.title for group in groups},
        "samples": "Samples" if cards else "",
        "facts": "Size and speed" if not several and fact_table(report.only).rows else "",
        "runs": "Runs" if several else "",
        "predictions": "All predictions" if explorer else "",
    }
    all_leads = [*leads, *(lead for of_run in own_leads.values() for lead in of_run)]
    has_weakest = any(lead.names_group for lead in all_leads)
    return page(
        TEMPLATES / "report.html",
        TEMPLATES / "explore.js" if explorer else None,
        policy=POLICY.replace("img-src data:", "img-src data: 'self'") if folder else POLICY,
        title=f"{len(report.runs)} runs" if len(report.runs) > 2 else " and ".join(report.runs),
        report=report,
        several=several,
        parts={id: name for id, name in parts.items() if name},
        leads=leads,
        own_leads=own_leads,
        lead_note=WEAKEST_NOTE if has_weakest else "",
        differ=rows_of(differ),
        mistakes_of=rows_of(picks),
        confusions_of=confused,
        first=FIRST,
        scores=scores,
        score_notes=[*report.interval_notes, *seed_notes(report)],
        differences=differences,
        test_note=TEST_NOTE,
        details=folded_details(
            all_scores, all_scores.columns if several else own_first(all_scores)
        ),
        charts=groups,
        gallery=cards,
        explorer=explorer,
        tables=run_tables,
        frame=charts,
    )


def markdown(report: Report) -> str:
    """A table of the runs, their differences from the first, and what the brackets mean."""
    data = "; ".join(f"{task}: {text}" for task, text in report.data_texts.items())
    blocks = [markdown_table(runs_table(report, on_page=False))]
    blocks += [f"Data: {markdown_text(data)}."] if data else []
    heads = [f"{task} {metric}" for task, metric in report.headlines]
    differences = difference_table(report, [f"minus {report.baseline}", *heads])
    blocks += [markdown_table(differences)] if differences.rows else []
    lines = [*report.interval_notes, *([TEST_NOTE] if differences.rows else [])]
    lines += [f"{name}: {note}" for name, run in report.runs.items() for note in run.notes]
    for name, run in report.runs.items():
        made = [f"{fact} {run.facts[fact]}" for fact in ("seed", *MADE) if fact in run.facts]
        lines += [f"{name}: {'; '.join(made)}"] if made else []
    blocks += map(markdown_text, lines)
    return "\n\n".join(blocks) + "\n"


FORMATS: Mapping[str, Callable[[Report], str]] = {
    "html": build_page,
    "md": markdown,
    "csv": csv_text,
}
"""Suffix of the file -> what makes its text."""


def report_text(runs: Sequence[RunInputs], suffix: str, resamples: int = RESAMPLES) -> str:
    """The report in one of FORMATS.

    Errors: ValueError where a run is named twice.
    """
    return FORMATS[suffix](report_on(runs, resamples, pictures=suffix == "html"))


def write_report(
    runs: Sequence[RunInputs],
    folder: Path,
    suffix: str = "html",
    resamples: int = RESAMPLES,
    pictures: Pictures = "few",
) -> Path:
    """Write report.SUFFIX about one or several runs; returns its path. `pictures`: of a page.

    Errors: ValueError where a run is named twice, or `folder` cannot be written.
    """
    check_writable(folder, "--out")
    path = folder / f"report.{suffix}"
    if suffix != "html":
        write_whole(path, report_text(runs, suffix, resamples))
        return path
    report = report_on(runs, resamples, pictures=pictures != "none")
    if pictures == "folder":
        with whole_folder(folder / FOLDER) as thumbnails:
            text = build_page(report, pictures, thumbnails)
    else:
        text = build_page(report, pictures)
    write_whole(path, text)
    return path
