"""Whichever write, flush or rename of a command fails: it ends with one line and code 2, or well;
what was there before is there, or what was to come, and nothing half made is left.

The fast tests fail one to three of the calls, the slow ones each.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.toys.faults.disk_faults import Attempt, attempt
from tests.toys.files import write
from tests.toys.pictures import jpeg
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.scored_runs import vqa_run
from tests.toys.trained_runs import write_run
from tests.toys.world import world_recipe
from vlds.data.shards.store import open_dataset
from vlds.recipe.config import save_recipe
from vlds.runtime.artifact_files import artifact_folder
from vlds.runtime.json_files import damage
from vlds.training.states import newest

Tree = Mapping[str, bytes]
"""Path below a folder -> content of the file."""


@dataclass(frozen=True)
class Command:
    """A command that writes."""

    program: str
    words: Callable[[Path, Path], list[str]]
    """The world and the folder of the attempt -> the command line."""
    prepare: Callable[[Path, Path], None]
    """Fill the folder with what the command reads, and with older outputs."""
    outputs: tuple[str, ...]
    """Files or folders below its own; each is one thing."""
    may_vanish: bool = False
    """What it replaces is taken away first, as the documentation says."""
    ends: tuple[bytes, ...] = ()
    """How a whole output ends that may be another one: a report without new samples is one."""
    fast: tuple[float, ...] = (0, 0.5, 1)
    """Which calls the fast test fails: shares of all, the first and the last among them."""


def old_files(*names: str) -> Callable[[Path, Path], None]:
    def prepare(world: Path, folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("old")

    return prepare


def a_run(world: Path, folder: Path) -> None:
    """An artifact, and what an earlier evaluation has left."""
    write_run(with_model(world_recipe(world, folder / "run"), train_norms=True))
    old_files("out/vqa.jsonl", "out/scores.json", "out/vqa-train.json")(world, folder)


def a_started_run(world: Path, folder: Path) -> None:
    """The recipe of a run of three steps."""
    recipe = world_recipe(world, folder / "run")
    training = replace(
        recipe.training, steps=3, save_every=1, evaluate_every=1, keep_states=1,
        best="vqa/exact_match",
    )  # fmt: skip
    folder.mkdir()
    save_recipe(replace(recipe, training=training), folder / "run.yaml")


def a_scored_run(world: Path, folder: Path) -> None:
    vqa_run(world, folder / "run", 3)
    old_files("run/report.html", "run/gallery/0000-0.png")(world, folder)
    (folder / "run/gallery/samples.json").write_text("[]")


def rows(world: Path, folder: Path) -> None:
    told = [{"image": f"{n}.jpg", "question": "why?", "answer": "so"} for n in range(4)]
    for row in told:
        write(folder / "images" / row["image"], jpeg())
    write(folder / "rows.json", told)
    shutil.copytree(world / "vqa", folder / "indexed")
    info = json.loads((folder / "indexed" / "dataset.json").read_text())
    (folder / "indexed" / "dataset.json").write_text(json.dumps(info | {"answers": "old"}))


def pack_words(world: Path, folder: Path) -> list[str]:
    rows, images = str(folder / "rows.json"), str(folder / "images")
    return ["jsonl", "--task", "vqa", "--annotations", rows, "--images", images, "--out",
            str(folder / "out"), "--shard-samples", "2", "--workers", "1"]  # fmt: skip


COMMANDS = {
    "train": Command(
        "vlds", lambda world, own: ["train", "--config", str(own / "run.yaml")], a_started_run,
        ("run/recipe.yaml",), fast=(0.6,),
    ),
    "evaluate": Command(
        "vlds", lambda world, own: ["evaluate", "--run", f"{own}/run", "--out", f"{own}/out"],
        a_run, ("out/vqa.jsonl", "out/scores.json"), fast=(0.8,),
    ),
    "predict": Command(
        "vlds",
        lambda world, own: ["predict", "--run", f"{own}/run", "--data", f"vqa={world}/vqa",
                            "--out", f"{own}/out"],
        a_run, ("out/vqa.jsonl", "out/vqa-train.json"), fast=(1,),
    ),
    "convert hf": Command(
        "vlds", lambda world, own: ["convert", "hf", "--run", f"{own}/run", "--out", f"{own}/new"],
        a_run, ("new",), fast=(0.9,),
    ),
    "report": Command(
        "vlds", lambda world, own: ["report", f"{own}/run", "--resamples", "0"], a_scored_run,
        ("run/report.html", "run/gallery"),
        ends=(b"</html>\n",), fast=(0.3, 0.9),
    ),
    "pack": Command("data_prep", pack_words, rows, ("out/dataset.json",), may_vanish=True),
    "index": Command(
        "data_prep",
        lambda world, own: ["index", f"{own}/indexed", "--name", "vqa", "--kind", "vqa",
                            "--split", "train"],
        rows, ("indexed",),
    ),
    "tokenizer": Command(
        "data_prep",
        lambda world, own: ["tokenizer", f"{world}/vqa", "--out", f"{own}/spiece.model"],
        old_files("spiece.model"), ("spiece.model",),
    ),
}  # fmt: skip


def tree_of(place: Path) -> Tree:
    """A file, or every file of a folder; nothing where neither is there."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return {str(file.relative_to(place)): file.read_bytes() for file in files}


