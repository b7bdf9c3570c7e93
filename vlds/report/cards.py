"""Cards of the page: the surest mistakes, and the examples on which two runs differ, each with its
pictures, what was asked, the right answer and what was said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from vlds.data.shards.pictures import PagePicture, page_picture
from vlds.recipe.config import Recipe
from vlds.report.clips import Seen, digest_of, small_picture
from vlds.report.examples import Answered, TaskAnswers, asked_of
from vlds.report.read import GalleryEntry, suffix_of
from vlds.report.report import Report
from vlds.report.scores import TOLERANCE, Difference
from vlds.runtime.files import read_file

SURE = 0.8
"""Probability from which a prediction counts as sure."""
FIRST, MORE = 6, 12
"""Cards of a task that are shown, and folded behind these."""
MOST_PICTURES = 4
"""Pictures on a card."""
SHOWN_REFERENCES = 2
MOST_REFERENCES = 5
"""Lines of a reference on a card: unfolded, and in all."""
CARD_BYTES = 8_000_000
"""Bytes of all cards' pictures."""
SMALL = 160
"""Longest side in pixels of the thumbnails among all predictions that are inside the page."""
EMBEDDED_BYTES = 10_000_000
"""Bytes of these."""
FOLDER = "report_pictures"
"""Where they lie if they are beside the page."""

Pictures = Literal["few", "embed", "folder", "none"]
"""Which pictures a page has: those of its cards; also thumbnails of all predictions, inside the
page or in FOLDER beside it; none."""
PICTURES: Sequence[Pictures] = get_args(Pictures)

Runs = Mapping[str, Mapping[str, TaskAnswers]]
"""Run -> task -> what it said."""
Key = tuple[str, str]
"""Task and id of an example."""
Shown = PagePicture | str
"""A picture, or why it is missing."""


class Pick(NamedTuple):
    """Examples of a task to look at, the most telling first."""

    text: str
    ids: Sequence[str]


@dataclass(frozen=True)
class Card:
    """One example."""

    id: str
    prompt: str
    references: Sequence[str]
    """The reference as lines."""
    pictures: Sequence[Shown]
    last_turn: str = ""
    """What is asked at the end of a conversation, of which `prompt` is the whole."""
    predictions: dict[str, GalleryEntry | Answered] = field(default_factory=dict)
    """Run -> its prediction."""


class CardRow(NamedTuple):
    """The cards of a `Pick`."""

    text: str
    cards: Sequence[Card]


