"""What ranks do with a recipe: jobs for a rank pool."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
import torch

from vlds.evaluation.sources import with_lists
from vlds.plan import plan_recipe
from vlds.recipe.config import Recipe
from vlds.runtime.ranks import Ranks
from vlds.training.loop import train
from vlds.training.prepare import prepare


def check_complaint(
    recipe: Recipe, world_size: int = 2, resume: bool = False, *, planned: bool = True
) -> str:
    """The message of the check before training, which must fail; and so must the plan if it is
    `planned`, that is if neither the run's start nor missing data are to blame."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each test looks at the message)
        prepare(recipe, ranks_of(world_size), resume)
    if planned:
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            plan_recipe(with_lists(recipe), [world_size])
        assert str(refused.value) == str(error.value)
    return str(error.value)


def ranks_of(world_size: int) -> Ranks:
    """Rank 0 of `world_size` ranks."""
    return Ranks(0, world_size, 0, world_size, torch.device("cpu"))


def refusal(recipe: Recipe) -> str:
    """The message with which `vlds train` ends on a rank."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each test looks at the message)
        train(recipe)
    return str(error.value)


def run_recipe(recipe: Recipe, resume: bool = False, new_phase: bool = False) -> int:
    """What `vlds train` does on a rank; its exit code."""
    return train(recipe, resume=resume, new_phase=new_phase)


def run_and_print(recipe: Recipe, resume: bool = False) -> tuple[int, str]:
    """What `vlds train` does on a rank; its exit code, and what it prints."""
    with redirect_stdout(io.StringIO()) as printed:
        code = run_recipe(recipe, resume)
    return code, printed.getvalue()
