"""`own`: your own data, whatever form they have. It looks at the rows, says what they are, and runs
the command for them: `jsonl`, `csv-classes`, `imagefolder` or `chat`.

What a column holds is told by an option; else by its name, if that is a usual one; else by its
cells: pictures are files, questions end with a question mark, classes recur.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from vlds.runtime.cluster import Cluster
from vlds.runtime.command_line import CommandParser
from vlds.runtime.terminal import shell_command, tell

from .catalogue import PROGRAM
from .classes import command as classes
from .command import add_shard_options, new_command
from .own_data import chat
from .own_data import forms as jsonl
from .own_data.columns import Table, find_tables, read_columns
from .own_data.conversations import ANSWERS, QUESTIONS
from .own_data.rows import TASKS, UserRow, list_fields, read_rows, text_of
from .packing.picture import ENDINGS
from .packing.source import TYPES
from .packing.splits import GROUP_FIELD, TRAIN, HashSplit, UnluckyDraw

TURNS = ("messages", "conversations")
COLUMNS = ("image", "question", "answer", "caption", "label", "split", "group")
USUAL: Mapping[str, Collection[str]] = {
    "image": ("image", "images", "picture", "photo", "img", "file", "file_name", "filename"),
    "question": ("question", "q", "query", "prompt", "instruction"),
    "answer": ("answer", "answers", "a", "response", "reply", "output"),
    "hypothesis": ("hypothesis", "statement", "claim"),
    "label": ("label", "class", "category", "species", "diagnosis", "target", "verdict"),
    "caption": ("caption", "captions", "text", "description", "sentence", "title"),
    "split": ("split", "partition", "subset", "part", "set"),
}
"""What a column holds -> its usual names."""
SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
GROUPS = ("patient", "case", "subject", "person", "scene", "document", "group", "site", "study")
"""Parts of the names of columns that may say what belongs together."""
MOST_TOLD = 8
"""Columns that a note names."""
LOOKED_AT = 200
"""Rows whose cells are looked at."""
MOST_FILES = 1_000_000
ENOUGH = 0.5
"""Share of a column's cells that must be what the column is taken for."""
SHARE, FEW = 0.1, 100
"""Share of the pictures or groups in each of val and test; of fewer than FEW, twice as much."""
DRAWN = ("val", "test")
TRIES = 20
"""Seeds that are tried until each split has what it needs; of few pictures or groups, first those
by which the splits are about as large as they should be."""


