"""The recipe of `vlds train`, and what the supervisor learns of it.

Reading it loads torch, which the supervisor does not. So the first rank reads it, while the others
of its machine wait; or a process of its own before a proof, and where a launcher of the user's
choice starts the ranks.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vlds.cli.start import JOB_FILE, RunFacts
from vlds.cli.words import RESUME, Words, split_words
from vlds.data.order.mixed_order import BatchCut
from vlds.recipe.build import to_tree
from vlds.recipe.config import Recipe, parse_recipe
from vlds.recipe.paths import check_files, inputs_of, left_behind
from vlds.runtime.disk import names_fit
from vlds.runtime.files import write_whole
from vlds.runtime.rank_environment import read_place
from vlds.runtime.terminal import complain, tell
from vlds.training.states import Resume, check_output

POLL_S = 0.02
"""Seconds between two looks for what the first rank has read."""


def check_recipe(arguments: Sequence[str], ranks: int | None) -> int:
    """Print what the supervisor needs to know of a recipe (`RunFacts`), or what is wrong with it;
    the exit code. `ranks`: how many will start, if known."""
    try:
        with names_fit():
            words = split_words(arguments)
            recipe = parse_recipe(words.rest[1:], "vlds train")
            check_start(recipe, words.resume, ranks)
    except ValueError as error:
        return complain("vlds train", error)
    tell(facts_of(recipe))
    return 0


def read_recipe(words: Words) -> Recipe:
    """The recipe, in a rank. Where a supervisor waits for its facts, the first rank of the machine
    reads and checks it before the others, so that a mistake is said once.

    Errors: ValueError as `check_start`.
    """
    arguments, program = words.rest[1:], "vlds train"
    if (name := os.environ.pop(JOB_FILE, None)) is None:
        return parse_recipe(arguments, program)
    place, file = read_place(os.environ), Path(name)
    if place.local_rank > 0:
        while not file.exists():
            time.sleep(POLL_S)
        if not file.read_text("utf-8"):
            sys.exit(0)  # the first rank says why, or has done what an option asks for
        return parse_recipe(arguments, program)
    facts = ""
    try:
        recipe = parse_recipe(arguments, program)
        check_start(recipe, words.resume, place.local_world_size)
        facts = facts_of(recipe)
    finally:
        write_whole(file, facts)  # the others read it once it is there
    return recipe


def facts_of(recipe: Recipe) -> str:
    """A recipe's `RunFacts` as JSON."""
    largest = max(recipe.batch_sizes.values())
    facts = RunFacts(str(recipe.output), largest, recipe.data.micro_batch_size)
    return json.dumps(asdict(facts))


def check_start(recipe: Recipe, resume: Resume, ranks: int | None) -> None:
    """Check what can be checked before training begins: the run in the output folder, the sizes of
    batches, names on the hub, and the files of a run that is resumed from another folder.

    Errors: ValueError that names the key.
    """
    # A run may be resumed from another working folder, where its relative paths lead elsewhere.
    saved = Path(recipe.output) / "recipe.yaml"
    if resume and (message := left_behind(to_tree(recipe), saved, Recipe)) is not None:
        raise ValueError(f"{RESUME}: {message}")
    check_files(to_tree(recipe), Recipe)
    check_output(recipe.output, resume, inputs_of(to_tree(recipe), Recipe))
    # If the number of ranks is not known yet, check what holds for any.
    for field, size in recipe.batch_sizes.items():
        BatchCut(ranks or 1).check(size, field)
    recipe.model.check_sources()
