"""The artifact of a run: every tensor that the named sources do not hold, and how to use it.

    RUN/artifact/weights.safetensors   trained weights (fp32 masters), and frozen random ones, such
                                       as new vocabulary rows
                 recipe.yaml           the resolved recipe
                 processor/            the tokenizer, or processor of text and pictures
                 artifact.json         sources with their hashes, size of the training data
                 manifest.json         sizes and hashes of these files, written last

Loaded in a fresh process it gives the same logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import EllipsisType, MappingProxyType
from typing import Any, TypeAlias

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from vlds.models.build import build_model
from vlds.models.kinds.base import fit_saved
from vlds.models.loading.hashes import hash_name
from vlds.models.loading.model_files import reading
from vlds.models.methods.host import states_type
from vlds.models.model import Model
from vlds.models.partitioned import fits_whole, gathered, partitioned_reading
from vlds.recipe.build import to_tree
from vlds.recipe.config import Recipe, check_saved, parse_recipe
from vlds.recipe.paths import located, moved, only_read, places_of, with_start
from vlds.runtime.artifact_files import (
    AGAIN,
    PROCESSOR,
    RECIPE,
    WEIGHTS,
    artifact_folder,
    check_changes,
    run_name,
    tell_model,
)
from vlds.runtime.files import whole_folder
from vlds.runtime.folders import scratch_folder
from vlds.runtime.json_files import DESCRIPTION, parse_record, read_json, write_manifest
from vlds.runtime.ranks import Ranks
from vlds.runtime.yaml_file import read_yaml
from vlds.schema import Collator

FORMAT = 1
HERE = "<folder>"
"""In an artifact's recipe: the folder that the recipe lies in."""
NOT_KNOWN: Mapping[str, Any] = MappingProxyType({})
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Rows: TypeAlias = slice | EllipsisType
"""Index of some rows of a tensor, or of all of it."""


@dataclass(frozen=True)
class TrainedOn:
    """Size of a task's training data."""

    examples: int | None
    """Examples in its data sets; None if they do not say."""
    most_pictures: int | None
    """Most pictures of an example; None if the data sets do not say."""


@dataclass(frozen=True)
class LoadedRun:
    """A run, ready to predict."""

    recipe: Recipe
    processor: Any
    model: Model
    trained_on: Mapping[str, TrainedOn] = field(default_factory=dict)
    """Task -> what is known of its training data."""

    @cached_property
    def collator(self) -> Collator:
        """What makes batches, with pictures in the type in which the model computes."""
        return self.recipe.model.collator(self.processor, states_type(self.model))


def own_tensors(model: Model, masters: Mapping[str, Tensor] = NOT_KNOWN) -> dict[str, Tensor]:
    """Copies of what the artifact keeps of a model; `masters`, name -> fp32 master, replace the
    model's own weights. Collective if ZeRO has partitioned the model: ranks gather one weight after
    another, and only the first one's copies count."""

    def copy(tensor: Tensor) -> Tensor:
        # Rows of a table and tied weights share memory, which safetensors refuses; and training
        # goes on while the file is written.
        return tensor.detach().cpu().contiguous().clone()

    copies = {name: copy(master) for name, master in masters.items()}
    for key, tensor, rows in own_places(model):
        if key not in masters:
            with gathered([tensor]):
                is_needed = not hasattr(tensor, "ds_tensor") or distributed.get_rank() == 0
                copies[key] = copy(tensor[rows] if is_needed else tensor[:0])
    return copies


def own_parts(model: Model) -> dict[str, Tensor]:
    """The tensors and rows of tables that no source holds, by their keys in the artifact."""
    return {key: tensor[rows] for key, tensor, rows in own_places(model)}


def own_places(model: Model) -> Iterator[tuple[str, Tensor, Rows]]:
    """Key in the artifact, tensor of the model and which of its rows no source holds."""
    sources = model.sources
    for name, tensor in model.unique_state():
        # The source holds the first rows of an extended vocabulary; ours are, say, "name[32128:]".
        if name in sources.rows:
            start = sources.rows[name]
            yield f"{name}[{start}:]", tensor, slice(start, None)
        elif name not in sources.names:
            yield name, tensor, ...


