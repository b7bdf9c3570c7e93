"""A forward and a backward pass of tensors that have shapes but no numbers, and how long the
operations of such a pass take on this machine.

The model's own code runs, and so do the methods' and Hugging Face's; a rehearsal of a model that
fills eight cards takes seconds on a laptop. It counts the storages that are alive at each moment:
what autograd keeps, and what each operation needs while it runs. Whole numbers and booleans (token
ids, masks, positions) stay real, because code asks for their values.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import chain, islice
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.flop_counter import flop_registry

from vlds.data.order.mixed_order import BatchCut
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import TOGETHER, EvalOrder, survey
from vlds.data.streams.stream import EvalStream, TrainStream
from vlds.evaluation.sources import data_source, training_sources
from vlds.models.backbones.attention import attend_as_on_gpus
from vlds.models.build import build_shapes
from vlds.models.kernels.attention import TORCH_ATTENTION, attention_by, step_kernels
from vlds.models.kernels.dropout import DRAWS, LEVELS, Draws, Keys, StepDropout, dropout_by, masked
from vlds.models.model import Model
from vlds.recipe.config import Recipe
from vlds.runtime.process import keep_freed_memory
from vlds.runtime.terminal import follow
from vlds.schema import Batch, Decoding
from vlds.training.gradients import square_sum
from vlds.training.optimizer import similar_rows

aten = torch.ops.aten
FUSED = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Products that torch does not count on a CPU (2.13's `flop_registry`), and the GPU's that are
alike."""


