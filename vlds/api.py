"""`import vlds`: answer with a trained model, train and score from Python.

    model = vlds.load("runs/vqa")
    model.answer("photo.jpg", "How many dogs are there?").text

Training and scoring run as the commands do, in processes of their own with all GPUs, and print what
the commands print.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vlds.config import parse_recipe
from vlds.data.shards.open_picture import upright
from vlds.evaluation.scores_json import Scored, read_scores
from vlds.recipe.trusted import trust as trust_module
from vlds.runtime.regular_file import read_file
from vlds.runtime.terminal import tell
from vlds.serve.open_run import OpenRun, open_run
from vlds.serve.open_run import RunAnswer as Answer

Picture = str | Path | bytes | Image.Image | np.ndarray
"""A file, its content, a Pillow image, or a uint8 array: (height, width), (height, width, 3)
or (height, width, 4)."""
Changes = Mapping[str, object]
"""Keys of a recipe, with dots -> values."""
LAST_LINES = 20
__all__ = ["Answer", "Model", "Scored", "evaluate", "load", "train"]


class Model:
    """A trained model, ready to answer. Any number of threads may ask."""

    def __init__(self, run: OpenRun) -> None:
        self._run = run

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it was trained on."""
        return list(self._run.tasks)

    def answer(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        *,
        task: str | None = None,
    ) -> Answer:
        """Answer a question about a picture, or describe it; `task` is needed where the model has
        several. Tasks about several pictures, such as NLVR2, take a list.

        Errors: ValueError for what is not a picture, an unknown task or a missing question.
        """
        several = [pictures] if isinstance(pictures, Picture) else pictures
        return self._run.answer([encoded(picture) for picture in several], question, task)


def load(run: str | Path, *, trust: Sequence[str] = (), changes: Changes | None = None) -> Model:
    """Open a run or an artifact, on the GPU where there is one. `trust`: Python modules of your own
    whose classes it may name; `changes`: as in `evaluate`.

    Errors: ValueError where there is no artifact, or it is damaged.
    """
    for module in trust:
        trust_module(module)
    return Model(open_run(Path(run), words_of(changes)))


def train(
    recipe: str | Path | Mapping[str, Any],
    *,
    ranks: int | None = None,
    resume: bool = False,
    changes: Changes | None = None,
) -> Path:
    """Train a recipe, a file or its content, as `vlds train` does; the run's folder. `changes`
    override keys: {"optimizer.learning_rate": 1e-4}. `resume`: continue where there is a state.

    Errors: ValueError for mistakes in the recipe or its data; RuntimeError where a run fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "recipe.yaml") if isinstance(recipe, Mapping) else Path(recipe)
        if isinstance(recipe, Mapping):
            file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
        words = [str(file), *words_of(changes)]
        output = parse_recipe(words, "vlds train").output
        options = ["--resume", "auto"] if resume else []
        run_command(["train", *words, *options], ranks)
    return Path(output)


def evaluate(
    run: str | Path,
    data: str | Path | Sequence[str | Path] = (),
    *,
    splits: Sequence[str] = (),
    out: str | Path | None = None,
    ranks: int | None = None,
    changes: Changes | None = None,
) -> dict[str, Scored]:
    """Score a run as `vlds evaluate` does: task -> scores. `data`: data set folders, TASK=FOLDER
    where several tasks could read one; without it the run's own, or those of `splits`.
    Predictions are kept where `out` names a folder.

    Errors: as `train`.
    """
    folders = [data] if isinstance(data, str | Path) else data
    words = ["--run", str(run)]
    words += ["--data", *map(str, folders)] if folders else []
    words += ["--split", *splits] if splits else []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(out or scratch)
        run_command(["evaluate", *words, "--out", str(place), *words_of(changes)], ranks)
        return read_scores(place)


def words_of(changes: Changes | None) -> list[str]:
    """Changes as words of a command line."""
    found = []
    for key, value in (changes or {}).items():
        found += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return found


def encoded(picture: Picture) -> bytes:
    """The picture as bytes of a file.

    Errors: ValueError for a file that cannot be read, or an array that is not a picture.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        try:
            return read_file(Path(picture))
        except OSError as error:
            raise ValueError(f"{picture}: {error.strerror}") from None
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise ValueError(
                f"picture: got an array of {picture.dtype} and shape {picture.shape}; give uint8, "
                "(height, width) or (height, width, 3)"
            )
        picture = Image.fromarray(picture)
    buffer = io.BytesIO()
    upright(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def run_command(words: Sequence[str], ranks: int | None) -> None:
    """Run a command of vlds and print what it says.

    Errors: ValueError with its last line where the user is wrong, else RuntimeError.
    """
    ranked = ["--ranks", str(ranks)] if ranks is not None else []
    command = [sys.executable, "-m", "vlds", *words, *ranked]
    # A session of its own: Ctrl-C on a terminal reaches it once, from here.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=LAST_LINES)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            tell(line, end="", flush=True)
            last.append(line)
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code:
        # The supervisor's advice may follow what the command itself said.
        own = [line for line in last if line.startswith(f"vlds {words[0]}: ")]
        said = (own or list(last) or [f"exit code {code}"])[-1].rstrip()
        raise ValueError(said) if code == 2 else RuntimeError(said)
