"""The folder of an artifact: its files, and what may change when it is opened. What they hold is in
vlds/artifact.py, which needs the libraries of models."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlds.runtime.checks import note_on
from vlds.runtime.json_files import DESCRIPTION, damage, read_record
from vlds.runtime.rank_environment import is_rank, read_place
from vlds.runtime.terminal import tell, without_credentials

CHANGEABLE = ("--tasks.", "--data.", "--model.bits", "--training.evaluate_whole")
WEIGHTS, RECIPE, PROCESSOR = "weights.safetensors", "recipe.yaml", "processor"
BEST = "best.json"
"""In RUN/best: `Best`."""
AGAIN = "copy it again from where it was trained"


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    score: str
    """Which of the scores it is."""
    value: float


def home_of(run: Path) -> Path:
    """The folder of the model that a run stands for, with its results: RUN/best, if training has
    kept a best step, else RUN."""
    best = run / "best"
    return best if (best / BEST).exists() else run


def model_folder(run: Path) -> Path:
    """The artifact of the model that a run stands for; the folder itself if it is an artifact."""
    home = home_of(run)
    return home if (home / DESCRIPTION).exists() else home / "artifact"


def run_name(folder: Path) -> str:
    """The name of a run, of which the folder may be an artifact."""
    folder = folder.absolute()
    return (folder.parent if folder.name in ("best", "artifact") else folder).name


def best_step(run: Path) -> int | None:
    """The step of a run's model if that is its best; None for its last.

    Errors: ValueError if the record cannot be read.
    """
    file = home_of(run) / BEST
    return read_record(Best, file, AGAIN).step if file.exists() else None


def model_line(run: Path) -> str:
    """Which model a run stands for, where it keeps two; else nothing. Errors: as `best_step`."""
    if home_of(run) == run:
        return ""
    last = run / "artifact"
    other = f"{last} has the last step's" if last.exists() else "training has not ended"
    return f"{run}: best, of step {best_step(run)}; {other}"


@cache
def tell_model(run: Path) -> None:
    """Say `model_line`, once, on the first rank."""
    if _is_first() and (line := model_line(run)):
        tell(line, error=True, flush=True)


def tell_hosts(run: Path, places: Iterable[str]) -> None:
    """Say, on the first rank, which hosts and buckets a run's recipe makes this machine ask for
    data, at these folders and addresses."""
    urls = [without_credentials(place) for place in places if "://" in place]
    hosts = dict.fromkeys("/".join(url.split("/")[:3]) for url in urls)
    if hosts and _is_first():
        tell(f"{run}: its recipe asks {', '.join(hosts)} for data", error=True, flush=True)


def _is_first() -> bool:
    return not is_rank(os.environ) or read_place(os.environ).global_rank == 0


def find_artifact(run: Path) -> Path:
    """`model_folder`, which must be there.

    Errors: ValueError if it is not.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder in {Path.cwd()}; name one that `vlds train` wrote")
    if ((folder := model_folder(run)) / DESCRIPTION).exists():
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
