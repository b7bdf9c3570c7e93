"""Argument parsers whose help fits 80 columns and whose errors are one line.

`vlds evaluate --rnu runs/vqa` says "--rnu: no such option; did you mean '--run'?" where argparse
would print its usage and complain about --run. All other words about mistakes are argparse's.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from inspect import getdoc
from pathlib import Path
from typing import Any, NoReturn

from vlds.runtime.checks import closest, guess
from vlds.runtime.terminal import without_credentials

WIDTH = 80
DESCRIBE = "--describe-this-parser"
"""Alone, makes a parser raise Described: only a command's function knows its parser."""
MISSING = ("the following arguments are required", "one of the arguments")
"""How argparse begins when a required option is not there."""


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
                paragraph = textwrap.fill(
                    " ".join(paragraph.split()), width, break_on_hyphens=False
                )
            paragraphs.append(textwrap.indent(paragraph, indent))
        return "\n\n".join(paragraphs)


def local_path(text: str) -> Path:
    """The type of options that name files and folders of this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{without_credentials(text)} is an address; download it, and name the file or folder"
        )
    return Path(text)


class Described(Exception):
    """The parser that was given DESCRIBE."""

    def __init__(self, parser: CommandParser) -> None:
        super().__init__()
        self.parser = parser


class CommandParser(argparse.ArgumentParser):
    """Raises a ValueError of one line for a wrong command line, with the word and a near option.

    `accepts_keys`: `parse_known_args` returns the options that the parser does not know, because
    they are keys of a recipe.
    """

    def __init__(self, *, accepts_keys: bool = False, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpPage} | options)
        # Path makes https:/x of an address, which is then said to be missing.
        self.register("type", Path, local_path)
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
        if self.words == [DESCRIBE]:
            raise Described(self)
        options, unknown = super().parse_known_args(self.words, namespace)
        if unknown and not self.accepts_keys:
            self.refuse(unknown)
        return options, unknown

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise a ValueError that names the first of some unknown words."""
        word = unknown[0]
        self.error(self._no_such(word) if word[:1] == "-" else f"{word!r}: unexpected word")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse complains about as a ValueError, without the usage."""
        mistake = re.sub(r"\bargument (?=\S)", "", message)
        if message.startswith(MISSING):
            # A required option may be there, but misspelt.
            names = [word.partition("=")[0] for word in self.words if word.startswith("--")]
            # argparse accepts the beginning of an option for the whole.
            options = self._option_string_actions
            unknown = [name for name in names if not any(o.startswith(name) for o in options)]
            if self.accepts_keys:
                # The others may be keys, so only those that resemble a missing one count.
                missing = [*re.findall(r"--([\w-]+)", message), *(n[2:] for n in self.needed)]
                unknown = [name for name in unknown if closest(name.lstrip("-"), missing)]
            mistake = self._no_such(unknown[0]) if unknown else mistake
        end = "" if mistake.endswith("?") else ";"
        raise ValueError(f"{mistake}{end} `{self.prog} --help` says more")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own check of choices, whose error does not name a near one (Python 3.11)."""
        if action.choices is not None and value not in action.choices:
            what = next(iter(action.option_strings), str(action.metavar).lower())
            choices = [str(choice) for choice in action.choices]
            near = f"{guess(str(value), choices)}choose from {', '.join(choices)}"
            raise argparse.ArgumentError(None, f"{value!r}: no such {what}; {near}")

    def _no_such(self, word: str) -> str:
        name = word.partition("=")[0]
        options = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        hint = guess(name.lstrip("-"), options, "--").rstrip()
        return f"{name}: no such option{'; ' if hint else ''}{hint}"
