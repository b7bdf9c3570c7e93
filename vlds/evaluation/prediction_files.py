"""Files of predictions: those that the leaderboards of VQA, GQA, NLVR2, COCO and VALUE take, and
our own. Each form is written and read here: what was written is read back and compared, and others'
outputs can be scored.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlds.runtime.json_file import strict_json
from vlds.runtime.regular_file import read_text

VALUE_SPLITS = {("how2qa", "test"): "test_public"}
"""Where the leaderboard's name of a split is another than the data set's."""
Pairs = list[tuple[str, str]]
"""Ids and predictions."""


class Misfit(ValueError):
    """An id that a leaderboard does not know."""


def whole_number(key: str) -> int:
    """An id of COCO, VQA or VALUE.

    Errors: Misfit where it is none.
    """
    if not re.fullmatch(r"0|[1-9]\d*", key):
        raise Misfit(f"id {key!r} is no whole number, as the leaderboard's ids are")
    return int(key)


def choice_number(text: str) -> int:
    """ "a3" -> 3; -1, which is always wrong, for what names no choice."""
    found = re.fullmatch(r"a(\d)", text)
    return int(found[1]) if found else -1


def vqa_text(pairs: Pairs) -> str:
    """EvalAI's list for VQA."""
    return json_text([{"question_id": whole_number(key), "answer": text} for key, text in pairs])


def gqa_text(pairs: Pairs) -> str:
    """EvalAI's list for GQA; its ids are texts with leading zeros."""
    return json_text([{"questionId": key, "prediction": text} for key, text in pairs])


def nlvr2_text(pairs: Pairs) -> str:
    """Lines `identifier,True`; what is not "true" counts as False.

    Errors: Misfit for an identifier that such a line cannot hold.
    """
    for key, _ in pairs:
        if re.search(r'[,"\s]', key):
            raise Misfit(
                f"id {key!r} has a comma, a quote or a blank, as the leaderboard's have not"
            )
    return "".join(f"{key},{text == 'true'}\n" for key, text in pairs)


def caption_text(pairs: Pairs) -> str:
    """COCO's list of results."""
    return json_text([{"image_id": whole_number(key), "caption": text} for key, text in pairs])


def video_qa_text(pairs: Pairs) -> str:
    """VALUE's object for TVQA and How2QA."""
    return json_text({str(whole_number(key)): choice_number(text) for key, text in pairs})


def video_caption_text(pairs: Pairs) -> str:
    """VALUE's lines for TVC and YC2C."""
    rows = ({"clip_id": whole_number(key), "descs": [{"desc": text}]} for key, text in pairs)
    return "".join(json.dumps(row) + "\n" for row in rows)


def json_text(content: Any) -> str:
    """One line of JSON."""
    return json.dumps(content) + "\n"


FORMS: Mapping[str, tuple[str, Callable[[Pairs], str]]] = {
    "vqa": ("json", vqa_text),
    "gqa": ("json", gqa_text),
    "nlvr2": ("csv", nlvr2_text),
    "caption": ("json", caption_text),
    "video_qa": ("json", video_qa_text),
    "video_caption": ("jsonl", video_caption_text),
}
"""Kind of samples -> suffix and text of the leaderboard's file."""
IN_ZIP = ("video_qa", "video_caption")


def value_member(name: str, split: str, suffix: str) -> str:
    """Where VALUE's zip holds the predictions of a data set: it has no outer folder."""
    return f"{name}/{name}_{VALUE_SPLITS.get((name, split), split)}_predictions.{suffix}"


# Reading.


def read_pairs(path: Path, members: Mapping[str, str] | None = None) -> Pairs:
    """Ids and predictions of a file of any of these forms; of VALUE's zip, those of `members`:
    name -> what ids begin with here.

    Errors: ValueError that names the file, and the entry that is of no known form; and where there
    are no predictions at all, or a zip has none of these members.
    """
    try:
        texts = list(member_texts(path, members or {}))
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--predictions: {path}: {reason}; name a file of predictions") from None
    pairs = [
        (start + key, told) for place, start, text in texts for key, told in pairs_of(place, text)
    ]
    if not pairs:
        raise ValueError(f"--predictions: {path} holds no predictions; name another file")
    return pairs


