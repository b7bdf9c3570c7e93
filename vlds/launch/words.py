"""The words of a command line that speak of its processes: how many ranks, whether a run resumes,
how often it is restarted. They are parsed here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Resume = Literal["auto"] | bool
"""Whether a run resumes; "auto": where there is a state."""
TRAIN = "train"
RANK_COMMANDS = (TRAIN, "evaluate", "predict", "features")
"""Commands that run on ranks."""
ALONE = ("--predictions", "--serve")
"""Options of `evaluate` and `predict` with which one process is enough."""
HELP_WORDS = frozenset({"-h", "--help"})
ALL_KEYS = "--help-all"
"""Asks for every key of a recipe."""
RANKS, RESTARTS, RESUME, NEW_PHASE = "--ranks", "--restarts", "--resume", "--new_phase"


@dataclass(frozen=True)
class Words:
    """A command line, the words about its processes apart."""

    rest: tuple[str, ...]
    """The command and all other words."""
    ranks: int | None = None
    restarts: int = 0
    resume: Resume = False
    new_phase: bool = False

    @property
    def command(self) -> str:
        """The command; "" where there is none."""
        return self.rest[0] if self.rest else ""

    @property
    def for_ranks(self) -> list[str]:
        """What each rank gets: ranks and restarts are the supervisor's alone."""
        resume = [RESUME, "auto"] if self.resume == "auto" else [RESUME] * bool(self.resume)
        return [*self.rest, *resume, *[NEW_PHASE] * self.new_phase]

    @property
    def starts_ranks(self) -> bool:
        """True if the command needs ranks: its help does not, nor do scoring a file and answering
        one question after the other."""
        alone = any(is_help(word) or option_of(word) in ALONE for word in self.rest)
        return self.command in RANK_COMMANDS and not alone


def split_words(arguments: Sequence[str]) -> Words:
    """Take the words about processes from a command line. Commands that run on no ranks may have a
    `--ranks` of their own.

    Errors: ValueError for a wrong value, and for an option that does not go with the command.
    """
    rest: list[str] = []
    ranks, restarts, new_phase = None, 0, False
    resume: Resume = False
    left = list(arguments)
    while left:
        word = left.pop(0)
        command = rest[0] if rest else ""
        if option_of(word) == RANKS and command in ("", *RANK_COMMANDS):
            ranks = positive(RANKS, value_of(word, left))
        elif option_of(word) == RESTARTS:
            restarts = times(command, value_of(word, left))
        elif option_of(word) == RESUME and command == TRAIN:
            resume = resumes(word, left)
        elif word == NEW_PHASE and command == TRAIN:
            new_phase = True
        else:
            rest.append(word)
    if new_phase and not resume:
        raise ValueError(f"{NEW_PHASE}: goes with {RESUME}: a new run has no earlier phase")
    return Words(tuple(rest), ranks, restarts, resume, new_phase)


def option_of(word: str) -> str:
    """`--name` of `--name=value`."""
    return word.partition("=")[0]


def is_help(word: str) -> bool:
    """True if a word asks for help."""
    return option_of(word) in (*HELP_WORDS, ALL_KEYS)


def value_of(word: str, left: list[str]) -> str:
    """The value of an option: behind `=`, or the next word, which is taken from `left`."""
    _, equals, value = word.partition("=")
    return value if equals else left.pop(0) if left else ""


def times(command: str, text: str) -> int:
    """The value of `--restarts`."""
    if command != TRAIN:
        raise ValueError(f"{RESTARTS}: goes with `vlds train` alone")
    if not text.isdecimal():
        raise ValueError(f"{RESTARTS} is {text!r}; give a number, 0 or more")
    return int(text)


def resumes(word: str, left: list[str]) -> Resume:
    """The value of `--resume`, whose `auto` may be missing."""
    alone = word == RESUME and bool(left) and left[0].startswith("-")
    value = "" if alone else value_of(word, left)
    if value not in ("", "auto"):
        raise ValueError(f"{RESUME}: got {value!r}; give {RESUME} alone, or {RESUME} auto")
    return "auto" if value == "auto" else True


def positive(source: str, text: str) -> int:
    """A number of ranks."""
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{source} is {text!r}; give the number of ranks, 1 or more")
    return int(text)
