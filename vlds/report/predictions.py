"""Reads the predictions that a run wrote, one file for each list of a task's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlds.runtime.artifact_files import best_step, home_of, model_line
from vlds.runtime.files import read_text
from vlds.runtime.folders import PREDICTIONS, STEP, newest_step
from vlds.runtime.json_files import parse_record
from vlds.runtime.terminal import shell_command
from vlds.schema import Group

AGAIN = "evaluate the run again, with `vlds evaluate RUN`"


@dataclass(frozen=True)
class PredictionLine:
    """One example, as `Evaluation.write` puts it into a file."""

    id: str
    of: int
    """How many lines the file has."""
    prediction: str
    reference: Any
    sample: str | None = None
    groups: tuple[Group, ...] = ()
    data: str | None = None
    after: int | None = None
    confidence: float | None = None
    token_confidence: float | None = None

    def __post_init__(self) -> None:
        for name in ("confidence", "token_confidence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, a number in 0..1 expected")


@dataclass(frozen=True)
class Predictions:
    """One task's examples, in the order of their ids."""

    file: Path
    step: int | None
    """Step of the training at which they were made; None where `vlds evaluate` made them."""
    predictions: Mapping[str, str]
    references: Mapping[str, Any]
    confidences: Mapping[str, float]
    """Confidence, 0..1, of each example whose line has one: the probability of the answer; for a
    text of several tokens, their geometric mean."""
    samples: Mapping[str, str]
    """Id of the sample of each example whose line names one."""
    lines: Mapping[str, int]
    """Line of each example in the file, counted from 1."""
    data: str | None = None
    """Name, split and fingerprint of the data sets; None where the lines do not say it."""
    groups: Mapping[str, Sequence[Group]] = field(default_factory=dict)
    """What each example's sample has in common with others; only examples that have some."""

    @property
    def label(self) -> str:
        """The task's list: TASK, or TASK.test."""
        return self.file.stem

    @property
    def is_own(self) -> bool:
        """True for data of the run's recipe, False for other data."""
        return "@" not in self.file.parent.name


def newest_predictions(run: Path, notes: list[str]) -> dict[str, Path]:
    """Per task, and per list of test data (TASK.test), the file that was written last: by the
    training's newest evaluation, or by `vlds evaluate`. Of a run that keeps its best step: by that
    step's evaluation, or by `vlds evaluate` of that step.

    Files of `vlds evaluate` say which evaluation of the training they came after; the times of
    files would not do, because copying changes them. Files of earlier versions do not say it: they
    count as the newest, with a note.
    """
    folder, home = run / PREDICTIONS, home_of(run)
    step = newest_step(folder) if home == run else best_step(run)
    trained = [] if step is None else sorted(folder.glob(f"step-*{step}/*.jsonl"))
    newest = {file.stem: file for file in trained if step_of(file) == step}
    if home != run:
        newest |= {file.stem: file for file in sorted((home / PREDICTIONS).glob("*.jsonl"))}
        last = [file.stem for file in folder.glob("*.jsonl") if file.stem not in newest]
        command = shell_command("vlds", "evaluate", run)
        more = f"; `{command}` scores {', '.join(sorted(last))} with it" if last else ""
        notes.append(f"{model_line(run)}{more}.")
        return newest
    for file in sorted(folder.glob("*.jsonl")):
        # A list that the training has not evaluated has nothing newer.
        earlier = newest.get(file.stem)
        after = step
        if earlier is not None:
            # A damaged first line says nothing; reading the whole file reports it.
            after = None
            with suppress(ValueError):
                first = first_line(file)
                after = first.after if first else None
        if step is None or after is None or after >= step:
            newest[file.stem] = file
        if earlier is not None and after is None:
            notes.append(
                f"Scores of {file.stem} are those of {file}, which does not say whether the "
                f"training's evaluation in {earlier.parent.name} came later; {AGAIN}"
            )
    return newest


def step_of(file: Path) -> int | None:
    """Steps of training before a file's evaluation; None where `vlds evaluate` wrote it."""
    step = STEP.fullmatch(file.parent.name)
    return int(step[1]) if step else None


def read_predictions(file: Path) -> Predictions:
    """Read one task's file.

    Errors: ValueError naming the file, and the line if one is wrong.
    """
    lines = _lines(file)
    if not lines:
        raise ValueError(f"{file} is empty; {AGAIN}")
    if odd := {line.data for line in lines} - {lines[0].data}:
        raise ValueError(f"{file} is of {lines[0].data} and of {odd.pop()}; {AGAIN}")
    # Each line says how many there are: a file that was cut at the end of a line looks whole.
    if len(lines) != (whole := lines[0].of):
        raise ValueError(f"{file} holds {len(lines):,} of {whole:,} examples; {AGAIN}")
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if (earlier := numbers.setdefault(line.id, number)) != number:
            raise ValueError(
                f"{file}, line {number}: id {line.id!r} stands in line {earlier} too; {AGAIN}"
            )
    # In one order in all runs, so that two runs' values can be subtracted example by example.
    lines.sort(key=lambda line: line.id)
    confidences = {}
    for line in lines:
        # The probability of a whole text shrinks with its length, so the mean over its tokens
        # counts where there is one.
        sure = line.confidence if line.token_confidence is None else line.token_confidence
        if sure is not None:
            confidences[line.id] = sure
    return Predictions(
        file=file,
        step=step_of(file),
        predictions={line.id: line.prediction for line in lines},
        references={line.id: line.reference for line in lines},
        confidences=confidences,
        samples={line.id: line.sample for line in lines if line.sample is not None},
        lines=numbers,
        data=lines[0].data,
        groups={line.id: line.groups for line in lines if line.groups},
    )


def first_line(file: Path) -> PredictionLine | None:
    """A file's first line; None if the file is empty.

    Errors: ValueError, as above.
    """
    return next(iter(_lines(file, 1)), None)


def _lines(file: Path, most: int | None = None) -> list[PredictionLine]:
    # Not splitlines: JSON may hold other line ends (U+2028) as they are. Bytes that are not UTF-8
    # become surrogates, which cannot be encoded again, so that the error names their line.
    text = read_text(file, errors="surrogateescape").removesuffix("\n")
    lines = []
    for number, line in enumerate((text.split("\n") if text else [])[:most], 1):
        try:
            lines.append(parse_record(PredictionLine, line.encode(), extra="ignore"))
        except UnicodeEncodeError:
            raise ValueError(f"{file}, line {number} is not UTF-8; {AGAIN}") from None
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}; {AGAIN}") from None
    return lines


def texts_of(reference: Any) -> list[str]:
    """The texts of a reference without a best answer, such as captions."""
    texts = reference if isinstance(reference, list) else [reference]
    return [text for text in texts if isinstance(text, str)]
