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
import importlib
import inspect
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import vlds.tasks
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.streams.source import Source, survey
from vlds.evaluation.result import Details, Evaluation, leave
from vlds.evaluation.sources import open_datasets
from vlds.recipe.parse import parse
from vlds.recipe.paths import trust
from vlds.runtime.disk import check_writable
from vlds.runtime.files import read_text, whole_file, write_whole
from vlds.runtime.json_files import strict_json
from vlds.runtime.terminal import tell
from vlds.tasks.base import Task, check_unique
from vlds.tasks.metrics.plain_scores import lower_line

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
ZIP, IN_ZIP = "value.zip", ("video_qa", "video_caption")
"""VALUE's zip, and the kinds of samples that are in it."""
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
        # "a3" is choice 3; a text that names no choice is -1, which is always wrong.
        choices = [(key, re.fullmatch(r"a(\d)", text)) for key, text in pairs]
        numbers = {str(whole_number(key)): int(m[1]) if m else -1 for key, m in choices}
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


def value_member(kind: str, name: str, split: str) -> str:
    """Where VALUE's zip holds the predictions of a data set: it has no outer folder."""
    split = VALUE_SPLITS.get((name, split), split)
    return f"{name}/{name}_{split}_predictions.{SUFFIXES[kind]}"


def read_pairs(path: Path, members: Mapping[str, str] | None = None) -> Pairs:
    """Ids and predictions of a file in any of these forms; of VALUE's zip, those of `members`:
    name -> what ids begin with here.

    Errors: ValueError that names the file, and the entry whose form is unknown; also for a file
    without predictions, and for a zip without any of the members.
    """
    option, known = f"--predictions: {path}", members or {}
    texts: list[tuple[str, str, str]] = []
    """Place (for messages), what ids begin with, and text."""
    try:
        if path.suffix != ".zip":
            texts.append((option, "", read_text(path)))
        else:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                # In the order of the data sets; members for others are not read.
                for name in known:
                    if name in names:
                        text = archive.read(name).decode()
                        texts.append((f"{option}, {name}", known[name], text))
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{option}: {reason}; name a file of predictions") from None
    if not texts:
        raise ValueError(
            f"{option}: expected {' or '.join(known) or 'no zip'}, but it has "
            f"{', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}; name the "
            "data set that one of these is for, or unpack the right one"
        )
    pairs = [
        (start + key, prediction)
        for where, start, text in texts
        for key, prediction in pairs_of(where, text)
    ]
    if not pairs:
        raise ValueError(f"{option} holds no predictions; name another file")
    return pairs


def pairs_of(where: str, text: str) -> Pairs:
    """Ids and predictions of a text; `where` begins messages, and its suffix says the form."""
    if where.endswith(".csv"):
        try:
            rows = [row for row in csv.reader(io.StringIO(text)) if row]
        except csv.Error as error:
            raise ValueError(f"{where} is not CSV ({error})") from None
        for row in rows:
            # NLVR2's form; the official script counts " True" as wrong.
            if len(row) != 2 or lower_line(row[1]) not in ("true", "false"):
                raise ValueError(f"{where}: {','.join(row)!r}; give lines `identifier,True`")
        return [(key.strip(), lower_line(value)) for key, value in rows]
    if where.endswith(".jsonl"):
        # Not splitlines: JSON may hold other line ends (U+2028) as they are.
        lines = ((f"{where}, line {n}", line) for n, line in enumerate(text.split("\n"), 1))
        return [entry_pair(where, parsed(where, line)) for where, line in lines if line.strip()]
    content = parsed(where, text)
    if isinstance(content, dict):
        for key, number in content.items():
            if type(number) is not int:
                raise ValueError(
                    f"{where}: {key} has {number!r}; one object is the form of TVQA and "
                    "How2QA, where a question has its choice's number; other tasks have a list of "
                    "entries, see docs/evaluation.md"
                )
        return [(key, f"a{number}" if number >= 0 else "") for key, number in content.items()]
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
    # By its field names: files of all tasks may be scored together, and none says which it is.
    for form in ENTRY_FORMS.values():
        if isinstance(entry, dict) and {form.id_name, form.text_name} <= entry.keys():
            # Types too: a file with "1" for 1 would pass here and fail at a server.
            for name, kind in ((form.id_name, form.id_type), (form.text_name, str)):
                if type(entry[name]) is not kind:
                    needed = "a whole number" if kind is int else "a text"
                    raise ValueError(f"{where}: {name} is {entry[name]!r}; {needed} is needed")
            return str(entry[form.id_name]), entry[form.text_name]
    raise ValueError(f"{where}: {UNKNOWN_FORM}")


