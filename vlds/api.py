"""`import vlds`: answer with a trained model, train and score from Python.

    model = vlds.load("runs/vqa")
    model.answer("photo.jpg", "How many dogs are there?").text

Training and scoring run like the commands: in new processes on all GPUs, and with their output.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlds.data.shards.store import is_url
from vlds.evaluation.result import LEFT_IN, Scored, read_scores
from vlds.evaluation.serve import OpenRun, open_run
from vlds.evaluation.serve import RunAnswer as Answer
from vlds.evaluation.sources import ACCEPTED, Picture, encode_picture, path_of
from vlds.recipe.config import parse_recipe
from vlds.recipe.paths import trust as trust_module
from vlds.runtime.folders import scratch_folder
from vlds.runtime.terminal import tell

Changes = Mapping[str, object]
"""Dotted keys of a recipe -> values."""
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
        if not isinstance(several, Sequence):
            raise ValueError(f"picture: got {type(several).__name__}; give {ACCEPTED}, or a list")
        return self._run.answer([encode_picture(picture) for picture in several], question, task)


def load(run: str | Path, *, trust: Sequence[str] = (), changes: Changes | None = None) -> Model:
    """Open a run or an artifact, on the GPU if there is one. `trust`: your own Python modules whose
    classes it may name; `changes`: as in `evaluate`.

    Errors: ValueError if there is no artifact, if it is damaged, or if a module cannot be found.
    """
    folder, words = path_of("run", run), words_of(changes)
    if isinstance(trust, str) or not isinstance(trust, Sequence):
        raise ValueError(f"trust: got {trust!r:.100}; give a list, such as ['my_tasks']")
    for module in trust:
        if not isinstance(module, str) or not all(map(str.isidentifier, module.split("."))):
            raise ValueError(f"trust: got {module!r:.100}; give the name of a Python module")
        # Before it is looked for: it may lie in the working directory, which this puts on sys.path.
        trust_module(module)
        try:
            missing = module not in sys.modules and importlib.util.find_spec(module) is None
        except ModuleNotFoundError:  # of the package that it would be in
            missing = True
        if missing:
            raise ValueError(
                f"trust: Python finds no module {module}; its file must be in the working "
                "directory or on sys.path"
            )
    return Model(open_run(folder, words))


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
    with scratch_folder() as scratch:
        if isinstance(recipe, Mapping):
            file = scratch / "recipe.yaml"
            tree = json.loads(json_text("recipe", dict(recipe)))
            file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        else:
            file = path_of("recipe", recipe)
        # Parsed here too: mistakes come before processes start, and the run's folder is known.
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
    # Not as a Path, which turns :// into :/.
    folders = [data] if isinstance(data, str | Path) else data
    names = [folder if is_url(folder) else path_of("data", folder) for folder in folders]
    words = ["--run", str(path_of("run", run))]
    words += ["--data", *map(str, names)] if names else []
    words += ["--split", *splits] if splits else []
    with scratch_folder() as scratch:
        folder = path_of("out", out or scratch)
        words += ["--out", str(folder), *words_of(changes)]
        # The line that says where predictions are would name a folder that is gone afterwards.
        run_command(["evaluate", *words], ranks, unsaid=f"{LEFT_IN}{scratch}\n")
        return read_scores(folder)


def words_of(changes: Changes | None) -> list[str]:
    """Changes as words of a command line.

    Errors: ValueError for anything but a mapping of keys to values that a recipe can hold.
    """
    if changes is None:
        return []
    if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
        raise ValueError(
            f"changes: got {changes!r:.100}; give a dict such as {{'output': 'runs/a'}}"
        )
    words = []
    for key, value in changes.items():
        plain = json_text(f"changes: {key}", value)
        # Texts go without JSON's quotes.
        words += [f"--{key}", str(value) if isinstance(value, str | Path) else plain]
    return words


def json_text(argument: str, value: object) -> str:
    """Plain values as JSON, paths among them as texts.

    Errors: ValueError that names the argument, for any other object.
    """

    def path_text(part: object) -> str:
        if isinstance(part, Path):
            return str(part)
        raise ValueError(f"got {type(part).__name__}")

    # JSON is YAML too, so the recipe's parser reads it.
    try:
        return json.dumps(value, default=path_text)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{argument}: {error}; give numbers, texts, lists, dicts or paths"
        ) from None


def run_command(words: Sequence[str], ranks: int | None, unsaid: str = "") -> None:
    """Run a command of vlds and print its output, without the line `unsaid`.

    Errors: with its last line, ValueError for a user's mistake, else RuntimeError.
    """
    ranked = ["--ranks", str(ranks)] if ranks is not None else []
    command = [sys.executable, "-m", "vlds", *words, *ranked]
    # In a new session, so that Ctrl-C in the terminal reaches the command once, from here.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    # A command's error message is among its last lines.
    last: deque[str] = deque(maxlen=20)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line != unsaid:
                tell(line, end="", flush=True)
                last.append(line)
        code = process.wait()
    except BaseException:  # Ctrl-C too: no run outlives the program that asked for it
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code:
        # The supervisor's advice may follow the command's own message.
        messages = [line for line in last if line.startswith(f"vlds {words[0]}: ")]
        message = (messages or list(last) or [f"exit code {code}"])[-1].rstrip()
        raise ValueError(message) if code == 2 else RuntimeError(message)
