"""Score files of predictions, whoever made them: no model, no ranks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vlds.tasks
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.streams.eval_order import survey
from vlds.data.streams.source import Source
from vlds.evaluation.prediction_files import IN_ZIP, as_mapping, read_pairs, value_member
from vlds.evaluation.result import Details, Evaluation, leave
from vlds.evaluation.sources import open_datasets
from vlds.recipe.parse import parse
from vlds.recipe.trusted import trust
from vlds.runtime.disk import check_writable
from vlds.runtime.terminal import tell
from vlds.tasks.base import Task


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
    asked.check()
    pairs = [pair for file in files for pair in read_pairs(file, members_for(datasets))]
    predictions = as_mapping(pairs, f"--predictions: {', '.join(map(str, files))}")
    references = dict(zip(asked.ids, asked.references, strict=True))
    details = dict(zip(asked.ids, map(Details, asked.samples), strict=True))
    evaluation = Evaluation(
        source.name, {}, predictions, references, details, data=source.data_id
    ).scored(task)
    if out is None:
        tell("\n".join(evaluation.lines()))
    else:
        leave([evaluation], out, scores=True)
    return 0


def members_for(datasets: Sequence[Dataset]) -> dict[str, str]:
    """Members of VALUE's zip that answer these data sets -> what their ids begin with here."""
    several = len(datasets) > 1
    return {
        value_member(dataset.kind, dataset.name, dataset.split): (
            f"{dataset.label}/" if several else ""
        )
        for dataset in datasets
        if dataset.kind in IN_ZIP
    }


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