def member_texts(path: Path, members: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Place, what ids begin with, and text: of the members of a zip, or of the file itself.

    Errors: ValueError where a zip has none of the members.
    """
    if path.suffix != ".zip":
        yield str(path), "", read_text(path)
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if members.keys().isdisjoint(names):
            raise ValueError(
                f"--predictions: {path}: needed is {' or '.join(members) or 'no zip'}, and it has "
                f"{', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}; name the "
                "data set that one of these is for, or unpack the one that is meant"
            )
        for name in members:
            if name in names:
                yield f"{path}, {name}", members[name], archive.read(name).decode()


def pairs_of(place: str, text: str) -> Pairs:
    """What a text holds, its form told from its content."""
    if place.endswith(".csv"):
        try:
            return [csv_pair(place, row) for row in csv.reader(io.StringIO(text)) if row]
        except csv.Error as error:
            raise ValueError(f"--predictions: {place} is not CSV ({error})") from None
    if place.endswith(".jsonl"):
        # Not splitlines: JSON may hold other line ends (U+2028) as they are.
        lines = enumerate(text.split("\n"), 1)
        return [
            entry_pair(where, parsed(where, line))
            for where, line in ((f"{place}, line {number}", line) for number, line in lines)
            if line.strip()
        ]
    content = parsed(place, text)
    if isinstance(content, dict):
        return [value_pair(place, key, number) for key, number in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"--predictions: {place}: {FORMS_TEXT}")
    return [
        entry_pair(f"{place}, entry {number}", entry) for number, entry in enumerate(content, 1)
    ]


def parsed(place: str, text: str) -> Any:
    """The JSON of a file or a line.

    Errors: ValueError where it is none, or an object has a key twice.
    """
    try:
        return strict_json(text, f"--predictions: {place}", lambda pairs: as_mapping(pairs, place))
    except json.JSONDecodeError as error:
        line = "" if "\n" not in text else f"line {error.lineno} "
        cure = "" if ".json" in place else "; the suffix says the form: .csv, .json or .jsonl"
        raise ValueError(
            f"--predictions: {place} is not JSON ({error.msg}: {line}column {error.colno}){cure}"
        ) from None
    except ValueError as error:
        if str(error).startswith("--predictions: "):
            raise
        raise ValueError(f"--predictions: {place}: {error}") from None


FORMS_TEXT = (
    "this is no file of predictions that is known here; docs/evaluation.md shows those that are"
)
ENTRY_FORMS: Sequence[tuple[str, type, str]] = (
    ("id", str, "prediction"),
    ("question_id", int, "answer"),
    ("questionId", str, "prediction"),
    ("image_id", int, "caption"),
)


def entry_pair(place: str, entry: Any) -> tuple[str, str]:
    """One entry of a list."""
    if isinstance(entry, dict) and {"clip_id", "descs"} <= entry.keys():
        told = entry["descs"]
        if isinstance(told, list) and told and isinstance(told[0], dict):
            entry = {"clip_id": entry["clip_id"], "desc": told[0].get("desc")}
    for key, kind, value in (*ENTRY_FORMS, ("clip_id", int, "desc")):
        if isinstance(entry, dict) and {key, value} <= entry.keys():
            for name, wanted in ((key, kind), (value, str)):
                if type(entry[name]) is not wanted:
                    raise ValueError(
                        f"--predictions: {place}: {name} is {entry[name]!r}; "
                        f"{'a whole number' if wanted is int else 'a text'} is needed"
                    )
            return str(entry[key]), entry[value]
    raise ValueError(f"--predictions: {place}: {FORMS_TEXT}")


def csv_pair(place: str, row: Sequence[str]) -> tuple[str, str]:
    """One line of NLVR2's."""
    if len(row) != 2 or row[1].strip().lower() not in ("true", "false"):
        raise ValueError(f"--predictions: {place}: {','.join(row)!r}; give lines `identifier,True`")
    return row[0].strip(), row[1].strip().lower()


def value_pair(place: str, key: str, number: Any) -> tuple[str, str]:
    """One answer of TVQA or How2QA."""
    if type(number) is not int:
        raise ValueError(
            f"--predictions: {place}: {key} has {number!r}; one object is the form of TVQA and "
            "How2QA, where a question has its choice's number; other tasks have a list of entries, "
            "see docs/evaluation.md"
        )
    return key, f"a{number}" if number >= 0 else ""


def as_mapping(pairs: Sequence[tuple[str, Any]], place: str) -> dict[str, Any]:
    """Id -> prediction, or key -> value.

    Errors: ValueError where one comes twice.
    """
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(
            f"--predictions: {place}: {len(twice)} ids come twice: {', '.join(twice[:5])}"
            f"{', ...' if len(twice) > 5 else ''}; give each one prediction"
        )
    return dict(pairs)