def mistakes(runs: Runs) -> dict[str, Pick]:
    """Task -> the examples that all runs got wrong, the surest first; for tasks whose answers are
    neither right nor wrong, those with the lowest scores."""
    picks = {}
    for task in dict.fromkeys(task for tasks in runs.values() for task in tasks):
        of_runs = [tasks[task] for tasks in runs.values() if task in tasks]
        said = {
            key: [answers.examples[key] for answers in of_runs]
            for key in of_runs[0].examples
            if all(key in answers.examples for answers in of_runs)
        }
        judged = {
            key: entries
            for key, entries in said.items()
            if all(entry.correct is not None for entry in entries)
        }
        wrong = {key: e for key, e in judged.items() if not any(entry.correct for entry in e)}
        several = len(of_runs) > 1
        where = " in all runs" if several else ""
        if judged and not wrong:
            picks[task] = Pick(f"None of {len(judged):,} is wrong{where}.", [])
        elif wrong:
            verb = "is" if len(wrong) == 1 else "are"
            text = f"{len(wrong):,} of {len(judged):,} {verb} wrong{where}"
            certain = {key: mean(entry.confidence for entry in e) for key, e in wrong.items()}
            known = {key: sure for key, sure in certain.items() if sure is not None}
            if known:
                count = sum(sure >= SURE for sure in known.values())
                which = "mean confidence" if several else "confidence"
                text += f", {count:,} with a {which} of at least {100 * SURE:.0f} %. The surest:"
                order = sorted(known, key=lambda key: (-known[key], key))
            else:
                text += ". Some of them, at equal distances:"
                stride = max(1, len(wrong) // (FIRST + MORE))
                order = sorted(wrong)[::stride]
            picks[task] = Pick(text, one_per_picture(order, said))
        elif not judged and (headline := of_runs[0].headline):
            values = {key: mean(entry.value for entry in e) for key, e in said.items()}
            scored = {key: value for key, value in values.items() if value is not None}
            sign = -1 if of_runs[0].lower_is_better else 1
            order = sorted(scored, key=lambda key: (sign * scored[key], key))
            if order:
                worst = "highest" if of_runs[0].lower_is_better else "lowest"
                picks[task] = Pick(f"The {worst} {headline}:", one_per_picture(order, said))
    return picks


def mean(values: Iterable[float | None]) -> float | None:
    """None if any is."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(known) else None


def one_per_picture(order: Iterable[str], said: Mapping[str, Sequence[Answered]]) -> list[str]:
    """The first examples, of each picture one."""
    seen, chosen = set(), []
    for key in order:
        # Where the sample is not known, each example stands for its own.
        picture = said[key][0].sample or f"\n{key}"
        if picture not in seen:
            seen.add(picture)
            chosen.append(key)
        if len(chosen) == FIRST + MORE:
            break
    return chosen


def differing(report: Report, runs: Runs) -> dict[str, list[Pick]]:
    """Task -> examples on which the first of two runs scores more, then those of the second."""
    if len(runs) != 2:
        return {}
    (first, one), (second, other) = runs.items()
    picks: dict[str, list[Pick]] = {}
    found = zip(report.headlines, report.differences.get(second, []), strict=False)
    for (task, _), difference in found:
        if not isinstance(difference, Difference) or task not in one or task not in other:
            continue
        pairs = {
            key: (entry, other[task].examples[key]) for key, entry in one[task].examples.items()
        }
        for name, better in ((first, 0), (second, 1)):
            gains = {}
            sure = {}  # how sure the run is that scores less
            for key, entries in pairs.items():
                more, less = entries[better], entries[1 - better]
                if more.value is not None and less.value is not None:
                    gains[key] = more.value - less.value
                    sure[key] = less.confidence or 0.0
            # Of equal gains the surest mistakes first: sorting keeps the order of equals.
            by_sure = sorted(gains, key=lambda key: (-sure[key], key))
            higher = [
                key
                for key in sorted(by_sure, key=gains.__getitem__, reverse=True)
                if gains[key] > TOLERANCE
            ]
            if higher:
                text = f"{name} scores more on {len(higher):,}:"
                picks.setdefault(task, []).append(Pick(text, one_per_picture(higher, pairs)))
    return picks


@dataclass
class Found:
    """What the data sets on this machine hold of the examples on a page."""

    prompts: dict[Key, str] = field(default_factory=dict)
    last_turns: dict[Key, str] = field(default_factory=dict)
    """Of conversations of several turns."""
    card_pictures: dict[Key, list[Shown]] = field(default_factory=dict)
    thumbnails: dict[Key, list[int]] = field(default_factory=dict)
    """Numbers of the URLs."""
    urls: list[str] = field(default_factory=list)
    num_bytes: int = 0
    """Of all pictures inside the page."""
    notes: list[str] = field(default_factory=list)


def look_up(
    runs: Runs,
    recipes: Mapping[str, Recipe],
    listed: Iterable[Key],
    on_cards: Iterable[Key],
    pictures: Pictures,
    folder: Path | None,
) -> Found:
    """Look up examples in the data, which takes a while: predictions hold neither inputs nor
    pictures. `folder`: where thumbnails go, with `pictures` "folder"."""
    found = Found()
    cards, wanted_keys = set(on_cards), {*listed, *on_cards}
    numbers: dict[str, int | None] = {}
    card_bytes = left_out = 0

    def on_card(seen: Seen, number: int) -> Shown:
        nonlocal card_bytes
        small = small_picture(seen)
        picture = page_picture(small) if small else None
        if picture is None:
            return f"picture {number} is damaged"
        if card_bytes + len(picture.url) > CARD_BYTES:
            return f"picture {number} is left out: cards have at most {CARD_BYTES / 1e6:.0f} MB"
        card_bytes += len(picture.url)
        return picture

    def listed_number(seen: Seen) -> int | None:
        nonlocal left_out
        # Many questions share a picture, and a page or folder holds it once.
        name = digest_of(seen)
        if name not in numbers:
            numbers[name] = None
            small = small_picture(seen) if folder else small_picture(seen, SMALL)
            picture = page_picture(small) if small else None
            if small and picture:
                url = picture.url
                if folder:
                    file = f"{name}.{suffix_of(small)}"
                    (folder / file).write_bytes(small)
                    url = f"{FOLDER}/{file}"
                elif found.num_bytes + len(url) > EMBEDDED_BYTES:
                    left_out += 1
                    return None
                else:
                    found.num_bytes += len(url)
                numbers[name] = len(found.urls)
                found.urls.append(url)
        return numbers[name]

    for name, recipe in recipes.items():  # the first recipe whose data has an example gives it
        shown = {answers.label: task for task, answers in runs[name].items()}
        wanted: dict[str, set[str]] = {label: set() for label in shown}
        labels = {task: label for label, task in shown.items()}
        for task, key in wanted_keys:
            if task in labels and (task, key) not in found.prompts:
                wanted[labels[task]].add(key)
        for asked in asked_of(recipe, wanted):
            at = shown[asked.label], asked.id
            found.prompts[at] = asked.prompt
            if asked.last_turn:
                found.last_turns[at] = asked.last_turn
            if at in cards and pictures != "none":
                several = enumerate(asked.pictures[:MOST_PICTURES], 1)
                entries = [on_card(seen, number) for number, seen in several]
                if more := len(asked.pictures) - MOST_PICTURES:
                    entries += [f"{more} more"] if more > 0 else []
                found.card_pictures[at] = entries
            if pictures in ("embed", "folder"):
                places = map(listed_number, asked.pictures[:MOST_PICTURES])
                found.thumbnails[at] = [place for place in places if place is not None]
    found.num_bytes += card_bytes
    if left_out:
        found.notes.append(
            f"{len(found.urls):,} thumbnails take {EMBEDDED_BYTES / 1e6:.0f} MB, and {left_out:,} "
            "are left out; `--pictures folder` puts all of them beside the page."
        )
    return found


def card_of(key: Key, runs: Runs, found: Found, pictures: Pictures) -> Card:
    """The card of an example."""
    task, id_ = key
    entries = {
        name: tasks[task].examples[id_]
        for name, tasks in runs.items()
        if task in tasks and id_ in tasks[task].examples
    }
    missing = [] if pictures == "none" else ["its data set is not here"]
    shown = found.card_pictures.get(key, [] if key in found.prompts else missing)
    lines = reference_lines(next(iter(entries.values())).references.split("\n"))
    last = found.last_turns.get(key, "")
    return Card(id_, found.prompts.get(key, ""), lines, shown, last, {**entries})


def reference_lines(lines: Sequence[str]) -> list[str]:
    return [*lines[:MOST_REFERENCES], *["..."] * (len(lines) > MOST_REFERENCES)]


def gallery(report: Report) -> dict[str, list[Card]]:
    """Cards of each task's samples; the same example (task, id, prompt, reference) of several runs
    is one."""
    cards: dict[str, dict[tuple[str, str, str], Card]] = {}
    for name, run in report.runs.items():
        for entry in run.inputs.gallery:
            asked = (entry.id, entry.prompt, str(entry.reference))
            # Not the id alone: data that changed between runs may keep their ids.
            of_task = cards.setdefault(entry.task, {})
            if asked not in of_task:
                pictures: list[Shown] = []
                for image in entry.images:
                    file = run.inputs.folder / image
                    picture = page_picture(read_file(file)) if file.is_file() else None
                    pictures.append(picture or f"{file.name} is missing")
                given = entry.reference
                lines = reference_lines([given] if isinstance(given, str) else list(given))
                of_task[asked] = Card(entry.id, entry.prompt, lines, pictures)
            of_task[asked].predictions[name] = entry
    return {task: list(of_task.values()) for task, of_task in cards.items()}
