"""Both ways between a run and the files of another library: a run is written as files, or files
fill a recipe's model, which is then written as an artifact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlds.artifact import LoadedRun, load_run, own_parts, own_tensors, read_recipe, write_artifact
from vlds.convert.output import Kind, first_names, new_output, say
from vlds.convert.torch_files import read_state_dict
from vlds.convert.verify import Verification, all_tasks
from vlds.models.build import build_model
from vlds.models.model import Counts, Model
from vlds.recipe.config import Recipe
from vlds.runtime import files
from vlds.runtime.artifact_files import artifact_folder
from vlds.runtime.checks import not_finite
from vlds.runtime.json_files import read_record


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Name -> tensor.

    Errors: ValueError if the file is missing or damaged.
    """
    check_file(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{file} is not a complete safetensors file ({error}); copy it again"
        ) from None


def read_weights(folder: Path, *names: str) -> dict[str, Tensor]:
    """The first of the files that the folder has; safetensors or torch.save's.

    Errors: ValueError if it has none.
    """
    for name in names:
        if (folder / name).is_file():
            safe = name.endswith(".safetensors")
            return (read_safetensors if safe else read_state_dict)(folder / name)
    raise ValueError(f"--from: {folder} has none of {', '.join(names)}; name another folder")


def read_settings(file: Path) -> dict[str, Any]:
    """A json file that holds settings by name.

    Errors: ValueError if it is missing or holds anything else, or a number that is not finite.
    """
    check_file(file)
    settings = read_record(dict[str, Any], file, "name another folder")
    for name, value in not_finite(settings):
        raise ValueError(f"{file}: {name} is {value}; give it a finite number, or copy it again")
    return settings


def check_file(file: Path) -> None:
    """Errors: ValueError if there is no such file, or it is a folder, pipe or device."""
    try:
        files.check_file(file)
    except FileNotFoundError:
        raise ValueError(f"--from: no such file: {file}") from None


def check_layout(run: LoadedRun, layout: str) -> None:
    """Errors: ValueError if a layout cannot hold the kind of model."""
    if (reason := run.recipe.model.refusal(layout)) is not None:
        raise ValueError(reason)


class RunFiles(ABC):
    """How a library stores a run."""

    kind: ClassVar[Kind]
    """What `write` makes."""
    is_whole: ClassVar[bool]
    """True if it holds the whole model but for the vision encoder, False if a method alone."""

    def __init__(self, run: LoadedRun) -> None:
        """Errors: ValueError, with the reason, if the library cannot hold the run."""
        self.run = run

    @abstractmethod
    def write(self, out: Path) -> None:
        """Write the run to a new file, or into an empty folder."""

    @abstractmethod
    def read(self, path: Path) -> dict[str, Tensor]:
        """Our tensors, by name.

        Errors: ValueError if files are missing, damaged, or hold other tensors than the recipe's.
        """

    def prove(self, out: Path, verification: Verification) -> None:  # noqa: B027 (most have none)
        """Let the library open what was written, and compare its outputs with the run's, which is
        of no use afterwards.

        Errors: ValueError if it cannot, or gives other outputs.
        """


@dataclass
class Target:
    """A model in float32, and the names of its tensors that nothing has filled yet."""

    run: LoadedRun
    missing: set[str]
    """Tensors that hold random numbers."""

    def fill(self, tensors: Mapping[str, Tensor], origin: Path) -> None:
        """Put tensors in their places, by the model's own names.

        Errors: ValueError if one has another shape or numbers that are not finite, or stands for
        weights that the recipe's sources hold otherwise.
        """
        model = self.run.model
        state, sources = dict(model.unique_state()), model.sources
        for name, tensor in tensors.items():
            if name not in state:
                raise ValueError(
                    f"{origin} holds {name}, which the recipe's model lacks; its methods and tasks "
                    "must be those of the checkpoint"
                )
            mine = state[name]
            if mine.shape != tensor.shape:
                raise ValueError(
                    f"{name}: {tuple(tensor.shape)} in {origin}, {tuple(mine.shape)} by the "
                    "recipe; the recipe's sizes must be those of the checkpoint"
                )
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{origin}: {name} holds numbers that are NaN or infinite; name another file, "
                    "or save it again before its training failed"
                )
            # An artifact leaves out what its sources hold: they must hold the same.
            if name in sources.names:
                self.check_source(name, mine, tensor)
            else:
                # A table's first rows may be the source's, with new ones below.
                if (rows := sources.rows.get(name, 0)) > 0:
                    self.check_source(name, mine[:rows], tensor[:rows])
                    mine, tensor = mine[rows:], tensor[rows:]
                with torch.no_grad():
                    mine.copy_(tensor)
            self.missing.discard(name)

    def check_source(self, name: str, mine: Tensor, theirs: Tensor) -> None:
        """Errors: ValueError if the recipe's source holds other numbers than the checkpoint."""
        if not torch.equal(mine.to(theirs.dtype), theirs):
            part = "visual embedding" if name.startswith("visual") else name.partition(".")[0]
            part = {"vision": "vision encoder"}.get(part, part)
            raise ValueError(
                f"{name} is frozen, and the checkpoint has other numbers there than "
                f"{self.run.recipe.model.sources.get(part)}; name the {part} that it was trained "
                "on, or for the backbone `config` instead of `path`"
            )

    def write(self, out: Path, verification: Verification | None) -> None:
        """Write the artifact, which must be complete.

        Errors: ValueError if tensors are missing, or the written artifact gives other outputs.
        """
        if self.missing:
            raise ValueError(
                f"nothing holds {first_names(sorted(self.missing), 3)}, so they would be random. "
                "Give --run instead of --config, a run that has them, or name files that do in "
                "the recipe (the fields `path` and `weights` of its model)"
            )
        write_run(self.run, all_tasks(self.run), out, verification)


