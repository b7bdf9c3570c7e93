"""What `vlds plan` says of a step of a case: its seconds on this CPU, or its bytes on a GPU.

python benchmarks/training/planned.py CASE
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from ours import batch_of, recipe_of
from shapes import Case, random_batch

from vlds.models.build import build_model
from vlds.plan.needs import added_bytes, planned
from vlds.plan.rehearsal import rehearse, seconds_here, update_seconds
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches, fit_sizes
from vlds.training.optimizer import parameter_groups


def plan(case: Case, folder: Path) -> dict[str, float]:
    """Seconds of a step on this CPU; on a GPU, the most MB that a rank needs of it."""
    recipe, words = recipe_of(case, folder)
    with torch.device("meta"):
        model = build_model(recipe.model_setup, list(recipe.tasks), case.dtype, words)
    on_gpu = case.device.type == "cuda"
    cut = cut_batches(recipe, 1)
    config = complete_deepspeed_config(Path(recipe.training.deepspeed), recipe, cut)
    zero = fit_sizes(config, model, on_gpu=on_gpu)["zero_optimization"]
    held = planned(model, parameter_groups(model, recipe), zero, 1)
    held_bytes = held.together + added_bytes(model, held, zero, 1)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # The rehearsal makes the model hollow, so that it comes last.
    work, operations = rehearse(model, batch_of(case, random_batch(case, 0)), on_gpu=on_gpu)
    if on_gpu:
        return {"memory": (held_bytes + work.peak) / 1e6}
    return {"seconds": sum(seconds_here(operations)) + update_seconds(trained, case.dtype)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as the_folder:
        print(json.dumps(plan(Case.from_command(), Path(the_folder))))
