"""The result of an evaluation: predictions, references, scores; as files, and as lines to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from vlds.data.errors import BadSample
from vlds.data.streams.source import Source
from vlds.evaluation.scores_json import LEFT_IN, Scored, write_scores
from vlds.metrics.tables import plain
from vlds.runtime.run_folder import newest_step
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole
from vlds.tasks.base import Task


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
    """Of the predictions of which more than the text is known."""
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

    @classmethod
    def of(
        cls,
        source: Source,
        gathered: Sequence[tuple[Sequence[Decoded], Sequence[BadSample]]],
        seconds: float,
    ) -> Evaluation:
        """The ranks' examples together, sorted by their ids; without scores."""
        bad = sorted((e for _, rank_bad in gathered for e in rank_bad), key=lambda e: e.id)
        examples = [example for rank_decoded, _ in gathered for example in rank_decoded]
        examples += [Decoded(e.id, e.reference, "", Details(e.sample)) for e in bad]
        examples.sort(key=lambda example: example.id)
        return cls(
            source.name,
            {},
            {example.id: example.prediction for example in examples},
            {example.id: example.reference for example in examples},
            {example.id: example.details for example in examples},
            [f"{entry.id}: {entry.reason}" for entry in bad],
            data=source.data_id,
            seconds=seconds,
        )

    def scored(self, task: Task) -> Evaluation:
        """The same with its scores; ValueError if ids of predictions and references differ."""
        scores = task.score(self.predictions, self.references)
        notes = task.notes(self.predictions, self.references) if scores else []
        return replace(self, scores=scores, notes=notes, headline=task.headline)

    @property
    def num_empty(self) -> int:
        """Predictions without any text; they are scored as they are."""
        return sum(not text.strip() for text in self.predictions.values())

    def write(self, folder: Path) -> None:
        """Write TASK.jsonl: a line per example with id, number of lines, the step of the newest
        training evaluation beside the file, data, sample, prediction, confidences and reference,
        without what is not known.

        Errors: CannotWrite.
        """
        after = newest_step(folder)
        lines = [json.dumps(self._line(key, after)) for key in self.predictions]
        write_whole(folder / f"{self.task}.jsonl", "".join(f"{line}\n" for line in lines))

    def _line(self, key: str, after: int | None) -> dict[str, Any]:
        details = self.details.get(key, Details())
        line = {
            "id": key,
            "of": len(self.predictions),
            "after": after,
            "data": self.data,
            "sample": details.sample,
            "prediction": self.predictions[key],
            "confidence": details.confidence and round(details.confidence, 4),
            "token_confidence": details.token_confidence and round(details.token_confidence, 4),
        }
        known = {name: value for name, value in line.items() if value is not None}
        return known | {"reference": self.references[key]}

    @property
    def title(self) -> str:
        """The task, its data and how many examples were scored."""
        name = f"{self.data.partition('@')[0]}, " if self.data else ""
        return f"{self.task} ({name}{len(self.predictions):,} examples)"

    def headlines(self) -> str:
        """The scores of the whole, in one line."""
        whole = plain(self.scores).items()
        return "  ".join(f"{name} {value:.3f}" for name, value in whole) or "no labels"

    def lines(self) -> list[str]:
        """All scores, those of the whole first, and what a reader must know about them."""
        names = sorted(self.scores, key=lambda name: "/" in name)
        width = max(map(len, names), default=0)
        notes = [f"could not be read: {line}" for line in self.unreadable]
        if empty := self.num_empty - len(self.unreadable):
            notes.append(f"{empty:,} predictions are empty, and scored so")
        notes += self.notes
        if not names:
            notes.append("no scores: the data have no labels")
        return [
            self.title,
            *(f"  {name:<{width}}  {self.scores[name]:.4f}" for name in names),
            *(f"  {note}" for note in notes),
        ]


def leave(
    evaluations: Sequence[Evaluation], folder: Path, *, scores: bool, weights: str | None = None
) -> None:
    """Print the results, and write predictions and scores.json. `weights`: as in `Scored`.

    Errors: CannotWrite, after everything is printed.
    """
    for evaluation in evaluations:
        tell("\n".join(evaluation.lines() if scores else evaluation.lines()[:1]))
    for evaluation in evaluations:
        evaluation.write(folder)
    if not evaluations:
        return
    if scores:
        scored = {
            e.task: Scored(e.data, len(e.predictions), e.scores, e.headline, weights=weights)
            for e in evaluations
        }
        write_scores(folder, scored)
    tell(f"{LEFT_IN}{folder}")
