"""Writes a run as one folder: the text backbone in Hugging Face's layout, and everything else.

    OUT/config.json, model.safetensors, tokenizer files
                            `AutoModelForSeq2SeqLM.from_pretrained(OUT)` opens these
        vision.safetensors (CLIP: vision/), visual_embedding.safetensors
        weights.safetensors methods that are not folded into the backbone
        recipe.yaml, artifact.json, manifest.json
                            with these, `vlds.artifact.load_run(OUT)` opens the whole

The folder may move: its recipe names files relative to it. Another recipe's `backbone.path`,
`vision.weights` and `visual_embedding.weights` may name them: that is how one run's model becomes
the next run's frozen one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from vlds.artifact import WEIGHTS, LoadedRun, load_run, own_tensors, write_description
from vlds.convert.output import new_output, say
from vlds.convert.verify import Verification, all_tasks
from vlds.methods.base import Method
from vlds.methods.full import Full
from vlds.models.build import build_model
from vlds.models.vl_model import Sources
from vlds.pretrained.weights import quiet
from vlds.runtime.manifest import write_manifest

VISUAL = ("vision.", "visual_embedding.")


def convert_run(
    run: Path, out: Path, *, merge: bool, verification: Verification | None = None
) -> None:
    """Write `out`, which must not exist.

    Errors: ValueError if it exists, or where `merge` is asked for and a method cannot be folded.
    """
    with new_output(out, "folder") as partial:
        say(f"opening {run}")
        loaded = load_run(run)
        if merge:
            loaded = fold_methods(loaded)
        say(f"writing {out}")
        write_hf(loaded, partial)
        if verification is not None:
            verification.compare(all_tasks(load_run(run)), load_run(partial))


def write_hf(loaded: LoadedRun, folder: Path) -> None:
    """Fill an empty folder."""
    write_backbone(loaded, folder)
    write_rest(loaded, folder)
    write_manifest(folder)


def fold_methods(loaded: LoadedRun) -> LoadedRun:
    """The same run with every method folded into the weights, or made plainer.

    Errors: ValueError if neither can be done.
    """
    model, recipe = loaded.model, loaded.recipe
    left: dict[str, Method] = {}
    for name, method in recipe.methods.items():
        part = model.backbone if method.part == "backbone" else model.vision
        try:
            plainer = method.merge(name, part, list(recipe.tasks))
        except ValueError as error:
            raise ValueError(f"methods.{name}: {error}") from None
        if plainer is not None:
            left[name] = plainer
    return replace(loaded, recipe=replace(recipe, methods=left))


def write_backbone(loaded: LoadedRun, folder: Path) -> None:
    """The text backbone under its own names, and the tokenizer with all its extra tokens."""
    names = loaded.model.pretrained_names()
    state = loaded.model.backbone.state_dict()
    own = {name: state[name] for name in state if name in names}
    with quiet():
        loaded.model.backbone.save_pretrained(folder, state_dict=own)
    loaded.tokenizer.save_pretrained(folder)


def write_rest(loaded: LoadedRun, folder: Path) -> None:
    """All other weights, the recipe that finds everything in this folder, and the hashes."""
    model, recipe = loaded.model, loaded.recipe
    embedding_file = folder / "visual_embedding.safetensors"
    embedding = {k: v.contiguous() for k, v in model.visual_embedding.state_dict().items()}
    save_file(embedding, embedding_file)
    recipe = replace(
        recipe,
        backbone=recipe.backbone.saved_in(folder),
        vision=recipe.vision.export(model.vision, folder),
        visual_embedding=replace(recipe.visual_embedding, weights=str(embedding_file)),
        # Trained weights are in the files now; Full adds nothing else.
        methods={name: m for name, m in recipe.methods.items() if not isinstance(m, Full)},
        train_norms=False,
        train_visual_embedding=False,
        alignment=None,
    )
    backbone = {f"backbone.{name}" for name in model.pretrained_names()}
    visual = {name for name, _ in model.unique_state() if name.startswith(VISUAL)}
    # An artifact keeps what its recipe trains, whatever its sources hold.
    with torch.device("meta"):
        shapes = build_model(recipe.model, list(recipe.tasks), torch.float32, None)
    moving = shapes.moving_names()
    model.sources = Sources(names=frozenset((backbone | visual) - moving))
    save_file(own_tensors(model), folder / WEIGHTS)
    write_description(folder, recipe)