@dataclass
class Found:
    """The command for the data, and why."""

    what: str
    """The data in words."""
    words: list[str]
    """The command with its options."""
    num: int
    """Pictures or groups that splits divide; 0 if the data have splits."""
    notes: list[str] = field(default_factory=list)
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Each picture or group, as the rows name it, and its rows."""

    def miss(self, share: float, seed: int) -> float:
        """How far the splits that a seed draws are from their shares, of rows and of what is
        divided; 0 if chance evens that out."""
        if not 0 < len(self.sizes) < FEW:
            return 0.0
        split = HashSplit(dict.fromkeys(DRAWN, share), seed)
        drawn = {name: split.of(name) for name in self.sizes}
        missed = 0.0
        for sizes in (self.sizes, dict.fromkeys(self.sizes, 1)):
            whole = sum(sizes.values())
            for part in DRAWN:
                got = sum(size for name, size in sizes.items() if drawn[name] == part)
                missed += abs(got / whole - share)
        return missed


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "own",
        "Takes questions with answers, captions, statements, pictures of classes (a table, or a "
        "folder of class folders) and conversations; finds out which column holds what, draws the "
        "splits train, val and test by picture or group, and prints the command that it runs.",
        examples=["own --data rows.csv --images PHOTOS --out shards/mine"],
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PLACE",
        help="file of rows, or a folder: of classes, or of Parquet files",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="DIR",
        help="folder of the pictures (default: the folder of the file of rows)",
    )  # fmt: skip
    group = parser.add_argument_group("columns (default: by their names and cells)")
    for name in ("image", "question", "answer", "caption", "label", "split"):
        group.add_argument(f"--{name}-field", metavar="NAME")
    group.add_argument("--group-field", **GROUP_FIELD)
    parser.add_argument(
        "--each-turn",
        action="store_true",
        help="of conversations: an annotation of each answer behind a picture, for models that "
        "learn one at a time",
    )
    parser.add_argument(
        "--split-sizes", nargs="+", metavar="SPLIT=SHARE",
        help="shares of the pictures or groups; default: a tenth each for val and test",
    )  # fmt: skip
    parser.add_argument("--name", help="name of the data set (default: that of the file or folder)")
    add_shard_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    found = look_at(args)
    tell(f"{args.data}: {found.what}", flush=True)
    words = [*found.words, *shared_words(args)]
    for note in found.notes:
        tell(note)
    if not found.num:
        return run_words(words, args.cluster)
    if args.split_sizes:
        words += ["--split-sizes", *args.split_sizes, "--seed", str(args.seed)]
        return run_words(words, args.cluster)
    share = SHARE if found.num >= FEW else 2 * SHARE
    words += ["--split-sizes", *(f"{split}={share:g}" for split in DRAWN)]
    seeds = sorted(range(args.seed, args.seed + TRIES), key=lambda seed: found.miss(share, seed))
    for number, seed in enumerate(seeds, 1):
        try:
            return run_words([*words, "--seed", str(seed)], args.cluster)
        except UnluckyDraw as error:
            if number == TRIES:
                raise ValueError(
                    f"{args.data}: none of {TRIES} draws of splits is good ({error}); give each "
                    "row's split in a column, and --split-field"
                ) from None
            tell(f"draw {number} of at most {TRIES} does not do ({error}); the next one:")


def run_words(words: Sequence[str], cluster: Cluster | None) -> None:
    """Print a command, and run it here; `cluster` is that of its --executor."""
    parser = CommandParser(prog=PROGRAM)
    commands = parser.add_subparsers(required=True)
    for module in (jsonl, chat, classes):
        module.add_command(commands)
    args = parser.parse_args(words)
    args.cluster = cluster
    tell(f"{PROGRAM} {shell_command(*words)}", flush=True)
    args.run(args)


def shared_words(args: argparse.Namespace) -> list[str]:
    """The words of those options that all commands have, as far as they were given."""
    parser = argparse.ArgumentParser()
    add_shard_options(parser)
    # Through the parser, which converts the defaults too.
    defaults = parser.parse_args(["--out", ""])
    words: list[str] = [] if args.name is None else ["--name", args.name]
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        # The seed is that of a draw that succeeds.
        if action.dest not in ("seed", "help") and value != getattr(defaults, action.dest):
            words += [action.option_strings[0], *([] if value is True else [str(value)])]
    return words


def look_at(args: argparse.Namespace) -> Found:
    """The command for the data of a command line.

    Errors: ValueError that names the columns, if what they hold is not clear.
    """
    place: Path = args.data
    if not place.exists():
        raise ValueError(f"--data {place} does not exist; give a file of rows, or a folder")
    if place.is_dir() and not tables_in(place):
        return look_at_folder(args)
    images = args.images or (place.parent if place.is_file() else None)
    if tables := find_tables(place):
        words = ["chat", "--annotations", str(place), *given(args, "image")]
        words += [*words_of_table(args, tables), *given(args, "split", "group"), *each_turn(args)]
        words += ["--images", str(args.images)] if args.images else []
        refuse_given(args, "tables of Hugging Face are read as conversations", "caption", "label")
        has_splits = args.split_field or len({table.split for table in tables}) > 1
        what = "a table of Hugging Face, read as conversations"
        return Found(what, words, 0 if has_splits else FEW)
    rows = read_rows(place, "--data")
    if not rows:
        raise ValueError(f"{place}: no rows")
    assert images is not None
    if not images.is_dir():
        raise ValueError(f"--images {images} is not a folder; give the folder of the pictures")
    return Rows(args, rows, images).found()


def words_of_table(args: argparse.Namespace, tables: Sequence[Table]) -> list[str]:
    """The options about questions and answers: those that were given, and columns of usual names
    that `chat` does not know.

    Errors: ValueError if the first row has neither a conversation nor a question.
    """
    words = given(args, "question", "answer")
    _, row = next(read_columns(tables), (None, UserRow({}, "0")))
    if not row.fields or not set(TURNS).isdisjoint(row.fields):
        return words
    for role, known in (("question", QUESTIONS), ("answer", ANSWERS)):
        if getattr(args, f"{role}_field") or not set(known).isdisjoint(row.fields):
            continue
        usual = [str(name) for name in row.fields if str(name).lower() in USUAL[role]]
        if usual:
            words += [f"--{role}-field", usual[0]]
        elif role == "question":
            raise ValueError(
                f"{args.data}: a table of Hugging Face without conversations or questions; "
                f"{list_fields(row.fields)}. Write its pictures as files and its rows as JSON "
                'lines ("Parquet" in docs/own_data.md has the program), and give that file'
            )
    return words


def tables_in(folder: Path) -> bool:
    """True for a folder of Parquet files, or what `save_to_disk` writes."""
    saved = ("dataset_dict.json", "state.json")
    return any((folder / name).is_file() for name in saved) or any(folder.rglob("*.parquet"))


def look_at_folder(args: argparse.Namespace) -> Found:
    """A folder of class folders, perhaps below those of splits."""
    place: Path = args.data
    refuse_given(args, "folders have no columns; give a file of rows", *COLUMNS)
    names = [entry.name for entry in place.iterdir() if entry.is_dir() and entry.name[0] != "."]
    if not names:
        raise ValueError(
            f"--data {place} holds no folders; give the file of rows, or a folder with one folder "
            "for each class"
        )
    words = ["imagefolder", "--images", str(place)]
    if all(name.lower() in SPLITS for name in names):
        return Found(f"pictures in folders of splits: {', '.join(sorted(names))}", words, 0)
    num = sum(len(files) for _, _, files in os.walk(place))
    return Found(f"pictures in folders of {len(names):,} classes", words, max(1, num))


def given(args: argparse.Namespace, *names: str) -> list[str]:
    """The words of options about columns that were given."""
    pairs = [(name, getattr(args, f"{name}_field")) for name in names]
    return [word for name, value in pairs if value for word in (f"--{name}-field", value)]


def refuse_given(args: argparse.Namespace, reason: str, *names: str) -> None:
    """Errors: ValueError if an option about columns was given that says nothing here."""
    if words := given(args, *names):
        raise ValueError(f"{words[0]} {words[1]}: {reason}")


def each_turn(args: argparse.Namespace) -> list[str]:
    """The options of conversations for such models, if they were asked for."""
    return ["--each-turn", "--need-picture"] if args.each_turn else []


class Rows:
    """A file of rows, and what its columns hold."""

    def __init__(self, args: argparse.Namespace, rows: Sequence[UserRow], images: Path) -> None:
        self.args, self.rows, self.images = args, rows, images
        self.looked_at = rows[:: max(1, len(rows) // LOOKED_AT)]
        # In the order of the first row that has them.
        self.columns = list(dict.fromkeys(str(name) for row in rows for name in row.fields))
        if not self.columns:
            raise ValueError(f"{args.data}: no rows with fields")
        for name in COLUMNS:
            column = getattr(args, f"{name}_field")
            if column and column not in self.columns:
                have = list_fields(rows[0].fields)
                raise ValueError(f"--{name}-field {column}: {args.data} has no such column; {have}")

    def cells(self, column: str) -> list[str]:
        """The texts of a column that are not empty."""
        values = (row.fields.get(column) for row in self.looked_at)
        return [text for value in values if value is not None and (text := str(value).strip())]

    def share(self, column: str, holds: Callable[[str], bool]) -> float:
        """Share of a column's cells of which something holds."""
        cells = self.cells(column)
        return sum(map(holds, cells)) / len(cells) if cells else 0.0

    def usual(self, role: str) -> str | None:
        """The column that an option names for a role, or that has a usual name of it."""
        named: str | None = getattr(self.args, f"{role}_field", None)
        if named is not None:
            return named
        by_name = {column.strip().lower(): column for column in reversed(self.columns)}
        return next((by_name[name] for name in USUAL[role] if name in by_name), None)

    def image(self) -> str:
        """The column of pictures: that whose cells most often are files below `images`, with their
        endings or else without, where numbers may look like files; of equal ones, that of a usual
        name.

        Errors: ValueError if there is none, or several are as likely.
        """
        if self.args.image_field:
            return str(self.args.image_field)
        files = picture_names(self.images)

        def is_file(cell: str) -> bool:
            name = cell.replace("\\", "/").removeprefix("./").lower()
            return name in files or f"{name.rpartition('/')[2]}" in files

        def is_whole(cell: str) -> bool:
            return is_file(cell) and bool(PurePosixPath(cell).suffix)

        shares = {c: (self.share(c, is_whole), self.share(c, is_file)) for c in self.columns}
        most = max(shares.values())
        if most == (0, 0):
            raise ValueError(
                f"{self.args.data}: no column names pictures below {self.images}; "
                f"{list_fields(self.rows[0].fields)}. Give --images, or --image-field"
            )
        likely = [column for column, share in shares.items() if share == most]
        if len(likely) > 1:
            usual = [column for column in likely if column.strip().lower() in USUAL["image"]]
            if len(usual) != 1:
                listed = " and ".join(map(repr, likely[:3]))
                self.unclear(
                    f"{listed} may all name pictures; say which, as in --image-field "
                    f"{shell_command((usual or likely)[0])}"
                )
            likely = usual
        return likely[0]

    def split(self) -> str | None:
        """The column of splits, if its cells are names of such.

        Errors: ValueError if rows have none, or one split has several names.
        """
        column = self.usual("split")
        if column is None:
            return None
        counts = Counter(text_of(row.fields, column) for row in self.rows)
        names = [name for name in counts if name]
        are_usual = bool(names) and all(name.lower() in SPLITS for name in names)
        if not are_usual and not self.args.split_field:
            return None
        place = f"{self.args.data}: the column {column!r}"
        if empty := counts[""]:
            raise ValueError(
                f"{place} names no split in {empty:,} of {len(self.rows):,} rows; give each one"
            )
        spelled: dict[str, list[str]] = {}
        for name in names:
            spelled.setdefault(SPLITS.get(name.lower(), name), []).append(name)
        if several := next((names for names in spelled.values() if len(names) > 1), None):
            raise ValueError(
                f"{place} calls one split {' and '.join(map(repr, several))}, which would become "
                "several; name it one way in all rows"
            )
        return column

    def found(self) -> Found:
        """The command for the rows."""
        args = self.args
        common = ["--annotations", str(args.data), "--images", str(self.images)]
        if any(isinstance(row.fields.get(name), list) for row in self.looked_at for name in TURNS):
            words = ["chat", *common, *given(args, "image"), *each_turn(args)]
            return self.with_splits(f"{len(self.rows):,} conversations", words, self.split())
        if len(self.rows) == 1 and {"images", "annotations"} <= self.rows[0].fields.keys():
            found = Found("captions in COCO's form", ["jsonl", "--task", "caption", *common], FEW)
            return found
        image = self.image()
        common += ["--image-field", image]
        split = self.split()
        left = [
            column
            for column in self.columns
            if column not in (image, split, args.group_field) and self.cells(column)
        ]
        question = self.usual("question") or next(
            (c for c in left if self.share(c, lambda cell: cell.endswith("?")) >= ENOUGH), None
        )
        if question is not None:
            answer = self.usual("answer") or self.usual("label")
            others = [column for column in left if column != question]
            answer = answer or (others[0] if len(others) == 1 else None)
            if answer is None:
                behind = [*others[left.index(question) :], *others][0] if others else "NAME"
                self.unclear(
                    f"{question!r} holds questions; name the answers, as in --answer-field "
                    f"{shell_command(behind)}"
                )
            words = ["--question-field", question, "--answer-field", answer]
            what = f"questions in {question!r}, answers in {answer!r}"
            return self.with_splits(what, ["jsonl", "--task", "vqa", *common, *words], split)
        sentence, label = self.usual("hypothesis"), self.usual("label")
        if sentence is not None and label is not None:
            for task in ("statement", "entailment"):
                known = TASKS[task].labels
                if self.share(label, lambda cell, k=known: cell.lower() in k) >= ENOUGH:  # type: ignore[misc]
                    words = ["--hypothesis-field", sentence, "--label-field", label]
                    what = f"sentences in {sentence!r}, judged in {label!r}"
                    words = ["jsonl", "--task", task, *common, *words]
                    return self.with_splits(what, words, split)
        if args.caption_field is None and label is None and len(left) == 1 and self.recurs(left[0]):
            label = left[0]
        if args.caption_field is None and label is not None:
            names = {text_of(row.fields, label) for row in self.rows} - {""}
            what = f"pictures of {len(names):,} class{'es' * (len(names) > 1)} in {label!r}"
            return self.with_splits(what, ["csv-classes", *common, "--label-field", label], split)
        caption = self.usual("caption") or (left[0] if len(left) == 1 else None)
        if caption is None:
            # A patient recurs too, but is no class.
            recurring = sorted(filter(self.recurs, left), key=self.group_columns().__contains__)
            classes = f" {shell_command(recurring[0])}, whose cells recur" if recurring else ""
            self.unclear(
                "say what to learn: --question-field and --answer-field, --caption-field, or "
                f"--label-field{classes}"
            )
        words = ["jsonl", "--task", "caption", *common, "--caption-field", caption]
        return self.with_splits(f"captions in {caption!r}", words, split)

    def recurs(self, column: str) -> bool:
        """True if a column's cells are names that recur, as those of classes do."""
        cells = self.cells(column)
        return len(set(cells)) <= len(cells) / 2

    def unclear(self, cure: str) -> NoReturn:
        raise ValueError(f"{self.args.data}: {list_fields(self.rows[0].fields)}; {cure}")

    def with_splits(self, what: str, words: list[str], split: str | None = None) -> Found:
        """The command with the rows' own splits, or the number of what is divided."""
        num = len(self.rows)
        what = f"{num:,} row{'s' * (num > 1)}: {what}" if words[0] != "chat" else what
        group = self.args.group_field
        words = words if group is None else [*words, "--group-field", group]
        notes = self.not_learned(words, split) if words[0] != "chat" else []
        if split is not None:
            words = [*words, "--split-field", split]
            notes += self.crossing(split)
            return Found(f"{what}, splits in {split!r}", words, 0, notes)
        if group is None:
            notes += [
                f"{column!r} recurs: if its rows belong together, --group-field "
                f"{shell_command(column)} keeps them in one split; else scores are too good"
                for column in self.group_columns()
            ]
        divided = group or (
            words[words.index("--image-field") + 1] if "--image-field" in words else ""
        )
        names = (text_of(row.fields, divided) for row in self.rows if divided)
        sizes = Counter(filter(None, names))
        return Found(what, words, len(sizes) or len(self.rows), notes, sizes)

    def not_learned(self, words: Sequence[str], split: str | None) -> list[str]:
        """A note on the columns that a command does not name."""
        named = {value for option, value in pairwise(words) if option.endswith("-field")}
        used = {*named, *TYPES, split}
        rest = [c for c in self.columns if c not in used and self.cells(c)]
        if not rest:
            return []
        more = f" and {len(rest) - MOST_TOLD:,} more" if len(rest) > MOST_TOLD else ""
        listed = f"{', '.join(map(repr, rest[:MOST_TOLD]))}{more}"
        cure = ""
        if "--question-field" in words:
            cure = "; what a model must know of them, such as choices, belongs into the question"
        return [f"not learned, only kept beside the rows: {listed}{cure}"]

    def group_columns(self) -> list[str]:
        """The columns that may say what belongs together."""
        if self.args.group_field:
            return [str(self.args.group_field)]
        named = [c for c in self.columns if any(name in c.lower() for name in GROUPS)]
        return [column for column in named if self.recurs(column)]

    def crossing(self, split: str) -> list[str]:
        """A note for each such column whose values the rows' own splits part."""
        notes = []
        for column in self.group_columns():
            splits: dict[str, set[str]] = {}
            for row in self.rows:
                if group := text_of(row.fields, column):
                    splits.setdefault(group, set()).add(text_of(row.fields, split))
            parted = [group for group, names in splits.items() if len(names) > 1]
            if parted:
                notes.append(
                    f"{column!r}: {len(parted):,} of {len(splits):,} are in several splits, as "
                    f"{parted[0]!r}; if their rows belong together, scores are too good"
                )
        return notes


def picture_names(folder: Path) -> set[str]:
    """The names of the files below a folder in lower case: with and without folders and endings."""
    names: set[str] = set()
    for base, _, files in os.walk(folder):
        for file in files:
            whole = os.path.relpath(os.path.join(base, file), folder).lower()
            stem, ending = os.path.splitext(whole)
            short = file.lower()
            names |= {whole, short}
            if ending in ENDINGS:
                names |= {stem, os.path.splitext(short)[0]}
        if len(names) > MOST_FILES:
            break
    return names
