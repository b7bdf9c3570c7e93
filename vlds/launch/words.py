"""Parses the words of a command line about processes: how many ranks, whether a run resumes, how
often it is restarted. No other file parses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlds.training.states import Resume

TRAIN = "train"
RANK_COMMANDS = (TRAIN, "evaluate", "predict", "features")
"""Commands that start ranks."""
WITHOUT_RANKS = ("--predictions", "--serve")
"""Options of `evaluate` and `predict` that need no ranks."""
HELP_WORDS = frozenset({"-h", "--help"})
ALL_KEYS = "--help-all"
"""Lists every key of a recipe."""
RANKS, RESTARTS, RESUME, NEW_PHASE = "--ranks", "--restarts", "--resume", "--new_phase"
PROFILE = "--profile"
MOST_PROFILED = 50


@dataclass(frozen=True)
class Words:
    """A command line, with the words about processes taken out."""

    rest: tuple[str, ...]
    """The command and all other words."""
    ranks: int | None = None
    restarts: int = 0
    resume: Resume = False
    new_phase: bool = False
    profile: int = 0
    """Steps to profile."""

    @property
    def command(self) -> str:
        """The command; "" if there is none."""
        return self.rest[0] if self.rest else ""

    @property
    def for_ranks(self) -> list[str]:
        """The command line of each rank: only the supervisor needs --ranks and --restarts."""
        resume = [RESUME, "auto"] if self.resume == "auto" else [RESUME] * bool(self.resume)
        profile = [PROFILE, str(self.profile)] if self.profile else []
        return [*self.rest, *resume, *[NEW_PHASE] * self.new_phase, *profile]

    @property
    def starts_ranks(self) -> bool:
        """True if the command needs ranks; its help, scoring a file and serving do not."""
        without = any(is_help(word) or option_of(word) in WITHOUT_RANKS for word in self.rest)
        return self.command in RANK_COMMANDS and not without


def split_words(arguments: Sequence[str]) -> Words:
    """Take the words about processes out of a command line. `--ranks` stays in for commands that
    start no ranks: it is an option of `plan` and `demo`.

    Errors: ValueError for a wrong value, or an option that does not go with the command.
    """
    rest: list[str] = []
    ranks, restarts, new_phase, profile = None, 0, False, 0
    resume: Resume = False
    unread = list(arguments)
    while unread:
        word = unread.pop(0)
        command = rest[0] if rest else ""
        if option_of(word) == RANKS and command in ("", *RANK_COMMANDS):
            ranks = positive(RANKS, value_of(word, unread), "the number of ranks")
        elif option_of(word) == RESTARTS:
            restarts = times(command, value_of(word, unread))
        elif option_of(word) == RESUME and command == TRAIN:
            resume = resumes(word, unread)
        elif word == NEW_PHASE and command == TRAIN:
            new_phase = True
        elif option_of(word) == PROFILE and command == TRAIN:
            profile = steps_to_profile(value_of(word, unread))
        else:
            rest.append(word)
    if new_phase and not resume:
        raise ValueError(f"{NEW_PHASE}: goes with {RESUME}, because a new run has no earlier phase")
    return Words(tuple(rest), ranks, restarts, resume, new_phase, profile)


def option_of(word: str) -> str:
    """`--name` of `--name=value`."""
    return word.partition("=")[0]


def is_help(word: str) -> bool:
    """True if a word asks for help."""
    return option_of(word) in (*HELP_WORDS, ALL_KEYS)


def value_of(word: str, unread: list[str]) -> str:
    """The value of an option: the text after `=`, or the next word, which leaves `unread`."""
    _, equals, value = word.partition("=")
    return value if equals else unread.pop(0) if unread else ""


def times(command: str, text: str) -> int:
    """The value of `--restarts`."""
    if command != TRAIN:
        raise ValueError(f"{RESTARTS}: goes with `vlds train` only")
    if not text.isdecimal():
        raise ValueError(f"{RESTARTS} is {text!r}; give a number, 0 or more")
    return int(text)


def steps_to_profile(text: str) -> int:
    """The value of `--profile`."""
    if (number := positive(PROFILE, text, "a number of steps")) > MOST_PROFILED:
        why = "each step adds megabytes to memory and to the trace"
        raise ValueError(f"{PROFILE} is {number}, but {why}; give at most {MOST_PROFILED}")
    return number


def resumes(word: str, unread: list[str]) -> Resume:
    """The value of `--resume`, whose `auto` is optional."""
    no_value = word == RESUME and bool(unread) and unread[0].startswith("-")
    value = "" if no_value else value_of(word, unread)
    if value not in ("", "auto"):
        raise ValueError(f"{RESUME}: got {value!r}; give {RESUME} alone, or {RESUME} auto")
    return "auto" if value == "auto" else True


def positive(source: str, text: str, noun: str) -> int:
    """A number, from the option or variable `source`."""
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{source} is {text!r}; give {noun}, 1 or more")
    return int(text)
