"""Asks the tasks that vlds brings about a sample, before a run does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

import vlds.tasks
from vlds.data.streams.source import NumPictures
from vlds.schema import Sample, SkipSample
from vlds.tasks.base import Task, ask

TASKS: tuple[Task, ...] = tuple(
    getattr(vlds.tasks, name)() for name in vlds.tasks.__all__ if name != Task.__name__
)


@dataclass
class Asked:
    """What the tasks found."""

    faults: list[str] = field(default_factory=list)
    """Why a run would replace the sample, or refuse to start with it."""
    labelled: set[int] = field(default_factory=set)
    """Numbers of the annotations that a task can train on."""


def ask_all(sample: Sample) -> Asked:
    """Ask the tasks of a sample's kind about all its annotations, in training and evaluation.

    The tasks have their own prompts; a recipe may give longer ones.
    """
    asked = Asked()
    for task in TASKS:
        if sample.kind in task.kinds:
            try:
                _ask(task, sample, asked)
            except SkipSample as error:
                asked.faults.append(str(error))
    return asked


def _ask(task: Task, sample: Sample, asked: Asked) -> None:
    """Errors: SkipSample."""
    NumPictures(task.num_pictures or 0, task.num_pictures).check(sample)
    rng = np.random.default_rng(0)
    indices = range(len(sample.annotations))
    for index in indices:
        try:
            example = ask(task, sample.kind, sample, index, rng)
        except ValueError:  # the split has no labels
            continue
        if example.target is not None:
            asked.labelled.add(index)
    for annotation in indices if task.unit == "annotation" else [None]:
        ask(task, sample.kind, sample, annotation, None)
