"""One model under DeepSpeed. No other file calls DeepSpeed's engine.

ZeRO partitions the frozen weights (stage 3) and the optimizer state of the few weights that train
(all stages). DeepSpeed's own checkpoints are not used: the trainable weights' fp32 masters and
moments are small, so `export` gathers them and `restore` puts them back at any stage and on any
number of ranks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from vlds.models.methods.context import StepRule
from vlds.models.model import Model, step_draws
from vlds.models.partitioned import LEAST_GATHERED, fits_whole, gathered, layer_by_layer
from vlds.models.roles import task_slices
from vlds.recipe.config import AdamWUpdate
from vlds.runtime.devices import Stopwatch
from vlds.runtime.process import keep_freed_memory, returning_freed_memory
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch
from vlds.tasks.base import Task
from vlds.training.deepspeed_config import fit_sizes
from vlds.training.gradients import IdleWeights, sum_in_place
from vlds.training.loss import StepLoss
from vlds.training.optimizer import MOMENTS, TaskAdamW, flat_segments, similar_rows
from vlds.training.profile import span
from vlds.training.sinks import StepReport
from vlds.training.states import LossScale

# DeepSpeed 0.19 knows torch's AdamW, but warns of subclasses in every run.
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
        evaluates_whole: bool | None = None,
    ) -> None:
        """`parts`: how many sets of similar rows a micro-batch is computed in. `num_steps`: the
        run's length, for the rules of methods. `evaluates_whole`: as
        `TrainingConfig.evaluate_whole`."""
        self.model = model
        self.ranks = ranks
        self.tasks = list(tasks)
        self.seed = seed
        self.parts = parts
        self._rules = [rule for rule in model.step_rules.values() if isinstance(rule, StepRule)]
        assert num_steps > 0 or not self._rules, "rules of methods need the run's length"
        self.num_steps = num_steps
        self.stage = int(config["zero_optimization"]["stage"])
        self.steps_done = 0
        self.steps_skipped = 0
        self._evaluates_whole = evaluates_whole
        self.least_gathered = LEAST_GATHERED  # as `layer_by_layer` takes it
        self._config, self._betas, self._eps, self._update = config, betas, eps, update
        self._forward = Stopwatch(ranks.device)
        self._partition(parameter_groups)
        ranks.bound_waiting()
        if ranks.device.type == "cpu":
            keep_freed_memory()  # only now, so that what building the model freed has gone back

    def _partition(self, parameter_groups: list[dict[str, Any]]) -> None:
        """Hand the model and what trains of it to ZeRO."""
        self._adamw = TaskAdamW(
            parameter_groups,
            num_tasks=len(self.tasks),
            betas=self._betas,
            eps=self._eps,
            update=self._update,
        )
        # DeepSpeed moves weights that it partitions, but not the buffers beside them.
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.ranks.device)
        config = fit_sizes(self._config, self.model, on_gpu=self.ranks.device.type != "cpu")
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=self.model,
            optimizer=self._adamw,
            model_parameters=[p for group in parameter_groups for p in group["params"]],
            config=config,
        )
        restore_linear()  # `initialize` replaces torch's function, for the whole program
        # DeepSpeed 0.19 changes the loss scale before it divides the gradients by it: `step` does
        # it when the weights have moved. At its least, it counts skipped steps as any other run.
        self._scaler = self._optimizer.loss_scaler
        self._scaler.raise_error_at_min_scale = False
        self._optimizer._update_scale = lambda has_overflow: None
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

        ZeRO skips the step on all ranks where the norm of the whole gradient is not finite.
        """
        loss = StepLoss(
            batches,
            tasks=self.tasks,
            batch_losses=self.model.batch_losses,
            rules=self._rules,
            ranks=self.ranks,
        )
        self._adamw.present[1:] = (loss.totals.examples > 0).numpy()
        gradients: dict[nn.Parameter, Tensor] = {}
        self._deepspeed.train()
        for micro_step, batch in enumerate(batches):
            is_last = micro_step == len(batches) - 1
            # DeepSpeed would count to one number, but steps differ in theirs if tasks do.
            self._deepspeed.set_gradient_accumulation_boundary(is_last)
            scale = loss.coefficients(batch)
            parts: list[Tensor] = []
            if self.parts > 1:
                parts = similar_rows(self.model.sizes(batch), self.parts)
            place = (self.seed, self.steps_done, micro_step, self.ranks.global_rank)
            # The backward pass draws too, where it computes layers again.
            with step_draws(self.model, *place):
                with span("forward"), self._forward.running():
                    there = scale.to(self.ranks.device, non_blocking=True)
                    output = self._deepspeed(batch.to(self.ranks.device), there, parts)
                total = loss.backward_loss(output)
                with span("backward"):
                    self._deepspeed.backward(total, scale_wrt_gas=False)
            if is_last:
                # Before `step`: it frees the gradients, and updates the weights that they woke.
                gradients = self._gradients_for_rules()
                if self._idle.after_backward():
                    self._cut_segments()
            with span("optimizer"):
                self._deepspeed.step()
            loss.record(batch, scale, output)
        skipped, used = bool(self._optimizer.overflow), self.loss_scale
        if used is not None:
            self._scaler.update_scale(skipped)
        self.steps_done += 1
        self.steps_skipped += skipped
        norm = loss.finish(self._deepspeed.get_global_grad_norm())
        self._run_rules(None if skipped else gradients)
        return StepReport(
            task_losses=loss.task_losses,
            examples=loss.totals.examples,
            gradient_norm=norm,
            added=loss.added,
            skipped=skipped,
            not_finite=loss.not_finite,
            loss_scale=None if used is None else used.value,
            scale_can_fall=used is not None and used.value > self._scaler.min_scale,
            forward_seconds=self._forward.take(),
        )

    def _gradients_for_rules(self) -> dict[nn.Parameter, Tensor]:
        """What rules of methods read in this step: gradients of the global batch in fp32, before
        clipping. Collective; rules exclude stage 3."""
        gradients = {}
        for rule in self._rules:
            for parameter in rule.needs_gradients(self.steps_done + 1, self.num_steps):
                gradient = safe_get_full_grad(parameter)
                assert gradient is not None, "ZeRO has no gradient of a weight that trains"
                gradients[parameter] = gradient.detach().float() / self._scaler.loss_scale
        return gradients

    @torch.no_grad()
    def _run_rules(self, gradients: Mapping[nn.Parameter, Tensor] | None) -> None:
        """Let each rule act after the step that was done; `gradients` as in `StepRule.after_step`.
        Collective."""
        for rule in self._rules:
            masks = rule.after_step(self.steps_done, self.num_steps, gradients)
            for parameter, mask in masks.items():
                master = safe_get_full_fp32_param(parameter).masked_fill(mask, 0.0)
                safe_set_full_fp32_param(parameter, master)
                parameter.masked_fill_(mask, 0.0)  # the copy that computes, in bf16 another tensor

    @contextmanager
    def evaluation(self) -> Iterator[Model]:
        """The model in evaluation mode, so that ranks may decode at their own pace
        (`Model.at_own_pace`)."""
        for _, buffer in self.model.moving_buffers():
            self.ranks.share(buffer)  # each rank has updated its copy with its own batches
        self.model.eval()
        with torch.no_grad(), self._own_pace():
            yield self.model
        self.model.train()

    @contextmanager
    def _own_pace(self) -> Iterator[None]:
        """Under stage 3, let ranks run unlike numbers of forward passes: with whole weights if they
        fit, else layer by layer.

        Private calls of DeepSpeed 0.19; a test shows that training continues unchanged after it.
        """
        if self.stage < 3:
            yield
            return
        # DeepSpeed's hooks gather in each pass, and would wait for ranks that have none left.
        offload = self._optimizer.parameter_offload
        offload.empty_partition_cache()  # weights that it holds gathered for the next pass
        offload._remove_module_hooks()
        try:
            whole = self._evaluates_whole
            if whole is None:
                whole = fits_whole(self.model, self.ranks)
            layers = layer_by_layer(self.model, self.ranks, self.least_gathered)
            weights = gathered(list(self.model.parameters())) if whole else layers
            with returning_freed_memory(), weights:
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
            # No update has made AdamW's state yet.
            self._adamw.start(0, [0] * len(self.tasks))
        # All ranks must ask for the same weights in the same order: each call gathers one.
        self._link_moments()
        state: State = {}
        with returning_freed_memory():
            for name, parameter in self.trainable_parameters():
                tensors = {"fp32": safe_get_full_fp32_param(parameter)}
                for moment in MOMENTS:
                    tensors[moment] = safe_get_full_optimizer_state(parameter, moment)
                if self.ranks.is_first:
                    state[name] = {k: value.detach().cpu().clone() for k, value in tensors.items()}
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

    @property
    def loss_scale(self) -> LossScale | None:
        """Where fp16's loss scale stands; None in other precisions, and where it is fixed."""
        if not (scaler := self._scaler).dynamic:
            return None
        return LossScale(
            scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis
        )

    def restore(
        self,
        state: State,
        steps_done: int,
        steps_skipped: int,
        task_updates: Sequence[int],
        loss_scale: LossScale | None = None,
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
            self._put(parameter, state[name])
        for name, buffer in self.model.moving_buffers():
            buffer.copy_(state[name]["buffer"])
        # A weight that a loss has read has moments that are not zero.
        trained = [name for name, tensors in state.items() if "fp32" in tensors]
        self._idle.wake(n for n in trained if any(state[n][m].any() for m in MOMENTS))
        self._cut_segments()
        self.steps_done = self._deepspeed.global_steps = steps_done
        self.steps_skipped = steps_skipped
        # A run that goes on in another precision has none, or begins with the first one.
        if loss_scale is not None and self._scaler.dynamic:
            scaler = self._scaler
            scaler.cur_scale, scaler.cur_iter = loss_scale.value, loss_scale.steps
            scaler.last_overflow_iter = loss_scale.last_overflow
            scaler.cur_hysteresis = loss_scale.hysteresis
        wrong = [
            f"{name} ({key})"
            for name, tensors in (self.export() or {}).items()
            for key, value in tensors.items()
            if not torch.equal(value, state[name][key])
        ]
        if self.ranks.any(bool(wrong)):
            raise RuntimeError(
                f"DeepSpeed {deepspeed.__version__} did not take the run state back: "
                f"{', '.join(wrong[:3])}; install deepspeed>=0.19.8,<0.20"
            )

    def revise(self, groups: Callable[[], list[dict[str, Any]]]) -> None:
        """Let the methods change what trains, after the step that was done, and go on with the
        state that they give. `groups`: the optimizer's, of the changed model. Collective."""
        counts = self.steps_done, self.steps_skipped, self.task_updates, self.loss_scale
        # The changed model gets a new DeepSpeed engine: the old one's state passes through the CPU,
        # and is on all ranks, because `restore` asks for that.
        state: State = self.ranks.broadcast(self.export())
        trained = {name: tensors for name, tensors in state.items() if "fp32" in tensors}
        self.close()
        revised = revise(self.model, self.steps_done, self.num_steps, trained)
        self._partition(groups())
        for name, tensors in revised.items():
            if tensors is None:  # the weight begins to train as it is
                master = safe_get_full_fp32_param(self.model.get_parameter(name)).detach().cpu()
                tensors = {"fp32": master, **{m: torch.zeros_like(master) for m in MOMENTS}}
            state[name] = dict(tensors)
        buffers = state.keys() - trained.keys()
        self.restore({name: state[name] for name in revised.keys() | buffers}, *counts)

    def _link_moments(self) -> None:
        """Stages 1 and 2 link parameters to their moments after the first group's first step, when
        those of the other groups do not exist yet (DeepSpeed 0.19), so link again."""
        if self.stage < 3:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _put(self, parameter: Any, tensors: Mapping[str, Tensor]) -> None:
        """Set a weight, its master and its moments. Collective."""
        if self.stage < 3:
            safe_set_full_fp32_param(parameter, tensors["fp32"])
            parameter.data.copy_(tensors["fp32"])
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, tensors[moment], moment)
            return
        size, ranks = parameter.ds_tensor.ds_numel, self.ranks

        def part_of(value: Tensor) -> Tensor:
            # Each rank holds an equal part of the flattened tensor; the last one is padded.
            padded = F.pad(value.flatten(), (0, size * ranks.world_size - value.numel()))
            return padded.narrow(0, size * ranks.global_rank, size).to(ranks.device)

        safe_set_local_fp32_param(parameter, part_of(tensors["fp32"]))
        for moment in MOMENTS:
            safe_set_local_optimizer_state(parameter, part_of(tensors[moment]), moment)
        # The setters above do not update the copy that computes, as the whole ones do.
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            if ranks.is_first:
                parameter.data.copy_(tensors["fp32"])

    def bytes_per_rank(self) -> dict[str, int]:
        """Bytes of frozen weights, trainable weights and optimizer state on this rank between
        steps."""
        sizes = {"frozen": scale_bytes(self.model), "trainable": 0}
        parameter: Any
        for parameter in self.model.parameters():
            partition = getattr(parameter, "ds_tensor", parameter)
            size = partition.nbytes
            is_whole = parameter.data_ptr() != partition.data_ptr()
            if getattr(parameter, "ds_persist", False) and is_whole:
                # Below stage 3's persistence threshold: it stays whole beside its partition.
                size += parameter.ds_numel * parameter.element_size()
            sizes["trainable" if parameter.requires_grad else "frozen"] += size
        # The fp32 masters, and moments of the same size.
        masters = sum(flat.nbytes for flat in self._adamw.segments)
        sizes["optimizer"] = (1 + len(MOMENTS)) * masters + buffer_bytes(self.model.step_rules)
        return sizes

    def close(self) -> None:
        """Free DeepSpeed's memory, so that another engine can start in this process."""
        self._deepspeed.destroy()
        gc.collect()


def buffer_bytes(rules: nn.Module) -> int:
    """Bytes of the state of methods' rules."""
    return sum(buffer.nbytes for buffer in rules.buffers())
