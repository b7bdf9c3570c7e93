"""Writes a run as one folder: the text backbone in Hugging Face's layout, and everything else.

    OUT/config.json, model.safetensors, tokenizer files
                            `AutoModelForSeq2SeqLM.from_pretrained(OUT)` opens these, or
                            `AutoModelForCausalLM`
        vision.safetensors (CLIP: vision/), visual_embedding.safetensors or
        projector.safetensors
        weights.safetensors methods that are not folded into the backbone
        README.md           the model card
        recipe.yaml, artifact.json, manifest.json
                            with these, `vlds.artifact.load_run(OUT)` opens the whole

The folder may move: its recipe names files relative to it. Another recipe's `backbone.path`,
`vision.weights` and `visual_embedding.weights` may name them: that is how one run's model becomes
the next run's frozen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from vlds.artifact import (
    WEIGHTS,
    LoadedRun,
    artifact_folder,
    check_changes,
    load_run,
    own_tensors,
    read_recipe,
    write_description,
)
from vlds.convert.card import describe, write_model_card
from vlds.convert.card_code import Address
from vlds.convert.output import new_output, say
from vlds.convert.verify import Verification, all_tasks
from vlds.methods.base import Method
from vlds.methods.extended import is_own
from vlds.models.build import build_model
from vlds.models.loading.quantised import check_writable_whole
from vlds.models.model import Sources
from vlds.runtime.manifest import write_manifest


def convert_run(
    run: Path,
    out: Path,
    *,
    merge: bool,
    verification: Verification | None = None,
    changes: Sequence[str] = (),
    hub_name: str | None = None,
) -> None:
    """Write `out`, which must not exist. `changes` to the run's recipe are words of a command line.
    `hub_name`: what the model will be called on the hub.

    Errors: ValueError if it exists, where `merge` is asked for and a method cannot be folded, or
    if the model's weights are packed.
    """
    check_changes(changes)
    check_writable_whole(read_recipe(artifact_folder(run), changes).model.packed_bits)
    with new_output(out, "folder") as partial:
        say(f"opening {run}")
        loaded = load_run(run, changes=changes)
        described = describe(run, loaded.model.count_parameters())
        if merge:
            loaded = fold_methods(loaded)
        say(f"writing {out}")
        written = write_hf(loaded, partial)
        # Not in the manifest: who edits the card damages no model.
        write_model_card(partial, described, written, Address.of(out, hub_name))
        if verification is not None:
            expected = all_tasks(load_run(run, changes=changes))
            verification.compare(expected, load_run(partial))


def write_hf(loaded: LoadedRun, folder: Path) -> LoadedRun:
    """Fill an empty folder: the model's parts, the rest of its weights, a recipe that finds
    everything in this folder, and the hashes. Returns the run that it holds."""
    model, recipe = loaded.model, loaded.recipe
    left = {name: method.after_export() for name, method in recipe.methods.items()}
    recipe = replace(
        recipe,
        model=recipe.model.export(model, folder),
        methods={name: method for name, method in left.items() if method is not None},
        alignment=None,
        meta=None,
    )
    # An artifact keeps what its recipe trains, whatever its sources hold.
    with torch.device("meta"):
        shapes = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, None)
    exported = {name for name, _ in model.unique_state() if is_own(name)}
    kept = shapes.moving_names() | shapes.changed
    model.sources = Sources(names=frozenset(exported - kept))
    save_file(own_tensors(model), folder / WEIGHTS)
    write_description(folder, recipe, loaded.trained_on)
    write_manifest(folder)
    return replace(loaded, recipe=recipe)


def fold_methods(loaded: LoadedRun) -> LoadedRun:
    """The same run with every method folded into the weights, or made plainer.

    Errors: ValueError if neither can be done.
    """
    model, recipe = loaded.model, loaded.recipe
    left: dict[str, Method] = {}
    for name, method in recipe.methods.items():
        part = model.get_submodule(model.parts[method.part].path)
        try:
            plainer = method.merge(name, part, list(recipe.tasks))
        except ValueError as error:
            raise ValueError(f"methods.{name}: {error}") from None
        if taken := plainer.keys() & (recipe.methods.keys() - {name}):
            raise ValueError(
                f"methods.{name}: merging makes a method {taken.pop()} of it, and the recipe has "
                "one of this name; give one of them another name"
            )
        left.update(plainer)
    return replace(loaded, recipe=replace(recipe, methods=left))
