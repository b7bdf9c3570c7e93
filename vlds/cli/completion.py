"""`vlds completion`: a script with which bash and zsh complete commands, options and recipes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from vlds.cli.words import TRAIN, command_parser
from vlds.runtime.command_line import DESCRIBE, CommandParser, Described
from vlds.runtime.process import shipped
from vlds.runtime.terminal import tell

Command = Callable[[list[str]], int]
READ_RECIPES = (TRAIN, "describe", "plan")
SCRIPT = """\
# Completion of vlds {version} for bash and zsh, written by `vlds completion`.
if [ -n "${{ZSH_VERSION-}}" ]; then
    autoload -Uz compinit bashcompinit && compinit -u && bashcompinit
fi
_vlds() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    local command="${{COMP_WORDS[1]}}" layout="${{COMP_WORDS[2]-}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        command=""
    elif [ "$COMP_CWORD" -eq 2 ]; then
        layout=""
    fi
    case "$command $layout $before" in
{choices}
    *) case "$command $layout" in
{options}
    esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    case "$current" in
    -*) ;;
    *) if [ -n "$command" ]; then COMPREPLY+=($(compgen -f -- "$current")); fi ;;
    esac
}}
complete -o filenames -F _vlds vlds
"""


def completion(arguments: list[str]) -> int:
    """Print a script with which bash and zsh complete commands, options, recipes and their keys.

    vlds completion > ~/.vlds-completion
    echo ". ~/.vlds-completion" >> ~/.bashrc
    """
    command_parser(completion).parse_args(arguments)
    from importlib.metadata import version

    from vlds.cli.main import COMMANDS, RECIPE_PARSERS

    options = {"": list(COMMANDS)}
    """Command, or command and sub-command -> its words."""
    choices: dict[str, list[str]] = {}
    """The same, and an option -> the words that may follow it."""
    for name, command in COMMANDS.items():
        parser = RECIPE_PARSERS[name]() if name in RECIPE_PARSERS else parser_of(command)
        add_words(parser, name, options, choices)
        if name in READ_RECIPES:
            recipes = [file for file in shipped("recipes") if file.endswith(".yaml")]
            options[name] += [*recipes, *recipe_keys()]
    options["sweep"] += shipped("sweeps")
    options["compare"] += shipped("sweeps")
    tell(SCRIPT.format(
        version=version("vlds"),
        choices=cases({f"{place}": words for place, words in choices.items()}, 4),
        options=cases({known(place): words for place, words in options.items()}, 8),
    ), end="")  # fmt: skip
    return 0


def parser_of(command: Command) -> CommandParser:
    """The parser that a command makes for its arguments."""
    try:
        command([DESCRIBE])
    except Described as found:
        return found.parser
    raise AssertionError("a command parses its arguments with a CommandParser")


def add_words(
    parser: argparse.ArgumentParser,
    place: str,
    options: dict[str, list[str]],
    choices: dict[str, list[str]],
) -> None:
    """Add the words of a command, and of its sub-commands."""
    options[place] = words = list[str]()
    for action in parser._actions:
        words += [word for word in action.option_strings if word.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            words += action.choices
            for name, inner in action.choices.items():
                add_words(inner, f"{place} {name}", options, choices)
        elif action.choices is not None:
            found = [str(choice) for choice in action.choices]
            words += found if not action.option_strings else []
            for word in action.option_strings:
                command, _, layout = place.partition(" ")
                choices[f"{command} {layout or '*'} {word}"] = found


def recipe_keys() -> list[str]:
    """The keys of a recipe that it has whichever classes it chooses."""
    from vlds.recipe.choices import field_types, sections
    from vlds.recipe.config import Recipe

    parts = sections({}, Recipe, absent=True)
    return [f"--{f'{place}.{n}'.strip('.')}" for place, cls in parts for n in field_types(cls)]


def known(place: str) -> str:
    """A place as the script's pattern: a word behind a command may be its sub-command, or not."""
    return " " if not place else place if " " in place else f"{place} *"


def cases(words: Mapping[str, list[str]], indent: int) -> str:
    """Branches of the script, sub-commands before the commands that have them."""
    places = sorted(words, key=lambda place: place.endswith("*"))
    lines = []
    for place in places:
        pattern = "*".join(f'"{part}"' if part else "" for part in place.split("*"))
        lines.append(f'{" " * indent}{pattern}) words="{" ".join(words[place])}" ;;')
    return "\n".join(lines)
