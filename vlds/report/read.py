"""Reads a run folder.

metrics.jsonl   lines of training ("loss", "loss/TASK", "added/METHOD") and evaluation ("scores")
predictions/    one file a task, of the training's evaluations or of `vlds evaluate`; optional
scores.json     scores of `vlds evaluate`, or of models compared by `vlds demo`; optional
gallery/        sample pictures with prediction, and samples.json; optional
recipe.yaml     the resolved recipe; optional
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlds.evaluation.result import Scored, current_scores
from vlds.report.clips import Seen, small_picture
from vlds.runtime.artifact_files import best_step, home_of
from vlds.runtime.files import read_text, whole_folder
from vlds.runtime.folders import PREDICTIONS, read_starts
from vlds.runtime.json_files import read_metric_lines, read_record
from vlds.runtime.yaml_file import parse_yaml
from vlds.tasks.base import task_of
from vlds.tasks.metrics.plain_scores import split

Curve = list[tuple[float, float]]
"""Points (step, value)."""
Metrics = Mapping[str, Any]
"""A line of metrics.jsonl."""
SPEEDS = {"training": "samples_per_second", "answering": "answers_per_second"}
"""What a run does -> where a line says how many examples it does in a second."""
GALLERY, SAMPLES = "gallery", "samples.json"
PNG = b"\x89PNG"


def headline_of(names: Iterable[str], named: str | None) -> str | None:
    """The score that stands for a task in every table, of those that it has: the one that its
    recipe or scores.json names, else the first; None where there is none."""
    known = list(names)
    return named if named in known else next(iter(known), None)


@dataclass(frozen=True)
class TaskScores:
    """One task: metrics of each model that was scored on it."""

    by_column: Mapping[str, Mapping[str, float]]
    """Label of the column -> metric -> value; a column without scores is absent."""
    examples: int | None = None
    """How many examples were scored."""
    data: str | None = None
    """Names, splits and fingerprint of their data sets, where known."""
    headline: str | None = None
    """The metric that stands for the task; default: the first."""
    lower_is_better: Collection[str] = ()
    """Scores of which the lowest is the best, as the task says."""

    @property
    def data_name(self) -> str:
        """Names and splits of the data sets; "" where they are not known."""
        return self.data.partition("@")[0] if self.data else ""

    @property
    def data_text(self) -> str:
        """Name and size of the data, in words; "" where neither is known."""
        size = f"{self.examples:,} examples" if self.examples is not None else ""
        return ", ".join(filter(None, [self.data_name, size]))

    @property
    def metrics(self) -> list[str]:
        """All metrics of all columns, the headline first."""
        names = list(dict.fromkeys(name for scores in self.by_column.values() for name in scores))
        headline = headline_of(names, self.headline)
        return sorted(names, key=lambda name: name != headline)

    def is_lower_better(self, metric: str) -> bool:
        """True if the lowest of this score, or of a group's score ("accuracy/WAY/GROUP"), is the
        best."""
        cell = split(metric)
        return (cell[0] if cell else metric) in self.lower_is_better


@dataclass(frozen=True)
class Scores:
    """The scores of a run and of what it is compared with."""

    columns: Sequence[str]
    """Labels of the models, in order; the run's own is the last."""
    tasks: Mapping[str, TaskScores]
    trainable: Mapping[str, float] = field(default_factory=dict)
    """total, trainable, percent."""
    bytes_per_rank: Mapping[str, float] = field(default_factory=dict)
    """What -> bytes that each rank holds."""
    samples_per_second: Mapping[str, float] = field(default_factory=dict)
    """What -> examples a second, over all ranks."""


@dataclass(frozen=True)
class GalleryEntry:
    """One example to look at."""

    task: str
    id: str
    images: Sequence[str]
    """Paths of the pictures, relative to the run folder."""
    prompt: str
    reference: str | Sequence[str]
    prediction: str
    correct: bool | None = None
    """None if an answer is neither right nor wrong, such as a caption."""
    confidence: float | None = None
    """How sure the model was, as in `Predictions`; None where it was not written down."""


