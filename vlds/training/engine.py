"""One model under DeepSpeed. No other file calls DeepSpeed's engine.

ZeRO partitions the frozen weights (stage 3) and the optimizer state of the few weights that train
(all stages). DeepSpeed's own checkpoints are not used: the trainable weights' fp32 masters and
moments are small, so `export` gathers them and `restore` puts them back at any stage and on any
number of ranks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import nan
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.nn.functional as F
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from vlds.models.kernels.fused import restore_linear
from vlds.models.kinds.base import revise
from vlds.models.loading.quantised import scale_bytes
from vlds.models.loss import LossTotals, coefficients, count, task_losses
from vlds.models.methods.context import StepRule
from vlds.models.model import Model, step_draws
from vlds.models.roles import task_slices
from vlds.recipe.config import AdamWUpdate
from vlds.runtime.process import keep_freed_memory
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch
from vlds.tasks.base import Task
from vlds.training.deepspeed_config import fit_sizes
from vlds.training.gradients import sum_in_place
from vlds.training.optimizer import MOMENTS, TaskAdamW, flat_segments, similar_rows
from vlds.training.profile import span
from vlds.training.sinks import StepReport

# What a rank holds of a model between steps, in bytes.


def held_bytes(model: Model, masters: Iterable[Tensor]) -> dict[str, int]:
    """Bytes of frozen weights, trainable weights and optimizer state on this rank. `masters`: its
    flat fp32 tensors."""
    sizes = {"frozen": 0, "trainable": 0, "optimizer": 0}
    for parameter in model.parameters():
        sizes["trainable" if parameter.requires_grad else "frozen"] += stored_bytes(parameter)
    sizes["frozen"] += scale_bytes(model)
    sizes["optimizer"] = sum((1 + len(MOMENTS)) * flat.nbytes for flat in masters)
    sizes["optimizer"] += buffer_bytes(model.step_rules)
    return sizes


def stored_bytes(parameter: Any) -> int:
    """Bytes of a weight on this rank between steps."""
    partition = getattr(parameter, "ds_tensor", parameter)
    stored: int = partition.nbytes
    is_whole = parameter.data_ptr() != partition.data_ptr()
    if getattr(parameter, "ds_persist", False) and is_whole:
        # Below stage 3's persistence threshold: it stays whole beside its partition.
        stored += parameter.ds_numel * parameter.element_size()
    return stored


# Runs methods' rules (vlds/models/methods/context.py) in an engine's optimizer steps.


class StepRules:
    """All rules of a model. Every method is collective; without rules, none does anything."""

    def __init__(self, rules: nn.ModuleDict, num_steps: int) -> None:
        self.rules = [rule for rule in rules.values() if isinstance(rule, StepRule)]
        assert num_steps > 0 or not self.rules, "rules of methods need the run's length"
        self.num_steps = num_steps
        self._gradients: dict[nn.Parameter, Tensor] = {}

    def added_loss(self, share: float) -> Tensor | float:
        """This share of what the rules add to the loss of a global batch."""
        penalties = [p for rule in self.rules if (p := rule.penalty()) is not None]
        return share * torch.stack(penalties).sum() if penalties else 0.0

    def read_gradients(self, step: int, read: Callable[[nn.Parameter], Tensor]) -> None:
        """Keep what the rules need of the gradients, which `read` averages over ranks: between the
        last backward pass of a step and the optimizer, in which ZeRO frees them."""
        self._gradients = {
            parameter: read(parameter)
            for rule in self.rules
            for parameter in rule.needs_gradients(step, self.num_steps)
        }

    def after_step(
        self, step: int, skipped: bool, set_zero: Callable[[nn.Parameter, Tensor], None]
    ) -> None:
        """Let each rule act. `set_zero` sets a weight to zero where a mask is true."""
        for rule in self.rules:
            gradients = None if skipped else self._gradients
            for parameter, mask in rule.after_step(step, self.num_steps, gradients).items():
                set_zero(parameter, mask)
        self._gradients = {}


def buffer_bytes(rules: nn.Module) -> int:
    """Bytes of the rules' state."""
    return sum(buffer.nbytes for buffer in rules.buffers())


# Trainable weights that no loss has read yet.
#
# ZeRO gives them a gradient of zeros, under which AdamW would let them decay. Here they stay as
# they are, as in plain torch, where such weights have no gradient.


