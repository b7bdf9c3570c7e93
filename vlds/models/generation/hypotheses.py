"""What a decoder has written so far: one greedy answer, or the beams of a beam search.

Beam scores are those of transformers 4.2, as VL-Adapter has them: the sum of log-probabilities
divided by the length that counts the start token, for open answers at the length limit too. Shapes:
b examples, k beams, w words of vocabulary, l length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.schema import Decoding


class Written(NamedTuple):
    """What was written."""

    ids: Tensor
    """(b, l) with start token and padding."""
    log_probabilities: Tensor
    """(b,) that the model gives to the whole answer, </s> included."""


class Hypotheses(ABC):
    """What has been written so far for each example, `size` times."""

    rows: ClassVar[tuple[str, ...]] = ("ids", "sums", "done")
    """Tensors with a row for each example."""
    sums: Tensor
    """Log-probabilities of what has been written."""

    def __init__(self, start: Tensor, limit: int, config: Any) -> None:
        """`start`: (b, k, 1)."""
        self.ids, self.limit, self.size = start, limit, start.shape[1]
        self.eos, self.pad = config.eos_token_id, config.pad_token_id
        self.done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        """(b,) True for finished examples."""

    @abstractmethod
    def advance(self, scores: Tensor, logits: Tensor) -> Tensor | None:
        """Extend by a token from scores (b * k, w), the logits as the rules have bent them;
        (b * k,) rows that continue, None for all."""

    @abstractmethod
    def best(self) -> Written:
        """Answers (b, limit), padded."""

    def select(self, examples: Tensor) -> None:
        """Continue with these examples only."""
        for name in self.rows:
            setattr(self, name, getattr(self, name)[examples])


class Greedy(Hypotheses):
    """The one open answer of each example."""

    def __init__(self, start: Tensor, limit: int, config: Any) -> None:
        super().__init__(start, limit, config)
        self.sums = torch.zeros(len(start), device=start.device)

    def advance(self, scores: Tensor, logits: Tensor) -> None:
        """Append the best token; what is done gets padding."""
        tokens = scores.argmax(-1)
        log_probabilities = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        self.sums = self.sums + log_probabilities.masked_fill(self.done, 0.0)
        tokens = tokens.masked_fill(self.done, self.pad)
        self.ids = extend(self.ids, tokens[:, None])
        self.done = self.done | (tokens == self.eos)

    def best(self) -> Written:
        return Written(padded(self.ids, self.limit, self.pad)[:, 0], self.sums)


class Beams(Hypotheses):
    """The k open and the k best finished answers of each example."""

    rows = (*Hypotheses.rows, "finished_ids", "finished_sums", "finished_scores")

    def __init__(self, start: Tensor, limit: int, config: Any, decoding: Decoding) -> None:
        super().__init__(start, limit, config)
        self.early_stopping = decoding.early_stopping
        self.length_counts_start = decoding.length_counts_start
        shape, device = start.shape[:2], start.device
        self.sums = torch.zeros(shape, device=device)
        self.sums[:, 1:] = -torch.inf  # the beams are all equal at first, so only one may continue
        self.finished_ids = torch.full((*shape, self.limit), self.pad, device=device)
        self.finished_scores = torch.full(shape, -torch.inf, device=device)  # falling
        self.finished_sums = torch.full(shape, -torch.inf, device=device)

    def advance(self, scores: Tensor, logits: Tensor) -> Tensor:
        """Extend the beams by a token from log-probabilities (b * k, w); (b * k,) row that each one
        came from. A beam whose sum is -inf is none."""
        num_words = scores.shape[-1]
        totals = self.sums[..., None] + scores.view(len(self.done), self.size, num_words)
        totals, chosen = totals.flatten(1).topk(2 * self.size, 1)
        parents, tokens = chosen // num_words, chosen % num_words
        ends = tokens == self.eos
        length = self.ids.shape[2]
        # An answer ends only among the best k; </s> is not counted in its length.
        new = totals[:, : self.size] / length
        new = new.masked_fill(~ends[:, : self.size] | self.done[:, None], -torch.inf)
        ended = extend(take(self.ids, parents), tokens)[:, : self.size]
        self.finish(ended, totals[:, : self.size], new)
        full = torch.isfinite(self.finished_scores).all(1)
        hopeless = self.finished_scores[:, -1] >= totals[:, 0] / length
        # The best k that do not end: there are k, since each beam ends in at most one way.
        continuing = torch.argsort(ends.long(), dim=1, stable=True)[:, : self.size]
        self.sums, parents = totals.gather(1, continuing), parents.gather(1, continuing)
        self.ids = extend(take(self.ids, parents), tokens.gather(1, continuing))
        none_open = (self.sums == -torch.inf).all(1)
        self.done = self.done | none_open | (full & (hopeless | self.early_stopping))
        first_rows = torch.arange(len(parents), device=parents.device)[:, None] * self.size
        rows: Tensor = first_rows + parents
        return rows.flatten()

    def finish(self, ids: Tensor, sums: Tensor, scores: Tensor) -> None:
        """Keep the best k of the old and the new finished answers; one with score -inf is none."""
        ids, sums, scores = self._with_finished(ids, sums, scores)
        self.finished_scores, chosen = scores.topk(self.size, 1)
        self.finished_ids, self.finished_sums = take(ids, chosen), sums.gather(1, chosen)

    def best(self) -> Written:
        """The best answers; those still open compete too."""
        length = self.ids.shape[2] - (0 if self.length_counts_start else 1)
        unfinished = (self.sums / length).masked_fill(self.done[:, None], -torch.inf)
        ids, sums, scores = self._with_finished(self.ids, self.sums, unfinished)
        chosen = scores.argmax(1, keepdim=True)
        return Written(take(ids, chosen)[:, 0], sums.gather(1, chosen)[:, 0])

    def _with_finished(
        self, ids: Tensor, sums: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.cat([self.finished_ids, padded(ids, self.limit, self.pad)], 1),
            torch.cat([self.finished_sums.to(sums.dtype), sums], 1),
            torch.cat([self.finished_scores.to(scores.dtype), scores], 1),
        )


def take(ids: Tensor, chosen: Tensor) -> Tensor:
    """(b, k, l) and (b, j) -> (b, j, l)."""
    return ids.gather(1, chosen[..., None].expand(-1, -1, ids.shape[2]))


def extend(ids: Tensor, tokens: Tensor) -> Tensor:
    """(b, k, l) and (b, k) -> (b, k, l + 1)."""
    return torch.cat([ids, tokens[..., None]], dim=2)


def padded(ids: Tensor, length: int, pad: int) -> Tensor:
    """(b, k, l) -> (b, k, length)."""
    return F.pad(ids, (0, length - ids.shape[2]), value=pad)
