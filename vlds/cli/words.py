"""The words of `vlds`'s command line.

Some are about processes: how many ranks, whether a run resumes, how often it is restarted. Only
`split_words` reads them, before anything starts. The rest are read by the command, through a parser
that describes itself by the docstring of the command's function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlds.runtime.cluster import LOCAL
from vlds.runtime.command_line import CommandParser, description_of
from vlds.training.states import Resume

TRAIN = "train"
RANK_COMMANDS = (TRAIN, "evaluate", "predict", "features", "importance")
"""Commands that start ranks."""
WITHOUT_RANKS = ("--predictions", "--serve")
"""Options of `evaluate` and `predict` that need no ranks."""
READ_RUNS = ("evaluate", "predict", "convert", "report")
"""Commands that open runs and artifacts, which may come from someone else."""
HELP_WORDS = frozenset({"-h", "--help"})
ALL_KEYS = "--help-all"
"""Lists every key of a recipe: some hundreds, so `--help` shows a page instead."""
RANKS, RESTARTS, RESUME, NEW_PHASE = "--ranks", "--restarts", "--resume", "--new-phase"
PROFILE, PROVE, EXECUTOR = "--profile", "--prove", "--executor"
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
    prove: bool = False
    """A proof comes before the first step (start.py)."""

    @property
    def command(self) -> str:
        """The command; "" if there is none."""
        return self.rest[0] if self.rest else ""

    @property
    def for_ranks(self) -> list[str]:
        """The command line of each rank: only the supervisor needs --ranks, --restarts, --prove."""
        resume = [RESUME, "auto"] if self.resume == "auto" else [RESUME] * bool(self.resume)
        profile = [PROFILE, str(self.profile)] if self.profile else []
        return [*self.rest, *resume, *[NEW_PHASE] * self.new_phase, *profile]

    @property
    def starts_ranks(self) -> bool:
        """True if the command needs ranks; its help, scoring a file and serving do not."""
        names = {word.partition("=")[0] for word in self.rest}
        return (
            self.command in RANK_COMMANDS
            and names.isdisjoint({*HELP_WORDS, ALL_KEYS, *WITHOUT_RANKS})
            and not self.on_cluster
        )

    @property
    def on_cluster(self) -> bool:
        """True if workers of a cluster do what ranks do otherwise."""
        values = [word.partition("=")[2] for word in self.rest if word.startswith(f"{EXECUTOR}=")]
        values += [value for name, value in pairwise(self.rest) if name == EXECUTOR]
        return any(value != LOCAL for value in values)


def split_words(arguments: Sequence[str]) -> Words:
    """Take the words about processes out of a command line. `--ranks` stays in for commands that
    start no ranks: it is an option of `plan` and `demo`.

    Errors: ValueError for a wrong value, or an option that does not go with the command.
    """
    # Not argparse: keys of a recipe stand before and behind these words, in any number, and their
    # values may look like anything.
    rest: list[str] = []
    ranks, restarts, new_phase, profile, prove = None, 0, False, 0, False
    resume: Resume = False
    unread = list(arguments)

    def value_of(word: str) -> str:
        """The text after `=`, or the next word."""
        _, equals, value = word.partition("=")
        return value if equals else unread.pop(0) if unread else ""

    while unread:
        word = unread.pop(0)
        name = word.partition("=")[0]
        command = rest[0] if rest else ""
        # Before the command too, as in `vlds --ranks 2 train`: there command is still "".
        if name == RANKS and command in ("", *RANK_COMMANDS):
            ranks = positive(RANKS, value_of(word), "the number of ranks")
        elif name == RESTARTS:
            text = value_of(word)
            if command != TRAIN:
                raise ValueError(f"{RESTARTS}: goes with `vlds train` only")
            if not text.isdecimal():
                raise ValueError(f"{RESTARTS} is {text!r}; give a number, 0 or more")
            restarts = int(text)
        elif name == RESUME and command == TRAIN:
            # Its value `auto` is optional, so an option may follow at once.
            alone = word == RESUME and bool(unread) and unread[0].startswith("-")
            text = "" if alone else value_of(word)
            if text not in ("", "auto"):
                raise ValueError(f"{RESUME}: got {text!r}; give {RESUME} alone, or {RESUME} auto")
            resume = "auto" if text == "auto" else True
        elif word == NEW_PHASE and command == TRAIN:
            new_phase = True
        elif word == PROVE and command == TRAIN:
            prove = True
        elif name == PROFILE and command == TRAIN:
            profile = positive(PROFILE, value_of(word), "a number of steps")
            if profile > MOST_PROFILED:
                why = "each step adds megabytes to memory and to the trace"
                raise ValueError(f"{PROFILE} is {profile}, but {why}; give at most {MOST_PROFILED}")
        else:
            rest.append(word)
    if new_phase and not resume:
        raise ValueError(f"{NEW_PHASE}: goes with {RESUME}, because a new run has no earlier phase")
    words = Words(tuple(rest), ranks, restarts, resume, new_phase, profile, prove)
    if ranks is not None and words.on_cluster:
        raise ValueError(f"{RANKS}: the workers of {EXECUTOR} do the work; leave one of them out")
    return words


def positive(source: str, text: str, noun: str) -> int:
    """A number, from the option or variable `source`.

    Errors: ValueError that begins with it.
    """
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{source} is {text!r}; give {noun}, 1 or more")
    return int(text)


def command_parser(
    command: Callable[[list[str]], int],
    *,
    accepts_keys: bool = False,
    epilog: str | None = None,
    add_help: bool = True,
) -> CommandParser:
    """The parser of a command, described by its function's docstring."""
    name = command.__name__
    parser = CommandParser(
        prog=f"vlds {name}",
        description=description_of(command),
        epilog=epilog,
        allow_abbrev=False,
        accepts_keys=accepts_keys,
        add_help=add_help,
    )
    # These two are taken from the command line before it is parsed; here they are for the help.
    shared = parser.add_argument_group("shared options")
    if name in RANK_COMMANDS:
        shared.add_argument(
            RANKS, metavar="N", help="processes; default: one per GPU, or one without a GPU"
        )
    if name in READ_RUNS:
        shared.add_argument(
            "--trust", metavar="MODULE",
            help="let the run name classes of this Python module, whose code then runs; repeat it "
            "for several modules",
        )  # fmt: skip
    return parser


def show_recipe_page(parser: CommandParser) -> int:
    """Print the help page of a command that takes a recipe; the exit code.

    The words of a recipe are added for the page only: the parser itself must leave them for
    vlds.recipe, whose own help is that of `--help-all`.
    """
    parser.usage = "%(prog)s RECIPE [--KEY VALUE ...] [options]"
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "RECIPE", help="a YAML file of yours, or one of vlds, such as recipes/demo.yaml"
    )
    recipe.add_argument("--KEY", metavar="VALUE", help="set a key of the recipe")
    recipe.add_argument(
        "--config", metavar="FILE", help="add another recipe; its keys take precedence"
    )
    recipe.add_argument(
        "--print-config", action="store_true",
        help="print the whole recipe with its defaults, and exit",
    )  # fmt: skip
    recipe.add_argument(
        ALL_KEYS, action="store_true", help="list all keys with their meanings and defaults"
    )
    parser.print_help()
    return 0
