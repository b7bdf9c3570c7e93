"""The result of an evaluation: predictions, references, scores; as files, and as lines to read.

TASK.jsonl has a task's predictions, scores.json its scores on its data:

    {TASK: {"data": "mine-test@1b2c...", "examples": 48, "scores": {NAME: 0.5, ...}}}

Optional are `weights`, the hash of what was scored; `headline`, where a recipe names the score that
stands for the task; and `compared`, by `vlds demo`: {LABEL: {NAME: 0.2, ...}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

from vlds.data.errors import BadSample
from vlds.data.streams.source import Source
from vlds.runtime.artifact_files import WEIGHTS, model_folder
from vlds.runtime.files import read_file, write_whole
from vlds.runtime.folders import newest_step
from vlds.runtime.json_files import MANIFEST, parse_record, recorded_hash
from vlds.runtime.terminal import tell
from vlds.schema import Group
from vlds.tasks.base import Task
from vlds.tasks.metrics.plain_scores import plain

SCORES = "scores.json"
LEFT_IN = "predictions: "
"""What commands say before the folder of what they leave."""


@dataclass(frozen=True)
class Scored:
    """One task, scored on its data."""

    data: str | None
    """Names, splits and fingerprint of the data sets; None if they are unknown."""
    examples: int | None
    scores: Mapping[str, float]
    headline: str | None = None
    """The score that stands for the task; default: the first."""
    compared: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Label of another model or of a baseline -> its scores on the same data."""
    weights: str | None = None
    """SHA-256 of the artifact's weights that were scored, if an artifact was."""

    def __post_init__(self) -> None:
        for scores in (self.scores, *self.compared.values()):
            for name, score in scores.items():
                if not isfinite(score):
                    raise ValueError(f"{name} is {score}, a finite number expected")
        if self.examples is not None and self.examples < 0:
            raise ValueError(f"examples is {self.examples}, 0 or more expected")


def write_scores(folder: Path, scored: Mapping[str, Scored]) -> None:
    """Write scores.json: task -> its entry, without empty optional fields.

    Errors: CannotWrite.
    """
    tree = {task: asdict(entry) for task, entry in scored.items()}
    for entry in tree.values():
        for name in ("headline", "compared", "weights"):
            if not entry[name]:
                del entry[name]
    write_whole(folder / SCORES, json.dumps(tree, indent=1) + "\n")


def read_scores(folder: Path) -> dict[str, Scored]:
    """Read a folder's scores.json; empty if there is none.

    Errors: ValueError naming the file.
    """
    path = folder / SCORES
    if not path.is_file():
        return {}
    try:
        return parse_record(dict[str, Scored], read_file(path))
    except ValueError as error:
        raise ValueError(
            f"{path}: holds no scores as `vlds evaluate` or `vlds demo` writes them ({error}); "
            "write it again, or remove it"
        ) from None


def current_scores(folder: Path, run: Path) -> tuple[dict[str, Scored], list[str]]:
    """The scores in a folder that belong to the weights that a run's folder stands for now; and
    notes about scores that do not, because the run was trained further, or may not.

    Errors: ValueError naming a file that holds no scores.
    """
    stored = read_scores(folder)
    named = [task for task, entry in stored.items() if entry.weights is not None]
    weights = weights_of(run) if named else None
    gone = [task for task in named if weights not in (None, stored[task].weights)]
    notes = []
    if gone:
        notes.append(
            f"{folder / SCORES}: its scores of {', '.join(gone)} belong to other weights than "
            f"{model_folder(run)} has, so they are left out; `vlds evaluate` writes them again"
        )
    if named and weights is None and model_folder(run).is_dir():
        notes.append(
            f"{folder / SCORES}: its scores of {', '.join(named)} may be of weights that are gone: "
            f"{model_folder(run) / MANIFEST} does not say which weights the run has"
        )
    return {task: entry for task, entry in stored.items() if task not in gone}, notes


def weights_of(run: Path) -> str | None:
    """SHA-256 of the weights that a run's folder stands for; None if its manifest lacks it."""
    try:
        return recorded_hash(model_folder(run), WEIGHTS)
    except (OSError, ValueError, LookupError, TypeError):
        return None


class Details(NamedTuple):
    """What may be known of a prediction besides its text."""

    sample: str | None = None
    """Id of the example's sample: the examples of one picture belong together."""
    confidence: float | None = None
    """Probability that the model gave to the prediction."""
    token_confidence: float | None = None
    """As in Answer."""


class Decoded(NamedTuple):
    """One example, answered."""

    id: str
    reference: Any
    prediction: str
    details: Details


