"""Evaluation on all ranks: every example once, gathered on the first rank and scored once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.eval_order import EvalOrder, Survey, survey
from vlds.data.streams.source import NumPictures, Source
from vlds.data.streams.stream import EvalStream
from vlds.data.streams.streamed_source import StreamedSource, open_streamed
from vlds.evaluation.result import Decoded, Evaluation
from vlds.models.answer_list import read_answers
from vlds.models.vl_model import VLModel
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch
from vlds.tasks.base import Split, Task, label_of

GREY = 128
SECONDS_BETWEEN_LINES = 10.0


def evaluation_sources(recipe: Recipe, split: Split = "evaluate") -> list[Source]:
    """The data of one of the lists on which the tasks are scored, a source a task; tasks that name
    none there have a source without data sets.

    Errors: ValueError for a folder that holds no data set, or one of another kind, and for a score
    that was asked for and cannot be computed here.
    """
    for name, task in recipe.tasks.items():
        if task.data_of(split) and (missing := task.missing_for_scores()) is not None:
            raise ValueError(f"tasks.{name}.{missing}")
    return [
        data_source(recipe, name, task.data_of(split), split) for name, task in recipe.tasks.items()
    ]


def with_answer_lists(recipe: Recipe) -> Recipe:
    """The recipe with the lists of answers that its files hold: a run needs them for ever.

    Errors: ValueError where one cannot be read.
    """
    tasks = dict(recipe.tasks)
    for name, task in recipe.tasks.items():
        if task.decoding.answers is not None:
            try:
                listed = read_answers(task.decoding.answers)
            except ValueError as error:
                raise ValueError(f"tasks.{name}.{error}") from None
            tasks[name] = replace(task, decoding=replace(task.decoding, answers=listed))
    return replace(recipe, tasks=tasks)


def data_source(
    recipe: Recipe, name: str, folders: Sequence[str], split: Split = "evaluate"
) -> Source:
    """A task of the recipe with some data sets; for test data it bears their label."""
    task, label = recipe.tasks[name], label_of(name, split)
    datasets = open_datasets(f"tasks.{label}", task, folders, recipe.data.shard_cache)
    limits = pictures_taken(recipe, name)
    return Source(label, task, datasets, task.weight, task.batch_size, limits)


def pictures_taken(recipe: Recipe, name: str) -> NumPictures:
    """How many pictures the samples of a task may have.

    Errors: ValueError where the model takes fewer than the task needs.
    """
    wanted, most = recipe.tasks[name].num_pictures, recipe.visual_embedding.num_images
    if wanted is None:
        cure = f"raise visual_embedding.num_images, or {NumPictures.cure}"
        return NumPictures(1, most, cure)
    kind = type(recipe.tasks[name]).__name__
    if wanted > most:
        raise ValueError(
            f"visual_embedding.num_images: got {most}, but tasks.{name} ({kind}) has {wanted} "
            f"pictures an example; give {wanted} or more"
        )
    return NumPictures(wanted, wanted)


def training_sources(recipe: Recipe) -> list[Source]:
    """The data that the recipe's tasks learn from.

    Errors: ValueError as above, and where a task names none.
    """
    check_train_data(recipe)
    return [data_source(recipe, name, task.train) for name, task in recipe.tasks.items()]


def streamed_sources(recipe: Recipe) -> list[StreamedSource]:
    """The shards that the recipe's tasks learn from, for the sequential reader.

    Errors: ValueError as above.
    """
    check_train_data(recipe)
    if unknown := sorted(set(recipe.data.fields) - set(recipe.tasks)):
        raise ValueError(
            f"data.fields: no task is called {unknown[0]}; the tasks are {', '.join(recipe.tasks)}"
        )
    sources = []
    for name, task in recipe.tasks.items():
        try:
            fields = recipe.data.fields.get(name)
            datasets = [open_streamed(place, task.kinds, fields) for place in task.train]
        except ValueError as error:
            raise ValueError(f"tasks.{name}: {error}") from error
        limits = pictures_taken(recipe, name)
        sources.append(StreamedSource(name, task, datasets, task.weight, task.batch_size, limits))
    return sources


def check_train_data(recipe: Recipe) -> None:
    """Every task must learn from something.

    Errors: ValueError that names the task.
    """
    for name, task in recipe.tasks.items():
        if not task.train:
            raise ValueError(f"tasks.{name}.train: names no data set; name at least one folder")


def open_datasets(
    place: str, task: Task, folders: Sequence[str], cache: ShardCache | None = None
) -> list[Dataset]:
    """Open a task's data sets and check that it understands them; `place` begins what is wrong."""
    try:
        datasets = [open_dataset(folder, cache) for folder in folders]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    for folder, dataset in zip(folders, datasets, strict=True):
        if dataset.kind not in task.kinds:
            raise ValueError(
                f"{place}: {folder} holds samples of kind '{dataset.kind}', {type(task).__name__} "
                f"understands {', '.join(task.kinds)}; name another folder or another task class"
            )
    return datasets


class EvaluationStopped(Exception):
    """Somebody asked the run to stop while it was evaluating. Raised on all ranks."""