def expert_flops(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    """Operations of experts' products: (rows, k) times (experts, k, n), where each row meets one
    expert, and for the weights' gradients (m, rows) times (rows, n)."""
    return 2 * math.prod(left.shape[-2:]) * right.shape[-1]


COUNTED: dict[Any, Callable[..., int]] = {
    **flop_registry,
    **{function: flop_registry[alike] for function, alike in FUSED.items()},
    aten._grouped_mm: expert_flops,
}
"""Product of matrices -> how many operations it takes, given its arguments and its result."""
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""Operations whose result has as many rows as a mask has ones."""
IDLE = {
    aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty,
    aten.new_empty_strided,
}  # fmt: skip
"""Operations that compute nothing."""
TOKENS = 8
"""Most tokens of an answer that are rehearsed."""
ROUNDS = 5
"""Times that an operation is timed, after one that warms up."""
AROUND = 6e-5
"""Seconds of an operation besides its own time: Python, autograd, and the views around it. Measured
with BART-base on a Xeon."""
LONG = 0.2
"""Seconds after which no further round starts."""
BUDGET = 20.0
"""Seconds after which no further operation is timed."""


def micro_batch(recipe: Recipe, model: Model, cut: BatchCut) -> Batch:
    """The largest micro-batch that the first rank computes in the first steps of the recipe.

    Errors: ValueError if the data of a task cannot be opened.
    """
    # The run's own stream: how long rows are and how they are padded depends on its order.
    setup = StreamSetup(
        collator=recipe.model.collator(recipe.model.load_processor(), recipe.training.dtype),
        image=recipe.image,
        seed=recipe.seed,
        cut=cut,
        blank_images=recipe.data.blank_images,
    )
    # A few batches are not worth processes.
    data = replace(recipe.data, num_workers=0)
    stream = TrainStream(training_sources(recipe), data, setup)
    # Of four steps the micro-batch with the most tokens, padding included.
    batches = chain.from_iterable(islice(stream.steps(), 4))
    return max(batches, key=lambda batch: len(batch.ids) * int(model.sizes(batch).amax(0).sum()))


class Asked(NamedTuple):
    """The batch of an evaluation that takes most."""

    task: str
    batch: Batch
    decoding: Decoding


def evaluation_batches(recipe: Recipe) -> Iterator[Asked]:
    """The largest batch that the first samples of each task's data to evaluate give.

    Errors: ValueError if the data of a task cannot be opened or read.
    """
    collator = recipe.model.collator(recipe.model.load_processor(), recipe.training.dtype)
    setup = StreamSetup(
        collator=collator, image=recipe.image, cut=BatchCut(),
        blank_images=recipe.data.blank_images,
    )  # fmt: skip
    size = recipe.data.eval_batch_size
    for number, (name, task) in enumerate(recipe.tasks.items()):
        if not task.evaluate:
            continue
        source = data_source(recipe, name, task.evaluate)
        counts = source.first_counts(2 * max(size, TOGETHER))
        costs = survey(source, range(len(counts)), collator).costs
        order = EvalOrder(counts, costs, size, whole_samples=task.unit == "sample")
        order.batches = order.batches[:1]  # the most work comes first
        for batch in EvalStream(source, order, setup, task_index=number):
            yield Asked(name, batch, task.decoding)


class Work(NamedTuple):
    """What one micro-batch takes, forward and backward."""

    peak: int
    """Bytes at the worst moment, besides weights and optimizer state."""
    flops: int
    """Floating-point operations of its products."""
    moved: int
    """Bytes that all other operations read and write."""
    calls: int
    """How many operations run that compute something."""


NOTHING = Work(0, 0, 0, 0)


class Rehearsed(NamedTuple):
    """What the rehearsal of a micro-batch has counted."""

    work: Work
    operations: Counter[Operation]
    """How often each runs."""


class Rehearsal(TorchDispatchMode):
    """Inside, operations on hollow tensors give hollow ones and are counted."""

    def __init__(self, words: int | None = None) -> None:
        """`words`: of the vocabulary (0: there is none) if the model is to answer: logits are then
        real, and other numbers that its code asks for are 0."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.words = words
        self.tokens: list[tuple[int, int]] = []
        """Bytes that were alive when logits were made, and the most since the logits before."""
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.peak = self.flops = self.moved = self.calls = 0
        self.operations: Counter[Operation] = Counter()
        self._alive = self._most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def hollow(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape and type that has no numbers; its bytes do not count."""
        with torch.device("meta"):
            shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        converter = self.fake.fake_tensor_converter
        made: Tensor = converter.from_meta_and_device(self.fake, shape, torch.device("cpu"))
        self._seen.add(made.untyped_storage())
        return made

    def empty(self, model: nn.Module) -> None:
        """Give a model hollow weights, and hollow buffers where it has none with numbers: their
        bytes are counted by `needs.planned` and not here."""
        # One hollow weight for each one, by identity: a tied weight stands in several modules.
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    if id(weight) not in made:
                        hollow = self.hollow(weight.detach())
                        made[id(weight)] = nn.Parameter(hollow, requires_grad=weight.requires_grad)
                    module._parameters[name] = made[id(weight)]
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:
                    module._buffers[name] = self.hollow(buffer)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:  # most calls, and they make nothing
            return func(*args, **(kwargs or {}))
        leaves, spec = tree_flatten((args, kwargs or {}))
        # Token ids and masks stay real; what is computed of them takes memory all the same.
        if not any(isinstance(leaf, FakeTensor) for leaf in leaves):
            outputs = func(*args, **(kwargs or {}))
            self._count_bytes(outputs)
            return outputs
        if func in INDEXED:
            # How many ones a hollow mask would have is not known; the places of a real one's are.
            indices: list[Tensor | None] = []
            for index in args[1]:
                is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
                if is_mask and not isinstance(index, FakeTensor):
                    indices += index.nonzero().unbind(1)
                else:
                    indices.append(index)
            leaves, spec = tree_flatten(((args[0], indices, *args[2:]), kwargs or {}))
        if func is aten._local_scalar_dense.default and self.words is not None:
            return 0.0 if args[0].is_floating_point() else 0
        with self.fake:
            # Real tensors that meet hollow ones become hollow.
            entered = [
                self.fake.from_tensor(leaf)
                if isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)
                else leaf
                for leaf in leaves
            ]
            hollow_args, hollow_kwargs = tree_unflatten(entered, spec)
            if func is aten._grouped_mm.default:
                # Products of experts: torch knows the result's shape in bf16 alone.
                products = (values.bfloat16() for values in hollow_args[:2])
                outputs = func(*products, *hollow_args[2:], **hollow_kwargs)
                outputs = outputs.to(hollow_args[0].dtype)
            else:
                outputs = func(*hollow_args, **hollow_kwargs)
        if self.words and self._are_logits(outputs) and not func.is_view:
            self.tokens.append((self._alive, self._most))
            self._most = 0
            # Rising to the middle of the vocabulary, where no special token ends an answer.
            logits = -(torch.arange(self.words) - self.words // 2).abs()
            outputs = logits.to(outputs.dtype).expand(outputs.shape).clone()
        self._count_bytes(outputs)
        made = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, FakeTensor)]
        if made and not func.is_view:
            self.calls += func.overloadpacket not in IDLE
            self.operations[Operation.of(func, *hollow_args, **hollow_kwargs)] += 1
            if (count := COUNTED.get(func.overloadpacket)) is not None:
                self.flops += count(*hollow_args, **hollow_kwargs, out_val=outputs)
            else:
                read = [leaf for leaf in entered if isinstance(leaf, FakeTensor)]
                self.moved += sum(t.numel() * t.element_size() for t in made + read)
        return outputs

    def _are_logits(self, outputs: Any) -> bool:
        return (
            isinstance(outputs, Tensor)
            and outputs.is_floating_point()
            and outputs.shape[-1:] == (self.words,)
        )

    def drawn(self, values: Tensor) -> Tensor:
        """A stand-in for dropout's output, which counts as one operation."""
        self.calls += 1
        self.operations[Operation.of(dropout_once, values)] += 1
        return torch.empty_like(values)

    def _count_bytes(self, outputs: Any) -> None:
        for tensor in tree_leaves(outputs):
            if not isinstance(tensor, Tensor):
                continue
            # Views share a storage, whose bytes count once, until its last tensor is gone.
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen.add(storage)
                size = storage.nbytes()
                self._alive += size
                self.peak = max(self.peak, self._alive)
                self._most = max(self._most, self._alive)
                weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._alive -= size


def dropout_once(values: Tensor) -> Tensor:
    """One direction of dropout by example, which takes as long whatever the keys are."""
    rows = torch.zeros(values[..., 0].numel(), dtype=torch.int64)
    features = torch.zeros(-(-values.shape[-1] // DRAWS), dtype=torch.int64)
    return masked(values, Keys(rows, [(slice(0, values.shape[-1]), features)]), LEVELS // 10)


class Drawn(torch.autograd.Function):
    """Dropout in a rehearsal: `kept` is what real dropout keeps in memory for its backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kept: Tensor, rehearsal: Rehearsal) -> Tensor:
        ctx.kept, ctx.rehearsal = kept, rehearsal
        return rehearsal.drawn(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rehearsal.drawn(gradient), None, None


class HollowDropout(StepDropout):
    """Draws nothing, and keeps for the backward pass as much as dropout by example does, or torch's
    on a GPU."""

    def __init__(self, rehearsal: Rehearsal, *, on_gpu: bool) -> None:
        super().__init__(0, 0)
        self.rehearsal, self.on_gpu = rehearsal, on_gpu

    def dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        # A mask of the inputs' shape on a GPU; a key for each row on a CPU, which draws again.
        if self.on_gpu:
            kept = torch.empty_like(input, dtype=torch.bool)
        else:
            kept = input.new_empty(input.shape[:-1], dtype=torch.int64)
        output: Tensor = Drawn.apply(input, kept, self.rehearsal)  # type: ignore[no-untyped-call]
        return output

    def draws(self, shape: torch.Size, p: float) -> Draws:
        return HollowDraws(self.rehearsal)


class HollowDraws(NamedTuple):
    """The draws of a layer that drops inside its own computation."""

    rehearsal: Rehearsal

    def of(self, examples: slice) -> Draws:
        """The same for all examples, which take alike."""
        return self

    def dropped(self, values: Tensor) -> Tensor:
        """A stand-in for dropout's output."""
        return self.rehearsal.drawn(values)


def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Torch's fused attention without dropout: the GPU's draws inside and keeps nothing for it, but
    the CPU's would then keep all scores."""
    names = ("attn_mask", "dropout_p", "is_causal")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs, "dropout_p": 0.0}
    return TORCH_ATTENTION(query, key, value, **kwargs)


@contextmanager
def gpu_kernels(model: nn.Module, dropout: StepDropout) -> Iterator[None]:
    """Inside, a model that was built here runs the operations of a GPU."""
    attend_as_on_gpus(model)
    with attention_by(fused), dropout_by(dropout):
        yield


def rehearse(model: Model, batch: Batch, parts: int = 1, *, on_gpu: bool = False) -> Rehearsed:
    """What a micro-batch takes, given a model on the meta device, which becomes hollow. `parts`:
    in how many sets of similar rows it is computed. `on_gpu`: with a GPU's operations instead of
    this CPU's."""
    rehearsal = Rehearsal()
    rehearsal.empty(model)
    model.train()
    kernels = gpu_kernels if on_gpu else step_kernels
    with kernels(model, HollowDropout(rehearsal, on_gpu=on_gpu)), rehearsal:
        pieces = similar_rows(model.sizes(batch), parts) if parts > 1 else []
        output = model(batch, torch.ones(len(batch.ids)), pieces)
        output.loss.backward()
    work = Work(rehearsal.peak, rehearsal.flops, rehearsal.moved, rehearsal.calls)
    return Rehearsed(work, rehearsal.operations)


def rehearse_answers(
    model: Model, batch: Batch, decoding: Decoding, *, on_gpu: bool = False
) -> int:
    """Bytes at the worst moment while a batch is answered, besides weights; `model` and `on_gpu` as
    in `rehearse`. Answers are as long as they may be."""
    # A list's answers come from numbers; without it they are at most as long.
    if (listed := model.answer_list(decoding)) is not None:
        decoding = replace(decoding, answers=None, max_new_tokens=listed.longest)
    tokens = min(decoding.max_new_tokens, TOKENS)
    # Hugging Face's models have this method; of those that stand in others, some have no head.
    name = "get_output_embeddings"
    finders: list[Any] = [getattr(m, name) for m in model.modules() if hasattr(m, name)]
    heads = [head for find in finders if (head := find()) is not None]
    rehearsal = Rehearsal(words=len(heads[0].weight) if heads else 0)
    rehearsal.empty(model)
    model.eval()
    kernels = gpu_kernels(model, HollowDropout(rehearsal, on_gpu=True)) if on_gpu else nullcontext()
    with torch.no_grad(), kernels, rehearsal:
        model.answer(batch, replace(decoding, max_new_tokens=tokens))
    # Further tokens lengthen the caches as those of the second half have done.
    later = rehearsal.tokens[tokens // 2 :]
    if len(later) < 2:
        return rehearsal.peak
    (first, _), *_, (last, _) = later
    a_token = max(0, last - first) // (len(later) - 1)
    longest = max(most for _, most in later) + a_token * (decoding.max_new_tokens - tokens)
    return max(rehearsal.peak, longest)


class Answering(NamedTuple):
    """The batch of an evaluation whose answers take most memory."""

    task: str
    rows: int
    decoding: Decoding
    peak: int
    """Bytes, besides weights."""


def answering(recipe: Recipe, *, on_gpu: bool = False) -> Answering | None:
    """Rehearse the largest batch of each task that is evaluated; None if no task is.

    Errors: ValueError if the data of a task cannot be read; RuntimeError if the model's code asks
    for numbers.
    """
    setup = replace(recipe.model_setup, kind=recipe.model.unpacked())
    model = build_shapes(setup, list(recipe.tasks), recipe.training.dtype)
    found = [
        Answering(
            asked.task,
            len(asked.batch.ids),
            asked.decoding,
            rehearse_answers(model, asked.batch, asked.decoding, on_gpu=on_gpu),
        )
        for asked in evaluation_batches(recipe)
    ]
    return max(found, key=lambda one: one.peak, default=None)


class Shape(NamedTuple):
    """A tensor in an operation's arguments."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Shape:
        """The shape of a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def zeros(self) -> Tensor:
        """A tensor of zeros in this layout; zeros are valid indices too."""
        # Only as many numbers as the strides reach, which expanded and sliced tensors need.
        reach = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True)) + 1
        held = torch.zeros(reach if 0 not in self.size else 0, dtype=self.dtype)
        return held.as_strided(self.size, self.stride)


class Operation(NamedTuple):
    """A call, with shapes instead of tensors."""

    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    """The arguments, flattened: a `Shape` in place of each tensor."""
    tree: TreeSpec
    """How the arguments are nested."""

    @classmethod
    def of(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Operation:
        """A call of a function with these arguments."""
        leaves, tree = tree_flatten((args, kwargs))
        return cls(
            function, tuple(Shape.of(x) if isinstance(x, Tensor) else x for x in leaves), tree
        )

    @property
    def is_product(self) -> bool:
        """True if it multiplies matrices."""
        return getattr(self.function, "overloadpacket", None) in COUNTED

    @property
    def size(self) -> int:
        """Elements of its tensors, or operations if it is a product of matrices."""
        shapes = [leaf.size for leaf in self.leaves if isinstance(leaf, Shape)]
        elements = sum(map(math.prod, shapes))
        if not self.is_product or len(shapes) < 2:
            return elements
        # (m, k) times (k, n): m * k * n multiplications.
        return math.prod(shapes[-2]) * shapes[-1][-1]

    def seconds(self) -> float:
        """The median of some rounds, without the first, which may compile.

        Errors: RuntimeError or IndexError if zeros are not what the function wants.
        """
        times: list[float] = []
        # Each round has its own tensors: in a step, other operations have filled the caches.
        calls = []
        for _ in range(ROUNDS + 1):
            leaves = [leaf.zeros() if isinstance(leaf, Shape) else leaf for leaf in self.leaves]
            calls.append(tree_unflatten(leaves, self.tree))
        for args, kwargs in calls:
            began = time.perf_counter()
            self.function(*args, **kwargs)
            times.append(time.perf_counter() - began)
            if len(times) > 1 and sum(times) > LONG:
                break
        return median(times[1:])


def seconds_here(operations: Counter[Operation]) -> tuple[float, float]:
    """Seconds of all products, and of all other operations. What cannot run on zeros counts as
    nothing. After `BUDGET` seconds, what is left takes as long as what was timed, by its size."""
    keep_freed_memory()  # as a run does
    seconds, timed, left = ({True: 0.0, False: 0.0} for _ in range(3))
    # Largest first, so that the budget goes to what takes most of the time.
    largest_first = sorted(operations.items(), key=lambda item: -item[0].size * item[1])
    began = time.perf_counter()
    for operation, times in follow(largest_first, "timing operations", len(largest_first)):
        kind = operation.is_product
        if timed[kind] and time.perf_counter() - began > BUDGET:
            left[kind] += times * operation.size
            continue
        # What needs other numbers than zeros raises, and is left out of both sums.
        with suppress(RuntimeError, IndexError):
            seconds[kind] += times * operation.seconds()
            timed[kind] += times * operation.size
    whole = {kind: seconds[kind] * (1 + left[kind] / max(1, timed[kind])) for kind in seconds}
    return whole[True], whole[False] + operations.total() * AROUND


def update_seconds(num_weights: int, dtype: torch.dtype) -> float:
    """How long this machine takes to sum the gradients of so many weights in fp32, to clip them, to
    take a step of AdamW and to round the weights."""
    # Four million weights no longer fit the caches; more take as long for each.
    size = min(num_weights, 1 << 22)
    # As in a run: gradients and weights in the recipe's type, their sum and the master in fp32.
    gradient, weight = (torch.zeros(size, dtype=dtype) for _ in range(2))
    master, total = torch.nn.Parameter(torch.zeros(size)), torch.zeros(size)
    master.grad = total
    optimizer = torch.optim.AdamW([master], fused=True)

    def update() -> None:
        total.copy_(gradient)
        total.mul_(1 / (1 + square_sum(total)))
        optimizer.step()
        weight.copy_(master.detach())

    return Operation.of(update).seconds() * num_weights / max(1, size)
