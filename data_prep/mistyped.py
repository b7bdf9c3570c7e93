"""An argument parser whose errors suggest the right word: 'no such command; did you mean ...?'"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vlds.runtime.near_names import guess
from vlds.runtime.terminal import tell

USER_ERROR = 2
CHOICE = re.compile(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", re.DOTALL)
REQUIRED = "arguments are required"
UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A mistake is one line that names the word and the most similar known one; exit code 2."""

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown options in the command's own parser, which knows the similar names."""
        self.given = sys.argv[1:] if args is None else list(args)
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong without the usage, which is a page long."""
        fault = self._explain(message)
        end = "" if fault.endswith("?") else ";"
        tell(f"error: {fault}{end} `{self.prog} --help` says more", error=True)
        self.exit(USER_ERROR)

    def _explain(self, message: str) -> str:
        if match := CHOICE.fullmatch(message):
            argument, word, listed = match.groups()
            choices = re.findall(r"[^\s,']+", listed)
            what = "no such command" if argument == "COMMAND" else f"no such {argument}"
            return f"{word!r}: {what}; {guess(word, choices)}choose from {', '.join(choices)}"
        if match := UNKNOWN.fullmatch(message):
            word = match[1].split()[0]
            if not word.startswith("-"):
                return f"{word!r}: a word that belongs to no option"
            return self._unknown(word)
        if REQUIRED in message:  # an option may be missing because it is misspelled
            names = [word.partition("=")[0] for word in self.given if word.startswith("--")]
            wrong = [name for name in names if not any(o.startswith(name) for o in self.options)]
            return self._unknown(wrong[0]) if wrong else message
        return message

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        hint = guess(name.lstrip("-"), [option[2:] for option in self.options], "--").rstrip()
        return f"{name}: no such option{'; ' if hint else ''}{hint}"

    @property
    def options(self) -> list[str]:
        """All options that begin with two dashes."""
        return [name for name in self._option_string_actions if name.startswith("--")]


def add_commands(parser: Parser) -> Any:
    """The object to which commands are added."""
    return parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
