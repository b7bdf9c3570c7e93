"""Faults of a run whose recipe is right: memory, disk, NaN. Each message says the cure."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlds.recipe.config import Recipe
from vlds.runtime.devices import uses_gpu
from vlds.runtime.disk import ROOM, CannotWrite, system_error
from vlds.runtime.json_files import lacks_memory
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import shell_command
from vlds.schema import Batch
from vlds.training.sinks import StepReport
from vlds.training.states import state_folders

NOT_WRITABLE = (*ROOM, errno.EROFS)
READS_TOO = (errno.EACCES, errno.EPERM, errno.EIO)
"""Errnos that reads raise too: blame the output folder only if the path is inside it."""
SHOWN_IDS = 5
USUAL_RATE = 1.0
"""Peak learning rates above it are mistakes of units: AdamW moves each weight by about the rate."""


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Inside, a lack of memory or disk is a ValueError that says what to change."""
    try:
        yield
    except Exception as error:  # torch, Rust and Python have many classes for these
        run, refused, message = Path(recipe.output), system_error(error), None
        if lacks_memory(error):
            message = out_of_memory(recipe)
        elif refused is not None and isinstance(error, CannotWrite):
            if error.path.is_relative_to(run):
                message = cannot_write(error.path, refused, run)
        elif refused is not None:
            in_run = str(refused.filename).startswith(recipe.output)
            if refused.errno in NOT_WRITABLE or (refused.errno in READS_TOO and in_run):
                message = cannot_write(run, refused, run)
        if message is None:
            raise
        raise ValueError(message) from error


@contextmanager
def library_faults() -> Iterator[None]:
    """Inside, a ValueError of another library is a RuntimeError, which users see with its
    traceback: ValueErrors are for what they can correct."""
    try:
        yield
    except ValueError as error:
        # The innermost frame is where it was raised.
        frames = list(traceback.walk_tb(error.__traceback__))
        if str(frames[-1][0].f_globals.get("__name__")).partition(".")[0] == "vlds":
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def out_of_memory(recipe: Recipe) -> str:
    """Which keys make a run smaller: the cheapest first, without those that are set already."""
    data, training = recipe.data, recipe.training
    size = data.micro_batch_size
    now = f"now {size}" if size else "now a rank's whole share of data.global_batch_size"
    cures = [] if size == 1 else [f"lower data.micro_batch_size ({now}; results stay the same)"]
    recomputable = all(method.recomputable for method in recipe.methods.values())
    if not training.activation_checkpointing and data.parts == 1 and recomputable:
        cures.append("set training.activation_checkpointing to true")
    if "zero3" not in training.deepspeed:
        cures.append("set training.deepspeed to ds_configs/zero3.json, and start more ranks")
    if "offload" not in training.deepspeed and uses_gpu():
        cures.append("take its _offload variant")
    if data.eval_batch_size > 1:
        cures.append(f"in evaluation, lower data.eval_batch_size (now {data.eval_batch_size})")
    if not cures:
        cures.append("take a machine with more memory, or a smaller model")
    saved = Path(recipe.output) / "recipe.yaml"
    config = shell_command("--config", saved) if saved.is_file() else "RECIPE"
    return (
        f"out of memory; in this order: {'; '.join(cures)}. `vlds plan {config} --ranks N` says "
        f"what a rank holds then.{how_to_resume(Path(recipe.output))}"
    )


def how_to_resume(run: Path) -> str:
    """How to continue a run that has failed; empty if no state was saved."""
    if not state_folders(run / "state"):
        return ""
    return " What was saved is whole: --resume continues from it"


def cannot_write(path: Path, error: OSError, run: Path) -> str:
    """What to say if a run's folder takes no more files."""
    why = error.strerror or str(error)
    cure = "make room there" if error.errno in ROOM else "let this user write there"
    return (
        f"output: cannot write {path}: {why}; {cure}, or copy the run to another folder and name "
        f"that as output.{how_to_resume(run)}"
    )


