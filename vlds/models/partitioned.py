"""A model whose weights ZeRO stage 3 has partitioned, so that each rank holds a part of each
weight: how it is loaded, and how ranks evaluate it, each at its own pace.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed

from vlds.models.kernels.fused import restore_linear
from vlds.models.loading.load_backbone import holds_positions
from vlds.models.methods.host import is_own
from vlds.runtime.process import returning_freed_memory
from vlds.runtime.ranks import Ranks

if TYPE_CHECKING:
    from vlds.models.model import Model

LEAST_GATHERED = 100_000
"""Elements: smaller weights stay whole on every rank, as by DeepSpeed's own threshold. Modules read
some of them of each other, such as a temperature, where no hook would gather them."""
LARGEST_SHARE = 8
"""A layer that is more than this fraction of the model is gathered in parts."""
NOTHING = 2**31
"""Among numbers of batches and modules: a rank that has finished."""


class LoadingHint:
    """Stands in for transformers' HfDeepSpeedConfig, which needs the package `accelerate`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        """Asked by transformers before it creates a model."""
        return bool(self.config["zero_optimization"]["stage"] == 3)


@contextmanager
def partitioned_loading(config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `from_pretrained` partitions each weight as it comes from disk, if DeepSpeed's
    config says stage 3. No rank ever holds the whole model.

    transformers means to tie the weights of a checkpoint only if they are equal, but compares the
    empty tensors that stand for partitioned weights (5.24), and would replace any output head by
    the token table. Here the ranks compare their parts.

    A partitioned weight and what DeepSpeed hangs on it refer to each other. So one that another has
    replaced, such as the copies of a token table, keeps its memory until garbage is collected.
    """
    tie_all = PreTrainedModel.tie_weights
    partitions = config.get("zero_optimization", {}).get("stage") == 3

    def tie_weights(
        model: Any, missing_keys: set[str] | None = None, recompute_mapping: bool = True
    ) -> None:
        # Without `missing_keys` no checkpoint has been loaded, whose weights could differ.
        ties = {} if missing_keys is None else dict(model.all_tied_weights_keys)
        for target, source in ties.items():
            pair = model.get_parameter(target), model.get_parameter(source)
            partitioned = hasattr(pair[0], "ds_tensor") and hasattr(pair[1], "ds_tensor")
            loaded = (missing_keys or set()).isdisjoint((target, source))
            # Every rank loads the same files, so all of them come to this collective.
            if loaded and partitioned and not equal_parts(*pair):
                del model.all_tied_weights_keys[target]
        tie_all(model, missing_keys, recompute_mapping)
        if partitions and missing_keys is not None:
            # transformers reads into the first rank's weights alone; of partitioned ones, all ranks
            # then hold parts. One that the model's own code has replaced, such as BLIP-2's
            # qkv.bias, is not partitioned, and has to be sent.
            for weight in model.parameters():
                if not hasattr(weight, "ds_tensor"):
                    distributed.broadcast(weight.detach(), 0)
        if partitions:
            gc.collect()  # now, and not once all weights have been read beside the copies

    # transformers refers to it weakly, so this frame keeps it alive.
    hint = LoadingHint(config)
    hf_deepspeed.set_hf_deepspeed_config(hint)
    PreTrainedModel.tie_weights = tie_weights
    try:
        with returning_freed_memory() if partitions else nullcontext():
            yield
    finally:
        PreTrainedModel.tie_weights = tie_all
        hf_deepspeed.unset_hf_deepspeed_config()  # both are global to transformers
        restore_linear()  # DeepSpeed replaces torch's function, for the whole program
        if partitions:
            gc.collect()


def partitioned_reading(dtype: torch.dtype, world_size: int) -> AbstractContextManager[None]:
    """As `partitioned_loading`, for weights that no engine will train."""
    return partitioned_loading(
        {
            "zero_optimization": {"stage": 3},
            "bf16": {"enabled": dtype == torch.bfloat16},
            "fp16": {"enabled": dtype == torch.float16},
            # DeepSpeed wants them, and nothing here reads them.
            "train_batch_size": world_size,
            "train_micro_batch_size_per_gpu": 1,
        }
    )


def equal_parts(source: Any, target: Any) -> bool:
    """True if two partitioned weights are equal. Collective."""
    if source.ds_shape != target.ds_shape:
        return False
    # Each rank holds `size` numbers, so the last ranks' parts end in padding, which may differ.
    size = source.ds_tensor.ds_numel
    start = size * distributed.get_rank(source.ds_process_group)
    length = min(max(source.ds_numel - start, 0), size)
    equal = torch.equal(source.ds_tensor[:length], target.ds_tensor[:length])
    # Equal on all ranks, or the ranks would tie different weights and then wait for each other.
    verdict = torch.tensor(int(equal), device=source.ds_tensor.device)
    distributed.all_reduce(verdict, distributed.ReduceOp.MIN, source.ds_process_group)
    return bool(verdict)


def gathered(weights: Sequence[Tensor], *, written: bool = False) -> AbstractContextManager[object]:
    """Inside, weights that stage 3 has partitioned are whole on all ranks. If they may be written,
    they are partitioned again with the first rank's values. Collective."""
    if not any(hasattr(weight, "ds_tensor") for weight in weights):
        return nullcontext()
    import deepspeed  # takes seconds, and only stage 3 needs it

    context: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(
        list(weights), modifier_rank=0 if written else None
    )
    return context


@contextmanager
def layer_by_layer(model: Model, ranks: Ranks, least: int = LEAST_GATHERED) -> Iterator[None]:
    """Inside, ranks hold a layer's weights while one of them runs it; always, those of at most
    `least` elements and those that methods have added. Collective. Without partitioned weights,
    nothing changes."""
    kept, found = layers_of(model, least)
    # A model that no engine holds has only what came from its files partitioned.
    cut = [(module, [p for p in weights if hasattr(p, "ds_tensor")]) for module, weights in found]
    layers = [(module, weights) for module, weights in cut if weights]
    with gathered(kept), ExitStack() as hooks:
        model.gathering = LayerGathering(layers, ranks, hooks) if layers else None
        try:
            yield
        finally:
            model.gathering = None


def fits_whole(model: nn.Module, ranks: Ranks) -> bool:
    """True if every rank has memory for all weights beside its parts, and for as much again: caches
    and activations. Collective."""
    places = {p.ds_tensor.device.type for p in model.parameters() if hasattr(p, "ds_tensor")}
    if ranks.world_size == 1 and places <= {ranks.device.type}:
        return True  # its parts are the whole weights
    return ranks.have_memory(2 * sum(sizes_of([p]) * p.element_size() for p in model.parameters()))


class LayerGathering:
    """Lets ranks gather the weights of a layer together, just before one of them runs it.

    A weight is gathered by all ranks at once. DeepSpeed's hooks gather in every forward pass, so
    that a rank whose answers are longer, or whose batches are more, would wait for the others
    forever. Here the ranks first tell each other which layer each of them needs next. The rank that
    is furthest behind gets its layer, and so does each that needs the same one; the others help to
    gather it, and ask again. Each rank computes nothing but its own rows, as with whole weights.
    """

    def __init__(
        self,
        layers: Sequence[tuple[nn.Module, list[nn.Parameter]]],
        ranks: Ranks,
        hooks: ExitStack,
    ) -> None:
        """`layers`: modules with the weights that they need, in one order on all ranks. `hooks`
        removes what is hooked to them."""
        self.ranks = ranks
        self.batch = 0
        self._weights = [weights for _, weights in layers]
        self._held = ExitStack()
        """The weights of the layer that this rank runs."""
        self._is_inside = False
        for number, (module, _) in enumerate(layers):
            before, after = self._hooks_of(number)
            for hook in (
                module.register_forward_pre_hook(before, prepend=True),
                module.register_forward_hook(after, always_call=True),
            ):
                hooks.callback(hook.remove)

    def _hooks_of(self, number: int) -> tuple[Callable[..., None], Callable[..., None]]:
        """What runs before and after a module."""
        gathers: list[bool] = []  # a module may run inside itself

        def before(module: nn.Module, *_: Any) -> None:
            is_missing = any(weight.numel() == 0 for weight in self._weights[number])
            if is_missing and self._is_inside:
                # To ask while it holds a layer could make this rank wait for one that waits for it.
                raise RuntimeError(
                    f"a {type(module).__name__} runs inside a layer of which it is no part, so its "
                    "weights cannot be gathered alone; set training.evaluate_whole to true"
                )
            if is_missing:
                self._gather(number)
                self._is_inside = True
            gathers.append(is_missing)

        def after(*_: Any) -> None:
            # Nothing, if `before` has raised.
            if gathers and gathers.pop():
                self._is_inside = False
                self._held.close()

        return before, after

    def _gather(self, number: int) -> None:
        """Help others until it is this rank's turn, and then hold a module's weights; with
        `NOTHING`, until no rank needs any."""
        own = torch.tensor([self.batch if number < NOTHING else NOTHING, number])
        while True:
            # On the CPU: what ranks want does not have to reach a GPU.
            wanted = [torch.empty_like(own) for _ in range(self.ranks.world_size)]
            distributed.all_gather(wanted, own)
            # Within a batch the first module: a rank that has read no picture waits for one that
            # still has to, and then both read their texts together.
            _, chosen = min(map(Tensor.tolist, wanted))
            if chosen < NOTHING:
                self._held.enter_context(gathered(self._weights[chosen]))
            if chosen == number:
                return
            self._held.close()

    @contextmanager
    def at_own_pace(self) -> Iterator[Callable[[], None]]:
        """Inside, ranks may run unlike numbers of forward passes; each calls what this yields
        before each of its batches. At the end, ranks wait for each other."""
        self.batch = 0

        def begin_batch() -> None:
            self.batch += 1

        yield begin_batch
        # Not in `finally`: a rank that has failed does not help the others.
        self._gather(NOTHING)


def layers_of(
    model: nn.Module, least: int
) -> tuple[list[nn.Parameter], list[tuple[nn.Module, list[nn.Parameter]]]]:
    """Weights that stay whole in evaluation; modules with the weights that they need gathered: the
    outermost repeated layers, and all that have no parts."""
    most = sizes_of(model.parameters()) / LARGEST_SHARE
    layers: dict[int, nn.Module] = {}
    inside: set[int] = set()
    for module in model.modules():
        stacked: list[nn.Module] = []
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            stacked = [layer for layer in module if sizes_of(layer.parameters()) <= most]
        elif isinstance(module, nn.MultiheadAttention):  # it reads its last layer's weight
            stacked = [module]
        for layer in stacked:
            if id(layer) not in inside:
                layers[id(layer)] = layer
                inside.update(map(id, layer.modules()))
    kept = {
        id(p): p
        for name, p in model.named_parameters()
        if sizes_of([p]) <= least or not is_own(name)
    }
    for module in model.modules():
        # A linear layer or table is called for its weights. One inside a repeated layer finds them
        # gathered, unless it is called alone, as T5's table of distances is.
        if not any(True for _ in module.children()):
            layers[id(module)] = module
        # What holds more than weights, such as an encoder with its table of positions, may read
        # them in other ways, or while others run.
        elif id(module) not in inside:
            kept |= {id(p): p for p in module.parameters(recurse=False)}
            # CLIP asks its table of positions for its length before it calls it.
            for name, part in module.named_children():
                if isinstance(part, nn.Embedding) and holds_positions(name):
                    kept |= {id(p): p for p in part.parameters()}
    found = [
        (module, [p for p in module.parameters() if id(p) not in kept])
        for module in model.modules()
        if id(module) in layers
    ]
    return list(kept.values()), [(module, weights) for module, weights in found if weights]


def sizes_of(weights: Iterable[nn.Parameter]) -> int:
    """Elements of weights, whole."""
    return sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in weights)
