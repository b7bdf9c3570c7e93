"""The folder of an artifact: its files, and what may change when it is opened. What they hold is in
vlds/artifact.py, which needs the libraries of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.runtime.checks import note_on
from vlds.runtime.json_files import DESCRIPTION, damage

CHANGEABLE = ("--tasks.", "--data.", "--model.bits", "--training.evaluate_whole")
WEIGHTS, RECIPE, PROCESSOR = "weights.safetensors", "recipe.yaml", "processor"
AGAIN = "copy it again from where it was trained"


def find_artifact(run: Path) -> Path:
    """RUN/artifact, or the folder itself if it is an artifact.

    Errors: ValueError if there is none.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder in {Path.cwd()}; name one that `vlds train` wrote")
    for folder in (run / "artifact", run):
        if (folder / DESCRIPTION).exists():
            return folder
    if (run / "state").is_dir():
        raise ValueError(
            f"{run} is a run that has not ended, and holds no artifact yet; `vlds train` with its "
            "recipe and --resume ends it"
        )
    raise ValueError(
        f"{run} holds no artifact; name the folder that `vlds train` wrote (its `output`)"
    )


def artifact_folder(run: Path) -> Path:
    """The same, whose files are compared with its manifest here, and nowhere else.

    Errors: ValueError if there is none, or it is damaged.
    """
    folder = find_artifact(run)
    if (wrong := damage(folder, (DESCRIPTION, RECIPE, WEIGHTS))) is not None:
        raise ValueError(f"artifact {folder}: {wrong}; {AGAIN}")
    return folder


def check_changes(changes: Sequence[str]) -> None:
    """Errors: ValueError for a key whose change would need another model than the run's."""
    for word in changes:
        if word.startswith("--") and not word.startswith(CHANGEABLE):
            name = word.partition("=")[0]
            raise ValueError(
                f"{name}: not an option of this command; {note_on(name)}of a trained run's "
                f"recipe, only keys that begin with {' or '.join(CHANGEABLE)} may change"
            )
