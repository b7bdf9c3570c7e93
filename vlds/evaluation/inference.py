"""Use a run: score it on data sets, write what it predicts for them, or answer one question. Each
rank holds the whole model if it fits, or else a part of each weight.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from vlds.artifact import LoadedRun, load_run, read_recipe
from vlds.data.order.epoch_order import hashed
from vlds.data.shards.remote import is_url
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source, check_cache_limit
from vlds.evaluation.evaluator import Evaluator, choose_task, predict
from vlds.evaluation.prediction_files import write_submissions
from vlds.evaluation.result import Evaluation, leave
from vlds.evaluation.sources import encode_picture, evaluation_sources, with_lists
from vlds.models.partitioned import layer_by_layer
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import WEIGHTS, artifact_folder, check_changes, home_of, tell_hosts
from vlds.runtime.deepspeed_start import LONGEST_WAIT, start_ranks
from vlds.runtime.devices import hardware
from vlds.runtime.disk import check_writable
from vlds.runtime.folders import BLANK, PREDICTIONS
from vlds.runtime.json_files import recorded_hash
from vlds.runtime.rank_environment import check_processes
from vlds.runtime.ranks import Ranks, hold_folder, rank_from_environment
from vlds.runtime.reproducible import pin_arithmetic
from vlds.runtime.terminal import tell
from vlds.tasks.base import SPLITS, Split, label_of, task_of

LONGEST_NAME = 100
"""Characters of data sets' names in the name of a folder."""


def answer_sets(
    run: Path,
    data: Sequence[str],
    splits: Sequence[Split],
    out: Path | None,
    changes: Sequence[str],
    *,
    score: bool,
) -> int:
    """Answer lists of a run's own recipe (default: all that name data), or `data`; write the
    predictions, with their scores or else with the files that leaderboards take. `changes` to the
    recipe: as in `load_run`. Returns the exit code. Collective.

    Errors: ValueError for what is wrong with the run, the data, the changes or `out`.
    """
    check_changes(changes)
    folder = artifact_folder(run)
    recipe = read_recipe(folder, changes)
    # First of all: it may start the process again.
    if recipe.training.reproducible:
        pin_arithmetic(rank_from_environment())
    recipe = with_data(recipe, data) if data else recipe
    if score:
        tasks = {name: task.thorough() for name, task in recipe.tasks.items()}
        recipe = replace(recipe, tasks=tasks)
    if not data:
        asked = [t.data_of(split) for t in recipe.tasks.values() for split in splits or SPLITS]
        tell_hosts(run, chain(*asked))
    recipe = with_lists(recipe)
    named = [s for s in SPLITS if any(task.data_of(s) for task in recipe.tasks.values())]
    if not named:
        raise ValueError(
            f"--data: the recipe of {run} names nothing to evaluate on; name data set folders"
        )
    if missing := [split for split in splits if split not in named]:
        raise ValueError(
            f"--split: no task of {run} names data sets under `{missing[0]}`; name them with "
            f"--data, or with --tasks.TASK.{missing[0]}"
        )
    lists = []
    for split in (split for split in named if split in splits or not splits):
        try:
            lists.append(evaluation_sources(recipe, split))
        except ValueError as error:
            if split in splits or split != "test":
                raise
            # Nobody asked for test data.
            raise ValueError(f"{error}; or leave test data out: --split evaluate") from error
    # One check for all lists: the cache must hold all data that is evaluated.
    sources = [source for entry in lists for source in entry]
    check_cache_limit(recipe.data.cache_bytes, [], sources, window=recipe.data.window)
    if out is None:
        out = results_folder(run, recipe, sources)
    check_writable(out, "--out")
    # Data and places are checked: the model, which takes long to load, comes last.
    ranks = start_ranks(LONGEST_WAIT)
    check_processes("data.num_workers", recipe.data.num_workers * len(ranks.on_this_machine))
    if ranks.is_first:
        say(f"on {hardware(ranks.world_size)}")
    loaded = load_run(run, changes=changes, ranks=ranks)
    weights = recorded_hash(folder, WEIGHTS)
    if ranks.is_first:
        for split in splits:
            for name in (name for name, task in recipe.tasks.items() if not task.data_of(split)):
                say(f"{name}: left out, its task names no data sets under `{split}`")
    with hold_folder(ranks, out):
        evaluations = decode(replace(loaded, recipe=recipe), lists, ranks, score=score)
        leave(evaluations, out, scores=score, weights=weights)
        if not score:
            for line in write_submissions(sources, evaluations, out):
                tell(line)
        ranks.barrier()
    return 0