@dataclass(frozen=True)
class RunInputs:
    """Everything that a report reads of one run, but for its predictions."""

    name: str
    folder: Path
    lines: Sequence[Metrics]
    """Lines of metrics.jsonl, without skipped ones."""
    score_curves: Mapping[str, Curve]
    """Task -> headline score over the steps it was evaluated at."""
    scores: Scores
    gallery: Sequence[GalleryEntry]
    recipe: str | None
    recipe_tree: Mapping[str, Any]
    """The recipe's text as a tree; empty if it is not YAML."""
    headlines: Mapping[str, str]
    """Task -> the score that stands for it, where scores.json or the recipe names one."""
    stored: Mapping[str, Scored]
    """Task's list -> its entry in scores.json, for the run's present weights; the file in
    predictions/ takes precedence over the run's own."""
    outdated: Sequence[str] = ()
    """Scores of other weights, which are left out, in words."""
    damage: Sequence[str] = ()
    """What was passed over because it cannot be read: lines of metrics.jsonl, the recipe."""

    @property
    def seed(self) -> str:
        """What tells the run from others of its row: the recipe's seed, else the folder's name."""
        return str(self.recipe_tree.get("seed", self.folder.name))

    @property
    def partition(self) -> str:
        """How the run's memory was divided, as far as it is known: "ZeRO-3, 2 ranks"."""
        logged = [line for line in self.lines if "zero_stage" in line]
        deepspeed = entries_of(self.recipe_tree, "training").get("deepspeed")
        # Until the first line is logged, only the name of DeepSpeed's file is known: zero2.
        if logged:
            stage = f"ZeRO-{logged[-1]['zero_stage']}"
        else:
            stage = Path(deepspeed).stem if isinstance(deepspeed, str) else ""
        starts = read_starts(self.folder)
        ranks = starts[-1].hardware.partition(",")[0] if starts else ""
        return ", ".join(filter(None, [stage, ranks]))

    @property
    def losses(self) -> dict[str, Curve]:
        """Task -> curve; "" is the loss over all tasks, "+ NAME" what a method adds to it."""
        curves: dict[str, Curve] = {}
        for line in self.lines:
            # loss -> "", loss/vqa -> "vqa", added/lora -> "+ lora"
            for key, value in line.items():
                kind, _, name = key.partition("/")
                if kind in ("loss", "added"):
                    title = f"+ {name}" if kind == "added" else name
                    curves.setdefault(title, []).append((line["step"], value))
        return curves

    @property
    def steps_done(self) -> int | None:
        """Steps of training; None where no step was logged."""
        # Its scores, and a later start, tell of a last step that `log_every` does not show.
        return max((line["step"] for line in self.lines), default=0) or None

    @property
    def seconds(self) -> float:
        """Seconds of training, without evaluations and states; 0 where they were not logged."""
        return float(sum(line.get("seconds", 0.0) for line in self.lines))


def read_run(folder: Path) -> RunInputs:
    """Read a run folder.

    Errors: ValueError where it is not one, or a file in it cannot be read.
    """
    check_run(folder)
    metrics = read_metric_lines(folder / "metrics.jsonl")
    lines = [line for _, line in metrics.lines]
    recipe, recipe_tree, damaged = read_tree(folder)
    name = folder.resolve().name
    # scores.json beside the run holds comparisons too (`vlds demo`); that in predictions/ is what
    # `vlds evaluate` has written last, so it wins.
    own, gone = current_scores(folder, folder)
    evaluated, gone_too = current_scores(home_of(folder) / PREDICTIONS, folder)
    stored = own | evaluated
    headlines = headlines_of(recipe_tree)
    headlines |= {task_of(t): entry.headline for t, entry in stored.items() if entry.headline}
    # What was logged last counts. Some keys, such as the bytes, are in the first lines only.
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    scores = scores_of(own, name, headlines)
    if not scores.tasks and (logged := logged_scores(lines, folder)):
        tasks = {
            task: TaskScores({name: last_scores}, headline=headlines.get(task))
            for task, last_scores in logged.items()
        }
        scores = Scores([name], tasks)
    speeds = {what: [line[key] for line in lines if key in line] for what, key in SPEEDS.items()}
    scores = replace(
        scores,
        trainable=last.get("trainable", {}),
        bytes_per_rank=last.get("bytes_per_rank", {}),
        samples_per_second={
            what: statistics.median(known) for what, known in speeds.items() if known
        },
    )
    curves: dict[str, Curve] = {}
    for line in lines:
        for task, of_task in line.get("scores", {}).items():
            headline = headline_of(of_task, headlines.get(task))
            if headline is not None:
                curves.setdefault(task, []).append((line["step"], of_task[headline]))
    return RunInputs(
        name=name,
        folder=folder,
        lines=lines,
        score_curves=curves,
        scores=scores,
        gallery=read_gallery(folder),
        recipe=recipe,
        recipe_tree=recipe_tree,
        headlines=headlines,
        stored=stored,
        outdated=[*gone, *gone_too],
        damage=list(filter(None, [metrics.complaint, damaged])),
    )