class Evaluator:
    """Decodes and scores the sources that have data. What they ask is read once, when it is made,
    and their batches are laid out then."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        tokenizer: Any,
        ranks: Ranks,
        say: Callable[[str], None] = print,
    ) -> None:
        """Collective. `say` tells how far a long evaluation is.

        Errors: ValueError where the text of a sample cannot be read, or an id stands for two
        examples.
        """
        self.recipe, self.sources, self.tokenizer = recipe, list(sources), tokenizer
        self.ranks, self.say = ranks, say
        self.stopping: Callable[[], bool] = lambda: False
        """Asked after each batch; where it is true on a rank, the evaluation ends."""
        self.told_left_out = False
        for source in sources:
            if source.datasets:
                source.check(recipe.image)
        self.orders = {s.name: self._order(s) for s in sources if s.datasets}

    def _order(self, source: Source) -> EvalOrder:
        survey = self.ranks.broadcast(self._survey(source, self.tokenizer))
        if isinstance(survey, str):
            raise ValueError(survey)
        return EvalOrder(
            np.concatenate(source.counts),
            survey.costs,
            self.recipe.data.eval_batch_size,
            whole_samples=source.task.unit == "sample",
        )

    def _survey(self, source: Source, tokenizer: Any = None) -> Survey | str | None:
        """What a source asks, or what is wrong with it: on the first rank, None elsewhere."""
        num, ranks = len(np.concatenate(source.counts)), self.ranks
        first, last = (
            num * n // ranks.world_size for n in (ranks.global_rank, ranks.global_rank + 1)
        )
        own: Survey | str
        try:
            own = survey(source, range(first, last), tokenizer)
            if tokenizer is not None:  # the costs are wanted, and the rest is much to send
                own.references, own.samples = [], []
        except ValueError as error:
            own = str(error)
        gathered = ranks.gather(own)
        if gathered is None:
            return None
        together = Survey()
        for part in gathered:
            if isinstance(part, str):
                return part
            together.extend(part)
        try:
            together.check()
        except ValueError as error:
            return str(error)
        return together if tokenizer is None else Survey(costs=together.costs)  # no texts

    def score_names(self, name: str) -> list[str]:
        """The scores that a task gets on its data, told without a model. Collective."""
        (source,) = (source for source in self.sources if source.name == name)
        found = self._survey(source)
        names: list[str] = []
        if isinstance(found, Survey):
            references = dict(zip(found.ids, found.references, strict=True))
            names = list(source.task.score(dict.fromkeys(references, ""), references))
        known: list[str] = self.ranks.broadcast(names)
        return known

    def __call__(self, model: VLModel, *, score: bool = True) -> list[Evaluation]:
        """Decode, gather, score once. Collective; the result is on the first rank, [] elsewhere.

        Every rank holds whole weights, and decodes its part at its own pace. Errors:
        EvaluationStopped where `stopping` has been true.
        """
        if score:
            self._tell_left_out()
        evaluations = []
        for number, source in enumerate(self.sources):
            if source.datasets:
                evaluation = self._evaluate(model, number, source, score)
                evaluations += [] if evaluation is None else [evaluation]
        return evaluations

    def _tell_left_out(self) -> None:
        """Say once, before anything is decoded, which scores there will not be."""
        if not self.ranks.is_first or self.told_left_out:
            return
        self.told_left_out = True
        for source in self.sources:
            if source.datasets and (missing := source.task.left_out()) is not None:
                self.say(f"{source.name}: {missing}")

    def _evaluate(
        self, model: VLModel, number: int, source: Source, score: bool
    ) -> Evaluation | None:
        setup = StreamSetup(
            tokenizer=self.tokenizer,
            image=self.recipe.image,
            cut=BatchCut(self.ranks.world_size),
            global_rank=self.ranks.global_rank,
            worker_timeout=self.recipe.training.worker_timeout,
        )
        stream = EvalStream(
            source,
            self.orders[source.name],
            setup,
            num_workers=self.recipe.data.num_workers,
            task_index=number,
        )
        own = list(self._decoded(model, stream, source))
        if self.ranks.any(self.stopping()):
            raise EvaluationStopped
        gathered = self.ranks.gather((own, stream.bad))
        if gathered is None:
            return None
        evaluation = Evaluation.of(source, gathered)
        assert len(evaluation.predictions) == self.orders[source.name].num_examples
        return evaluation.scored(source.task) if score else evaluation

    def _decoded(self, model: VLModel, stream: EvalStream, source: Source) -> Iterator[Decoded]:
        """This rank's examples."""
        batches = blanked(stream) if self.recipe.data.blank_images else stream
        started = told = time.monotonic()
        for done, batch in enumerate(batches, 1):
            found = model.answer(batch.to(self.ranks.device), source.task.decoding)
            for row, answer in enumerate(found):
                if batch.valid[row]:
                    yield Decoded(
                        batch.ids[row],
                        batch.samples[row],
                        batch.references[row],
                        source.task.answer_from(answer.text),
                        answer.confidence,
                        answer.token_confidence,
                    )
            if self.stopping():
                return
            now = time.monotonic()
            if self.ranks.is_first and now - told > SECONDS_BETWEEN_LINES and done < len(stream):
                told = now
                share, num = done / len(stream), self.orders[source.name].num_examples
                speed = share * num / (now - started)
                left = time.strftime("%H:%M:%S", time.gmtime((1 - share) * num / speed))
                self.say(
                    f"{source.name}: {round(share * num):,} of {num:,} examples  "
                    f"{speed:,.0f} examples/s  {left} left"
                )


def blanked(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches with grey pictures: what a model knows without seeing."""
    for batch in batches:
        pictures = batch.images if batch.images is not None else batch.features
        if pictures is not None:
            pictures.fill_(GREY if batch.images is not None else 0)
        yield batch
