"""`vlmevalkit`: a benchmark of VLMEvalKit, which is one table: a TSV with a question in each row.

Its columns are `index`; `image`, in base64, a list of them or the index of another row; or
`image_path`; `question`; perhaps `hint`, options under `A`, `B` and so on, and groups. Rows with
the options A and B have a letter as `answer`, others a text or a list. (github.com/open-compass/
VLMEvalKit, docs/en/Development.md and vlmeval/dataset/image_base.py)
"""

from __future__ import annotations

import argparse
import base64
import binascii
import csv
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlds.runtime.json_files import parse_literal
from vlds.runtime.terminal import tell

from ..command import new_command
from ..json_rows import open_text
from ..own_data.conversations import Unusable
from ..packing.source import Dropped
from .rows import BenchmarkRow, Photo, Said, add_options, pack_rows

LONGEST_CELL = 1 << 30
"""Characters of a cell: pictures in base64 have millions."""
LONGEST_INDEX = 64
"""Characters up to which a cell of `image` is another row's index."""
GROUPS = ("category", "l2-category", "split")
"""Columns by which VLMEvalKit tabulates its scores."""
MISSING = {"NA", "N/A", "NULL", "NaN", "None", "n/a", "nan", "null", "<NA>", "-nan", "-NaN", "#N/A"}
"""Texts that VLMEvalKit, which reads by pandas, takes for empty cells."""

Cells = Mapping[str, str]


def read_tsv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Last line and cells of each row; empty cells are left out.

    Errors: ValueError that names the line.
    """
    with open_text(path, newline="") as file, _long_cells():
        reader = csv.reader(file, delimiter="\t")
        try:
            head = next(reader, [])
            for name in ("index", "question"):
                if name not in head:
                    raise ValueError(
                        f"--tsv {path}: no column {name!r}; it has {', '.join(head)[:200]}; give a "
                        "table of VLMEvalKit"
                    )
            for cells in reader:
                if len(cells) != len(head):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, but the head line "
                        f"has {len(head)}"
                    )
                row = zip(head, cells, strict=True)
                yield reader.line_num, {name: cell for name, cell in row if cell}
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not a TSV ({error})") from error


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def rows_of(path: Path, ending: str) -> Iterator[BenchmarkRow | Dropped]:
    """The rows of a table; `ending`: a line behind each question.

    Errors: ValueError for a file that is not such a table, or an index that comes twice.
    """
    table = list(read_tsv(path))
    pictures = {cells["index"]: cells.get("image", "") for _, cells in table if "index" in cells}
    if len(pictures) < len(table):
        counts = Counter(cells.get("index", "") for _, cells in table)
        ((index, _),) = counts.most_common(1)
        raise ValueError(f"{path}: the index {index!r} stands in several rows, or is missing")
    odd = sum(text in MISSING for _, cells in table for text in cells.values())
    if odd:
        tell(
            f"{odd:,} cells hold words such as None, which are texts here; VLMEvalKit takes them "
            "for empty cells"
        )
    has_options = any({"A", "B"} <= cells.keys() for _, cells in table)
    for _, cells in table:
        try:
            yield _row(cells, pictures, has_options, ending)
        except Unusable as reason:
            yield Dropped(cells["index"], str(reason))


def _row(cells: Cells, pictures: Mapping[str, str], has_options: bool, ending: str) -> BenchmarkRow:
    """Errors: Unusable."""
    if "question" not in cells:
        raise Unusable("no question")
    image = cells.get("image", "")
    if 0 < len(image) <= LONGEST_INDEX:
        image = pictures.get(image, "")
        if len(image) <= LONGEST_INDEX:
            raise Unusable("a picture of another row, which has none")
    named = _listed(cells.get("image_path", ""))
    shown = [Photo(_decoded(text)) for text in _listed(image)] or [Photo(name) for name in named]
    if not shown:
        raise Unusable("no picture")
    question, hint = cells["question"], cells.get("hint", "")
    options = {name: cells[name] for name in string.ascii_uppercase if name in cells}
    if not has_options:
        options = {}
    answers = _listed(cells.get("answer", ""))
    if has_options and answers and answers[0] not in options:
        raise Unusable(f"the answer {answers[0][:20]!r}, which names no option")
    if answers:  # the most frequent one first
        ((best, _),) = Counter(answers).most_common(1)
        first = answers.index(best)
        answers[0], answers[first] = answers[first], answers[0]
    words = question
    if has_options:
        words = f"Hint: {hint}\n" if hint else ""
        words += f"Question: {question}\n"
        if options:
            words += "Options:\n" + "".join(f"{name}. {text}\n" for name, text in options.items())
            words += "Please select the correct answer from the options above. \n"
    words += f"\n{ending}" if ending else ""
    return BenchmarkRow(
        cells["index"],
        [Said("user", [*shown, words])],
        f"{question} {ending}".strip(),
        answers,
        options,
        hint,
        {name: cells[name] for name in GROUPS if name in cells},
    )


def _listed(cell: str) -> list[str]:
    """A cell, or the entries of a list that it holds, which Python has written.

    Errors: Unusable.
    """
    if not (len(cell) > 1 and cell[0] == "[" and cell[-1] == "]"):
        return [cell] if cell else []
    try:
        # VLMEvalKit evaluates the cell as a program; a list of values is all that is wanted.
        listed = parse_literal(cell)
    except ValueError:
        raise Unusable("a list that cannot be read") from None
    return [str(entry) for entry in listed] if isinstance(listed, list) else [cell]


def _decoded(text: str) -> bytes:
    """Errors: Unusable."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unusable("a picture in damaged base64") from None


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "vlmevalkit",
        "With --form chat, questions have the words of VLMEvalKit's own prompt, so that a run "
        "answers both alike. Scores are by row: circular evaluation (MMBench) is not computed.",
        examples=[
            "vlmevalkit --tsv LMUData/MMBench_DEV_EN.tsv --out shards/mmbench",
            "vlmevalkit --tsv LMUData/GQA_TestDev_Balanced.tsv \\\n"
            '      --ending "Answer using a single word." --out shards/gqa-vlmevalkit',
        ],
    )
    parser.add_argument("--tsv", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--images", type=Path, metavar="PLACE", help="folder of the pictures that image_path names"
    )
    parser.add_argument(
        "--ending", default="", metavar="TEXT", help="a line to write behind each question"
    )
    add_options(parser, "that of the table")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    name = args.name or args.tsv.stem.replace(".", "_")
    pack_rows(rows_of(args.tsv, args.ending), name, [args.tsv], args, args.images)
