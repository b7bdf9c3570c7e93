"""Data with groups: shards and predictions keep them, and reports draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.toys.files import read_lines, write, write_lines
from tests.toys.own_rows import pack_rows
from tests.toys.rank_pool import RankPool
from tests.toys.trained_runs import talkative_run
from tests.toys.world import COLOURS, world_recipe
from vlds.cli.main import run_command
from vlds.data.shards.sample import groups_of, joined
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source, survey
from vlds.recipe.config import Recipe, save_recipe
from vlds.report.collect import collect
from vlds.report.examples import asked_of
from vlds.report.lead import ENOUGH, Weakest, run_leads, weakest_group
from vlds.report.numbers import Interval
from vlds.report.predictions import Predictions
from vlds.report.scores import (
    Difference,
    TaskResult,
    difference,
    flip_test,
    interval_of_mean,
    numbered,
    units_of,
)
from vlds.schema import Group, Sample, SkipSample
from vlds.tasks import VQA, ImageClass

PATIENTS, EACH = 12, 4
GROUPS = f"{PATIENTS} groups (patient)"


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


def pack(folder: Path, answer: str, *more: str) -> Path:
    """Shards of four pictures of each patient: those of each second patient show red."""
    (folder / "photos").mkdir(parents=True)
    lines = ["image,question,answer,patient"]
    for number in range(PATIENTS * EACH):
        patient, name = number // EACH, f"{number:02}.png"
        colour = COLOURS["red" if patient % 2 == 0 else "blue"]
        Image.new("RGB", (16 + number, 16), colour).save(folder / "photos" / name)
        lines.append(f"{name},what colour is it,{answer},p{patient}")
    rows = write(folder / "rows.csv", "\n".join(lines) + "\n")
    assert pack_rows(rows, folder / "photos", folder / "out", *more) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def recipe(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of an untrained run whose answers differ with the colour."""
    recipe = world_recipe(world, tmp_path_factory.mktemp("run"))
    recipe = replace(recipe, tasks={"vqa": replace(recipe.tasks["vqa"], headline="exact_match")})
    save_recipe(recipe, talkative_run(recipe) / "recipe.yaml")
    return recipe


def answered(ranks: RankPool, recipe: Recipe, shards: Path) -> list[dict[str, Any]]:
    """The lines that `vlds evaluate` writes about these shards."""
    place = Path(recipe.output, "predictions")
    words = ["evaluate", recipe.output, "--data", f"vqa={shards}", "--out", str(place)]
    assert set(ranks.run(run_command, words, timeout=120)) == {0}
    return read_lines(place / "vqa.jsonl")