class NonFiniteSteps:
    """Watches for steps whose loss or gradient is NaN or infinite. All ranks have one."""

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        self.recipe, self.ranks = recipe, ranks
        self._in_a_row = 0
        self._skipped = 0
        """Steps since the last one that changed weights, faults or not."""
        self._was_finite = False
        """True if a step was finite before these, so that training itself led there."""

    def after_step(self, step: int, report: StepReport, batches: Sequence[Batch]) -> list[str]:
        """What to say about a step. Collective if it was skipped, which all ranks know.

        Errors: ValueError on all ranks after `training.max_nonfinite_steps` of them in a row.
        """
        if not report.skipped:
            self._in_a_row = self._skipped = 0
            self._was_finite = True
            return []
        optimizer, training = self.recipe.optimizer, self.recipe.training
        self._skipped += 1
        unchanged = f". The weights are those of {self._skipped} steps before"
        # At its scale alone, as fp16 expects of some steps: a smaller one is next.
        if report.scale_can_fall and not self.ranks.any(bool(report.not_finite)):
            self._in_a_row = 0
            line = (
                f"step {step} is skipped: in fp16, its gradient times the loss scale of "
                f"{report.loss_scale:,.0f} is infinite or NaN"
            )
            return [line + unchanged * (step == training.num_steps)]
        self._in_a_row += 1
        ids = [id for batch in batches for id in batch.ids]
        # All ranks are here: ZeRO skips a step on all or on none.
        gathered = self.ranks.gather((report.not_finite, ids))
        suspects = None
        if gathered is not None:
            # The examples whose own loss is not finite, or else all of the batch.
            not_finite = [id for rank_ids, _ in gathered for id in rank_ids]
            ids = not_finite or [id for _, rank_ids in gathered for id in rank_ids]
            more = f" and {len(ids) - SHOWN_IDS:,} more" if len(ids) > SHOWN_IDS else ""
            shown = ", ".join(ids[:SHOWN_IDS]) + more
            suspects = (
                f"the loss of {shown} is not finite" if not_finite else f"the batch held {shown}"
            )
        suspects = self.ranks.broadcast(suspects)
        rates = {"optimizer.learning_rate": optimizer.learning_rate} | {
            f"methods.{name}.learning_rate": method.learning_rate
            for name, method in self.recipe.methods.items()
            if method.learning_rate is not None
        }
        key, rate = max(rates.items(), key=lambda item: item[1])
        number = self._in_a_row
        if number <= training.max_nonfinite_steps:
            line = f"step {step} is skipped, its loss or gradient is NaN or infinite; {suspects}"
            if rate > USUAL_RATE:
                line += f". {key} is {rate:g}: give a rate far below 1"
            return [line + unchanged * (step == training.num_steps)]
        how_often = f"{number} steps in a row, the last of them {step}, had"
        if number == 1:
            how_often = f"step {step} had"
        why = "a loss or gradient that is NaN or infinite"
        resume = how_to_resume(Path(self.recipe.output))
        if rate > USUAL_RATE:
            raise ValueError(
                f"{key}: got {rate:g}, and {how_often} {why}: at such a rate every step moves each "
                f"weight by about {rate:g}; give a rate far below 1, such as 0.001.{resume}"
            )
        cures = [f"lower {key} (now {rate:g})"]
        cures.append(f"{'lower' if optimizer.clip_norm else 'set'} optimizer.clip_norm")
        if training.precision == "fp16" and report.loss_scale is None:
            cures.append(f"lower fp16.loss_scale in {training.deepspeed}")
        if training.precision != "fp32":
            cures.append("set training.precision to fp32")
        order = "; else look at the data of these examples"
        if self._was_finite:
            order = f"{' or '.join(cures)}: the steps before were finite{order}"
        else:
            order = f"look at the data of these examples; else {' or '.join(cures)}"
        raise ValueError(
            f"training.max_nonfinite_steps: {how_often} {why}; {suspects}. "
            f"{order[0].upper()}{order[1:]}.{resume}"
        )
