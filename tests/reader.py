"""Prints what a reader of the code pays: `make reader`.

Sizes of each room, and the files and functions on the way of one example: from its shard to a
Batch, through a step of training (loss, gradients, update), and of the weights into the engine.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.toys.world import world_recipe, write_world
from vlds.runtime.deepspeed_start import start_ranks
from vlds.training.prepare import prepare
from vlds.training.run import build_run

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("vlds", "data_prep")


@dataclass
class Way:
    """The calls of functions of vlds while something happens."""

    functions: set[tuple[str, str]] = field(default_factory=set)
    """(file, qualified name)."""
    changes: int = 0
    """How often a call went to another file than the call before it."""
    last: str = ""

    @property
    def files(self) -> set[str]:
        return {file for file, _ in self.functions}

    def call(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Comprehensions, lambdas and generators' resumptions are read as a part of their function.
        if event != "call" or "<" in code.co_name or not code.co_filename.startswith(str(ROOT)):
            return
        file = str(Path(code.co_filename).relative_to(ROOT))
        if file.split("/")[0] in ROOMS:
            self.functions.add((file, code.co_qualname))
            self.changes += file != self.last
            self.last = file


@contextmanager
def followed() -> Iterator[Way]:
    way = Way()
    sys.setprofile(way.call)
    try:
        yield way
    finally:
        sys.setprofile(None)


def ways(folder: Path) -> dict[str, Way]:
    """The ways through a run of one step on one example, in `folder`."""
    write_world(folder)
    recipe = world_recipe(folder, folder / "run")
    (vqa, *_) = recipe.tasks
    recipe = replace(
        recipe,
        tasks={vqa: replace(recipe.tasks[vqa], evaluate=[])},
        data=replace(recipe.data, global_batch_size=1, micro_batch_size=None, num_workers=0),
        training=replace(recipe.training, steps=1),
    )
    ranks = start_ranks(60)
    prepared = prepare(recipe, ranks, resume=False)
    with followed() as weights:
        run = build_run(recipe, ranks, prepared, resume=False)
    steps = run.stream.steps()
    with followed() as sample:
        batches = next(steps)
    with followed() as step:
        run.engine.step(batches)
    run.tracker.close()
    return {
        "shard to Batch": sample,
        "Batch to updated weights": step,
        "recipe to engine": weights,
    }


def sizes(folder: Path) -> tuple[int, int, int, int, int]:
    """Files, lines, functions, lines in functions' bodies without docstrings, comment lines."""
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]
    lines = functions = body = comments = 0
    for file in files:
        text = file.read_text("utf-8")
        lines += len(text.splitlines())
        comments += sum(line.lstrip().startswith("#") for line in text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                first = node.body[1 if ast.get_docstring(node) else 0 :]
                body += 1 + first[-1].end_lineno - first[0].lineno if first else 0  # type: ignore[operator]
    return len(files), lines, functions, body, comments


def main() -> None:
    table = Table("room", "files", "lines", "a function every", "mean body", "comments", box=None)
    rooms = [place for place in sorted((ROOT / "vlds").iterdir()) if place.name != "__pycache__"]
    places = [p for p in rooms if p.suffix == ".py" or any(p.rglob("*.py"))]
    for place in (*places, ROOT / "vlds", ROOT / "data_prep"):
        files, lines, functions, body, comments = sizes(place)
        every, mean = (f"{n / functions:.1f}" if functions else "-" for n in (lines, body))
        share = f"{comments / lines:.1%}"
        name = str(place.relative_to(ROOT))
        table.add_row(name, str(files), f"{lines:,}", every, mean, share)
    console = Console()
    console.print(table)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        found = ways(Path(folder))
    table = Table("way of one example", "files", "functions", "changes of file", box=None)
    for name, way in found.items():
        table.add_row(name, *map(str, (len(way.files), len(way.functions), way.changes)))
    console.print(table)
    for name, way in found.items():
        console.print(f"{name}: {', '.join(sorted(way.files))}", highlight=False)


if __name__ == "__main__":
    main()
