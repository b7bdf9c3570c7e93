"""Predictions of which anything may be damaged: a note that names file and line, and a report."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toys.files import read_lines, write_lines
from tests.toys.scored_runs import (
    Runs,
    lines_of,
    scored_recipe,
    write_predictions,
    write_scored_run,
)
from vlds.recipe.config import load_recipe
from vlds.report.collect import collect, report_on
from vlds.report.page import build_page, markdown
from vlds.report.read import read_run
from vlds.tasks import GQA

VALUES: list[Any] = [
    None, True, -1, 3, 0.5, 1e400, 10**400, "", "x", [], ["x"], [1], [[]], {}, {"a": 1}, {"a": "x"},
    {"answer": []},
]  # fmt: skip
ABSENT = object()


def gqa_lines(number: int) -> list[dict[str, Any]]:
    """Predictions of GQA's questions, each of which entails the one before."""
    reference = {
        "answer": "red", "balanced": True, "structural": "query", "semantic": "attr",
        "detailed": "color", "group": "color of a car", "words": 4, "steps": 2,
    }  # fmt: skip
    return [
        {"id": f"q{n:02}", "sample": f"s{n // 2}", "prediction": "red" if n % 3 else "blue"}
        | {"reference": reference | {"entailed": [f"q{n - 1:02}"] if n else []}}
        for n in range(number)
    ]


def make_run(runs: Runs, folder: Path) -> Path:
    """A small run of VQA, captions and GQA, scored after its training and without pictures."""
    recipe = scored_recipe(runs.world, folder)
    gqa = GQA(train=["x"])
    caption = replace(recipe.tasks["caption"], scores=["word_f1"])  # needs no Java
    recipe = replace(recipe, tasks={**recipe.tasks, "caption": caption, "gqa": gqa})
    lines = {name: lines_of(recipe.tasks[name], 3)[:20] for name in ("vqa", "caption")}
    lines["gqa"] = gqa_lines(20)
    for entries in lines.values():
        entries[:] = [line | {"data": "a@1", "confidence": 0.5} for line in entries]
    run = write_scored_run(folder, recipe, lines)
    (run / "predictions" / "blank").mkdir()
    for name, entries in lines.items():
        write_predictions(run / "predictions" / "blank" / f"{name}.jsonl", entries)
    return run


def spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a tree of JSON: container and key."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from spots(tree[key])


def test_a_line_that_is_not_utf_8_is_damage(runs: Runs, tmp_path: Path) -> None:
    """Its answer would be another one without that byte."""
    run = make_run(runs, tmp_path / "run")
    file = run / "predictions" / "step-00000010" / "vqa.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[6] = lines[6].replace(b'"prediction": "', b'"prediction": "\xe9')
    file.write_bytes(b"\n".join(lines))
    report = collect([run]).only
    assert "vqa" not in report.results
    assert any(f"{file}, line 7 is not UTF-8" in note for note in report.notes)


@pytest.mark.slow
def test_one_changed_field_never_ends_a_report(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred times one field, at any depth."""
    run = make_run(runs, tmp_path / "run")
    inputs, recipe = read_run(run), load_recipe(run / "recipe.yaml")
    monkeypatch.setattr("vlds.report.collect.load_recipe", lambda file: recipe)
    rng = random.Random(0)
    files = sorted((run / "predictions").glob("*/*.jsonl"))
    for _ in range(200):
        file = rng.choice(files)
        lines = read_lines(file)
        number = rng.randrange(len(lines))
        changed = copy.deepcopy(lines)
        tree, key = rng.choice(list(spots(changed[number])))
        value = rng.choice([*VALUES, ABSENT])
        if value is ABSENT:
            del tree[key]
        else:
            tree[key] = value
        what = f"{file.parent.name}/{file.name}, line {number + 1}: {key} is {value!r:.40}"
        write_lines(file, changed)
        try:
            report = report_on([inputs], resamples=5, pictures=False)
            assert markdown(report), what
            assert build_page(report), what
        except Exception as error:
            raise AssertionError(what) from error
        damaged = [note for note in report.only.notes if "not one of" in note]
        assert all(str(file) in note for note in damaged), what
        write_lines(file, lines)