def attempts(words: list[str], command: str, folder: Path, failing: int, code: int) -> Attempt:
    """On a rank."""
    return attempt(COMMANDS[command].program, words, folder, failing, code)


@dataclass(frozen=True)
class Case:
    """A command whose outputs are known."""

    name: str
    world: Path
    template: Path
    """A folder that is prepared."""
    pool: RankPool
    folder: Path
    """Used by all attempts, since outputs contain their absolute path."""

    def run(self, failing: int, code: int) -> tuple[Attempt, list[Tree]]:
        """Make one attempt in a fresh folder; what became of it, and its outputs."""
        command = COMMANDS[self.name]
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder)
        words = command.words(self.world, self.folder)
        (result,) = self.pool.run(
            attempts, words, self.name, self.folder, failing, code, timeout=120
        )
        return result, [tree_of(self.folder / name) for name in command.outputs]

    def check(self, failing: int, code: int, before: list[Tree], after: list[Tree]) -> None:
        """One attempt, and what it leaves."""
        result, found = self.run(failing, code)
        where = f"{self.name}, call {failing}: {result.stderr[-2000:]}"
        assert result.code in (0, 2), where
        assert "Traceback" not in result.stderr, where
        assert result.code == 0 or "cannot write" in result.stderr.splitlines()[-1], where
        left = [path for path in self.folder.rglob(".*") if ".partial" in path.name]
        assert left == [], where
        for name, old, new, now in zip(
            COMMANDS[self.name].outputs, before, after, found, strict=True
        ):
            vanished = COMMANDS[self.name].may_vanish and now == {}
            ends = COMMANDS[self.name].ends
            other = bool(ends) and now.get(".", b"").endswith(ends)
            assert now in (old, new) or vanished or other, f"{where}: {name}"
        check_rest(self.name, self.folder)


def check_rest(name: str, folder: Path) -> None:
    """What must be whole besides single outputs."""
    if name == "train":
        run = folder / "run"
        assert newest(run / "state")[1] == []
        for made in (run / "best", run / "artifact"):
            assert not made.exists() or artifact_folder(made) == made
        if (run / "best").exists():
            assert damage(run / "best", ("best.json",)) is None
    elif name == "pack" and (folder / "out" / "dataset.json").exists():
        assert open_dataset(folder / "out").num_samples == 4


@pytest.fixture(scope="module")
def case_of(
    world: Path, ranks1: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Case]:
    """A command, with what it reads."""

    def make(name: str) -> Case:
        folder = tmp_path_factory.mktemp("case")
        COMMANDS[name].prepare(world, folder / "own")
        (folder / "own").rename(folder / "template")
        case = Case(name, world, folder / "template", ranks1, folder / "own")
        return case

    return make


@pytest.mark.sampled(8)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMMANDS)
def test_any_call_may_fail(name: str, every: bool, case_of: Callable[[str], Case]) -> None:
    case = case_of(name)
    before = [tree_of(case.template / output) for output in COMMANDS[name].outputs]
    whole, after = case.run(0, errno.EIO)
    assert whole.code == 0, whole.stderr
    assert whole.seen > 2
    assert all(after)
    assert before != after
    chosen = [max(1, round(share * whole.seen)) for share in COMMANDS[name].fast]
    for failing in range(1, whole.seen + 1) if every else chosen:
        case.check(failing, (errno.EIO, errno.ENOSPC)[failing % 2], before, after)
