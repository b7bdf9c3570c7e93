"""Where a step goes: a table of its parts, and a trace."""

from __future__ import annotations

import io
import json
import re
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.toys.files import read_lines
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.cli.words import split_words
from vlds.recipe.config import Recipe
from vlds.training import profile as profile_module
from vlds.training.loop import train
from vlds.training.profile import SPANS, StepProfile, between_steps, check_profile, span


def profiled(recipe: Recipe, resume: bool = False) -> str:
    """What a run prints that profiles three of its steps."""
    with redirect_stdout(io.StringIO()) as printed:
        assert train(recipe, resume=resume, profile=3) == 0
    return printed.getvalue()


@pytest.mark.slow
def test_a_run_tells_where_its_steps_go(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    # All evaluation and most saving lies between the steps, and in none of them.
    config = replace(recipe.training, evaluate_every=3, save_every=3, log_every=5)
    recipe = replace(recipe, training=config)
    text, _ = ranks2.run(profiled, recipe, timeout=120)
    whole = float(re.search(r"a step takes ([\d.,]+) ms", text)[1].replace(",", ""))  # type: ignore[index]
    rows = {
        name: float(ms.replace(",", "")) for name, ms in re.findall(r"  (\D+?) +([\d.,]+) ms", text)
    }
    names = [SPANS[name] for name in SPANS if name in ("data", "forward", "backward", "optimizer")]
    assert rows.keys() >= {*names, "all else"}
    between = [name for name in rows if name.startswith("between ranks")]
    assert sum(ms for name, ms in rows.items() if name not in between) == pytest.approx(
        whole, abs=1
    )
    assert min(rows[name] for name in names) > 0
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text("utf-8"))
    spans = [event["name"] for event in trace["traceEvents"] if "vlds: " in event.get("name", "")]
    assert spans.count("vlds: backward") == 3 * 2  # micro-batches
    assert re.search(r"\n    .*data wait \d+%", text)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    shares = [line["data_wait"] for line in lines if "loss" in line]
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)


def profile_of_one_step(folder: Path, num_operations: int = 1) -> list[str]:
    profile = StepProfile(1, folder, None)
    assert profile.after_step() == profile.after_step() == []
    with span("backward"):
        for _ in range(num_operations):
            torch.ones(3)
    return profile.after_step()


def file_in_the_way(folder: Path) -> None:
    folder.write_text("")


def folder_in_the_way(folder: Path) -> None:
    (folder / "trace.json" / "kept").mkdir(parents=True)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is almost full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_operations", [1, 200])
def test_a_disk_without_room_for_the_trace(num_operations: int, tmp_path: Path) -> None:
    """torch only logs that and leaves a file with another name, or does not notice if it is the
    last bytes that have no room."""
    (tmp_path / "trace.json").write_text("an earlier trace")
    with files_of_at_most(500):
        last = profile_of_one_step(tmp_path, num_operations)[-1]
    assert last == f"no trace is written to {tmp_path}: File too large; the run goes on"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier trace"]


def test_a_new_run_is_too_short(tmp_path: Path) -> None:
    check_profile(0, tmp_path, 1)
    check_profile(3, tmp_path, 5)
    check_profile(3, tmp_path, None)
    with pytest.raises(ValueError, match="takes 5 steps, but the run has 4; give at most 2, or"):
        check_profile(3, tmp_path, 4)
    with pytest.raises(ValueError, match="but the run has 1; leave --profile out, or raise"):
        check_profile(3, tmp_path, 1)


def test_what_is_in_the_way_of_a_trace_is_found_before_the_run(tmp_path: Path) -> None:
    cure = "leave --profile out$"
    folder_in_the_way(tmp_path / "one" / "profile")
    with pytest.raises(ValueError, match=f"^--profile: .*/one/profile/trace.json is .*{cure}"):
        check_profile(3, tmp_path / "one", 10)
    file_in_the_way(tmp_path / "profile")
    with pytest.raises(ValueError, match=f"^--profile: .*/profile: File exists; .*{cure}"):
        check_profile(3, tmp_path, 10)


def test_an_error_ends_what_is_profiled(tmp_path: Path) -> None:
    vision = nn.Linear(2, 2)
    with closing(StepProfile(5, tmp_path, vision)) as profile:
        profile.after_step()
        profile.after_step()
        for part in (span("forward"), between_steps()):
            with pytest.raises(RuntimeError), part:
                raise RuntimeError
            assert profile_module._active is profile
        assert vision._forward_hooks
    assert profile_module._active is None
    assert not vision._forward_hooks
    assert not vision._forward_pre_hooks
    assert len(profile_of_one_step(tmp_path)) > 1


def test_the_number_of_steps() -> None:
    words = split_words(["train", "r.yaml", "--profile", "5"])
    assert words.profile == 5
    assert words.for_ranks == ["train", "r.yaml", "--profile", "5"]
    with pytest.raises(ValueError, match=r"^--profile is 'x'; give a number of steps, 1 or more$"):
        split_words(["train", "r.yaml", "--profile", "x"])
    assert split_words(["train", "r.yaml", "--profile=50"]).profile == 50
    with pytest.raises(ValueError, match=r"^--profile is 51, but each .*; give at most 50$"):
        split_words(["train", "r.yaml", "--profile", "51"])
