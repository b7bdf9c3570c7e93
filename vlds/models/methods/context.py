"""What methods know of a run, and do in it, beside the states that their modules get.

`BatchContext`, one object per model, says which batch runs: the model and the engine write it,
modules read it. A method may also act at every step (`StepRule`), change what trains after some of
them (`Revision`), and add to the loss (`BatchLoss`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.schema import IGNORED_LABEL

MOST_KEPT = 1 << 16
"""Draws of earlier passes that are kept for layers that are computed again."""
MOST_PADDED = 1.25
"""Tasks are padded to one number of rows unless that makes more than so many times the batch's."""


class TaskRouting:
    """Which rows of the running batch belong to which task, grouped once per batch on the CPU.

    One object per model, shared by all modules with weights per task. They split their input by
    task inside one module, so that every module runs in the same order on every rank, whatever
    tasks a rank holds: ZeRO-3 gathers weights module by module and would hang otherwise.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.tasks: list[int] = []
        """Numbers of the tasks present, in rising order."""
        self._counts: list[int] = []
        self._index = self._given = self._rows = torch.empty(0, dtype=torch.long)
        self._order = torch.empty(0, dtype=torch.long)
        self._inverse = torch.empty(0, dtype=torch.long)
        self._even: tuple[Tensor, Tensor] | None = None
        """Numbers of the rows, n of each task in turn, (tasks * n,), and where each row of the
        batch is among them, (b,). None for one task, and where `MOST_PADDED` forbids it."""

    def set(self, task_index: Tensor, device: torch.device | str = "cpu") -> None:
        """Take the tasks of a new batch: (b,) on the CPU, since they steer Python."""
        assert task_index.device.type == "cpu", "task_index stays on the CPU"
        self._given = task_index
        self._group(task_index, device)

    def fit(self, num_rows: int) -> None:
        """Take `num_rows` rows: those of the batch, or each of them several times, as the beams of
        a search stand beside each other."""
        if num_rows != self.num_rows:
            # Tasks 4 7 and six rows give 4 4 4 7 7 7.
            times, rest = divmod(num_rows, max(1, len(self._given)))
            assert not rest, f"{num_rows} rows, but the batch has {len(self._given)}"
            self._group(self._given.repeat_interleave(times), self._rows.device)

    def _group(self, task_index: Tensor, device: torch.device | str) -> None:
        self._index = task_index
        self.num_rows = len(task_index)
        tasks, counts = torch.unique(task_index, return_counts=True)
        self.tasks, self._counts = tasks.tolist(), counts.tolist()
        self._rows = task_index.to(device, non_blocking=True)
        self._even = None
        if len(self.tasks) > 1:
            # Stable, so that rows of a task keep their order, and sums over them their bits.
            # Tasks 1 1 0 give the order 2 0 1 and the inverse 1 2 0.
            order = torch.argsort(task_index, stable=True)
            inverse = torch.argsort(order)
            self._order = order.to(device, non_blocking=True)
            self._inverse = inverse.to(device, non_blocking=True)
            size = max(self._counts)
            if len(self.tasks) * size <= MOST_PADDED * self.num_rows:
                # Pad the sorted rows to `size` of each task, a task's last row standing in for
                # those it lacks. Counts 2 and 3 give the rows 0 1 1 2 3 4; the real ones among
                # them are at the places 0 1 3 4 5.
                starts = counts.cumsum(0) - counts
                within = torch.arange(size).expand(len(counts), size)
                rows = (starts[:, None] + torch.minimum(within, counts[:, None] - 1)).flatten()
                places = (within < counts[:, None]).flatten().nonzero().flatten()
                self._even = (
                    order[rows].to(device, non_blocking=True),
                    places[inverse].to(device, non_blocking=True),
                )

    @contextmanager
    def each_task(self) -> Iterator[None]:
        """Inside, there is one row for each task of the batch."""
        # `_index`, not `_given`: the rows may be those of a search with several beams.
        index, device = self._index, self._rows.device
        self.set(torch.tensor(self.tasks), device)
        try:
            yield
        finally:
            self.set(index, device)

    def apply(self, function: Callable[[Tensor, int], Tensor], states: Tensor) -> Tensor:
        """Run `function(rows, task)` on each task's rows of `states` (b, ...), and put the rows
        back in order. Some models (OPT) hand their layers all tokens in one line, (b * l, ...)."""
        if states.ndim == 2 and len(states) > self.num_rows > 0:
            # Each example's tokens follow each other, so that its rows can be told apart again.
            flat: Tensor = self.apply(function, self.by_row(states)).flatten(0, 1)
            return flat
        self.fit(len(states))
        if len(self.tasks) == 1:
            return function(states, self.tasks[0])
        # Sorted by task, each task's rows are one piece; the inverse order undoes the sorting.
        groups = states.index_select(0, self._order).split(self._counts)
        parts = [function(rows, task) for rows, task in zip(groups, self.tasks, strict=True)]
        return torch.cat(parts).index_select(0, self._inverse)

    def apply_stacked(
        self, function: Callable[..., Tensor], states: Tensor, *halves: Sequence[Tensor]
    ) -> Tensor:
        """Run `function(rows, *stacks)` on `states` (b, ..., d) with each row's slices of the
        weights (tasks or 1, ...) in `halves`. Like `stacked_linear`, the function takes rows
        (k, ..., d) with weights of k tasks, or rows (..., d) with those of one. Tasks with similar
        numbers of rows are computed together."""
        stacks = [stack for half in halves for stack in half]
        if max(map(len, stacks)) == 1:
            return function(states, *stacks)
        # Autograd ends with these views, the last one first, whatever is computed from them. So
        # gradients come in one order on all ranks, whose tasks may differ.
        stacks = [stack.view_as(stack) for stack in stacks]
        slices = [stack.split(1) for stack in stacks]

        def of_task(rows: Tensor, task: int) -> Tensor:
            return function(rows, *(of_all[task if len(of_all) > 1 else 0] for of_all in slices))

        if states.ndim > 2:
            self.fit(len(states))
        if states.ndim == 2 or self._even is None:
            return self.apply(of_task, states)
        # One batched product over all tasks present, each padded to as many rows.
        rows, places = self._even
        groups = states.index_select(0, rows).unflatten(0, (len(self.tasks), -1))
        # A stack with as many slices as tasks present has them all, in order. One slice is for all
        # tasks. Any other stack has more tasks than the batch.
        present = [
            torch.cat([of_all[task] for task in self.tasks])
            if len(of_all) > len(self.tasks)
            else stack
            for of_all, stack in zip(slices, stacks, strict=True)
        ]
        done: Tensor = function(groups, *present).flatten(0, 1).index_select(0, places)
        return done

    def by_row(self, states: Tensor) -> Tensor:
        """(b * l, ...) -> (b, l, ...)."""
        assert len(states) % self.num_rows == 0, (
            f"{len(states)} rows, but the batch has {self.num_rows}"
        )
        by_row: Tensor = states.unflatten(0, (self.num_rows, -1))
        return by_row

    def of_rows(self, stacked: Tensor, num_rows: int | None = None) -> Tensor:
        """Small tensors of the tasks, or one for all, (tasks or 1, ...) -> each row's, (b, ...);
        `num_rows` as in `fit`."""
        if num_rows is not None:
            self.fit(num_rows)
        if len(stacked) == 1:
            return stacked.expand(self.num_rows, *stacked.shape[1:])
        return stacked[self._rows]

    def of_keys(self, stacked: Tensor, num_keys: int) -> Tensor:
        """`of_rows` for an attention over the keys of `num_keys` rows: as many as `fit` takes, or
        fewer, since the beams of an example may share keys."""
        if num_keys > self.num_rows:
            self.fit(num_keys)
        # Beams of an example stand beside each other: every n-th row is the next example's.
        return self.of_rows(stacked)[:: self.num_rows // num_keys]

    def of_present(self, stacked: Tensor, tasks: Sequence[int]) -> Tensor:
        """Tensors of these tasks, as in `each_task`, (k, ...) -> each row's, (b, ...)."""
        # `tasks` rise, so that searchsorted gives each row's place among them.
        present = torch.tensor(tasks).to(stacked.device, non_blocking=True)
        return stacked[torch.searchsorted(present, self._rows)]


