"""`import vlds`: answer with a trained model, train and score from Python.

    model = vlds.load("runs/vqa")
    model.answer("photo.jpg", "How many dogs are there?").text

Training and scoring run like the commands: in new processes on all GPUs, and with their output.
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
"""A file, its content, a Pillow image, or a uint8 array of shape (height, width),
(height, width, 3) or (height, width, 4)."""
Changes = Mapping[str, object]
"""Dotted keys of a recipe -> values."""
LAST_LINES = 20
__all__ = ["Answer", "Model", "Scored", "evaluate", "load", "train"]


class Model:
    """A trained model that answers questions. Threads may share it."""

    def __init__(self, run: OpenRun) -> None:
        self._run = run

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that the model was trained on."""
        return list(self._run.tasks)

    def answer(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        *,
        task: str | None = None,
    ) -> Answer:
        """Answer a question about a picture, or describe it. `task`: required if the model has
        several. Tasks about several pictures, such as NLVR2, take a list.

        Errors: ValueError for an invalid picture, an unknown task or a missing question.
        """
        several = [pictures] if isinstance(pictures, Picture) else pictures
        return self._run.answer([encoded(picture) for picture in several], question, task)


def load(run: str | Path, *, trust: Sequence[str] = (), changes: Changes | None = None) -> Model:
    """Open a run or an artifact, on the GPU if there is one. `trust`: your own Python modules whose
    classes it may name; `changes`: as in `evaluate`.

    Errors: ValueError if there is no artifact, or if it is damaged.
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
    """Train a recipe, given as a file or its content, like `vlds train`; the run's folder.
    `changes` override keys: {"optimizer.learning_rate": 1e-4}. `resume`: continue if there is a
    state.

    Errors: ValueError for mistakes in the recipe or its data; RuntimeError if the run fails.
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
    """Score a run like `vlds evaluate`: task -> scores. `data`: data set folders, as TASK=FOLDER if
    several tasks can read one; without it, the data sets of the run's recipe, or those of `splits`.
    `out`: folder in which predictions are kept.

    Errors: as `train`.
    """
    folders = [data] if isinstance(data, str | Path) else data
    words = ["--run", str(run)]
    words += ["--data", *map(str, folders)] if folders else []
    words += ["--split", *splits] if splits else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        run_command(["evaluate", *words, "--out", str(folder), *words_of(changes)], ranks)
        return read_scores(folder)


def words_of(changes: Changes | None) -> list[str]:
    """Changes as words of a command line."""
    words = []
    for key, value in (changes or {}).items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return words


def encoded(picture: Picture) -> bytes:
    """The picture as the bytes of a file.

    Errors: ValueError for a file that cannot be read, or an array of another type or shape.
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
    """Run a command of vlds and print its output.

    Errors: with its last line, ValueError for a user's mistake, else RuntimeError.
    """
    ranked = ["--ranks", str(ranks)] if ranks is not None else []
    command = [sys.executable, "-m", "vlds", *words, *ranked]
    # In a new session, so that Ctrl-C in the terminal reaches it once, from here.
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
        # The supervisor's advice may follow the command's own message.
        messages = [line for line in last if line.startswith(f"vlds {words[0]}: ")]
        message = (messages or list(last) or [f"exit code {code}"])[-1].rstrip()
        raise ValueError(message) if code == 2 else RuntimeError(message)
