"""What can go wrong in a run that is right: memory, disk, numbers. Each is said with its cure."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from vlds.config import Recipe
from vlds.runtime.disk import ROOM, CannotWrite, system_error
from vlds.runtime.manifest import lacks_memory
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch
from vlds.training.engine import StepReport
from vlds.training.states import state_folders

NOT_WRITABLE = (*ROOM, errno.EROFS)
NOT_USABLE = (errno.EACCES, errno.EPERM, errno.EIO)
"""What reading gives as well: then it is not the run's folder that is to blame."""
SHOWN_IDS = 64


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Inside, want of memory and of disk are ValueErrors that say what to change."""
    try:
        yield
    except Exception as error:  # these come in every class that torch, Rust and Python have
        said = explanation(recipe, error)
        if said is None:
            raise
        raise ValueError(said) from error


def explanation(recipe: Recipe, error: Exception) -> str | None:
    """What to say of want of memory or of disk; None of any other error."""
    refused = system_error(error)
    number = refused.errno if refused else None
    if lacks_memory(error):
        return out_of_memory(recipe)
    if refused is None:
        return None
    if isinstance(error, CannotWrite):
        inside = error.path.is_relative_to(recipe.output)
        return cannot_write(error.path, refused, Path(recipe.output)) if inside else None
    ours = str(refused.filename).startswith(recipe.output)
    if number in NOT_WRITABLE or (number in NOT_USABLE and ours):
        return cannot_write(Path(recipe.output), refused, Path(recipe.output))
    return None


def out_of_memory(recipe: Recipe) -> str:
    """Which keys make a run smaller, the cheapest first, and only those that are left."""
    data, training = recipe.data, recipe.training
    size = data.micro_batch_size
    now = f"now {size}" if size else "now a rank's whole share of data.global_batch_size"
    cures = [] if size == 1 else [f"lower data.micro_batch_size ({now}; results stay the same)"]
    recomputable = all(method.recomputable for method in recipe.methods.values())
    if not training.activation_checkpointing and data.parts == 1 and recomputable:
        cures.append("set training.activation_checkpointing to true")
    if "zero3" not in training.deepspeed:
        cures.append("take ds_configs/zero3.json for training.deepspeed, and more ranks")
    if "offload" not in training.deepspeed and torch.cuda.is_available():
        cures.append("take its _offload variant")
    if data.eval_batch_size > 1:
        cures.append(f"in evaluation, lower data.eval_batch_size (now {data.eval_batch_size})")
    if not cures:
        cures.append("take a machine with more memory, or a smaller model")
    saved = Path(recipe.output) / "recipe.yaml"
    config = f"--config {saved}" if saved.is_file() else "RECIPE"
    return (
        f"out of memory; in this order: {'; '.join(cures)}. `vlds plan {config} --ranks N` says "
        f"what a rank holds then.{goes_on(Path(recipe.output))}"
    )


def goes_on(run: Path) -> str:
    """How to go on with a run that has failed; empty where no state was saved."""
    if not state_folders(run / "state"):
        return ""
    return " What was saved is whole: --resume goes on from it"


def cannot_write(path: Path, error: OSError, run: Path) -> str:
    """What to say where a run's folder takes no more files."""
    why = error.strerror or str(error)
    cure = "make room there" if error.errno in ROOM else "let this user write there"
    return (
        f"output: cannot write {path}: {why}; {cure}, or copy the run to another folder and name "
        f"that as output.{goes_on(run)}"
    )


class NonFiniteSteps:
    """Watches for steps whose loss or gradient was NaN or infinite; all ranks have one."""

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        self.recipe, self.ranks = recipe, ranks
        self._in_a_row = 0

    def after_step(self, step: int, report: StepReport, batches: Sequence[Batch]) -> list[str]:
        """What to say of a step. Collective where it was skipped, which all ranks know.

        Errors: ValueError on all ranks after more than the maximum of them in a row.
        """
        if not report.skipped:
            self._in_a_row = 0
            return []
        self._in_a_row += 1
        every = [id for batch in batches for id in batch.ids]
        gathered = self.ranks.gather((report.not_finite, every))
        said = self.ranks.broadcast(gathered and _whose(gathered))
        if self._in_a_row > self.recipe.training.max_nonfinite_steps:
            raise ValueError(
                f"training.max_nonfinite_steps: {self._in_a_row} steps in a row, the last of them "
                f"{step}, had a loss or gradient that is NaN or infinite; {said}. Look at their "
                f"data; else {' or '.join(self._cures())}.{goes_on(Path(self.recipe.output))}"
            )
        return [f"step {step} is skipped, its loss or gradient is NaN or infinite; {said}"]

    def _cures(self) -> list[str]:
        """Which keys make numbers smaller, and only those that are not so already."""
        clip = self.recipe.optimizer.clip_norm
        cures = [
            "lower optimizer.learning_rate",
            "lower optimizer.clip_norm" if clip else "set optimizer.clip_norm",
        ]
        if self.recipe.training.precision != "fp32":
            cures.append("set training.precision to fp32")
        return cures


def _whose(gathered: Sequence[tuple[list[str], list[str]]]) -> str:
    """The examples whose loss is to blame, or else all of the batch's."""
    blamed = [id for not_finite, _ in gathered for id in not_finite]
    ids = blamed or [id for _, every in gathered for id in every]
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    shown = ", ".join(ids[:SHOWN_IDS]) + more
    return f"the loss of {shown} is not finite" if blamed else f"the batch held {shown}"