def save_artifact(
    folder: Path,
    tensors: dict[str, Tensor],
    recipe: Recipe,
    processor: Any,
    notes: Mapping[str, str] | None = None,
    trained_on: Mapping[str, TrainedOn] = NOT_KNOWN,
) -> None:
    """Write an artifact, which replaces an older one as a whole. `notes`: name -> text of more
    files in it. `trained_on`: as in LoadedRun.

    Errors: CannotWrite.
    """
    with whole_folder(folder) as partial:
        for name, text in (notes or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        write_artifact(partial, tensors, recipe, processor, trained_on)


def write_artifact(
    folder: Path,
    tensors: dict[str, Tensor],
    recipe: Recipe,
    processor: Any,
    trained_on: Mapping[str, TrainedOn] = NOT_KNOWN,
) -> None:
    """Fill an empty folder with an artifact."""
    save_file(tensors, folder / WEIGHTS)
    processor.save_pretrained(folder / PROCESSOR)
    write_description(folder, recipe, trained_on)
    # Last: it lists all files.
    write_manifest(folder)


def write_description(folder: Path, recipe: Recipe, trained_on: Mapping[str, TrainedOn]) -> None:
    """Write the recipe, with paths into this folder relative to it, the hashes of its sources, and
    what its tasks have learned from."""
    known = {task: asdict(trained_on[task]) for task in recipe.tasks if task in trained_on}
    description = {
        "format": FORMAT,
        "sources": recipe.model.source_hashes(),
        "trained_on": known,
        "begun_from": recipe.start and run_name(Path(recipe.start)),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
    methods = {name: method.in_artifact() for name, method in recipe.methods.items()}
    # The weights that a run began with are in the artifact, or were trained away.
    own = replace(recipe, methods=methods, start=None)
    tree = moved(to_tree(own), {str(folder): HERE}, Recipe)
    (folder / RECIPE).write_text(
        yaml.safe_dump(with_start(tree, Recipe), sort_keys=False), encoding="utf-8"
    )


def read_recipe(folder: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of an artifact, which may have moved; `changes` are words of a command line.

    Errors: ValueError if it cannot be read.
    """
    with readable(folder, RECIPE):
        tree = read_yaml(folder / RECIPE)
    check_saved(tree, f"artifact {folder}: {RECIPE}")
    # Recipes are parsed from files alone, and this one has other paths than the artifact's.
    with scratch_folder() as scratch:
        tree = moved(located(tree, folder / RECIPE, Recipe), {HERE: str(folder)}, Recipe)
        tree = only_read(tree, Recipe)
        file = scratch / RECIPE
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return parse_recipe(["--config", str(file), *changes])


def load_run(
    run: Path,
    dtype: torch.dtype | None = None,
    changes: Sequence[str] = (),
    ranks: Ranks | None = None,
) -> LoadedRun:
    """Rebuild a run's model from the named sources and the artifact's tensors, in evaluation mode,
    on the CPU.

    `dtype` defaults to the recipe's precision. `changes` to its tasks, data and packing are words
    of a command line, such as `--tasks.vqa.decoding.num_beams 5`. `ranks` share the weights where
    the model does not fit, or `training.evaluate_whole` is false; then this is collective. Errors:
    ValueError if the artifact is damaged, or a source has changed since the training.
    """
    folder = artifact_folder(run)
    tell_model(run)
    check_changes(changes)
    recipe = read_recipe(folder, changes)
    check_same_sources(folder, recipe)
    saved = folder / PROCESSOR
    with readable(folder, PROCESSOR):
        processor = recipe.model.load_processor_from(saved if saved.is_dir() else folder)
    with readable(folder, WEIGHTS):
        tensors = load_file(folder / WEIGHTS)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    # A recipe may ask for any size. What trains is compared with the artifact before memory is
    # asked for; what the sources hold is known only once they are loaded, and is compared below.
    dtype = dtype or recipe.training.dtype
    with torch.device("meta"):
        sketch = build_model(recipe.model_setup, list(recipe.tasks), dtype, processor)
    fit_saved(sketch, shapes)
    own = {
        name: weight.shape
        for name, weight in sketch.named_parameters()
        if name in tensors or name in sketch.trained_by
    }
    check_shapes(own, {name: shapes[name] for name in own if name in shapes}, folder)
    with reading_weights(recipe, sketch, dtype, ranks):
        model = build_model(recipe.model_setup, list(recipe.tasks), dtype, processor)
    fit_saved(model, shapes)
    model.forget_sources(tensors)  # a run may have begun with other weights than its sources'
    # A weight that ranks share is empty until it is gathered.
    wanted = {
        key: torch.empty(getattr(tensor, "ds_shape", tensor.shape), device="meta")[rows].shape
        for key, tensor, rows in own_places(model)
    }
    check_shapes(wanted, shapes, folder)
    parameters = {name for name, _ in model.named_parameters()}
    for key, tensor in tensors.items():
        check_weights(folder, key, tensor, key.partition("[")[0] in parameters)
    with torch.no_grad():
        for key, tensor, rows in own_places(model):
            with gathered([tensor], written=True):
                tensor[rows].copy_(tensors[key])
    model.eval()
    return LoadedRun(recipe, processor, model, read_trained_on(folder))


def check_weights(folder: Path, key: str, tensor: Tensor, is_weight: bool) -> None:
    """Errors: ValueError if a tensor of an artifact, a weight or a buffer, holds other than finite
    numbers."""
    if is_weight and tensor.dtype not in WEIGHT_TYPES:
        raise ValueError(
            f"artifact {folder}: {key} is {str(tensor.dtype).removeprefix('torch.')}, and "
            f"weights are floats of 16 to 64 bits; {AGAIN}"
        )
    # Buffers may be masks, which hide places by an infinity.
    if not (tensor.isfinite() if is_weight else ~tensor.isnan()).all():
        raise ValueError(
            f"artifact {folder}: {key} holds numbers that are NaN or infinite; {AGAIN}"
        )


def reading_weights(
    recipe: Recipe, sketch: Model, dtype: torch.dtype, ranks: Ranks | None
) -> AbstractContextManager[None]:
    """Inside, ranks keep a part each of the weights that they read, if the recipe says so or the
    model does not fit. Collective."""
    if ranks is None or ranks.world_size == 1 or recipe.model.packed_bits is not None:
        return nullcontext()
    if any(method.needs_whole_model for method in recipe.methods.values()):
        return nullcontext()
    is_whole = recipe.training.evaluate_whole
    if is_whole is None:
        is_whole = fits_whole(sketch, ranks)
    return nullcontext() if is_whole else partitioned_reading(dtype, ranks.world_size)


def read_trained_on(folder: Path) -> dict[str, TrainedOn]:
    """Task -> its training data, from the artifact's description; tasks that another tool has
    trained are missing.

    Errors: ValueError if it cannot be read.
    """
    with readable(folder, DESCRIPTION):
        given = read_json(folder / DESCRIPTION).get("trained_on", {})
        return parse_record(dict[str, TrainedOn], json.dumps(given))


def read_begun_from(folder: Path) -> str | None:
    """The name of the run with whose weights an artifact's training began, from its description.

    Errors: ValueError if it cannot be read.
    """
    with readable(folder, DESCRIPTION):
        given = read_json(folder / DESCRIPTION).get("begun_from")
        return None if given is None else str(given)


def check_same_sources(folder: Path, recipe: Recipe) -> None:
    """Compare the hashes of the sources with those that the training saw.

    Errors: ValueError if a source is missing or has changed, or if the description of the artifact
    is damaged or of another version.
    """
    with readable(folder, DESCRIPTION):
        description = read_json(folder / DESCRIPTION)
        version = description["format"]
        recorded = {str(part): str(digest) for part, digest in description["sources"].items()}
    if version != FORMAT:
        raise ValueError(
            f"artifact {folder}: {DESCRIPTION} has format {version!r}, and this vlds reads "
            f"{FORMAT}; take the version of vlds that wrote it"
        )
    present = recipe.model.source_hashes()
    # A hub name has the hash of its name, and needs no file here.
    for part, digest in recorded.items():
        source = str(recipe.model.sources.get(part))
        if digest not in (present.get(part), hash_name(source)) and not Path(source).exists():
            places = places_of(read_yaml(folder / RECIPE), folder / RECIPE).candidates(source)
            raise ValueError(
                f"artifact {folder}: its {part} is missing: no {' nor '.join(map(str, places))}; "
                "copy it there from where the run was trained"
            )
        if present.get(part) != digest:
            raise ValueError(
                f"artifact {folder} was trained on another {part} than {source} "
                f"is now (sha256 {digest[:12]} then, {str(present.get(part))[:12]} now); bring the "
                "original files back to that place"
            )


@contextmanager
def readable(folder: Path, name: str) -> Iterator[None]:
    """Inside, errors of reading a file or folder of the artifact are ValueErrors that name it."""
    with reading(f"artifact {folder}: {name} cannot be read", AGAIN):
        yield


def check_shapes(
    parts: Mapping[str, torch.Size], tensors: Mapping[str, torch.Size], folder: Path
) -> None:
    """Errors: ValueError if an artifact's tensors are not exactly these parts of a model."""
    # Both ways: a missing tensor would leave a weight random, and one too many belongs to another
    # model.
    odd: list[str] = []
    for key in sorted(tensors.keys() | parts.keys()):
        stored, wanted = (
            (" x ".join(map(str, each[key])) or "one number") if key in each else "absent"
            for each in (tensors, parts)
        )
        if stored != wanted:
            odd.append(f"{key} ({stored} in the artifact, {wanted} in the model)")
    if odd:
        raise ValueError(
            f"artifact {folder} does not fit the model that its recipe builds: {', '.join(odd[:3])}"
            f"{f' and {len(odd) - 3} more tensors' if len(odd) > 3 else ''}; take the version of "
            "vlds that wrote it, or train again"
        )
