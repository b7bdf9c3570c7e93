"""What runs in processes of its own, like the commands and with their output: `vlds.prepare`,
`vlds.train` and `vlds.evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from vlds.api.program import Listener, OnMetrics, Program
from vlds.api.runs import Run
from vlds.api.words import Changes, json_text, option_words, recipe_words, words_of
from vlds.data.shards.remote import is_url
from vlds.evaluation.result import LEFT_IN, Scored, read_scores
from vlds.evaluation.sources import path_of
from vlds.recipe.config import parse_recipe
from vlds.runtime.folders import scratch_folder
from vlds.runtime.terminal import tell
from vlds.training.states import newest, read_progress


def prepare(
    command: str,
    source: Iterable[Mapping[str, object]] | str | PathLike[str] | None = None,
    *,
    out: str | PathLike[str],
    **options: object,
) -> Path:
    """Run a command of `vlds data` that writes `out`, such as shards; that path.

    `source` is your own rows, dicts with "image", "question" and "answer", as in
    vlds.prepare("jsonl", rows, task="vqa", images="PHOTOS", out="shards/mine"); or the path that
    the command takes without an option: vlds.prepare("tokenizer", "shards/mine", out="words").
    Options are those of the command: split_by_image=0.1 is --split-by-image 0.1, a list is several
    values, and True an option without a value.

    Errors: ValueError for mistakes in the options or rows; RuntimeError if the command fails.
    """
    place = path_of("out", out)
    if not isinstance(command, str) or not command or command.startswith("-"):
        raise ValueError(f"command: got {command!r:.100}; give a name, such as 'jsonl'")
    words = ["--out", str(place), *option_words(options)]
    with scratch_folder() as scratch:
        file = scratch / "rows.jsonl"
        if isinstance(source, str | PathLike):
            words.insert(0, str(path_of("source", source)))
        elif source is not None:
            write_rows(file, source)
            words += ["--annotations", str(file)]
            words += [] if "name" in options else ["--name", place.name or "rows"]
        try:
            Program("vlds", ["data", command, *words]).run()
        except ValueError as error:
            # The user gave rows, not this file.
            raise ValueError(str(error).replace(str(file), "rows")) from None
    return place


def write_rows(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as JSON lines.

    Errors: ValueError for a row that is not a mapping of plain values.
    """
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        # A DataFrame is iterable, over the names of its columns.
        raise ValueError(f"rows: got {type(rows).__name__}; give a list or iterator of dicts")
    with file.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                cure = "dicts, such as frame.to_dict('records') of a DataFrame gives"
                raise ValueError(f"rows: number {number} is {type(row).__name__}; give {cure}")
            # NaN, which is not equal to itself, is pandas' word for a missing value.
            known = {key: value if value == value else None for key, value in row.items()}
            lines.write(json_text(f"rows: number {number}", known) + "\n")


def train(
    recipe: str | PathLike[str] | Mapping[str, object],
    *,
    ranks: int | None = None,
    resume: bool = False,
    changes: Changes | None = None,
    on_metrics: OnMetrics | None = None,
) -> Run:
    """Train a recipe, given as a file or its content, like `vlds train`; the run.

    `changes` override keys: {"optimizer.learning_rate": 1e-4}. `resume`: continue if there is a
    state. `on_metrics` is called with each line of the run's metrics, a dict, soon after it is
    written. If it returns True, that is enough: the run ends after the step that it is in, is
    evaluated and can be loaded, as if the recipe had asked for so many steps. If it raises, or at
    Ctrl-C, the run saves its state and stops, and the exception is raised here: `resume=True`
    continues.

    Errors: ValueError for mistakes in the recipe or its data; RuntimeError if the run fails.
    """
    if on_metrics is not None and not callable(on_metrics):
        raise ValueError(
            f"on_metrics: got {type(on_metrics).__name__}; give a function of one dict"
        )
    with scratch_folder() as scratch:
        # Parsed here too: mistakes come before processes start, and the run's folder is known.
        words = recipe_words(recipe, changes, scratch)
        try:
            run = Run(parse_recipe(words, "vlds train").output)
        except ValueError as error:
            # A notebook shows each frame of the parser with its lines around it.
            raise error.with_traceback(None) from None
        words = ["train", *words, *rank_words(ranks)]

        def start(words: list[str], name: str) -> bool:
            listener = None if on_metrics is None else Listener(scratch / name, on_metrics)
            return Program("vlds", words, listener).run()

        try:
            is_stopped = start([*words, *["--resume", "auto"] * resume], "metrics.jsonl")
        except ValueError as error:  # in the words of the command line
            raise ValueError(str(error).replace("add --resume", "give resume=True")) from None
        if is_stopped:
            state, _ = newest(run.folder / "state")
            if state is not None:  # none is saved while a run evaluates before its first step
                # A run at its last step has only to evaluate and to write its artifact.
                done = read_progress(state).step
                tell(f"on_metrics has had enough: the run ends after step {done}", flush=True)
                steps = ["--training.steps", f"{done}", "--training.epochs", "null"]
                start([*words, *steps, "--resume", "auto"], "last_metrics.jsonl")
    return run


def evaluate(
    run: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    *,
    splits: str | Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    ranks: int | None = None,
    changes: Changes | None = None,
) -> dict[str, Scored]:
    """Score a run like `vlds evaluate`: task -> scores. `data`: data set folders, as TASK=FOLDER if
    several tasks can read one; without it, the data sets of the run's recipe, or those of `splits`.
    `out`: folder in which predictions are kept.

    Errors: as `train`.
    """
    # Not as a Path, which turns :// into :/.
    folders = [data] if isinstance(data, str | PathLike) else data
    if not isinstance(folders, Sequence):
        raise ValueError(f"data: got {type(data).__name__}; give a path, or a list of them")
    names = [folder if is_url(str(folder)) else path_of("data", folder) for folder in folders]
    words = ["--run", str(path_of("run", run))]
    words += ["--data", *map(str, names)] if names else []
    parts = [splits] if isinstance(splits, str) else [*splits]
    words += ["--split", *parts] if parts else []
    with scratch_folder() as scratch:
        folder = path_of("out", out or scratch)
        words += ["--out", str(folder), *words_of(changes), *rank_words(ranks)]
        # The line that says where predictions are would name a folder that is gone afterwards.
        unsaid = f"{LEFT_IN}{scratch}\n"
        Program("vlds", ["evaluate", *words], unsaid=unsaid).run()
        return read_scores(folder)


def rank_words(ranks: int | None) -> list[str]:
    """The option with the number of ranks."""
    return [] if ranks is None else ["--ranks", str(ranks)]
