"""Source parity, gradient parity and batch free: logits, loss and gradients, computed in other
ways.

Each kind of model says how its libraries compute the same as it does without methods
(`ModelKind.peers`): from the pictures, texts and files themselves, by their own processors and
forward passes. So a wrong normalisation, a shifted label, a wrong mask, a head that is not tied or
half a checkpoint show here.

The plain way of a training step is what a newcomer would write: the model's logits for one row
after another, torch's cross-entropy, the formula of each task's loss, and autograd. It shares the
model with training, and neither the kernels, nor the loss's coefficients, nor the cuts of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vlds.artifact import LoadedRun
from vlds.convert.adapters import piece
from vlds.convert.peft import PeftFolders
from vlds.models.kinds.base import ModelKind
from vlds.models.kinds.library import labels_of, row_names, whole_batch
from vlds.models.loss import targets_of
from vlds.models.methods.context import StepRule
from vlds.models.model import Model
from vlds.prove.bench import Bench, Measured, gradients_of
from vlds.prove.finding import (
    EXACT,
    OF_GRADIENTS,
    OF_LOSSES,
    Comparison,
    Finding,
    Tolerance,
    compare_numbers,
)
from vlds.schema import IGNORED_LABEL, Batch, Images, Row

NOISE = 0.1
"""Standard deviation of what is added to a method's weights beside peft: where a product of two
begins at zero, one of them would have no gradient."""


def source_parity(bench: Bench) -> Finding:
    """Compare the model with its libraries."""
    kind = bench.recipe.model
    if kind.packed_bits is not None:
        return Finding(
            left_out=f"model.bits: {kind.packed_bits} bits round the weights; leave them out to "
            "compare"
        )
    limit = bench.tolerance(OF_LOSSES)
    with bench.without_methods() as model:
        return beside_libraries(kind, model, bench.rows, bench.images, limit)


def beside_libraries(
    kind: ModelKind, model: Model, rows: Sequence[Row], images: Images, limit: Tolerance
) -> Finding:
    """Compare a model without methods with its kind's libraries, on rows whose images are indices
    of `images`."""
    compared: list[Comparison] = []
    notes: list[str] = []
    for peer in kind.peers(model, rows, images):
        if isinstance(peer, str):
            notes.append(peer)
            continue
        exact = not any(numbers.is_floating_point() for numbers in peer.ours.values())
        tolerance = EXACT if exact else limit
        compared.append(compare_numbers(peer.what, peer.ours, peer.theirs, tolerance))
    if not compared:
        return Finding(left_out="; ".join(notes) or "no library has a model of this kind")
    return Finding(compared=tuple(compared), notes=tuple(notes))


def gradient_parity(bench: Bench) -> Finding:
    """Compare the training step with a plain loop over rows."""
    if losses := bench.model.batch_losses:
        return Finding(
            left_out=f"methods.{next(iter(losses))} adds terms of its own to the loss, which a "
            "plain loop does not have"
        )
    if bench.compares:
        return Finding(
            left_out=f"{bench.compares} compares examples, which a loop over rows cannot"
        )
    if any(task.ranks or task.masks_words for task in bench.recipe.tasks.values()):
        return Finding(left_out="a task ranks, or predicts words in their places")
    numbers = list(range(len(bench.rows)))
    ours = bench.measure([numbers])
    theirs = plain_step(bench, numbers)
    notes: list[str] = []
    try:
        of_peft = list(beside_peft(bench))
    except ValueError as reason:
        of_peft, notes = [], [f"not compared with peft: {reason}"]
    return Finding(
        compared=(
            compare_numbers(
                "losses: of each row, by the training step and by torch's own cross-entropy",
                ours.losses, theirs.losses, bench.tolerance(OF_LOSSES),
            ),
            compare_numbers(
                "gradients: of each trained weight, by the training step and by a loop over rows",
                ours.gradients, theirs.gradients, bench.tolerance(OF_GRADIENTS),
            ),
            *of_peft,
        ),
        notes=tuple(notes),
    )  # fmt: skip


def plain_step(bench: Bench, numbers: Sequence[int]) -> Measured:
    """The loss of each row and the gradient of the mean over the batch, row by row."""
    tasks = list(bench.recipe.tasks.items())
    batches = [bench.batch([number]) for number in numbers]
    lengths = [int((targets_of(batch) != IGNORED_LABEL).sum()) for batch in batches]
    of_task = [int(batch.task_index[0]) for batch in batches]
    losses: dict[str, Tensor] = {}
    with bench.plainly() as model:
        model.zero_grad(set_to_none=True)
        for number, batch, length, index in zip(numbers, batches, lengths, of_task, strict=True):
            name, task = tasks[index]
            nll = plain_loss(bench, name, batch)
            if task.reduction == "token_mean":
                # The mean over all tokens of the task, which counts as often as it has rows.
                tokens = sum(n for n, t in zip(lengths, of_task, strict=True) if t == index)
                part = nll / tokens * of_task.count(index) / len(numbers)
            else:
                part = float(batch.weights[0]) * nll / max(length, 1) / len(numbers)
            part.backward()
            losses[f"row {number} ({bench.rows[number].example.id})"] = nll.detach().cpu()
        for rule in model.step_rules.values():
            # Of weights alone, once a step.
            if isinstance(rule, StepRule) and (penalty := rule.penalty()) is not None:
                penalty.backward()
        return Measured(losses, gradients_of(model))


def plain_loss(bench: Bench, task: str, batch: Batch) -> Tensor:
    """The summed loss of a batch of one row, by torch alone."""
    model = bench.model
    if task not in model.heads:
        labels = targets_of(batch)
        logits = model.logits(batch).float()
        return F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
    logits = model.heads[task](model.first_states(batch)).float()
    targets = torch.zeros_like(logits)
    if batch.class_targets is not None:
        targets[:, : batch.class_targets.shape[1]] = batch.class_targets
    if model.heads.outputs[task].loss == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return F.cross_entropy(logits, targets, reduction="sum")


def beside_peft(bench: Bench) -> Iterator[Comparison]:
    """The method as peft has it, on the library's own model: loss and gradients of the same rows.

    Errors: ValueError, with the reason, if peft or the library cannot hold the method or the model.
    """
    kind, tasks = bench.recipe.model, list(bench.recipe.tasks.items())
    if kind.packed_bits is not None:
        raise ValueError(f"model.bits: {kind.packed_bits} bits round the weights")
    if bench.model.step_rules:
        raise ValueError("a penalty of the method counts once a step here, and with each row there")
    if all(task.head for _, task in tasks):
        raise ValueError("all tasks have heads, which peft's models do not")
    with bench.borrowed() as model:
        folders = PeftFolders(
            LoadedRun(bench.recipe, bench.processor, model), "as the recipe says", alone=True
        )
        draw = torch.Generator().manual_seed(bench.recipe.seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in folders.stored and weight.requires_grad:
                    noise = NOISE * torch.randn(weight.shape, generator=draw)
                    weight.add_(noise.to(weight))
        out = bench.scratch / "peft"
        out.mkdir(exist_ok=True)
        folders.write(out)
        places = folders.folders()
        for index, (below, adapter) in enumerate(places):
            if (library := kind.library(model)) is None:
                raise ValueError(f"no library has the model of a {type(kind).__name__}")
            named = tasks if len(places) == 1 else [tasks[index]]
            numbers = [n for name, task in named if not task.head for n in bench.of_task(name)]
            if not (rows := library.readable([bench.rows[n] for n in numbers], bench.images)):
                continue
            theirs, weights = folders.opened_on(library.model, out / below)
            batch = whole_batch(bench.collator, library, rows, bench.images, evaluation=False)
            with bench.plainly():
                model.zero_grad(set_to_none=True)
                together = model.loss_sums(batch)[0]
                together.sum().backward()
            ours = Measured(
                dict(zip(row_names(rows), together.detach().cpu(), strict=True)),
                gradients_of(model),
            )
            sums: dict[str, Tensor] = {}
            for number, (name, row) in enumerate(zip(row_names(rows), rows, strict=True)):
                labels = labels_of(library, batch, number)
                inputs = library.learned(row, bench.images, labels)
                loss = library.loss(inputs, theirs(**inputs))
                loss.backward()
                sums[name] = loss.detach().cpu()
            # Of a task's own slice of the weights, or of what all tasks share.
            pairs = [
                (name, stored, weights[key])
                for name, stored in folders.stored.items()
                for key in (key.format(task=adapter) for key in stored.keys)
                if name in ours.gradients and key in weights
            ]
            trained = {n for n in ours.gradients if n in folders.stored}
            if lost := trained - {name for name, *_ in pairs}:
                raise ValueError(f"peft trains no weight in the place of {min(lost)}")
            about = "" if len(places) == 1 else f" of tasks.{named[0][0]}"
            about += "" if library.sees else " without pictures"
            about = f"{about}: with {type(folders.method).__name__}, and peft on {library.name}"
            yield compare_numbers(f"loss{about}", ours.losses, sums, bench.tolerance(OF_LOSSES))
            yield compare_numbers(
                f"gradient of each weight of the method{about}",
                {n: piece(ours.gradients[n], s, index) for n, s, _ in pairs},
                {n: torch.zeros_like(w) if w.grad is None else w.grad for n, _, w in pairs},
                bench.tolerance(OF_GRADIENTS),
            )


def batch_free(bench: Bench) -> Finding:
    """Compare the step of one batch with those of other cuts of the same rows."""
    numbers = list(range(len(bench.rows)))
    # On a CPU, what an example loses by dropout depends on the example alone.
    dropout = bench.ranks.device.type == "cpu"
    whole = bench.measure([numbers], dropout=dropout)
    ways: dict[str, tuple[list[list[int]], int]] = {
        "in reverse order": ([numbers[::-1]], 1),
    }
    notes: tuple[str, ...] = ()
    if bench.compares:
        notes = (f"{bench.compares} compares the examples of a batch, so batches stay whole",)
    else:
        third = max(1, len(numbers) // 3)
        cuts = [numbers[start : start + third] for start in range(0, len(numbers), third)]
        ways |= {
            "one by one": ([[number] for number in numbers], 1),
            f"in {len(cuts)} micro-batches": (cuts, 1),
        }
        if len(numbers) > 1 and not bench.recipe.training.activation_checkpointing:
            ways["in 2 parts of similar rows"] = ([numbers], 2)
    compared: list[Comparison] = []
    for way, (cut, parts) in ways.items():
        other = bench.measure(cut, parts=parts, dropout=dropout)
        compared += [
            compare_numbers(
                f"losses: of each row, together, and {way}", other.losses, whole.losses,
                bench.tolerance(OF_LOSSES),
            ),
            compare_numbers(
                f"gradients: of each trained weight, together, and {way}", other.gradients,
                whole.gradients, bench.tolerance(OF_GRADIENTS),
            ),
        ]  # fmt: skip
    if bench.makes_much_of_roundings:
        notes += (
            f"one rounding of each weight changes losses by {bench.changes[OF_LOSSES]:.2g} and "
            f"gradients by {bench.changes[OF_GRADIENTS]:.2g}: the model makes small differences "
            "of large numbers, or a ReLU's input is 0 but for rounding; its tolerances are wider",
        )
    norms = [
        name
        for name, module in bench.model.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    ]
    if norms:
        notes += (
            f"{norms[0]} is the first of {len(norms)} batch norms that read all pictures of a "
            "micro-batch together: freeze the encoder, or take one without them",
        )
    return Finding(compared=tuple(compared), notes=notes)
