"""Argument parsers whose help fits 80 columns and whose errors are one line.

`vlds evaluate --rnu runs/vqa` says "--rnu: no such option; did you mean '--run'?" where argparse
would print its usage and complain about --run.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from inspect import getdoc
from typing import Any, NoReturn

from vlds.runtime.checks import closest, guess

WIDTH = 80
CHOICE = re.compile(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", re.DOTALL)
NUMBER = re.compile(r"argument (\S+): invalid (int|float) value: (.*)", re.DOTALL)
MISSING = re.compile(r"the following arguments are required: (.*)")
ONE_MISSING = re.compile(r"one of the arguments (.*) is required")
UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
ARGUMENT = re.compile(r"\bargument (?=\S)")
NUMBERS = {"int": "a whole number", "float": "a number"}


def description_of(command: Callable[..., object]) -> str:
    """The description of a command on its help page: its docstring, a paragraph that may be
    followed by lines of examples."""
    about, _, examples = (getdoc(command) or "").partition("\n\n")
    return f"{about}\n\n{textwrap.indent(examples, '  ')}".rstrip()


class HelpPage(argparse.HelpFormatter):
    """Fills the paragraphs of descriptions and epilogs; keeps those that start with two blanks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.strip("\n").split("\n\n"):
            if not paragraph.startswith("  "):
                paragraph = textwrap.fill(" ".join(paragraph.split()), width)
            paragraphs.append(textwrap.indent(paragraph, indent))
        return "\n\n".join(paragraphs)


class CommandParser(argparse.ArgumentParser):
    """Raises a ValueError of one line for a wrong command line, with the word and a near option.

    `accepts_keys`: `parse_known_args` returns the options that the parser does not know, because
    they are keys of a recipe.
    """

    def __init__(self, *, accepts_keys: bool = False, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpPage} | options)
        self.accepts_keys = accepts_keys
        self.words: Sequence[str] = ()
        self.needed: Sequence[str] = ()
        """Options that the command looks for by itself."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Errors: ValueError, for unknown options too unless keys are accepted. The parser of a
        sub-command checks them itself: it knows which options are near."""
        self.words = sys.argv[1:] if args is None else list(args)
        options, unknown = super().parse_known_args(self.words, namespace)
        if unknown and not self.accepts_keys:
            self.refuse(unknown)
        return options, unknown

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise a ValueError that names the first of some unknown words."""
        self.error(f"unrecognized arguments: {' '.join(unknown)}")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse complains about as a ValueError, without the usage."""
        mistake = self._explain(message)
        end = "" if mistake.endswith("?") else ";"
        raise ValueError(f"{mistake}{end} `{self.prog} --help` says more")

    def _explain(self, message: str) -> str:
        if match := CHOICE.fullmatch(message):
            argument, word, listed = match.groups()
            choices = re.findall(r"[^\s,']+", listed)
            what = f"no such {argument.lower() if argument.isupper() else argument}"
            return f"{word!r}: {what}; {guess(word, choices)}choose from {', '.join(choices)}"
        if match := NUMBER.fullmatch(message):
            argument, kind, word = match.groups()
            return f"{argument}: got {word}; give {NUMBERS[kind]}"
        if match := UNKNOWN.fullmatch(message):
            word = match[1].split()[0]
            return self._unknown(word) if word.startswith("-") else f"{word!r}: unexpected word"
        if match := MISSING.fullmatch(message):
            names = match[1].split(", ")
            are = "is" if len(names) == 1 else "are"
            return self._misspelt(names) or f"{', '.join(names)} {are} required"
        if match := ONE_MISSING.fullmatch(message):
            names = match[1].split()
            return self._misspelt(names) or f"give {' or '.join(names)}"
        return ARGUMENT.sub("", message)

    def _misspelt(self, missing: Sequence[str]) -> str:
        """Name an unknown option that may be a required one misspelt; "" if there is none. With
        `accepts_keys` it must resemble a `missing` one: all others may be keys."""
        names = [word.partition("=")[0] for word in self.words if word.startswith("--")]
        unknown = [name for name in names if not any(o.startswith(name) for o in self._options)]
        if self.accepts_keys:
            wanted = [option.lstrip("-") for option in (*missing, *self.needed)]
            unknown = [name for name in unknown if closest(name.lstrip("-"), wanted)]
        return self._unknown(unknown[0]) if unknown else ""

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        hint = guess(name.lstrip("-"), [option[2:] for option in self._options], "--").rstrip()
        return f"{name}: no such option{'; ' if hint else ''}{hint}"

    @property
    def _options(self) -> list[str]:
        """All that begin with two dashes."""
        return [name for name in self._option_string_actions if name.startswith("--")]