@dataclass(frozen=True)
class Evaluation:
    """One task on its data."""

    task: str
    scores: dict[str, float]
    predictions: dict[str, str]
    references: dict[str, Any] = field(repr=False)
    details: dict[str, Details] = field(repr=False, default_factory=dict)
    """Id -> what is known of a prediction besides its text; others are left out."""
    groups: Mapping[str, Sequence[Group]] = field(repr=False, default_factory=dict)
    """Id of a sample -> its groups; only samples that have some."""
    unreadable: list[str] = field(default_factory=list)
    """Ids and reasons of examples whose picture could not be read: predicted as "" and scored as
    such."""
    notes: list[str] = field(default_factory=list)
    """Remarks for readers of the scores."""
    data: str | None = None
    """`data_id` of what was scored: scores on different data cannot be compared."""
    headline: str | None = None
    """The score that stands for the task, where its recipe names one."""
    seconds: float = 0.0
    """Time in which the ranks answered, the slowest one's."""
    num_scored: int = 0
    """Examples that count in the scores; 0 without scores."""

    @classmethod
    def of(
        cls,
        source: Source,
        gathered: Sequence[tuple[Sequence[Decoded], Sequence[BadSample]]],
        seconds: float,
        groups: Mapping[str, Sequence[Group]],
    ) -> Evaluation:
        """The ranks' examples together, sorted by their ids; without scores."""
        bad = sorted((e for _, rank_bad in gathered for e in rank_bad), key=lambda e: e.id)
        examples = [example for rank_decoded, _ in gathered for example in rank_decoded]
        # Unreadable examples count, with an empty prediction: scores are over all of the data.
        examples += [Decoded(e.id, e.reference, "", Details(e.sample)) for e in bad]
        # By id: files do not depend on how many ranks have answered.
        examples.sort(key=lambda example: example.id)
        return cls(
            source.name,
            {},
            {example.id: example.prediction for example in examples},
            {example.id: example.reference for example in examples},
            {example.id: example.details for example in examples},
            groups,
            [f"{entry.id}: {entry.reason}" for entry in bad],
            data=source.data_id,
            seconds=seconds,
        )

    def scored(self, task: Task) -> Evaluation:
        """The same with its scores; ValueError if ids of predictions and references differ."""
        scores = task.score(self.predictions, self.references)
        notes = task.notes(self.predictions, self.references) if scores else []
        num_scored = task.num_scored(self.references)
        return replace(
            self, scores=scores, notes=notes, headline=task.headline, num_scored=num_scored
        )

    def write(self, folder: Path) -> None:
        """Write TASK.jsonl: a line per example with id, number of lines, the step of the newest
        training evaluation in the folder, data, sample, its groups, prediction, confidences and
        reference; unknown fields are left out.

        Errors: CannotWrite.
        """
        after, lines = newest_step(folder), []
        for key, prediction in self.predictions.items():
            details = self.details.get(key, Details())
            line = {
                "id": key,
                "of": len(self.predictions),
                "after": after,
                "data": self.data,
                "sample": details.sample,
                "groups": self.groups.get(details.sample or ""),
                "prediction": prediction,
                "confidence": four_digits(details.confidence),
                "token_confidence": four_digits(details.token_confidence),
            }
            known = {name: value for name, value in line.items() if value is not None}
            # A reference of None stays: it says that the example has no label.
            lines.append(json.dumps(known | {"reference": self.references[key]}) + "\n")
        write_whole(folder / f"{self.task}.jsonl", "".join(lines))

    @property
    def title(self) -> str:
        """The task, its data, how many examples were answered, and how many count if not all."""
        name = f"{self.data.partition('@')[0]}, " if self.data else ""
        is_part = 0 < self.num_scored < len(self.predictions)
        part = f", of which {self.num_scored:,} count" if is_part else ""
        return f"{self.task} ({name}{len(self.predictions):,} examples{part})"

    def headlines(self) -> str:
        """The scores of the whole, in one line."""
        whole = plain(self.scores).items()
        return "  ".join(f"{name} {value:.3f}" for name, value in whole) or "no labels"

    def lines(self) -> list[str]:
        """All scores, those of the whole first, and what a reader must know about them."""
        names = sorted(self.scores, key=lambda name: "/" in name)
        width = max(map(len, names), default=0)
        notes = [f"could not be read: {line}" for line in self.unreadable]
        # Unreadable examples have empty predictions too, and a line each already.
        num_empty = sum(not text.strip() for text in self.predictions.values())
        if empty := num_empty - len(self.unreadable):
            notes.append(f"{empty:,} predictions are empty, and scored so")
        notes += self.notes
        if not names:
            notes.append("no scores: the data have no labels")
        return [
            self.title,
            *(f"  {name:<{width}}  {self.scores[name]:.4f}" for name in names),
            *(f"  {note}" for note in notes),
        ]


def four_digits(confidence: float | None) -> float | None:
    """As predictions hold it, whose further digits are noise; None if it is not a number, which a
    model with weights that are not finite gives."""
    return None if confidence is None or isnan(confidence) else round(confidence, 4)


def leave(
    evaluations: Sequence[Evaluation], folder: Path, *, scores: bool, weights: str | None = None
) -> None:
    """Print the results, and write predictions and scores.json. `weights`: as in `Scored`.

    Errors: CannotWrite, after everything is printed.
    """
    # Printed before anything is written: a full disk must not cost the scores.
    for evaluation in evaluations:
        tell("\n".join(evaluation.lines() if scores else evaluation.lines()[:1]))
    for evaluation in evaluations:
        evaluation.write(folder)
    if not evaluations:
        return
    if scores:
        scored = {
            e.task: Scored(
                e.data, e.num_scored or len(e.predictions), e.scores, e.headline, weights=weights
            )
            for e in evaluations
        }
        write_scores(folder, scored)
    tell(f"{LEFT_IN}{folder}")
