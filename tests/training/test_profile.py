"""Where a step goes: a table of its parts, and a trace."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import read_lines
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.config import Recipe
from vlds.launch.words import split_words
from vlds.training import profile as profile_module
from vlds.training.loop import train
from vlds.training.profile import SPANS, StepProfile, between_steps, check_profile, span


def profiled(recipe: Recipe) -> str:
    """What a run prints that profiles three of its steps."""
    with redirect_stdout(io.StringIO()) as printed:
        assert train(recipe, profile=3) == 0
    return printed.getvalue()


def test_a_run_tells_where_its_steps_go(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    # All evaluation and most saving lies between the steps, and in none of them.
    config = replace(recipe.training, evaluate_every=3, save_every=3)
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


def test_saving_and_evaluation_are_no_part_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(profile_module, "now", lambda: next(seconds))
    profile = StepProfile(1, tmp_path, None)
    assert profile.after_step() == profile.after_step() == []  # begins at 0
    with span("backward"):  # 1 to 2
        pass
    with between_steps(), span("forward"):  # 3 to 4
        pass
    lines = profile.after_step()  # ends at 5
    assert lines[0].startswith("a step takes 4,000.0 ms")
    (row,) = [line for line in lines if "backward pass" in line]
    assert row.endswith("25.0%")


@pytest.mark.parametrize(("left", "most"), [(4, "2"), (1, "0")])
def test_too_few_steps_to_profile(left: int, most: str) -> None:
    check_profile(0, left)
    check_profile(3, 5)
    with pytest.raises(ValueError, match=f"the run has {left} steps left: .* give at most {most},"):
        check_profile(3, left)


def refusal(recipe: Recipe) -> str:
    with pytest.raises(ValueError, match="--profile is 3") as refused:
        train(recipe, profile=3)
    return str(refused.value)


def test_a_refused_profile_leaves_no_run(world: Path, ranks1: RankPool, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    recipe = replace(recipe, training=replace(recipe.training, steps=4))
    assert "give at most 2," in ranks1.run(refusal, recipe, timeout=120)[0]
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
def test_the_wait_for_data_is_told(world: Path, ranks1: RankPool, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    recipe = replace(recipe, training=replace(recipe.training, log_every=5))
    text = ranks1.run(profiled, recipe, timeout=120)[0]
    assert re.search(r"examples/s  data wait \d+%", text)
    shares = [
        line["data_wait"]
        for line in read_lines(tmp_path / "run" / "metrics.jsonl")
        if "loss" in line
    ]
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)


def test_the_number_of_steps() -> None:
    words = split_words(["train", "r.yaml", "--profile", "5"])
    assert words.profile == 5
    assert words.for_ranks == ["train", "r.yaml", "--profile", "5"]
    with pytest.raises(ValueError, match=r"^--profile is 'x'; give a number of steps, 1 or more$"):
        split_words(["train", "r.yaml", "--profile", "x"])