def as_mapping(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Id -> prediction, or key -> value; ValueError if one comes twice."""
    # Python's dict would keep the last one, and the score would depend on the order of a file.
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(
            f"{where}: {len(twice)} ids appear twice: {', '.join(twice[:5])}"
            f"{', ...' if len(twice) > 5 else ''}; give each one prediction"
        )
    return dict(pairs)


def score_file(
    files: Sequence[Path],
    data: Sequence[str],
    task_name: str | None,
    fields: Sequence[str],
    out: Path | None,
) -> int:
    """Score files of predictions, without a model. `fields`: options of the task class. Returns the
    exit code.

    Errors: ValueError if ids are missing, unknown or duplicate, and for a wrong field.
    """
    if not data:
        raise ValueError("--data: name the data sets that the predictions are for")
    if out is not None:
        check_writable(out, "--out")
    datasets = [open_dataset(folder) for folder in data]
    cls = task_class(task_name, datasets[0].kind)
    task = parse(cls, list(fields), "vlds evaluate --predictions").thorough()
    if (missing := task.missing_for_scores()) is not None:
        raise ValueError(f"--predictions: {missing}")
    source = Source(type(task).__name__, task, open_datasets("--data", task, data))
    asked = survey(source, range(sum(dataset.num_samples for dataset in datasets)))
    check_unique(asked.ids)
    # Of VALUE's zip, the members that answer these data sets -> what their ids begin with here.
    members = {
        value_member(d.kind, d.name, d.split): f"{d.label}/" if len(datasets) > 1 else ""
        for d in datasets
        if d.kind in IN_ZIP
    }
    pairs = [pair for file in files for pair in read_pairs(file, members)]
    predictions = as_mapping(pairs, f"--predictions: {', '.join(map(str, files))}")
    references = dict(zip(asked.ids, asked.references, strict=True))
    details = dict(zip(asked.ids, map(Details, asked.samples), strict=True))
    evaluation = Evaluation(
        source.name, {}, predictions, references, details, groups=asked.groups, data=source.data_id
    ).scored(task)
    if out is None:
        tell("\n".join(evaluation.lines()))
    else:
        leave([evaluation], out, scores=True)
    return 0


def task_class(name: str | None, kind: str) -> type[Task]:
    """The class that scores a kind of samples: a name in vlds.tasks, or a dotted path."""
    known: dict[str, Any] = {n: getattr(vlds.tasks, n) for n in vlds.tasks.__all__ if n != "Task"}
    reads = ", ".join(f"{n} reads {'/'.join(cls.kinds)}" for n, cls in known.items())
    if name is None:
        usual = [cls for cls in known.values() if kind in cls.kinds and not cls.draws_prompt]
        # Of a task and its special forms (VQA and TextVQA), the task itself.
        fitting: list[type[Task]] = [cls for cls in usual if not set(usual) & set(cls.__mro__[1:])]
        if len(fitting) != 1:
            raise ValueError(
                f"--task: {len(fitting)} tasks read samples of kind '{kind}' ({reads}); "
                "name a class"
            )
        return fitting[0]
    module, _, class_name = name.rpartition(".")
    if module:
        trust(module)
    try:
        cls = getattr(importlib.import_module(module), class_name) if module else known.get(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--task: {name}: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ValueError(f"--task: {name} is not a task ({reads}); or give your own module.Class")
    if inspect.isabstract(cls):
        raise ValueError(f"--task: {name} is what all tasks have in common; name one ({reads})")
    return cls


@dataclass(frozen=True)
class DatasetPredictions:
    """The predictions of one task for one data set."""

    task: str
    dataset: Dataset
    pairs: Pairs

    @property
    def file(self) -> str:
        """Name of its file, or of its member in VALUE's zip."""
        kind, dataset = self.dataset.kind, self.dataset
        if kind in IN_ZIP:
            return value_member(kind, dataset.name, dataset.split)
        return f"{dataset.label}.{SUFFIXES[kind]}"

    def notes(self, text: str) -> list[str]:
        """Predictions that the form cannot hold, and what its text has instead."""
        # Read back by the reader of other people's files.
        written = dict(pairs_of(self.file, text))
        meant = dict(self.pairs)
        instead = "name no choice: written as -1, which is always wrong"
        if self.dataset.kind == "nlvr2":
            meant = {key: lower_line(text) for key, text in meant.items()}
            instead = "are neither true nor false: written as False"
        # What a reader of the file would get, compared with what was predicted.
        changed = [key for key, prediction in meant.items() if written[key] != prediction]
        if not changed:
            return []
        return [f"  {len(changed):,} predictions {instead} ({', '.join(changed[:3])})"]


def write_submissions(
    sources: Sequence[Source], evaluations: Sequence[Evaluation], folder: Path
) -> list[str]:
    """Write every leaderboard's file; returns lines that say what was written, and what could not
    be.

    Errors: CannotWrite.
    """
    by_name = {source.name: source for source in sources}
    parts = []
    for evaluation in evaluations:
        source = by_name[evaluation.task]
        if source.task.draws_prompt:  # it answers something else than what the data are for
            continue
        for dataset in (d for d in source.datasets if d.kind in SUFFIXES):
            # The predictions for each data set, with the ids that they have there.
            start = f"{dataset.label}/" if len(source.datasets) > 1 else ""
            pairs = [
                (key.removeprefix(start), prediction)
                for key, prediction in evaluation.predictions.items()
                if key.startswith(start)
            ]
            parts.append(DatasetPredictions(source.name, dataset, pairs))
    # Before anything is written: names must be known to be unique.
    files = Counter(part.file for part in parts)
    lines: list[str] = []
    zips: dict[str, dict[str, str]] = {}
    for part in parts:
        # Two tasks may answer one data set; neither file may replace the other.
        start = f"{part.task}-" if files[part.file] > 1 else ""
        try:
            text = submission_text(part.dataset.kind, part.pairs)
        except Misfit as error:
            lines.append(f"no leaderboard's file for {part.dataset.label}: {error}")
            continue
        if part.dataset.kind in IN_ZIP:
            zips.setdefault(start + ZIP, {})[part.file] = text
            lines.append(f"{folder / (start + ZIP)}: {part.file}")
        else:
            path = folder / (start + part.file)
            write_whole(path, text)
            lines.append(str(path))
        lines += part.notes(text)
    for name, texts in zips.items():
        with (
            whole_file(folder / name) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for member, text in texts.items():
                archive.writestr(member, text)
    return lines