class IdleWeights:
    """Knows which trainable weights have had no gradient yet, on any rank. All ranks have one."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._idle = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._seen: set[str] = set()
        self._hooks = {name: p.register_hook(self._note(name)) for name, p in self._idle.items()}

    def _note(self, name: str) -> Callable[[Tensor], None]:
        def note(_: Tensor) -> None:
            self._seen.add(name)

        return note

    @property
    def parameters(self) -> set[nn.Parameter]:
        """The weights that are still idle; at first all."""
        return set(self._idle.values())

    def after_backward(self) -> bool:
        """Look at the gradients of a whole step; True if weights are no longer idle.

        Collective while some are.
        """
        if not self._idle:
            return False
        flags = torch.tensor([name in self._seen for name in self._idle], dtype=torch.float64)
        seen = self._ranks.sum(flags)
        woken = [name for name, flag in zip(self._idle, seen, strict=True) if flag]
        self.wake(woken)
        return bool(woken)

    def wake(self, names: Iterable[str]) -> None:
        """Count some weights, the same on all ranks, among those that a loss has read."""
        for name in names:
            if self._idle.pop(name, None) is not None:
                self._hooks.pop(name).remove()


# DeepSpeed knows torch's AdamW, but warns of subclasses ("proceed with caution") in every run.
ZERO_SUPPORTED_OPTIMIZERS.append(TaskAdamW)
State = dict[str, dict[str, Tensor]]
"""Trainable weight -> {"fp32", "exp_avg", "exp_avg_sq"}, moving buffer -> {"buffer"} -> full
tensor on the CPU."""
Layout = dict[tuple[str, str], tuple[torch.dtype, torch.Size]]
"""Type and shape of each tensor of a state."""


class Engine:
    """One model under ZeRO: optimizer steps, evaluation with whole weights, state in and out."""

    def __init__(
        self,
        model: Model,
        parameter_groups: list[dict[str, Any]],
        config: dict[str, Any],
        *,
        ranks: Ranks,
        tasks: Sequence[Task],
        seed: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        update: AdamWUpdate = "torch",
        parts: int = 1,
        num_steps: int = 0,
    ) -> None:
        """`parts`: how many sets of similar rows a micro-batch is computed in. `num_steps`: the
        run's length, for the rules of methods."""
        self.model = model
        self.ranks = ranks
        self.tasks = list(tasks)
        self.seed = seed
        self.parts = parts
        self._rules = StepRules(model.step_rules, num_steps)
        self.num_steps = num_steps
        self.stage = int(config["zero_optimization"]["stage"])
        self.steps_done = 0
        self.steps_skipped = 0
        self._config, self._betas, self._eps, self._update = config, betas, eps, update
        self._partition(parameter_groups)
        ranks.bound_waiting()
        if ranks.device.type == "cpu":
            # What building the model has freed goes back before.
            keep_freed_memory()

    def _partition(self, parameter_groups: list[dict[str, Any]]) -> None:
        """Hand the model and what trains of it to ZeRO."""
        self._adamw = TaskAdamW(
            parameter_groups,
            num_tasks=len(self.tasks),
            betas=self._betas,
            eps=self._eps,
            update=self._update,
        )
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=self.model,
            optimizer=self._adamw,
            model_parameters=[p for group in parameter_groups for p in group["params"]],
            config=fit_sizes(self._config, self.model),
        )
        restore_linear()
        if self.stage == 2:
            sum_in_place(self._optimizer, self.ranks)
        self._slices = task_slices(self.model, len(self.tasks))
        self._idle = IdleWeights(self.model, self.ranks)
        self._cut_segments()

    def _cut_segments(self) -> None:
        """Tell AdamW to which tasks its elements belong, and which of them no loss has read."""
        self._adamw.segments |= flat_segments(
            self._optimizer,
            self.stage,
            self.ranks.global_rank,
            self._slices,
            self._idle.parameters,
        )

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups; the schedule writes their "lr"."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def step(self, batches: Sequence[Batch]) -> StepReport:
        """One optimizer step on this rank's micro-batches of a global batch.

        ZeRO skips the step on all ranks where the norm of the whole gradient is not finite. A loss
        that is not finite makes its gradient so.
        """
        totals = LossTotals(*self.ranks.sum(count(batches, len(self.tasks))))
        self._adamw.set_present(totals.examples > 0)
        losses = torch.zeros(len(self.tasks), dtype=torch.float64)
        added = dict.fromkeys(self.model.batch_losses, 0.0)
        not_finite: list[str] = []
        self._deepspeed.train()
        for micro_step, batch in enumerate(batches):
            scale = coefficients(batch, totals, self.tasks).to(self.ranks.device)
            # Steps of other tasks may have other numbers of micro-batches.
            self._deepspeed.set_gradient_accumulation_boundary(micro_step == len(batches) - 1)
            parts: list[Tensor] = []
            if self.parts > 1:
                parts = similar_rows(self.model.sizes(batch), self.parts)
            place = (self.seed, self.steps_done, micro_step, self.ranks.global_rank)
            with step_draws(self.model, *place):
                with span("forward"):
                    output = self._deepspeed(batch.to(self.ranks.device), scale, parts)
                # ZeRO averages gradients over ranks, and the denominators already count all of
                # them.
                factor = torch.where(output.loss.isfinite(), float(self.ranks.world_size), nan)
                rules = self._rules.added_loss(1 / (self.ranks.world_size * len(batches)))
                with span("backward"):
                    self._deepspeed.backward((output.loss + rules) * factor, scale_wrt_gas=False)
            if micro_step == len(batches) - 1:
                self._rules.read_gradients(self.steps_done + 1, self._gradient)
                if self._idle.after_backward():
                    self._cut_segments()
            with span("optimizer"):
                self._deepspeed.step()
            nll_sums = output.token_nll_sum.detach().cpu()
            not_finite += [batch.ids[row] for row in (~nll_sums.isfinite()).nonzero().flatten()]
            losses += task_losses(nll_sums, batch, totals, self.tasks)
            for name, sums in output.added.items():
                added[name] += float(scale.to(sums) @ sums)
        skipped = bool(self._optimizer.overflow)
        self.steps_done += 1
        self.steps_skipped += skipped
        self._rules.after_step(self.steps_done, skipped, self._set_zero)
        norm = float(self._deepspeed.get_global_grad_norm())
        return StepReport(losses, totals.examples, norm, added, skipped, not_finite)

    def _gradient(self, parameter: nn.Parameter) -> Tensor:
        """The gradient of the global batch in fp32, before clipping; stages 1 and 2. Collective."""
        gradient: Tensor | None = safe_get_full_grad(parameter)
        assert gradient is not None, "ZeRO has no gradient of a weight that trains"
        return gradient.detach().float().clone()

    @torch.no_grad()
    def _set_zero(self, parameter: nn.Parameter, mask: Tensor) -> None:
        """Set a weight and its master to zero where the mask is true; stages 1 and 2.
        Collective."""
        master = safe_get_full_fp32_param(parameter).masked_fill(mask, 0.0)
        safe_set_full_fp32_param(parameter, master)
        parameter.masked_fill_(mask, 0.0)

    @contextmanager
    def evaluation(self) -> Iterator[Model]:
        """The model in evaluation mode, with whole weights on every rank, so that ranks may decode
        at their own pace."""
        for _, buffer in self.model.moving_buffers():
            self.ranks.share(buffer)  # each rank has updated its copy with its own batches
        self.model.eval()
        with torch.no_grad(), self._whole_weights():
            yield self.model
        self.model.train()

    @contextmanager
    def _whole_weights(self) -> Iterator[None]:
        """Under stage 3, gather all weights and remove the hooks that would partition them again.

        Private calls of DeepSpeed 0.19; a test shows that training continues unchanged after it.
        """
        if self.stage < 3:
            yield
            return
        offload = self._optimizer.parameter_offload
        offload.empty_partition_cache()
        offload._remove_module_hooks()
        try:
            with deepspeed.zero.GatheredParameters(list(self.model.parameters())):
                yield
        finally:
            offload.setup_zero_stage3_hooks()

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimizer holds, in the order of the model."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def state_layout(self) -> Layout:
        """Types and shapes of what `export` returns."""
        layout: Layout = {}
        for name, parameter in self.trainable_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            layout |= {(name, key): (torch.float32, shape) for key in ("fp32", *MOMENTS)}
        buffers = self.model.moving_buffers()
        return layout | {(name, "buffer"): (b.dtype, b.shape) for name, b in buffers}

    def export(self) -> State | None:
        """Masters and moments of all trainable weights, and the moving buffers; on the first rank,
        None elsewhere. Collective."""
        if self.steps_done == self.steps_skipped:
            self._adamw.start(0, [0] * len(self.tasks))
        self._link_moments()
        state: State = {}
        for name, parameter in self.trainable_parameters():
            tensors = {"fp32": safe_get_full_fp32_param(parameter)}
            for moment in MOMENTS:
                tensors[moment] = safe_get_full_optimizer_state(parameter, moment)
            if self.ranks.is_first:
                state[name] = {key: value.detach().cpu().clone() for key, value in tensors.items()}
        if not self.ranks.is_first:
            return None
        return state | {
            n: {"buffer": b.detach().cpu().clone()} for n, b in self.model.moving_buffers()
        }

    @property
    def has_task_weights(self) -> bool:
        """True if some weights belong to single tasks, so that the tasks' order matters."""
        return bool(self._slices)

    @property
    def task_updates(self) -> list[int]:
        """Updates of each task's own weights so far: steps with examples of the task that were not
        skipped."""
        return self._adamw.task_updates

    def restore(
        self, state: State, steps_done: int, steps_skipped: int, task_updates: Sequence[int]
    ) -> None:
        """Put an exported state back, at this stage and number of ranks. Collective; all ranks
        pass `state`, which has this engine's layout. AdamW does not count skipped steps.

        Private calls of DeepSpeed 0.19, which creates the optimizer's state only in its first
        step. The state is exported again and compared, so that a change in the library is an error
        and not a silently wrong run.
        """
        self._adamw.start(steps_done - steps_skipped, task_updates)
        self._link_moments()
        for name, parameter in self.trainable_parameters():
            if self.stage == 3:
                self._put_partitioned(parameter, state[name])
            else:
                self._put_whole(parameter, state[name])
        for name, buffer in self.model.moving_buffers():
            buffer.copy_(state[name]["buffer"])
        # What has been read has moments.
        trained = [name for name, tensors in state.items() if "fp32" in tensors]
        self._idle.wake(n for n in trained if any(state[n][m].any() for m in MOMENTS))
        self._cut_segments()
        self.steps_done = self._deepspeed.global_steps = steps_done
        self.steps_skipped = steps_skipped
        self._check_restored(state)

    def revise(self, groups: Callable[[], list[dict[str, Any]]]) -> None:
        """Let the methods change what trains, after the step that was done, and go on with the
        state that they give. `groups`: the optimizer's, of the changed model. Collective."""
        counts = self.steps_done, self.steps_skipped, self.task_updates
        state: State = self.ranks.broadcast(self.export())
        trained = {name: tensors for name, tensors in state.items() if "fp32" in tensors}
        self.close()
        revised = revise(self.model, self.steps_done, self.num_steps, trained)
        self._partition(groups())
        for name, tensors in revised.items():
            state[name] = dict(tensors) if tensors is not None else self._untrained(name)
        kept = revised.keys() | (state.keys() - trained.keys())
        self.restore({name: state[name] for name in kept}, *counts)

    def _untrained(self, name: str) -> dict[str, Tensor]:
        """The state of a weight that begins to train. Collective."""
        master = safe_get_full_fp32_param(self.model.get_parameter(name)).detach().cpu()
        return {"fp32": master, **{moment: torch.zeros_like(master) for moment in MOMENTS}}

    def _link_moments(self) -> None:
        """Stages 1 and 2 link parameters to their moments after the first group's first step, when
        those of the other groups do not exist yet (DeepSpeed 0.19), so link again."""
        if self.stage < 3:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _put_whole(self, parameter: nn.Parameter, tensors: Mapping[str, Tensor]) -> None:
        safe_set_full_fp32_param(parameter, tensors["fp32"])
        parameter.data.copy_(tensors["fp32"])
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, tensors[moment], moment)

    def _put_partitioned(self, parameter: Any, tensors: Mapping[str, Tensor]) -> None:
        size, ranks = parameter.ds_tensor.ds_numel, self.ranks

        def part_of(value: Tensor) -> Tensor:
            padded = F.pad(value.flatten(), (0, size * ranks.world_size - value.numel()))
            return padded.narrow(0, size * ranks.global_rank, size).to(ranks.device)

        safe_set_local_fp32_param(parameter, part_of(tensors["fp32"]))
        for moment in MOMENTS:
            safe_set_local_optimizer_state(parameter, part_of(tensors[moment]), moment)
        # The setters do not update the low-precision copy.
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            if ranks.is_first:
                parameter.data.copy_(tensors["fp32"])

    def _check_restored(self, state: State) -> None:
        exported = self.export()
        wrong = [
            f"{name} ({key})"
            for name, tensors in (exported or {}).items()
            for key, value in tensors.items()
            if not torch.equal(value, state[name][key])
        ]
        if self.ranks.any(bool(wrong)):
            raise RuntimeError(
                f"DeepSpeed {deepspeed.__version__} did not take the run state back: "
                f"{', '.join(wrong[:3])}; install deepspeed>=0.19.8,<0.20"
            )

    def bytes_per_rank(self) -> dict[str, int]:
        """Bytes of frozen weights, trainable weights and optimizer state on this rank."""
        return held_bytes(self.model, self._adamw.segments)

    def close(self) -> None:
        """Free DeepSpeed's memory, so that another engine can start in this process."""
        self._deepspeed.destroy()
        gc.collect()
