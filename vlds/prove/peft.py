"""The recipe's method as Hugging Face's peft has it, on the library's own model: loss and gradients
of the same rows, for gradient parity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.adapters import piece
from vlds.convert.peft import PeftFolders
from vlds.models.kinds.library import LibraryModel, labels_of, row_names, whole_batch
from vlds.prove.bench import Bench, Measured, gradients_of
from vlds.prove.finding import (
    TOLERANCE_OF_GRADIENTS,
    TOLERANCE_OF_LOSSES,
    Comparison,
    compare_numbers,
)
from vlds.schema import Row

NOISE = 0.1
"""Standard deviation of what is added to the method's weights: where a product of two begins at
zero, one of them would have no gradient."""


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
            ours, labels = learned_together(bench, library, rows)
            sums: dict[str, Tensor] = {}
            for name, row, own in zip(row_names(rows), rows, labels, strict=True):
                inputs = library.learned(row, bench.images, own)
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
            yield compare_numbers(f"loss{about}", ours.losses, sums, TOLERANCE_OF_LOSSES)
            yield compare_numbers(
                f"gradient of each weight of the method{about}",
                {n: piece(ours.gradients[n], s, index) for n, s, _ in pairs},
                {n: torch.zeros_like(w) if w.grad is None else w.grad for n, _, w in pairs},
                TOLERANCE_OF_GRADIENTS,
            )


def learned_together(
    bench: Bench, library: LibraryModel, rows: Sequence[Row]
) -> tuple[Measured, list[Tensor]]:
    """The loss of each row in one batch, and the gradients of their sum; the labels of each row, as
    `LibraryModel.learned` takes them."""
    batch = whole_batch(bench.collator, library, rows, bench.images, evaluation=False)
    with bench.plainly() as model:
        model.zero_grad(set_to_none=True)
        sums = model.loss_sums(batch)[0]
        sums.sum().backward()
        losses = dict(zip(row_names(rows), sums.detach().cpu(), strict=True))
        measured = Measured(losses, gradients_of(model))
    return measured, [labels_of(library, batch, number) for number in range(len(rows))]