def without_groups(run: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write the predictions as an earlier version has left them."""
    bare = [{k: v for k, v in line.items() if k != "groups"} for line in lines]
    write_lines(run / "predictions" / "vqa.jsonl", bare)


def test_pictures_of_a_patient_are_drawn_together(
    recipe: Recipe, ranks2: RankPool, tmp_path: Path
) -> None:
    """From rows with a patient through shards and ranks to the interval and the paired test."""
    run = Path(recipe.output)
    plain = pack(tmp_path / "plain", "x")
    first = answered(ranks2, recipe, plain)
    assert not any("groups" in line for line in first)
    assert "groups" not in open_dataset(plain).read(0).extra
    # What the model says of red is right, so that each patient is all right or all wrong.
    answer = first[0]["prediction"]
    shards = pack(tmp_path / "grouped", answer, "--group-field", "patient")
    lines = answered(ranks2, recipe, shards)
    assert [line["prediction"] for line in lines] == [line["prediction"] for line in first]
    assert {(line["sample"], *line["groups"][0]) for line in lines} == {
        (f"{number:02}.png", "patient", f"p{number // EACH}") for number in range(PATIENTS * EACH)
    }
    report = collect([run])
    result = report.only.results["vqa"]
    assert (result.value, result.drawn) == (0.5, GROUPS)
    assert result.values is not None
    samples = numbered(result.predictions.samples[key] for key in result.predictions.references)
    by_picture = interval_of_mean(result.values, samples)
    # Four pictures say as much as one: so the interval is twice as wide.
    assert width(result.interval) == pytest.approx(2 * width(by_picture), rel=0.15)
    (lead,) = run_leads(report.only, report.resamples)
    assert f"exact_match on 48 examples in {GROUPS} of rows-train" in lead.text
    assert report.interval_notes[1:] == [
        f"For vqa {GROUPS} were drawn instead of single samples, each with all of its samples; "
        "groups that share a sample count as one.",
        "Of fewer than 20 groups, brackets are still too narrow.",
    ]
    # A run without groups has the interval of pictures; compared with one that knows them, they
    # are drawn all the same.
    wrong = replace(result, values=np.zeros(len(result.values)))
    without_groups(run, lines)
    bare = collect([run]).only.results["vqa"]
    assert (bare.interval, bare.drawn) == (by_picture, "")
    paired = difference(bare, wrong, 1000)
    by_pictures = difference(bare, replace(bare, values=wrong.values), 1000)
    assert isinstance(paired, Difference)
    assert isinstance(by_pictures, Difference)
    assert paired.p == 2 / 2 ** (PATIENTS // 2)
    assert by_pictures.p < 0.001
    assert width(paired.interval) == width(result.interval)


def predicted(samples: Sequence[str], groups: Sequence[Sequence[str]]) -> Predictions:
    """Predictions whose examples are of these samples, which have these patients."""
    ids = [str(number) for number in range(len(samples))]
    pairs = zip(ids, groups, strict=True)
    return Predictions(
        Path("vqa.jsonl"), None, dict.fromkeys(ids, ""), dict.fromkeys(ids), {},
        dict(zip(ids, samples, strict=True)), {},
        groups={key: [Group("patient", name) for name in names] for key, names in pairs if names},
    )  # fmt: skip


def test_what_samples_have_in_common_joins_them() -> None:
    """b shows two patients, so that a, b and c are one unit; d has none."""
    made = predicted("abbcda", [["p1"], ["p1", "p2"], ["p1", "p2"], ["p2"], [], ["p1"]])
    units = units_of(VQA(), made)
    assert units is not None
    assert units.tolist() == [0, 0, 0, 0, 1, 0]
    # A patient may be called as a sample is.
    units = units_of(VQA(), predicted("ab", [["b"], []]))
    assert units is not None
    assert units.tolist() == [0, 1]
    assert joined([[1], [2], [3], [2, 1], []]) == [0, 0, 2, 0, 4]


def test_several_data_sets_tell_their_samples_and_groups_apart(world: Path, tmp_path: Path) -> None:
    """A patient of two splits of one data set is one, of two data sets two; and a reader of the
    predictions finds each one's question."""
    group = ("--group-field", "patient")
    shards = [
        pack(tmp_path / "one", "red", *group),
        pack(tmp_path / "two", "red", *group, "--split", "val"),
        pack(tmp_path / "other", "red", *group, "--name", "other"),
    ]
    task = VQA(evaluate=list(map(str, shards)))
    asked = survey(Source("vqa", task, [open_dataset(path) for path in shards]), range(144))
    names = {found.name for groups in asked.groups.values() for found in groups}
    assert names == {f"{name}/p{n}" for name in ("rows", "other") for n in range(PATIENTS)}
    assert len(asked.groups) == 3 * PATIENTS * EACH
    recipe = replace(world_recipe(world, tmp_path / "run"), tasks={"vqa": task})
    found = list(asked_of(recipe, {"vqa": asked.ids}))
    assert sorted(entry.id for entry in found) == sorted(asked.ids)
    assert asked.ids[0].startswith("rows-train/")


@pytest.mark.parametrize("wrong", ["p1", [["patient"]], [["patient", 1]], {"patient": "p"}, 3])
def test_groups_of_another_form_are_refused(wrong: object) -> None:
    sample = Sample("7", "mine", "a", "vqa", (), (), (), {"groups": wrong})
    with pytest.raises(SkipSample, match=r'sample 7: groups is .* such as .."patient", "p1"..$'):
        groups_of(sample)
    assert groups_of(replace(sample, extra={"groups": [["patient", "p1"]]})) == (
        Group("patient", "p1"),
    )


# The sentences on top of a page: which group is weak, and whether two runs are told apart.


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p-value."""
    count = better + worse
    tail = sum(comb(count, number) for number in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**count)


@pytest.mark.parametrize(("better", "worse"), [(4, 0), (6, 0), (9, 2), (25, 9), (30, 30)])
def test_with_one_question_a_picture_it_is_mcnemars_exact_test(better: int, worse: int) -> None:
    differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * 20)
    p = flip_test(differences, np.arange(len(differences)))
    # Up to 13 pictures with a difference are counted, of more 10,000 patterns are drawn.
    assert p == pytest.approx(mcnemar(better, worse), abs=1e-12 if better + worse <= 13 else 0.01)


def test_questions_about_one_picture_count_once() -> None:
    differences = np.repeat([1.0, 1.0, 1.0, -1.0], 10)
    assert flip_test(differences, np.arange(40)) < 0.01
    assert flip_test(differences, np.repeat(np.arange(4), 10)) == mcnemar(3, 1)


def test_equal_runs_and_unlabelled_examples() -> None:
    assert flip_test(np.array([0.0, np.nan]), np.arange(2)) == 1.0


def result(groups: dict[str, tuple[int, int]], per_picture: int = 1) -> TaskResult:
    """Class -> (right, all); several examples in a row are of one picture."""
    references, values = {}, []
    for name, (right, count) in groups.items():
        for number in range(count):
            references[f"{name} {number}"] = name
            values.append(float(number < right))
    made = Predictions(Path("c.jsonl"), None, dict.fromkeys(references, ""), references, {}, {}, {})
    samples = np.arange(len(values)) // per_picture
    scores = {"accuracy": 0.5, **{f"accuracy/class/{name}": 0.5 for name in groups}}
    return TaskResult(ImageClass(), made, "accuracy", scores, None, "", np.array(values), samples)


def test_the_weakest_group_is_one_that_can_be_told_apart() -> None:
    clear = result({"cat": (30, 100), "dog": (80, 100), "owl": (60, 100), "elk": (0, ENOUGH - 1)})
    assert weakest_group(clear) == Weakest("class cat", 0.3, 100, 140 / 219)
    alike = result({"cat": (48, 100), "dog": (52, 100)})
    assert weakest_group(alike) == "None of 2 groups (class) can be told apart from the rest."
    assert weakest_group(result({"cat": (1, 5), "dog": (50, 100)})) is None
    # All wrong, but twenty of one in ten: chance gives that one time in eight.
    rare = result({"cat": (0, 20), "dog": (100, 900)})
    assert weakest_group(rare) == "None of 2 groups (class) can be told apart from the rest."
    # A hundred examples of five pictures are five.
    pictures = result({"cat": (40, 100), "dog": (60, 100)}, per_picture=20)
    assert isinstance(weakest_group(pictures), str)
    assert isinstance(weakest_group(result({"cat": (40, 100), "dog": (60, 100)})), Weakest)


@pytest.mark.parametrize("sizes", [[60] * 5, [120, *[12] * 10]], ids=["few", "one of many"])
def test_equally_good_groups_of_patients_are_seldom_named(sizes: list[int]) -> None:
    """Patients differ in how hard each kind of their pictures is; no kind is harder than another. A
    test that trusts few patients names one in every tenth to fifth run."""
    rng, classes, named = np.random.default_rng(0), ("cat", "dog", "owl"), 0
    units = np.repeat(np.arange(len(sizes)), sizes)
    kinds = np.concatenate([np.arange(size) % 3 for size in sizes])
    references = {str(i): classes[kind] for i, kind in enumerate(kinds)}
    made = Predictions(Path("c.jsonl"), None, dict.fromkeys(references, ""), references, {}, {}, {})
    scores = {"accuracy": 0.7, **{f"accuracy/class/{name}": 0.7 for name in classes}}
    for _ in range(200):
        ease = rng.beta(1.4, 0.6, (len(sizes), 3))
        values = (rng.random(len(units)) < ease[units, kinds]).astype(float)
        drawn = TaskResult(ImageClass(), made, "accuracy", scores, None, "", values, units)
        named += isinstance(weakest_group(drawn), Weakest)
    assert named <= 6


def test_a_group_of_one_patient_is_not_told_from_him() -> None:
    one = result({"cat": (0, 40), "dog": (60, 80)}, per_picture=40)
    assert weakest_group(one) is None