def logged_scores(lines: Sequence[Metrics], run: Path) -> Mapping[str, Mapping[str, float]]:
    """Task -> scores that training has logged of the model that a run's folder stands for: of its
    best step, if that was kept, else the last; empty before the first."""
    step = best_step(run)
    known = [line for line in lines if "scores" in line and step in (None, line["step"])]
    return known[-1]["scores"] if known else {}


def scores_of(stored: Mapping[str, Scored], run_name: str, headlines: Mapping[str, str]) -> Scores:
    """What scores.json says of the run and of others. `headlines`: task -> the score that stands
    for it, where one is named."""
    others = dict.fromkeys(label for entry in stored.values() for label in entry.compared)
    tasks = {}
    for task, entry in stored.items():
        columns = {**entry.compared, run_name: entry.scores}
        scored = {label: scores for label, scores in columns.items() if scores}
        if scored:
            headline = headlines.get(task_of(task))
            tasks[task] = TaskScores(scored, entry.examples, entry.data, headline)
    return Scores([*others, run_name] if tasks else [], tasks)


def check_run(folder: Path) -> None:
    """Errors: ValueError where a folder holds no run."""
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; name a folder that `vlds train` wrote")
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; name one that `vlds train` wrote")
    # One of these will do: a run may have been copied in part.
    known = ("metrics.jsonl", "scores.json", "predictions/*.jsonl", "predictions/step-*/*.jsonl")
    if not any(any(folder.glob(name)) for name in known):
        raise ValueError(
            f"{folder}: holds neither metrics.jsonl nor scores.json nor predictions; name a folder "
            "that `vlds train` wrote"
        )


def find_runs(folders: Sequence[Path]) -> tuple[list[RunInputs], list[ValueError]]:
    """The runs among these folders, and the errors of the others, as in `vlds report runs/*`.

    Errors: ValueError where none holds a run.
    """
    runs: list[RunInputs] = []
    errors: list[ValueError] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    return runs, errors


def read_tree(folder: Path) -> tuple[str | None, dict[str, Any], str]:
    """The text of a run's recipe, None where it has none; as a tree, empty if the text is not a
    mapping in YAML; and what is wrong then.

    Errors: CannotOpen.
    """
    file = folder / "recipe.yaml"
    if not file.exists():
        return None, {}, ""
    text = read_text(file, errors="replace")
    try:
        tree = parse_yaml(text, str(file))
    except ValueError as error:
        return text, {}, f"{error}; copy it again from where the run was trained"
    if not isinstance(tree, dict):
        return text, {}, f"{file}: holds no recipe; copy it again from where the run was trained"
    return text, tree, ""


def headlines_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The score that stands for each task that names one."""
    headlines = {}
    for task, entry in entries_of(recipe, "tasks").items():
        headline = entries_of(entry, "init_args").get("headline")
        if isinstance(headline, str):
            headlines[task] = headline
    return headlines


def entries_of(tree: object, key: str) -> Mapping[str, Any]:
    """The entries below a key; none where the tree has another form."""
    entries = tree.get(key) if isinstance(tree, dict) else None
    return entries if isinstance(entries, dict) else {}


def read_gallery(folder: Path) -> list[GalleryEntry]:
    """The gallery of a run folder; empty where there is none.

    Errors: ValueError naming the file.
    """
    path = folder / GALLERY / SAMPLES
    if not path.is_file():
        return []
    cure = "`vlds report` writes no such samples; remove the file"
    entries = read_record(list[GalleryEntry], path, cure)
    for name in (name for entry in entries for name in entry.images):
        # Somebody else's run must not put our own pictures on a page.
        if (folder / name).resolve().parent != path.parent.resolve():
            raise ValueError(f"{path}: image {name!r} is not in {GALLERY}/; {cure}")
    return entries


def suffix_of(small: bytes) -> str:
    """Suffix of a thumbnail's file."""
    return "png" if small.startswith(PNG) else "jpg"


def write_gallery(folder: Path, entries: Iterable[tuple[GalleryEntry, Sequence[Seen]]]) -> None:
    """Write the gallery of a run folder, replacing an older one: the entries, and thumbnails of
    each entry's encoded pictures.

    Errors: CannotWrite.
    """
    with whole_folder(folder / GALLERY) as partial:
        written = []
        for number, (entry, encoded) in enumerate(entries):
            images = []
            for position, data in enumerate(encoded):
                # A picture that cannot be decoded is left out; the entry stays.
                if small := small_picture(data):
                    name = f"{number:04d}-{position}.{suffix_of(small)}"
                    (partial / name).write_bytes(small)
                    images.append(f"{GALLERY}/{name}")
            written.append(asdict(entry) | {"images": images})
        text = json.dumps(written, indent=1) + "\n"
        (partial / SAMPLES).write_text(text, encoding="utf-8")
