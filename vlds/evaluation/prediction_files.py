"""Files of predictions: those that the leaderboards of VQA, GQA, NLVR2, COCO and VALUE take, and
our own. Each form is written and read here, so that a written text can be compared with the
predictions, and other people's files can be scored.

    vqa            [{"question_id": 1, "answer": "red"}, ...]         EvalAI
    gqa            [{"questionId": "07333408", "prediction": "red"}, ...]   EvalAI
    nlvr2          dev-850-0-0,True                                   lines
    caption        [{"image_id": 1, "caption": "a red dot"}, ...]     COCO's result file
    video_qa       {"7": 1, ...}                                      in VALUE's zip
    video_caption  {"clip_id": 7, "descs": [{"desc": "..."}]}         lines, in VALUE's zip
    ours           {"id": "1", "prediction": "red", ...}              lines
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlds.metrics.exact_match import lower_line
from vlds.runtime.json_file import strict_json
from vlds.runtime.regular_file import read_text

Pairs = list[tuple[str, str]]
"""Ids and predictions."""


class EntryForm(NamedTuple):
    """The names of an entry's id and prediction, and the id's type."""

    id_name: str
    id_type: type
    text_name: str


ENTRY_FORMS = {
    "ours": EntryForm("id", str, "prediction"),
    "vqa": EntryForm("question_id", int, "answer"),
    "gqa": EntryForm("questionId", str, "prediction"),  # with leading zeros
    "caption": EntryForm("image_id", int, "caption"),
    "video_caption": EntryForm("clip_id", int, "desc"),
}
SUFFIXES = {
    "vqa": "json",
    "gqa": "json",
    "nlvr2": "csv",
    "caption": "json",
    "video_qa": "json",
    "video_caption": "jsonl",
}
"""Kind of samples -> suffix of its leaderboard's file."""
IN_ZIP = ("video_qa", "video_caption")
VALUE_SPLITS = {("how2qa", "test"): "test_public"}
"""Where the leaderboard's name of a split differs from the data set's."""
UNKNOWN_FORM = "not a known form of predictions; docs/evaluation.md shows the known ones"


class Misfit(ValueError):
    """An id that a leaderboard's form cannot hold."""


def submission_text(kind: str, pairs: Pairs) -> str:
    """What the leaderboard of a kind of samples takes; Misfit if it cannot hold an id."""
    if kind == "nlvr2":
        for key, _ in pairs:
            if re.search(r'[,"\s]', key):
                raise Misfit(f"id {key!r} has a comma, quote or blank; the leaderboard's have none")
        return "".join(f"{key},{lower_line(text) == 'true'}\n" for key, text in pairs)
    if kind == "video_qa":
        numbers = {str(whole_number(key)): choice_number(text) for key, text in pairs}
        return json.dumps(numbers) + "\n"
    if kind == "video_caption":
        rows = ({"clip_id": whole_number(key), "descs": [{"desc": text}]} for key, text in pairs)
        return "".join(json.dumps(row) + "\n" for row in rows)
    form = ENTRY_FORMS[kind]
    convert = whole_number if form.id_type is int else str
    entries = [{form.id_name: convert(key), form.text_name: text} for key, text in pairs]
    return json.dumps(entries) + "\n"


def whole_number(key: str) -> int:
    """An id of COCO, VQA or VALUE; Misfit if it is not a whole number."""
    if not re.fullmatch(r"0|[1-9]\d*", key):
        raise Misfit(f"id {key!r} is not a whole number, as the leaderboard's ids are")
    return int(key)


def choice_number(text: str) -> int:
    """ "a3" -> 3; -1, which is always wrong, for a text that names no choice."""
    match = re.fullmatch(r"a(\d)", text)
    return int(match[1]) if match else -1


def value_member(kind: str, name: str, split: str) -> str:
    """Where VALUE's zip holds the predictions of a data set: it has no outer folder."""
    split = VALUE_SPLITS.get((name, split), split)
    return f"{name}/{name}_{split}_predictions.{SUFFIXES[kind]}"


# Reading.


