"""What is written down when a run starts or resumes: its recipe, and how it was started."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from vlds.config import Recipe, load_recipe, save_recipe, to_tree
from vlds.data.order.permutation import differences
from vlds.runtime.credentials import without_credentials
from vlds.runtime.ranks import Ranks
from vlds.runtime.run_folder import STARTS, Start, add_start, cpu_name, new_start, read_starts
from vlds.runtime.whole_file import write_whole

RECIPE = "recipe.yaml"
MOST_TOLD = 20


def write_start(recipe: Recipe, ranks: Ranks, step: int, resumed: bool) -> list[str]:
    """Write recipe.yaml and a line of starts.jsonl; returns what there is to tell of changes. On
    the first rank alone.

    Errors: CannotWrite.
    """
    folder = Path(recipe.output)
    changes: list[str] = []
    told: list[str] = []
    if resumed:
        try:
            changes = recipe_changes(load_recipe(folder / RECIPE), recipe)
        except (OSError, ValueError) as error:
            told = [f"resuming: what the recipe was before is not known ({error})"]
    else:
        write_whole(folder / STARTS, "")  # an earlier attempt, which saved no state
    add_start(folder, new_start(step, command_line(), hardware(ranks), changes))
    save_recipe(recipe, folder / RECIPE, comments(read_starts(folder)))
    told += [f"resuming with a change: {change}" for change in changes[:MOST_TOLD]]
    more = len(changes) - MOST_TOLD
    return [*told, f"and {more} more changes, see {folder / RECIPE}"] if more > 0 else told


def recipe_changes(before: Recipe, now: Recipe) -> list[str]:
    """Keys whose values differ, a line each; where the run lies does not matter to it."""
    trees: list[Mapping[str, object]] = [to_tree(before), to_tree(now)]
    old, new = ({k: v for k, v in tree.items() if k != "output"} for tree in trees)
    return differences(old, new)


def comments(starts: Sequence[Start]) -> list[str]:
    """What the recipe said at first, for those who read it later."""
    return [f"changed at step {s.step}: {change}" for s in starts for change in s.changes]


def command_line() -> str:
    """This process's words as a user would type them."""
    words = (word for word in sys.argv[1:] if not word.startswith("--local_rank="))
    return " ".join(["vlds", *map(without_credentials, words)])


def hardware(ranks: Ranks) -> str:
    """Ranks, and what each runs on."""
    on_gpu = ranks.device.type == "cuda"
    name = torch.cuda.get_device_name(ranks.device) if on_gpu else cpu_name()
    return f"{ranks.world_size} rank{'s' * (ranks.world_size > 1)}, {name}"