def stacked_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows (k, ..., i) through linear layers (k, o, i) with biases (k, o), or rows (..., i) through
    one (1, o, i)."""
    # One layer takes any leading dimensions; several are the batch dimension of one product.
    if len(weight) == 1:
        return F.linear(rows, weight.squeeze(0), None if bias is None else bias.squeeze(0))
    flat, shape = rows.flatten(1, -2), (*rows.shape[:-1], weight.shape[1])
    if bias is None:
        return torch.bmm(flat, weight.mT).view(shape)
    return torch.baddbmm(bias[:, None], flat, weight.mT).view(shape)


def spread(weights: Tensor, rows: Tensor) -> Tensor:
    """Numbers of features (tasks, d), in a shape that goes with rows (tasks, ..., d)."""
    return weights.view(len(weights), *[1] * (rows.ndim - 2), -1)


class Visual(NamedTuple):
    """The visual tokens of a batch's examples."""

    tokens: Tensor
    """(b, v, d)."""
    mask: Tensor
    """(b, v) bool, False where an example has fewer images."""

    def mean(self) -> Tensor:
        """(b, d) of each example's tokens; 0 without images."""
        real = self.mask[..., None].to(self.tokens)
        return (self.tokens * real).sum(1) / real.sum(1).clamp(min=1)


