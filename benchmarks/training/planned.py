"""How long `vlds plan` says that a step of a case takes on this machine.

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
from vlds.plan.rehearsal import rehearse, seconds_here, update_seconds


def planned(case: Case, folder: Path) -> float:
    """Seconds of a step."""
    recipe, words = recipe_of(case, folder)
    with torch.device("meta"):
        model = build_model(recipe.model_setup, list(recipe.tasks), case.dtype, words)
    operations = rehearse(model, batch_of(case, random_batch(case, 0))).operations
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return sum(seconds_here(operations)) + update_seconds(trained, case.dtype)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as the_folder:
        print(json.dumps({"seconds": planned(Case.from_command(), Path(the_folder))}))
