"""What ranks do with a recipe: jobs for a rank pool."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
import torch

from vlds.recipe.config import Recipe
from vlds.runtime.ranks import Ranks
from vlds.training.loop import train
from vlds.training.prepare import prepare


def check_complaint(recipe: Recipe, world_size: int = 2, resume: bool = False) -> str:
    """The message of the check before training, which must fail."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each test looks at the message)
        prepare(recipe, ranks_of(world_size), resume)
    return str(error.value)


def ranks_of(world_size: int) -> Ranks:
    """Rank 0 of `world_size` ranks."""
    return Ranks(0, world_size, 0, world_size, torch.device("cpu"))


def run_recipe(recipe: Recipe, resume: bool = False, new_phase: bool = False) -> int:
    """What `vlds train` does on a rank; its exit code."""
    return train(recipe, resume=resume, new_phase=new_phase)


def run_and_print(recipe: Recipe, resume: bool = False) -> tuple[int, str]:
    """What `vlds train` does on a rank; its exit code, and what it prints."""
    with redirect_stdout(io.StringIO()) as printed:
        code = run_recipe(recipe, resume)
    return code, printed.getvalue()
