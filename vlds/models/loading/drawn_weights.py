"""Weights drawn by name: the initial values of a tensor are a function of (seed, its name).

A constructor draws from torch's global generator, so its values depend on everything drawn before
it, on the number type, and on how ZeRO-3 loads a model. So a model is built inside
`with Tape() as tape`. There torch works as usual, and every operation that draws, and every one
that reads or changes what was drawn, is noted: `nn.init.normal_(weight)`,
`0.02 * torch.randn(3)`, `weight[padding].zero_()`, `module.to(torch.bfloat16)`. Once its tensors
have names, `draw_by_name` runs the operations behind each random one again: alone, in float32 on
the CPU, under generators seeded by (seed, name). The code that draws need not know of this; it
works for Hugging Face's and timm's classes and for a user's method. A random number that leaves
torch (`item()`, `numpy()`), and what Python decides by one, is not drawn again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from vlds.models.partitioned import gathered

FILLS = frozenset(
    {
        "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_",
        "geometric_", "copy_", "fill_", "zero_",
    }
)  # fmt: skip
"""In-place operations whose result does not depend on the old values."""


@torch.no_grad()
def draw_by_name(model: nn.Module, tape: Tape, seed: int, keep: Container[str]) -> None:
    """Draw the tensors of a model that are random on the tape, but for those named in `keep`.

    A random operation belongs to the first tensor, in the order of the model, that depends on it;
    others that depend on it too (copies) see the same numbers.
    """
    named = chain(model.named_parameters(), model.named_buffers())
    tensors = {name: tensor for name, tensor in named if name not in keep}
    places = {name: place for name, t in tensors.items() if (place := tape.place_of(t)) is not None}
    steps = {name: tape.behind(place) for name, place in places.items()}
    # All seeds come before the first replay: a step belongs to the first tensor in the model's
    # order, whichever tensor replays it.
    seeds: dict[int, int] = {}
    for name, numbers in steps.items():
        new = [n for n in numbers if tape.steps[n].draws and n not in seeds]
        seeds |= {n: seed_of(seed, name, count) for count, n in enumerate(new)}
    # `replay` seeds the default generator, which users' code may have seeded for itself.
    with torch.random.fork_rng(devices=[]):
        for name, place in places.items():
            values = tape.replay(steps[name], place, seeds)
            with gathered([tensors[name]], written=True):
                tensors[name].copy_(values)


@torch.no_grad()
def draw_rows(model: nn.Module, rows: Mapping[str, int], std: float, seed: int) -> None:
    """Draw the rows of tables from row `rows[name]` on from N(0, std^2). Each is seeded by its
    number, so that a longer table begins with the same rows."""
    for name, start in rows.items():
        table = model.get_parameter(name)
        with gathered([table], written=True):
            for number in range(start, len(table)):
                generator = torch.Generator().manual_seed(seed_of(seed, f"{name}[{number}]"))
                values = torch.empty(table.shape[1:]).normal_(std=std, generator=generator)
                table[number].copy_(values)


def seed_of(seed: int, name: str, count: int = 0) -> int:
    """The seed of a tensor's draw number `count`, the same in every process."""
    digest = hashlib.blake2b(f"{seed}/{name}/{count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in its storage."""

    storage: StorageWeakRef
    numel: int
    """Elements of the whole storage."""
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorPlace:
        numel = tensor.untyped_storage().nbytes() // tensor.element_size()
        place = tensor.size(), tensor.stride(), int(tensor.storage_offset())
        return cls(storage_of(tensor), numel, *place, tensor.dtype)

    def within(self, memory: Tensor) -> Tensor:
        """The same place in other memory."""
        return memory.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class Step:
    """An operation that made or changed random tensors."""

    function: Any
    args: Any
    """Its arguments, with a `TensorPlace` in place of each random tensor."""
    kwargs: Any
    made: Sequence[tuple[int, TensorPlace]]
    """Number and place of each output with new memory."""
    changed: frozenset[StorageWeakRef] = frozenset()
    """Storages that the operation writes into."""
    fills: bool = False
    """True if the old values of `changed` do not matter."""

    @property
    def draws(self) -> bool:
        """True if the operation asks for random numbers."""
        return draws(self.function)

    @property
    def reads(self) -> frozenset[StorageWeakRef]:
        """Random storages that its results depend on."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        storages = frozenset(leaf.storage for leaf in leaves if isinstance(leaf, TensorPlace))
        return storages - self.changed if self.fills else storages


class Tape(TorchDispatchMode):
    """Notes the operations behind random tensors while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._writers: dict[StorageWeakRef, list[int]] = {}
        """Random storage -> numbers of the steps that write into it, in order."""
        self._parameters: Any = WeakIdKeyDictionary()
        """Parameter -> its place when it was last written. ZeRO-3 takes that memory away."""

    def __enter__(self) -> Tape:
        # A private name of torch's (2.13); a test shows that it is still in use. Replacing the
        # public trunc_normal_ would miss whoever has imported it before: transformers 5 keeps a
        # reference, through which its ViT and SigLIP draw.
        self._torchs_own = nn.init._no_grad_trunc_normal_
        nn.init._no_grad_trunc_normal_ = truncated_normal
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        nn.init._no_grad_trunc_normal_ = self._torchs_own

    def place_of(self, tensor: Tensor) -> TensorPlace | None:
        """Where the tape knows a tensor's values from; None if they are not random."""
        places = (
            (TensorPlace.of(tensor), self._parameters.get(tensor)) if has_memory(tensor) else ()
        )
        return next((p for p in places if p is not None and p.storage in self._writers), None)

    def behind(self, place: TensorPlace) -> list[int]:
        """Numbers of the steps that gave the values at a place, in order."""
        chosen: set[int] = set()
        # From the last step backwards: what a step read matters only up to that step, and what a
        # storage held before a step that fills or makes it does not matter.
        wanted = [(place.storage, len(self.steps))]
        while wanted:
            storage, end = wanted.pop()
            for number in reversed(self._writers[storage]):
                if number < end:
                    step = self.steps[number]
                    if number not in chosen:
                        chosen.add(number)
                        wanted += [(read, number) for read in step.reads]
                    if step.fills or storage not in step.changed:
                        break
        return sorted(chosen)

    def replay(
        self, numbers: Iterable[int], place: TensorPlace, seeds: Mapping[int, int]
    ) -> Tensor:
        """The values at a place, from the steps behind it; step n draws under `seeds[n]`.

        Seeds the default generator.
        """
        memory: dict[StorageWeakRef, Tensor] = {}

        def restored(leaf: Any) -> Any:
            if isinstance(leaf, TensorPlace):
                if leaf.storage not in memory:
                    memory[leaf.storage] = torch.empty(leaf.numel, dtype=precise(leaf.dtype))
                return leaf.within(memory[leaf.storage])
            return leaf

        for number in numbers:
            step = self.steps[number]
            if number in seeds:
                torch.default_generator.manual_seed(seeds[number])
            args, kwargs = pytree.tree_map(restored, (step.args, step.kwargs))
            outputs = pytree.tree_leaves(step.function(*args, **kwargs))
            memory |= {view.storage: outputs[index] for index, view in step.made}
        return place.within(memory[place.storage])

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # By storage: views of one memory are different tensors, and a change shows in all of them.
        leaves = filter(has_memory, pytree.tree_leaves((args, kwargs)))
        inputs = {storage_of(tensor) for tensor in leaves}
        is_random = draws(function) or not inputs.isdisjoint(self._writers)
        if function.is_view or not is_random:
            return function(*args, **kwargs)
        declared = function._schema.arguments
        given = {**dict(zip((a.name for a in declared), args, strict=False)), **kwargs}
        written = [a.name for a in declared if a.alias_info is not None and a.alias_info.is_write]
        targets = pytree.tree_leaves([given[name] for name in written if name in given])
        changed = list(filter(has_memory, targets))
        # A part of a storage that is filled leaves the rest of the old values.
        fills = function.overloadpacket.__name__ in FILLS and all(
            t.numel() * t.element_size() == t.untyped_storage().nbytes() for t in changed
        )
        for tensor in changed:
            self._begin(tensor, fills)
        # Arguments are noted before the operation runs, which may write into them.
        noted_args, noted_kwargs = pytree.tree_map(self._noted, (args, kwargs))
        outputs = function(*args, **kwargs)
        made = [
            (index, TensorPlace.of(leaf))
            for index, leaf in enumerate(pytree.tree_leaves(outputs))
            if has_memory(leaf) and storage_of(leaf) not in inputs
        ]
        places = frozenset(map(storage_of, changed))
        self._keep(Step(function, noted_args, noted_kwargs, made, places, fills))
        return outputs

    def _begin(self, tensor: Tensor, fills: bool) -> None:
        """Track a storage that is about to change; its present values are the first step if they
        matter."""
        storage = storage_of(tensor)
        if isinstance(tensor, nn.Parameter):
            self._parameters[tensor] = TensorPlace.of(tensor)
        if storage not in self._writers:
            self._writers[storage] = []
            if not fills:
                memory = tensor.new_empty(0).set_(tensor.untyped_storage())
                values = memory.to(precise(memory.dtype), copy=True)
                clone = torch.ops.aten.clone.default
                self._keep(Step(clone, (values,), {}, [(0, TensorPlace.of(memory))]))

    def _keep(self, step: Step) -> None:
        writes = step.changed | {view.storage for _, view in step.made}
        # Filled with what is not random: a drawn bias that is then set to zero, for instance.
        if step.fills and not step.draws and not step.reads:
            for storage in step.changed:
                del self._writers[storage]  # no longer random
        elif writes:
            for storage in writes:
                self._writers.setdefault(storage, []).append(len(self.steps))
            self.steps.append(step)

    def _noted(self, leaf: Any) -> Any:
        """An argument as `replay` needs it."""
        if has_memory(leaf):
            if storage_of(leaf) in self._writers:
                return TensorPlace.of(leaf)
            return leaf.detach().to("cpu", precise(leaf.dtype), copy=True)
        if isinstance(leaf, torch.dtype):
            return precise(leaf)
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return None if isinstance(leaf, torch.Generator) else leaf


@torch.no_grad()
def truncated_normal(
    tensor: Tensor,
    mean: float,
    std: float,
    a: float,
    b: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """N(mean, std^2) within [a, b], by the inverse of its distribution.

    Newer versions of torch draw again until all values lie within: how often depends on the values,
    and a tape can only run the same operations again.
    """
    if tensor.is_meta:
        return tensor
    low, high = (math.erf((end - mean) / std / math.sqrt(2)) for end in (a, b))
    tensor.uniform_(low, high, generator=generator).erfinv_()
    return tensor.mul_(std * math.sqrt(2)).add_(mean).clamp_(min=a, max=b)


def draws(function: Any) -> bool:
    """True for operations that ask for random numbers."""
    return torch.Tag.nondeterministic_seeded in function.tags


def storage_of(tensor: Tensor) -> StorageWeakRef:
    """Identifies the memory of a tensor, even after that was freed."""
    return StorageWeakRef(tensor.untyped_storage())


def has_memory(leaf: Any) -> bool:
    """True for a tensor with values in one block of memory."""
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.device.type != "meta"


def precise(dtype: torch.dtype) -> torch.dtype:
    """The type that values of a type are drawn in."""
    return torch.float32 if dtype.is_floating_point else dtype
