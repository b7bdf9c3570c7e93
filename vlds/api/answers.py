"""Answers of a trained model: `vlds.load`, to one question or to any number of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from vlds.api.rows import PICTURE, Row, small_copy, table
from vlds.api.words import Changes, words_of
from vlds.evaluation.evaluator import Question
from vlds.evaluation.serve import OpenRun, RunAnswer, open_run
from vlds.evaluation.sources import ACCEPTED, Picture, encode_picture, path_of
from vlds.recipe.paths import trust as trust_module
from vlds.runtime.artifact_files import home_of
from vlds.schema import RefusedRows

PAIRS = "; a question stands beside its picture in a tuple: (picture, question)"
Asked: TypeAlias = tuple[Picture | Sequence[Picture], str]
"""A picture, or several, and a question about them."""


@dataclass(frozen=True)
class Answer(RunAnswer):
    """What a model says to a question. A notebook shows it with its pictures."""

    question: str = ""
    pictures: tuple[str | bytes, ...] = field(default=(), repr=False)
    """The path of each picture that was given by one, and a small copy of each other."""

    def row(self) -> Row:
        """What `Rows` shows of it."""
        pictures = list(self.pictures)
        return {
            PICTURE: pictures[0] if len(pictures) == 1 else pictures,
            "question": self.question,
            "answer": self.text,
            "confidence": self.confidence,
            "token_confidence": self.token_confidence,
            "task": self.task,
            "seconds": self.seconds,
        }

    def _repr_html_(self) -> str:
        row = self.row()
        shown = [PICTURE, *(["question"] if self.question else []), "answer", "confidence"]
        return table([row], shown)


class Model:
    """A trained model that answers questions. Threads may share it."""

    def __init__(self, run: OpenRun, folder: Path) -> None:
        self._run, self._folder = run, folder

    def __repr__(self) -> str:
        return f"<vlds model {str(self._folder)!r}; tasks: {', '.join(self.tasks)}>"

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that the model was trained on."""
        return list(self._run.tasks)

    def answer(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        *,
        task: str | None = None,
    ) -> Answer:
        """Answer a question about a picture, or describe it. `task`: required if the model has
        several. Tasks about several pictures, such as NLVR2, take a list.

        Errors: ValueError for an invalid picture, an unknown task or a missing question.
        """
        several = picture_list(pictures)
        encoded = [encode_picture(picture) for picture in several]
        answer = self._run.answer(encoded, question, task)
        return as_answer(answer, question, several, encoded)

    def answer_many(
        self,
        asked: Iterable[Asked | Picture],
        *,
        task: str | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Answer]:
        """Answer (picture, question) pairs in batches, in their order; for captions and classes,
        pictures alone. Lazy: it reads a batch of pairs when the first of their answers is asked
        for, so that a generator of any length will do. Answers are those of `answer`, up to
        rounding. `batch_size`: default, `data.eval_batch_size` of the run's recipe.

        Errors: ValueError, as `answer`, that names the pair by its number; it comes after the
        answers before that pair, and so does what `asked` itself raises.
        """
        size = self._run.batch_size if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size: got {size!r:.100}; give a whole number, 1 or more")
        if isinstance(asked, str | bytes | Mapping) or not isinstance(asked, Iterable):
            raise ValueError(
                f"asked: got {type(asked).__name__}; give a list or iterator of "
                "(picture, question) pairs"
            )
        if task is None and len(self.tasks) > 1:
            self._run.read([], "", "")  # says which tasks there are
        return self._answers(iter(asked), task or self.tasks[0], size)

    def _answers(self, asked: Iterator[object], task: str, size: int) -> Iterator[Answer]:
        number = 0
        problem: Exception | None = None
        while problem is None:
            batch: list[tuple[Question, str, Sequence[Picture], list[bytes]]] = []
            while len(batch) < size and problem is None:
                entry: object = ()
                try:
                    entry = next(asked)
                    pictures, question = split(entry)
                    several = picture_list(pictures)
                    encoded = [encode_picture(picture) for picture in several]
                    ready = self._run.read(encoded, question, task)
                    batch.append((ready, question, several, encoded))
                except ValueError as error:
                    cure = "" if isinstance(entry, tuple) else PAIRS
                    problem = ValueError(f"number {number + len(batch)}: {error}{cure}")
                except Exception as error:  # the end, or what the caller's iterator raises
                    problem = error
            answers: list[RunAnswer] = []
            try:
                answers = self._run.answer_all([entry[0] for entry in batch], task) if batch else []
            except RefusedRows as refused:
                bad = min(refused.reasons)
                problem = ValueError(
                    f"number {number + bad}: image: {refused.reasons[bad]}; give another picture"
                )
                good = [entry[0] for entry in batch[:bad]]
                answers = self._run.answer_all(good, task) if good else []
            for answer, (_, question, several, encoded) in zip(answers, batch, strict=False):
                yield as_answer(answer, question, several, encoded)
            number += len(batch)
        if not isinstance(problem, StopIteration):
            raise problem


def split(asked: object) -> tuple[object, str]:
    """Pictures and question of an entry of `answer_many`.

    Errors: ValueError for a tuple that is not a pair.
    """
    if isinstance(asked, tuple):
        if len(asked) != 2:
            raise ValueError(f"got a tuple of {len(asked)}; give (picture, question)")
        return asked
    return asked, ""


def picture_list(pictures: object) -> Sequence[Picture]:
    """One picture or several as a list.

    Errors: ValueError for anything else.
    """
    if isinstance(pictures, Picture):
        return [pictures]
    if not isinstance(pictures, Sequence):
        raise ValueError(f"picture: got {type(pictures).__name__}; give {ACCEPTED}, or a list")
    return pictures


def as_answer(
    answer: RunAnswer, question: str, pictures: Sequence[Picture], encoded: Sequence[bytes]
) -> Answer:
    """A run's answer with what was asked."""
    # Only small copies are kept: a list of thousands of answers must not hold all pictures.
    kept = (
        str(picture) if isinstance(picture, str | Path) else small_copy(data)
        for picture, data in zip(pictures, encoded, strict=True)
    )
    return Answer(**vars(answer), question=question, pictures=tuple(kept))


def load(
    run: str | PathLike[str], *, trust: Sequence[str] = (), changes: Changes | None = None
) -> Model:
    """Open a run or an artifact, on the GPU if there is one. `trust`: your own Python modules whose
    classes it may name; `changes`: as in `evaluate`.

    Errors: ValueError if there is no artifact, if it is damaged, or if a module cannot be found.
    """
    folder, words = path_of("run", run), words_of(changes)
    if isinstance(trust, str) or not isinstance(trust, Sequence):
        raise ValueError(f"trust: got {trust!r:.100}; give a list, such as ['my_tasks']")
    for module in trust:
        if not isinstance(module, str) or not all(map(str.isidentifier, module.split("."))):
            raise ValueError(f"trust: got {module!r:.100}; give the name of a Python module")
        # Before it is looked for: it may lie in the working directory, which this puts on sys.path.
        trust_module(module)
        try:
            missing = module not in sys.modules and importlib.util.find_spec(module) is None
        except ModuleNotFoundError:  # of the package that it would be in
            missing = True
        if missing:
            raise ValueError(
                f"trust: Python finds no module {module}; its file must be in the working "
                "directory or on sys.path"
            )
    return Model(open_run(folder, words), home_of(folder))
