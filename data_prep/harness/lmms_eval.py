"""`lmms-eval`: a task of lmms-eval, as its own code reads it: questions in its words, pictures, and
right answers. It needs lmms-eval, and the task's data where lmms-eval looks for them."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from vlds.runtime.files import read_file
from vlds.runtime.terminal import tell

from ..command import new_command
from ..own_data.conversations import Unusable
from ..packing.source import Dropped
from .rows import BenchmarkRow, Photo, Said, add_options, pack_rows


def open_task(name: str, include: Path | None) -> Any:
    """The task of a name; `include`: a folder with tasks of your own.

    Errors: ValueError if lmms-eval is not installed, knows no such task, or does not generate for
    it.
    """
    try:
        tasks = import_module("lmms_eval.tasks")
    except ImportError as error:
        raise ValueError(
            f"--task {name}: lmms-eval cannot be imported ({error}); docs/harnesses.md says how to "
            "install it"
        ) from error
    # It names each of its 2,000 files that is not a task; what it raises is told in any case.
    import_module("loguru").logger.disable("lmms_eval")
    manager = tasks.TaskManager(include_path=None if include is None else str(include))
    if name not in manager.all_subtasks:
        raise ValueError(
            f"--task {name}: lmms-eval knows no such task; `lmms-eval tasks` lists all"
        )
    # A chat task turns a row into messages, whatever form its file has.
    task = next(iter(tasks.get_task_dict([name], manager, "chat").values()))
    if task.OUTPUT_TYPE != "generate_until":
        raise ValueError(
            f"--task {name}: of type {task.OUTPUT_TYPE}, whose answers nobody writes; ask a run by "
            "`lmms-eval --model vlds`"
        )
    return task


def rows_of(task: Any) -> Iterator[BenchmarkRow | Dropped]:
    """The rows of a task, numbered as lmms-eval numbers them."""
    for number, doc in enumerate(task.eval_docs):
        try:
            turns = [Said(m["role"], [_part(c) for c in m["content"]]) for m in messages(task, doc)]
            answers = _answers(task, doc)
        except Unusable as reason:
            yield Dropped(str(number), str(reason))
            continue
        texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
        yield BenchmarkRow(str(number), turns, " ".join(texts), answers)


def messages(task: Any, doc: Mapping[str, Any]) -> list[Any]:
    asked: list[Any] = task.doc_to_messages(doc)
    return asked


def _part(content: Mapping[str, Any]) -> str | Photo:
    """Errors: Unusable."""
    if content["type"] == "text":
        return str(content["text"])
    if content["type"] != "image":
        raise Unusable(f"a part of type {content['type']}")
    shown = content["url"]
    if isinstance(shown, str):
        try:
            return Photo(read_file(Path(shown)))
        except (OSError, ValueError):
            raise Unusable("a picture whose file cannot be read") from None
    if not isinstance(shown, Image.Image):
        raise Unusable(f"a picture that is {type(shown).__name__}")
    buffer = io.BytesIO()
    shown.convert("RGB").save(buffer, "PNG", compress_level=1)
    return Photo(buffer.getvalue())


def _answers(task: Any, doc: Mapping[str, Any]) -> list[str]:
    """Errors: Unusable."""
    target = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None and isinstance(target, int):
        target = task.doc_to_choice(doc)[target]
    answers = target if isinstance(target, list) else [target]
    if not all(isinstance(answer, (str, int, float)) for answer in answers):
        raise Unusable(f"a right answer that is {type(answers[0]).__name__}")
    return [str(answer) for answer in answers if str(answer).strip()]


def scored_by(task: Any) -> str:
    """How lmms-eval scores the task, for a reader who wants the same number."""
    metrics = ", ".join(
        f"{entry['metric']}"
        + "".join(f" ({key})" for key, value in entry.items() if key.startswith("ignore") and value)
        for entry in task.config.metric_list or []
    )
    if task.config.process_results is not None:
        return f"lmms-eval scores it by code of the task ({metrics}); vlds has no such score"
    return f"lmms-eval scores it by {metrics}; docs/harnesses.md says which score of vlds is equal"


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "lmms-eval",
        "With --form chat, questions have the words of lmms-eval's own prompt, so that a run "
        "answers both alike. Sound and clips are dropped and counted.",
        examples=["lmms-eval --task gqa --out shards/gqa-lmms-eval"],
    )
    parser.add_argument("--task", required=True, metavar="NAME")
    parser.add_argument(
        "--include-path", type=Path, metavar="DIR", help="folder with tasks of your own"
    )
    add_options(parser, "that of the task")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    task = open_task(args.task, args.include_path)
    tell(f"{args.task}: {scored_by(task)}")
    pack_rows(rows_of(task), args.name or args.task, [], args)
