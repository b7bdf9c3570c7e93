"""Evaluation on all ranks: every example is decoded once; the first rank gathers and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.eval_order import EvalOrder, Survey, survey
from vlds.data.streams.source import Source
from vlds.data.streams.stream import EvalStream
from vlds.evaluation.result import Decoded, Details, Evaluation
from vlds.models.model import Model
from vlds.runtime.durations import clock
from vlds.runtime.progress import Pace
from vlds.runtime.ranks import Ranks
from vlds.schema import Collator


class EvaluationStopped(Exception):
    """A stop was requested during an evaluation. Raised on all ranks."""


class Evaluator:
    """Decodes and scores the sources that have data. The constructor reads their questions and
    plans their batches."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        collator: Collator,
        ranks: Ranks,
        say: Callable[[str], None] = print,
    ) -> None:
        """Collective. `say` reports the progress of a long evaluation.

        Errors: ValueError if the text of a sample cannot be read, or two examples have one id.
        """
        self.recipe, self.sources, self.collator = recipe, list(sources), collator
        self.ranks, self.say = ranks, say
        self.stopping: Callable[[], bool] = lambda: False
        """Asked after each batch; if it is true on a rank, the evaluation ends."""
        self.reported_left_out = False
        for source in sources:
            if source.datasets:
                source.check(recipe.image)
        self.orders = {s.name: self._order(s) for s in sources if s.datasets}

    def _order(self, source: Source) -> EvalOrder:
        merged = self._survey(source, self.collator)
        return EvalOrder(
            np.concatenate(source.counts),
            self.ranks.broadcast(merged and merged.costs),
            self.recipe.data.eval_batch_size,
            whole_samples=source.task.unit == "sample",
        )

    def _survey(self, source: Source, collator: Collator | None = None) -> Survey | None:
        """What a source asks, with costs if there is a collator; on the first rank, None
        elsewhere. Collective; errors are ValueErrors on all ranks."""
        ranks, num_samples = self.ranks, len(np.concatenate(source.counts))
        start, stop = (
            num_samples * n // ranks.world_size for n in (ranks.global_rank, ranks.global_rank + 1)
        )
        share, problem = Survey(), None
        try:
            share = survey(source, range(start, stop), collator)
        except ValueError as error:
            problem = str(error)
        if collator is not None:  # the caller needs only costs, and the rest is much to send
            share.references, share.samples = [], []
        merged = Survey()
        for part, part_problem in ranks.gather((share, problem)) or []:
            merged.extend(part)
            problem = problem or part_problem
        try:
            merged.check()
        except ValueError as error:
            problem = problem or str(error)
        if problem := ranks.broadcast(problem):
            raise ValueError(problem)
        return merged if ranks.is_first else None

    def score_names(self, name: str) -> list[str]:
        """The scores that a task gets on its data; needs no model. Collective."""
        (source,) = (source for source in self.sources if source.name == name)
        names: list[str] = []
        if (merged := self._survey(source)) is not None:
            references = dict(zip(merged.ids, merged.references, strict=True))
            names = list(source.task.score(dict.fromkeys(references, ""), references))
        broadcast_names: list[str] = self.ranks.broadcast(names)
        return broadcast_names

    def __call__(self, model: Model, *, score: bool = True) -> list[Evaluation]:
        """Decode, gather and score. Collective; returns the result on the first rank, [] elsewhere.

        Every rank holds whole weights and decodes its part at its own pace. Errors:
        EvaluationStopped after `stopping` was true.
        """
        if score:
            self._tell_left_out()
        evaluations = []
        for number, source in enumerate(self.sources):
            if source.datasets:
                evaluation = self._evaluate(model, number, source, score)
                if evaluation is not None:
                    evaluations.append(evaluation)
        return evaluations

    def _tell_left_out(self) -> None:
        """Say once, before anything is decoded, which scores cannot be computed."""
        if not self.ranks.is_first or self.reported_left_out:
            return
        self.reported_left_out = True
        for source in self.sources:
            if source.datasets and (missing := source.task.left_out()) is not None:
                self.say(f"{source.name}: {missing}")

    def _evaluate(
        self, model: Model, number: int, source: Source, score: bool
    ) -> Evaluation | None:
        setup = StreamSetup(
            collator=self.collator,
            image=self.recipe.image,
            cut=BatchCut(self.ranks.world_size),
            global_rank=self.ranks.global_rank,
            worker_timeout=self.recipe.training.worker_timeout,
            blank_images=self.recipe.data.blank_images,
        )
        stream = EvalStream(
            source,
            self.orders[source.name],
            setup,
            num_workers=self.recipe.data.num_workers,
            task_index=number,
        )
        pace = Pace()
        decoded = list(self._decoded(model, stream, source))
        if self.ranks.any(self.stopping()):  # waits for the slowest rank
            raise EvaluationStopped
        seconds = pace.seconds
        gathered = self.ranks.gather((decoded, stream.bad))
        if gathered is None:
            return None
        evaluation = Evaluation.of(source, gathered, seconds)
        assert len(evaluation.predictions) == self.orders[source.name].num_examples
        return evaluation.scored(source.task) if score else evaluation

    def _decoded(self, model: Model, stream: EvalStream, source: Source) -> Iterator[Decoded]:
        """This rank's examples."""
        pace = Pace()
        for done, batch in enumerate(stream, 1):
            answers = model.answer(batch.to(self.ranks.device), source.task.decoding)
            for row, answer in enumerate(answers):
                if batch.valid[row]:
                    yield Decoded(
                        batch.ids[row],
                        batch.references[row],
                        source.task.answer_from(answer.text),
                        Details(batch.samples[row], answer.confidence, answer.token_confidence),
                    )
            if self.stopping():
                return
            if self.ranks.is_first and done < len(stream) and pace.line_is_due():
                share, num = done / len(stream), self.orders[source.name].num_examples
                speed = share * num / pace.seconds
                left = clock((1 - share) * num / speed)
                self.say(
                    f"{source.name}: {round(share * num):,} of {num:,} examples  "
                    f"{speed:,.0f} examples/s  {left} left"
                )
