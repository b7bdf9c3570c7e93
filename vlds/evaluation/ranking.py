"""All pairs of a task's pictures and texts: `PairRanking` lets the task's head score each pair, and
finds the best pictures of each text and the place of each text for its own picture.

What the model makes of a text or of a picture alone is computed once. Texts are scored in batches
that depend on the data alone, a picture at a time, and ranks take turns with the pictures: scores
are the same, bit for bit, on any number of ranks. Equal ones stand in the order of the data.

Shapes: m texts of all the data, n texts of a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlds.data.errors import BadSample
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import EvalOrder, Source, fixed_examples
from vlds.data.streams.stream import EvalStream
from vlds.evaluation.result import Decoded, Details
from vlds.models.model import Model, ReadAlone
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import Pace, clock
from vlds.schema import Example, Row
from vlds.tasks.retrieval import DEPTHS, Places, Retrieval

KEPT = max(DEPTHS)
"""Pictures of a text that are kept."""


class Text(NamedTuple):
    """A text of the data."""

    example: Example
    sample: int
    """Number of the sample whose text it is."""
    tokens: int


class Fold(NamedTuple):
    """Pictures and texts that are compared with each other."""

    texts: Tensor
    """(n,) numbers of its texts among all."""
    places: dict[int, list[int]]
    """Sample -> places of its texts in the fold."""

    @property
    def num_pairs(self) -> int:
        return len(self.texts) * len(self.places)

    @classmethod
    def of(cls, numbered: Sequence[tuple[int, Text]]) -> Fold:
        places: dict[int, list[int]] = {}
        for place, (_, text) in enumerate(numbered):
            places.setdefault(text.sample, []).append(place)
        return cls(torch.tensor([number for number, _ in numbered], dtype=torch.long), places)


class PairRanking:
    """One rank's part of all pairs of a source."""

    def __init__(
        self,
        source: Source,
        setup: StreamSetup,
        ranks: Ranks,
        *,
        batch_size: int,
        num_workers: int,
        task_index: int,
        say: Callable[[str], None],
    ) -> None:
        """`batch_size`: texts that are scored at once; `task_index`: of the task in the recipe."""
        assert isinstance(source.task, Retrieval)
        self.source, self.setup, self.ranks, self.say = source, setup, ranks, say
        self.batch_size, self.num_workers, self.task_index = batch_size, num_workers, task_index
        self.counts = source.counts
        self.first_position = np.cumsum(self.counts) - self.counts
        samples, limit = range(len(self.counts)), source.task.max_prompt_tokens
        self.texts: list[Text] = []
        self.unknown: list[Example] = []
        """Examples of a split without texts."""
        for sample, (_, examples) in enumerate(fixed_examples(source, samples)):
            known = [example for example in examples if example.reference is not None]
            self.unknown += [example for example in examples if example.reference is None]
            lengths = setup.collator.prompt_lengths([(e.prompt, limit) for e in known])
            self.texts += map(Text, known, [sample] * len(known), lengths)
        size = source.task.fold or max(1, len(self.counts))
        by_fold: dict[int, list[tuple[int, Text]]] = {}
        for number, text in enumerate(self.texts):
            by_fold.setdefault(text.sample // size, []).append((number, text))
        self.folds = [Fold.of(numbered) for numbered in by_fold.values()]
        self.bad: list[BadSample] = []
        """This rank's texts whose picture could not be read."""
        self.places: dict[int, int] = {}
        """Place of each text for its own picture, of this rank's pictures; 0: not found."""
        self.scores = torch.full((len(self.texts), KEPT), -torch.inf)
        self.num_nan = 0
        """Pairs, of this rank's pictures, whose score is not a number."""
        self.pictures = torch.full((len(self.texts), KEPT), -1)
        """(m, 10) samples of the best of this rank's pictures for each text; -1 for none."""

    def run(
        self, model: Model, stopping: Callable[[], bool], begin_batch: Callable[[], None]
    ) -> None:
        """Score this rank's pairs, until `stopping` is true. Says at the beginning what it will
        take. `begin_batch`: as in `Model.at_own_pace`."""
        name, all_pairs = self.source.name, sum(fold.num_pairs for fold in self.folds)
        if self.ranks.is_first:
            pictures = sum(len(fold.places) for fold in self.folds)
            folds = f" in {len(self.folds)} folds" if len(self.folds) > 1 else ""
            self.say(
                f"{name}: {pictures:,} pictures and {len(self.texts):,} texts{folds}: "
                f"{all_pairs:,} pairs on {self.ranks.world_size} rank(s)"
            )
        pace, done, has_told = Pace(), 0, False
        for fold in self.folds:
            numbers = fold.texts.tolist()
            # Long texts first, with others of their length.
            order = sorted(range(len(numbers)), key=lambda n: -self.texts[numbers[n]].tokens)
            read = list(self.read_texts(model, [numbers[n] for n in order], begin_batch))
            if not has_told:
                pace = Pace()  # reading texts is no part of a pair's time
            for sample, picture in self.read_pictures(model, list(fold.places), begin_batch):
                scores = []
                for texts in read:
                    begin_batch()
                    scores.append(model.pair_scores(texts, picture))
                of_fold = torch.empty(len(numbers))
                of_fold[order] = torch.cat(scores).cpu()
                self.keep(fold, sample, of_fold)
                done += len(numbers) * self.ranks.world_size  # ranks take turns with the pictures
                if self.ranks.is_first and (pace.line_is_due() or not has_told):
                    speed, has_told = done / max(pace.seconds, 1e-9), True
                    self.say(
                        f"{name}: {min(done, all_pairs):,} of {all_pairs:,} pairs  "
                        f"{speed:,.0f} pairs/s  {clock(max(0, all_pairs - done) / speed)} left"
                    )
                if stopping():
                    return

    def read_texts(
        self, model: Model, numbers: Sequence[int], begin_batch: Callable[[], None]
    ) -> Iterator[ReadAlone]:
        """These texts in batches, as the model reads them alone."""
        task = self.source.task
        for start in range(0, len(numbers), self.batch_size):
            rows = [
                Row(
                    self.texts[number].example,
                    self.task_index,
                    task.max_prompt_tokens,
                    task.max_target_tokens,
                    (),
                )
                for number in numbers[start : start + self.batch_size]
            ]
            batch = self.setup.collator(rows, None, evaluation=True)
            begin_batch()
            yield model.read_texts(batch.to(self.ranks.device))

    def read_pictures(
        self, model: Model, samples: Sequence[int], begin_batch: Callable[[], None]
    ) -> Iterator[tuple[int, ReadAlone]]:
        """This rank's share of these samples, and their pictures as the model reads them alone."""
        order = EvalOrder(self.counts, [(1, 1)] * len(self.counts), self.batch_size)
        # A batch for each sample, with the row of its first text.
        order.batches = [[int(self.first_position[sample])] for sample in samples]
        stream = EvalStream(
            self.source,
            order,
            self.setup,
            num_workers=self.num_workers,
            task_index=self.task_index,
        )
        mine = samples[self.setup.global_rank :: self.setup.cut.world_size]
        for sample, batch in zip(mine, stream, strict=True):
            if batch.valid[0]:
                begin_batch()
                yield sample, model.read_picture(batch.to(self.ranks.device))
        by_position = {entry.position: entry for entry in stream.bad}
        for text in self.texts:
            entry = by_position.get(int(self.first_position[text.sample]))
            if entry is not None:
                asked = text.example
                self.bad.append(
                    replace(entry, id=asked.id, reference=asked.reference, sample=asked.sample)
                )

    def keep(self, fold: Fold, sample: int, scores: Tensor) -> None:
        """Note what a picture's scores (n,) of a fold's texts say of both sides."""
        self.num_nan += int(scores.isnan().sum())
        # NaN compares as false with everything, and would put a text first.
        scores = scores.masked_fill(scores.isnan(), -torch.inf)
        for place in fold.places[sample]:
            mine = scores[place]
            ahead = (scores > mine).sum() + (scores[:place] == mine).sum()
            is_found = mine > -torch.inf
            self.places[int(fold.texts[place])] = 1 + int(ahead) if is_found else 0
        rows, pictures = fold.texts, torch.full((len(scores), 1), sample)
        self.scores[rows], self.pictures[rows] = best(
            torch.cat([self.scores[rows], scores[:, None]], 1),
            torch.cat([self.pictures[rows], pictures], 1),
        )

    def gathered(self) -> tuple[list[Decoded], list[BadSample]] | None:
        """The texts of all ranks, each with its prediction, and those whose picture could not be
        read; on the first rank, None elsewhere. Collective."""
        parts = self.ranks.gather((self.scores, self.pictures, self.places, self.bad, self.num_nan))
        if parts is None:
            return None
        if num_nan := sum(part[4] for part in parts):
            self.say(
                f"{self.source.name}: the scores of {num_nan:,} pairs are not numbers (NaN); they "
                "count as not found"
            )
        scores, pictures = (torch.cat(kept, 1) for kept in list(zip(*parts, strict=True))[:2])
        _, pictures = best(scores, pictures)
        places = {number: place for part in parts for number, place in part[2].items()}
        bad = [entry for part in parts for entry in part[3]]
        names = {text.sample: str(text.example.reference) for text in self.texts}
        decoded = [Decoded(e.id, None, "", Details(e.sample)) for e in self.unknown]
        for number, place in sorted(places.items()):
            example = self.texts[number].example
            found = [names[sample] for sample in pictures[number].tolist() if sample >= 0]
            prediction = Places(found, place).text
            details = Details(example.sample)
            decoded.append(Decoded(example.id, example.reference, prediction, details))
        return decoded, bad


def best(scores: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The best scores (m, 10) of (m, k), and their pictures; equal ones in the pictures' order."""
    # Two stable sorts: by picture, then by score.
    by_picture = pictures.argsort(dim=1, stable=True)
    scores, pictures = scores.gather(1, by_picture), pictures.gather(1, by_picture)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :KEPT]
    return scores.gather(1, by_score), pictures.gather(1, by_score)
