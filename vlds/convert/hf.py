"""Write a run as one folder: the text backbone in Hugging Face's layout, everything else beside it.

    OUT/config.json, model.safetensors, tokenizer files   `AutoModelForSeq2SeqLM.from_pretrained(OUT)` opens these
        weights.safetensors                               vision encoder, visual embedding, methods that are not folded
        recipe.yaml, artifact.json, manifest.json         so that `load_run(OUT)` opens the whole

The folder is an artifact whose named backbone is itself, and another recipe's `backbone.path` and `visual_weights` may
name it: that is how one run's model becomes the next run's frozen backbone.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from vlds.artifact import LoadedRun, load_run, own_tensors, write_description
from vlds.manifest import write_manifest
from vlds.models.build import BACKBONE_PREFIX, Sources

HERE = "."
"""As a backbone's path: the folder that the recipe lies in."""


def convert_run(run: Path, out: Path, *, merge: bool) -> None:
    """Write `out`, which must not exist.

    Errors: ValueError where it exists, or where `merge` is asked for and a method cannot be folded.
    """
    if out.exists():
        raise ValueError(f"--out: {out} exists; name a new folder")
    loaded = load_run(run)
    if merge:
        loaded = fold_methods(loaded)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_backbone(loaded, partial)
    write_rest(loaded, partial)
    write_manifest(partial)
    os.replace(partial, out)


def fold_methods(loaded: LoadedRun) -> LoadedRun:
    """The same run with every method folded into the weights."""
    for method in loaded.recipe.methods.values():
        method.merge(loaded.model)
    recipe = replace(loaded.recipe, methods={})
    return LoadedRun(recipe, loaded.tokenizer, loaded.model)


def write_backbone(loaded: LoadedRun, folder: Path) -> None:
    """The text backbone under its own names, and the tokenizer."""
    names = loaded.model.pretrained_names()
    state = {
        name: tensor for name, tensor in loaded.model.backbone.state_dict().items() if name in names
    }
    loaded.model.backbone.save_pretrained(folder, state_dict=state)
    loaded.tokenizer.save_pretrained(folder)


def write_rest(loaded: LoadedRun, folder: Path) -> None:
    """All other weights, the recipe that finds the backbone in this folder, and the hashes."""