def write_run(
    run: LoadedRun,
    expected: Mapping[str, LoadedRun],
    out: Path,
    verification: Verification | None,
) -> None:
    """Write a run's artifact as the new folder `out`. `expected`: task -> the run whose outputs it
    must give."""
    with new_output(out, "folder") as partial:
        say(f"writing {out}")
        tensors = own_tensors(run.model)
        write_artifact(partial, tensors, run.recipe, run.processor, run.trained_on)
        if verification is not None:
            verification.compare(expected, load_run(partial, torch.float32))


def target_of_recipe(recipe: Recipe) -> Target:
    """A recipe's model, filled from its sources only."""
    say("building the recipe's model")
    processor = recipe.model.load_processor()
    model = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, processor).eval()
    # Keys such as "shared.weight[32100:]" stand for the rows below a source's.
    missing = {key.partition("[")[0] for key in own_parts(model)}
    return Target(LoadedRun(recipe, processor, model), missing)


def target_of_run(run: Path) -> Target:
    """A run's model, completely filled."""
    say(f"opening {run}")
    return Target(load_run(run, torch.float32), set())


@torch.no_grad()
def scrub(model: Model) -> None:
    """Overwrite everything that no source holds with NaN, so that only filling makes it right."""
    # Of a table whose first rows are the source's, only the rows below them.
    for name, tensor in model.unique_state():
        known = name in model.sources.names or name.startswith("vision.")
        if not known and tensor.is_floating_point():
            tensor[model.sources.rows.get(name, 0) :].fill_(torch.nan)


def export_run(
    run: Path,
    files_of: Callable[[LoadedRun], RunFiles],
    out: Path,
    verification: Verification | None,
    prepare: Callable[[LoadedRun], LoadedRun],
    card: Callable[[RunFiles, Counts, Path], None] | None = None,
    tolerance: float | None = None,
) -> None:
    """Write a run as a library's files. `prepare` makes it what the library can hold. `card` writes
    the model card into the folder, where there is one; it gets the counts of the run's model.
    `tolerance`: of outputs that are compared without `verification` too (`RunFiles.prove`).

    Errors: ValueError if the library cannot hold it, or what was written gives other outputs.
    """
    # Shapes tell whether the library can hold the run, before its weights are read.
    recipe = read_recipe(artifact_folder(run))
    with torch.device("meta"):
        shapes = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, None)
    files_of(prepare(LoadedRun(recipe, None, shapes)))
    say(f"opening {run}")
    loaded = load_run(run, torch.float32)
    counts = loaded.model.count_parameters()
    loaded = prepare(loaded)
    files = files_of(loaded)
    with new_output(out, files.kind) as partial:
        say(f"writing {out}")
        files.write(partial)
        if card is not None:
            card(files, counts, partial)
        if verification is not None:
            # Read back into a model of NaN, so that what the files lack cannot go unseen.
            again = prepare(load_run(run, torch.float32))
            scrub(again.model)
            # What a method's files do not hold, such as the backbone, is not theirs to get right.
            held_elsewhere = {} if files.is_whole else dict(loaded.model.unique_state())
            state = held_elsewhere | files_of(again).read(partial)
            again.model.load_state_dict(state, strict=False)
            verification.compare(all_tasks(loaded), again)
            del again
        files.prove(partial, verification or Verification(tolerance=tolerance))
