"""What a head is: it turns the state from which a model would predict an answer's first token into
a score for each class of a fixed list.

A task that names a head answers with one of its classes; without one it writes text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from vlds.runtime.checks import Choice, SourcePath
from vlds.runtime.json_files import read_named_json

if TYPE_CHECKING:
    from torch import nn

ClassLoss = Literal["cross_entropy", "binary_cross_entropy", "ranking"]
"""cross_entropy: one class holds, by softmax. binary_cross_entropy: any number of classes may
hold, each by its own sigmoid, with targets from 0 to 1; the loss is summed over the classes.
ranking: an example's text and its rivals (`Example.rivals`) compete by softmax over their scores of
the last class, and the example's own text holds."""


@dataclass(frozen=True, kw_only=True)
class Head(Choice, ABC):
    """From states to classes."""

    compares_texts: ClassVar[bool] = False
    """True if the head compares states with the classes' texts, which few kinds of models embed."""

    classes: tuple[str, ...] | SourcePath | None = None
    """The answers to choose from: a list, or a JSON file with a list, such as `vlds data answers`
    writes. Default: the task's own labels, as NLVR2 has them, or "classes" in dataset.json."""

    def __post_init__(self) -> None:
        if self.classes is not None and not isinstance(self.classes, str):
            check_classes(self.classes, "classes")

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """What turns states (n, width) into scores (n, c)."""

    def with_files(self) -> Head:
        """The head with the content of the files that its other fields name.

        Errors: ValueError if a file cannot be read.
        """
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The classes.

        Errors: ValueError if their file has not been read yet.
        """
        if self.classes is None or isinstance(self.classes, str):
            raise ValueError(f"classes: got {self.classes}, which has not been read; give a list")
        return self.classes

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Class -> its number."""
        # A frozen dataclass may have it: cached_property writes to __dict__, not by setattr.
        return {name: number for number, name in enumerate(self.names)}

    def class_scores(self, scores: Mapping[str, float]) -> dict[int, float]:
        """Answer -> score becomes number of its class -> score. Answers outside the list are left
        out."""
        # Answers outside the list have no class; an example may end up with an empty table.
        return {
            self.index[answer]: float(score)
            for answer, score in scores.items()
            if answer in self.index
        }


class ClassOutput(NamedTuple):
    """What a task with a head asks of a model."""

    head: Head
    loss: ClassLoss
    shots: int | None = None
    """Pictures of each class that the task trains on; None if it trains on all."""


def read_classes(path: str, field: str) -> tuple[str, ...]:
    """The classes in a JSON file.

    Errors: ValueError that begins with the field, if the file cannot be read or is not a list of
    classes.
    """
    cure = "name a JSON file with a list, or give the list itself"
    return check_classes(read_named_json(path, field, cure), f"{field}: {path}")


def check_classes(listed: Any, place: str) -> tuple[str, ...]:
    """A list of classes.

    Errors: ValueError that begins with the place, unless they are two or more different texts.
    """
    if not isinstance(listed, (list, tuple)):
        raise ValueError(f"{place}: got {listed!r:.60}; give a list of texts")
    # By `is not None` below: an odd entry may be 0 or "".
    odd = next((name for name in listed if not isinstance(name, str) or not name.strip()), None)
    if odd is not None:
        raise ValueError(f"{place}: got {odd!r:.60} among the classes; each is a text, not empty")
    if len(listed) < 2:
        raise ValueError(f"{place}: got {len(listed)}; give two classes or more")
    seen: set[str] = set()
    for name in listed:
        if name in seen:
            raise ValueError(f"{place}: {name!r:.60} appears twice; name each class once")
        seen.add(name)
    return tuple(listed)