def read_pairs(path: Path, members: Mapping[str, str] | None = None) -> Pairs:
    """Ids and predictions of a file in any of these forms; of VALUE's zip, those of `members`:
    name -> what ids begin with here.

    Errors: ValueError that names the file, and the entry whose form is unknown; also for a file
    without predictions, and for a zip without any of the members.
    """
    option = f"--predictions: {path}"
    try:
        texts = list(member_texts(path, members or {}))
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{option}: {reason}; name a file of predictions") from None
    pairs = [
        (start + key, prediction)
        for where, start, text in texts
        for key, prediction in pairs_of(where, text)
    ]
    if not pairs:
        raise ValueError(f"{option} holds no predictions; name another file")
    return pairs


def member_texts(path: Path, members: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Place (for messages), what ids begin with, and text: of the members of a zip, or of the file
    itself."""
    option = f"--predictions: {path}"
    if path.suffix != ".zip":
        yield option, "", read_text(path)
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if members.keys().isdisjoint(names):
            raise ValueError(
                f"{option}: needed is {' or '.join(members) or 'no zip'}, and it has "
                f"{', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}; name the "
                "data set that one of these is for, or unpack the one that is meant"
            )
        for name in members:
            if name in names:
                yield f"{option}, {name}", members[name], archive.read(name).decode()


def pairs_of(where: str, text: str) -> Pairs:
    """Ids and predictions of a text; `where` begins messages, and its suffix says the form."""
    if where.endswith(".csv"):
        try:
            return [csv_pair(where, row) for row in csv.reader(io.StringIO(text)) if row]
        except csv.Error as error:
            raise ValueError(f"{where} is not CSV ({error})") from None
    if where.endswith(".jsonl"):
        # Not splitlines: JSON may hold other line ends (U+2028) as they are.
        lines = ((f"{where}, line {n}", line) for n, line in enumerate(text.split("\n"), 1))
        return [entry_pair(where, parsed(where, line)) for where, line in lines if line.strip()]
    content = parsed(where, text)
    if isinstance(content, dict):
        return [value_pair(where, key, number) for key, number in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"{where}: {UNKNOWN_FORM}")
    return [entry_pair(f"{where}, entry {n}", entry) for n, entry in enumerate(content, 1)]


def parsed(where: str, text: str) -> Any:
    """The JSON of a file or a line; ValueError if it is not JSON, or an object has a key twice."""
    try:
        return strict_json(text, where, lambda pairs: as_mapping(pairs, where))
    except json.JSONDecodeError as error:
        line = "" if "\n" not in text else f"line {error.lineno} "
        cure = "" if ".json" in where else "; the suffix says the form: .csv, .json or .jsonl"
        raise ValueError(
            f"{where} is not JSON ({error.msg}: {line}column {error.colno}){cure}"
        ) from None
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {error}") from None


def entry_pair(where: str, entry: Any) -> tuple[str, str]:
    """One entry of a list."""
    match entry:
        case {"clip_id": clip_id, "descs": [{"desc": text}, *_]}:
            entry = {"clip_id": clip_id, "desc": text}
    for form in ENTRY_FORMS.values():
        if isinstance(entry, dict) and {form.id_name, form.text_name} <= entry.keys():
            for name, kind in ((form.id_name, form.id_type), (form.text_name, str)):
                if type(entry[name]) is not kind:
                    needed = "a whole number" if kind is int else "a text"
                    raise ValueError(f"{where}: {name} is {entry[name]!r}; {needed} is needed")
            return str(entry[form.id_name]), entry[form.text_name]
    raise ValueError(f"{where}: {UNKNOWN_FORM}")


def csv_pair(where: str, row: Sequence[str]) -> tuple[str, str]:
    """One line of NLVR2's."""
    # The official script counts " True" as wrong.
    if len(row) != 2 or lower_line(row[1]) not in ("true", "false"):
        raise ValueError(f"{where}: {','.join(row)!r}; give lines `identifier,True`")
    return row[0].strip(), lower_line(row[1])


def value_pair(where: str, key: str, number: Any) -> tuple[str, str]:
    """One answer of TVQA or How2QA."""
    if type(number) is not int:
        raise ValueError(
            f"{where}: {key} has {number!r}; one object is the form of TVQA and "
            "How2QA, where a question has its choice's number; other tasks have a list of entries, "
            "see docs/evaluation.md"
        )
    return key, f"a{number}" if number >= 0 else ""


def as_mapping(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Id -> prediction, or key -> value; ValueError if one comes twice."""
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(
            f"{where}: {len(twice)} ids come twice: {', '.join(twice[:5])}"
            f"{', ...' if len(twice) > 5 else ''}; give each one prediction"
        )
    return dict(pairs)