def decode(
    run: LoadedRun, lists: Sequence[Sequence[Source]], ranks: Ranks, *, score: bool
) -> list[Evaluation]:
    """The evaluations of lists of sources, in their order; on the first rank alone. Data that a
    task names under both `evaluate` and `test` are decoded once."""
    repeated = {
        label_of(name, "test"): name
        for name, task in run.recipe.tasks.items()
        if len(lists) > 1 and task.test and task.test == task.evaluate
    }
    # All lists' questions are read before the first answer.
    evaluators = [
        Evaluator(
            run.recipe,
            [replace(s, datasets=[]) if s.name in repeated else s for s in sources],
            run.collator,
            ranks,
            say,
        )
        for sources in lists
    ]
    model = run.model.to(ranks.device)
    with torch.no_grad(), layer_by_layer(model, ranks):
        results = {e.task: e for evaluator in evaluators for e in evaluator(model, score=score)}
    if results:
        results |= {label: replace(results[name], task=label) for label, name in repeated.items()}
    return [results[s.name] for sources in lists for s in sources if s.name in results]


def say(line: str) -> None:
    """Report progress at once, apart from the results."""
    tell(line, error=True, flush=True)


def results_folder(run: Path, recipe: Recipe, sources: Sequence[Source]) -> Path:
    """Where results go by default: `predictions` beside the model (RUN, or RUN/best of a best
    step) for the data that the run itself is scored on.
    Other data, and pictures left blank, get a folder below it, so that no report shows their
    scores as the run's."""
    run_recipe = read_recipe(artifact_folder(run))
    folder = home_of(run) / PREDICTIONS
    # Tasks without data are not scored; where they were read does not matter.
    read = [source for source in sources if source.datasets]
    if any(locations(recipe, s.name) != locations(run_recipe, s.name) for s in read):
        # Each data set once: several tasks may read the same. The hash tells apart folders whose
        # names are cut, or whose data sets have one name and other content.
        ids = list(dict.fromkeys(source.data_id for source in read))
        names = "+".join(entry.partition("@")[0] for entry in ids)
        folder /= f"{names[:LONGEST_NAME]}@{hashed(ids)}"
    is_blank = recipe.data.blank_images and not run_recipe.data.blank_images
    return folder / BLANK if is_blank else folder


def locations(recipe: Recipe, label: str) -> list[str]:
    """Real paths or URLs of the data sets of a task's list."""
    name = task_of(label)
    folders = recipe.tasks[name].data_of("evaluate" if label == name else "test")
    return [folder if is_url(folder) else os.path.realpath(folder) for folder in folders]


def with_data(recipe: Recipe, data: Sequence[str]) -> Recipe:
    """The recipe with only these data to evaluate on: FOLDER, or TASK=FOLDER.

    Errors: ValueError if no task, or more than one, reads a folder's kind of samples.
    """
    folders: dict[str, list[str]] = {name: [] for name in recipe.tasks}
    for entry in data:
        name, equals, folder = entry.partition("=")
        if not equals:
            kind, folder = open_dataset(entry, recipe.data.shard_cache).kind, entry
            readers = [name for name, task in recipe.tasks.items() if kind in task.kinds]
            if len(readers) != 1:
                kinds = {name: "/".join(task.kinds) for name, task in recipe.tasks.items()}
                known = ", ".join(f"{name} reads {read}" for name, read in kinds.items())
                which = "several tasks of the run read" if readers else "no task of the run reads"
                cure = f"say TASK={entry}" if readers else "name another data set, or another run"
                raise ValueError(
                    f"--data: {entry} holds samples of kind '{kind}', which {which} ({known}); "
                    f"{cure}"
                )
            (name,) = readers
        if name not in folders:
            raise ValueError(f"--data: the run has no task {name}; its tasks: {', '.join(folders)}")
        folders[name].append(folder)
    tasks = {
        name: replace(task, evaluate=folders[name], test=[]) for name, task in recipe.tasks.items()
    }
    return replace(recipe, tasks=tasks)


def predict_one(
    run: Path,
    images: Sequence[str],
    question: str,
    task_name: str | None,
    changes: Sequence[str] = (),
) -> int:
    """Print the answer about pictures. Returns the exit code."""
    # Before the run is loaded, which takes seconds.
    try:
        pictures = [encode_picture(image) for image in images]
    except ValueError as error:
        raise ValueError(f"--image: {error}") from None
    ranks = rank_from_environment()
    if ranks.world_size > 1:
        ranks = start_ranks(LONGEST_WAIT)
    if ranks.is_first:
        say(f"on {hardware(ranks.world_size)}")
    loaded = load_run(run, changes=changes, ranks=ranks)
    name = choose_task(loaded.recipe, task_name, question)
    loaded.model.to(ranks.device)
    with torch.no_grad(), layer_by_layer(loaded.model, ranks):
        answer = predict(loaded, name, pictures, question, list(images))
    if ranks.is_first:
        tell(answer.text)
        if answer.prompt_cut:
            most = loaded.recipe.tasks[name].max_prompt_tokens
            tell(
                f"the question is too long: its end was not read (tasks.{name}.max_prompt_tokens: "
                f"{most})",
                error=True,
            )
    return 0