class BatchContext:
    """Tasks, pass, step and pictures of the running batch.

    Uses: weights stacked over tasks (`routing`); a mixture that takes one of several experts, the
    same on all ranks and for any cut of the batch (`draw`); weights made from the picture
    (`visual`).
    """

    def __init__(self, routing: TaskRouting | None = None) -> None:
        self.routing = TaskRouting() if routing is None else routing
        self.examples = torch.empty(0, dtype=torch.int64)
        """(rows,) the example of each row that runs: beams of one example are several rows."""
        self.visual: Visual | None = None
        """None while nothing has been embedded, and in models that read pictures themselves."""
        self.token_mask: Tensor | None = None
        """(b, s) bool: which of the tokens are real that an encoder reads, or a model of one
        stack."""
        self.reads_examples = False
        """True if a module's output depends on the example that a row belongs to, so that rows of
        several examples cannot be computed as one."""
        self.training = False
        """True while the model trains, which then draws."""
        self.step = 0
        """Number of the running optimizer step, from 0."""
        self._seed, self._pass = 0, 0
        self._drawn: dict[int, int] = {}
        """Random name of a draw -> pass in which it was first made."""

    def set_rows(self, task_index: Tensor, examples: Tensor | None, device: torch.device) -> None:
        """Rows of these tasks follow, of these examples of the batch (None: one row each)."""
        self.routing.set(task_index, device)
        rows = torch.arange(len(task_index)) if examples is None else examples
        self.examples = rows.to(device, non_blocking=True)

    def example_of_rows(self, num_rows: int) -> Tensor:
        """(num_rows,) the example of each row; several rows an example stand beside each other."""
        return self.examples.repeat_interleave(num_rows // len(self.examples))

    def begin_step(self, seed: int, step: int) -> None:
        """A micro-batch of a step follows."""
        self._seed, self.step, self._pass = seed, step, 0
        self._drawn = {}
        # A pass that forgets to set these fails, rather than reading the batch before.
        self.visual = self.token_mask = None

    def another_pass(self) -> None:
        """A pass follows in a loop that tells neither steps nor when its passes go backward: it
        draws anew, and layers of earlier passes that are computed again still find their draws."""
        self._pass += 1
        for name in list(self._drawn)[: max(0, len(self._drawn) - MOST_KEPT)]:
            del self._drawn[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchContext:
        # A copy of a model starts without a batch. Its modules find the one new context in `memo`.
        context = memo[id(self)] = BatchContext(deepcopy(self.routing, memo))
        context.training, context.reads_examples = self.training, self.reads_examples
        return context

    @contextmanager
    def in_pass(self, number: int) -> Iterator[None]:
        """Inside, a batch runs for the `number`-th time, from 0."""
        before, self._pass = self._pass, number
        try:
            yield
        finally:
            self._pass = before

    def draw(self, key: str, count: int) -> int:
        """One of `count` numbers from 0 on: a function of seed, step, pass and `key` alone, and so
        the same on all ranks and in all micro-batches."""
        # The backward pass may compute a layer again, when another pass was the last. It finds
        # torch's generator as it was, so the number drawn here tells which pass the layer was in.
        name = int(torch.randint(1 << 62, ()))
        number = self._drawn.setdefault(name, self._pass)
        text = f"{self._seed}/{self.step}/{number}/{key}"
        # A hash, not a generator: what one module draws moves no other's draws.
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % count


class StepRule(nn.Module, ABC):
    """What a method does at every optimizer step, on all ranks alike: nothing in it may differ
    between them.

    Uses: AdaLoRA's budget (vlds/models/methods/peft_method.py), which adds to the loss, reads
    gradients and sets weights to zero; schedules by step, such as a gate's temperature, which a
    rule writes into a buffer; losses of weights alone, such as their distance from the start. A
    loss of the batch is a `BatchLoss`.

    Its buffers are its state: run states hold them. They are not persistent, so that artifacts do
    not. ZeRO stage 3 is refused with it (`Method.partitionable`), so weights are whole.
    """

    def penalty(self) -> Tensor | None:
        """A term of the global batch's loss, added once a step: a scalar of weights alone."""
        return None

    def needs_gradients(self, step: int, num_steps: int) -> Sequence[nn.Parameter]:
        """Parameters whose gradients `after_step` reads, in the step that is now done as number
        `step` of `num_steps`, from 1 on."""
        return ()

    @abstractmethod
    def after_step(
        self, step: int, num_steps: int, gradients: Mapping[nn.Parameter, Tensor] | None
    ) -> Mapping[nn.Parameter, Tensor]:
        """Act once the weights have changed; parameter -> mask of the entries to set to zero.

        `gradients`: those of the global batch in fp32, before clipping; None if the step was
        skipped because they were not finite.
        """


Trained: TypeAlias = Mapping[str, Tensor]
"""A weight's "fp32" master and AdamW's moments "exp_avg" and "exp_avg_sq", whole, on the CPU."""


class Revision(ABC):
    """How a method changes what trains after given steps of a run, on all ranks alike: nothing in
    it may differ between them. The engine is rebuilt around the changed model and goes on.

    Uses: bottlenecks that lose their least important neurons (vlds/models/methods/shrinking.py);
    parts of the backbone that begin to train later; ranks that are cut or grow. What only sets
    weights to zero, or writes into a buffer, is a `StepRule`.
    """

    @abstractmethod
    def steps(self, num_steps: int) -> Sequence[int]:
        """The steps after which it acts, in a run of so many: from 1 to `num_steps` - 1."""

    @abstractmethod
    def revise(
        self, step: int, num_steps: int, state: Mapping[nn.Parameter, Trained]
    ) -> Mapping[nn.Parameter, Trained | None]:
        """Change the modules after a step; what trains from then on, with its state. None: the
        state of a weight that begins to train as it is.

        `state`: what the method has trained so far. All of it goes on, but for parameters that are
        taken out of the model. Under ZeRO's stage 3 weights are elsewhere: their values are here.
        """

    @abstractmethod
    def fit(self, saved: Mapping[nn.Parameter, torch.Size]) -> Collection[nn.Parameter]:
        """Give new modules the shapes that a run's state or artifact holds, values aside; what
        trains then.

        `saved`: the shapes of those of the model's parameters that it holds.
        """


Places: TypeAlias = tuple[Tensor, Tensor]
"""Rows (n,) and columns (n,) of labels, row by row. A mask would say the same, but a GPU makes the
host wait for the number of what it picks."""


def places_of(found: Tensor, device: torch.device) -> Places:
    """(n, 2) numbers on the host, as `nonzero` gives them -> places on a device."""
    rows, columns = found.T.contiguous().to(device, non_blocking=True)
    return rows, columns


class ClassesPredicted(NamedTuple):
    """Predictions of one pass for the m examples of a task with a head."""

    logits: Tensor
    """(m, c)."""
    rows: Tensor
    """(m,) int64 of the batch, rising."""
    targets: Tensor
    """(m, c) in 0..1."""
    is_binary: bool
    """True if each class is a separate yes-or-no question; False if exactly one class holds."""

    def losses(self) -> Tensor:
        """(m,) cross-entropy with the targets, over the classes or summed over them, in at least
        float32. An example whose targets are all 0 has no class: a cross-entropy of 0."""
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        targets = self.targets.to(logits)
        if self.is_binary:
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return -(targets * logits.log_softmax(-1)).sum(1)

    def distributions(self) -> Tensor:
        """(m, k, o) logits of k distributions over o outcomes: c of yes and no, or one of c."""
        if self.is_binary:
            # softmax([x, 0]) is sigmoid(x) and its complement.
            return torch.stack([self.logits, torch.zeros_like(self.logits)], -1)
        return self.logits[:, None]


class Predicted(NamedTuple):
    """Predictions of one pass over a batch: of n tokens, and of classes."""

    logits: Tensor
    """(n, w), row by row."""
    labels: Tensor
    """(b, t) int64, IGNORED_LABEL where there is none."""
    places: Places
    """The tokens' places among the labels."""
    classes: Sequence[ClassesPredicted] = ()
    """One for each task with a head, in the order of the tasks. One label stands for an example's
    classes."""

    @property
    def is_label(self) -> Tensor:
        """(b, t) bool."""
        return self.labels != IGNORED_LABEL

    def by_example(self, values: Tensor, of_classes: Sequence[Tensor] = ()) -> Tensor:
        """Values of the tokens (n,) and of each task's examples (m,) -> (b, t), 0 elsewhere."""
        placed = values.new_zeros(self.labels.shape).index_put(self.places, values)
        # argmax gives the first True: the one label of an example with classes.
        columns = self.is_label.int().argmax(1)
        for predicted, losses in zip(self.classes, of_classes, strict=True):
            rows = predicted.rows
            placed = placed.index_put((rows, columns[rows]), losses.to(values))
        return placed


class BatchLoss(ABC):
    """A term that a method adds to each example's loss; progress and metrics have it under the
    method's name.

    Uses: the consistency of several passes over one batch, whose modules draw anew in each
    (AdaMix); a guide that reads what modules have computed of the batch (SimAdapter); a distance
    from what the model says without the method. A loss of weights alone is a `StepRule.penalty`.
    """

    passes: ClassVar[int] = 1
    """Number of passes over a batch. The tokens' likelihood is that of the first pass."""

    @abstractmethod
    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        """(b,) in the unit of an example's summed token nll: the example's weight and its share of
        the global batch come on top."""
