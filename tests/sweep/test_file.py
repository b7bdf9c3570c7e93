"""The file of a sweep: what it means, and what it says about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vlds.cli.sweep_work import RunPart, SweepWork, preparation_parts
from vlds.models.methods.adapter import Adapter
from vlds.recipe.config import save_recipe
from vlds.report.sweep import (
    folder_name,
    read_sweep,
    runs_of,
    spec_of_sweep,
)

FILE = {
    "output": "runs/table",
    "recipes": {
        "single adapter": "recipes/demo.yaml",
        "norms alone": {"base": "recipes/demo.yaml", "methods": {}},
    },
    "seeds": [3, 5],
    "overrides": {"training": {"steps": 7}},
    "paths": {"runs/demo": "{output}/seed-{seed}"},
    "published": {"single adapter": {"vqa": 65.9, "average": 77.4, "trains": 4.18}},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("table.yaml").write_text(yaml.safe_dump(FILE, sort_keys=False))
    return "table.yaml"


def test_every_recipe_gets_every_seed(file: str) -> None:
    runs = runs_of(read_sweep([file]))
    assert [run.name for run in runs] == [
        f"{row}, seed {seed}" for seed in (3, 5) for row in ("single adapter", "norms alone")
    ]
    last = runs[-1].recipe
    assert last.output == "runs/table/norms_alone/seed-5"
    assert (last.seed, last.training.steps, last.methods) == (5, 7, {})
    assert last.tasks["vqa"].train == ["runs/table/seed-5/data/shards/shifted/vqav2-train"]
    first = runs[0].recipe
    assert list(first.methods) == ["adapter"]
    assert first.optimizer.learning_rate == 0.004  # the recipe's own


def test_a_row_has_the_values_that_it_names(file: str) -> None:
    """They win over `overrides`; keys are those of the command line."""
    grid = (
        "{training.steps: [5, 9], methods.adapter.reduction: [2], "
        "methods.adapter.learning_rate: [0.5], optimizer.learning_rate: [0.1]}"
    )
    row = "a, steps 9, reduction 2, adapter.learning_rate 0.5, optimizer.learning_rate 0.1"
    words = ["--recipes", "{a: recipes/demo.yaml}", "--seeds", "[3]", "--grid", grid]
    published = ["--published", f"{{a: {{vqa: 60}}, '{row}': {{vqa: 70}}}}"]
    sweep = read_sweep([file, *words, *published])
    first, second = runs_of(sweep)
    assert (first.recipe.training.steps, second.recipe.training.steps) == (5, 9)
    assert second.row == row
    (method,) = second.recipe.methods.values()
    assert isinstance(method, Adapter)
    assert (method.reduction, method.learning_rate) == (2, 0.5)
    assert second.recipe.optimizer.learning_rate == 0.1
    spec, _ = spec_of_sweep([file, *words, *published], None)
    assert [entry.published for entry in spec.rows] == [{"vqa": 60}, {"vqa": 70}]


def test_a_prepared_recipe_has_seed_and_paths_but_no_overrides(file: str) -> None:
    makers = {
        "runs/{seed}/data": "make {seed}",
        "runs/{seed}/first": {"base": "recipes/demo_pretrain.yaml", "training": {"steps": 8}},
        "runs/{seed}/last": "touch runs/{seed}/last",
        "runs/{seed}/other": {"base": "recipes/demo_pretrain.yaml", "seed": "1{seed}"},
    }
    sweep = read_sweep([file, "--prepare", str(makers)])
    parts = preparation_parts(sweep)
    first, other = parts[2], parts[-1]
    assert isinstance(other, RunPart)
    assert (other.name, other.run.recipe.seed) == ("prepare runs/5/other", 15)
    assert isinstance(first, RunPart)
    assert first.name == "prepare runs/3/first"
    assert first.needs == [Path("runs/3/data")]
    recipe = first.run.recipe
    assert (recipe.output, recipe.seed, recipe.training.steps) == ("runs/3/first", 3, 8)
    assert recipe.tasks["vqa"].train == ["runs/table/seed-3/data/shards/home/vqav2-train"]
    artifact = Path("runs/3/first/artifact/recipe.yaml")
    assert parts[4].needs == [Path("runs/3/data"), artifact]
    assert artifact in runs_of(sweep)[0].needs


def test_a_row_names_its_folder() -> None:
    assert folder_name("Single LoRA (r = 8)") == "single_lora_r_8"
    assert folder_name("../..") == ""
    long, longer = (folder_name("x" * count) for count in (400, 401))
    assert len(long) < 200
    assert long != longer


def test_a_task_has_no_name_of_another_column(file: str) -> None:
    tasks = {"memory": {"class_path": "VQA", "init_args": {"train": ["a"], "evaluate": ["b"]}}}
    with pytest.raises(ValueError, match="the task 'memory' is called like another column; rename"):
        runs_of(read_sweep([file, "--overrides", str({"tasks": tasks})]))


def work(words: list[str]) -> SweepWork:
    """What a sweep has to do."""
    sweep = read_sweep(words)
    return SweepWork(sweep, runs_of(sweep))


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--recipes {}", "recipes: the sweep has none; name at least one recipe"),
        ("--seeds []", "seeds: the sweep has none; give at least one"),
        ("--seeds [2,2]", "seeds: 2 is there twice; give each seed once"),
        ("--seeds [-1]", "recipes.single adapter: seed: got -1; give a number from 0"),
        ("--recipes.x recipes/dmo.yaml", "recipes.x: no such file: recipes/dmo.yaml; did you mean"),
        ("--recipes.x [1]", "recipes.x: got [1]; give a recipe's file, or keys with `base: FILE`"),
        ("--recipes.Norms_alone recipes/demo.yaml", "would both write norms_alone; rename one"),
        ("--recipes.!! recipes/demo.yaml", "'!!' gives no name for a folder"),
        ("--overrides.trainin.steps 3", "unknown key 'trainin'; did you mean 'training'?"),
        ("--overrides {tasks: {vq: null}}", "recipes.single adapter: tasks.vq: null leaves out a"),
        ("--overrides.training.steps 0", "recipes.single adapter: training.steps: got 0"),
        ("--paths.shards x", "paths: no recipe reads 'shards'"),
        ("--split test", "split: test, but tasks.vqa of recipes.single adapter names no data"),
        ("--scores.vqaa x", "scores: the table has no 'vqaa'; did you mean 'vqa'?"),
        ("--target.vqa norms", "target.vqa: no row is called 'norms'; did you mean 'norms alone'?"),
        ("--target {vqa: 1, gqa: 2}", "target: names vqa, gqa; give one score to reach"),
        ("--published {Single_adapter: {vqa: 1}}", "no row is called 'Single_adapter';"),
        (
            "--published {norms alone: {vqa: .inf}}",
            "published.norms alone.vqa: got inf; give a finite",
        ),
        ("--prepare {a: ''}", "prepare.a: names no command; say what makes it"),
        (
            "--prepare {a: {base: recipes/demo_pretrain.yaml, output: b}}",
            "prepare.a.output: the sweep sets it for each run; remove the key",
        ),
        ("--prepare {a: {base: recipes/demo_pretrain.yaml}}", "prepare.a: reads files of a seed;"),
        (
            "--recipes {8: recipes/demo.yaml}",
            "recipes: got the name 8; give text: write it",
        ),
        ("--prepare {'': make}", "prepare: got ''; name a folder or file"),
        ("--output runs/{seed}", "output: got runs/{seed}; all seeds share it"),
        (
            "--prepare {a: 'make {seed}'}",
            "prepare.a: is made once for each seed, in one place; put",
        ),
        ("--prepare {a: 'make \"b'}", 'prepare.a: No closing quotation in `make "b`; close it'),
        (
            "--prepare {a/b: make, a_b: make}",
            "prepare.a_b: is called too much like a/b; rename one",
        ),
        ("--prepare {a: mkae b}", "prepare.a: no program is called 'mkae' here; install it, or"),
        ("--grid {training.steps: []}", "grid.training.steps: has no values; give a list, like"),
        ("--grid {training.steps: [1, 2, 1]}", "grid.training.steps: 1 is there twice; give each"),
        ("--grid {seed: [1, 2]}", "grid.seed: the sweep sets it for each run, from `output` and"),
        ("--grid {training.steps: 3}", "grid.training.steps: got 3; give a list, like [a, b]"),
        ("--split dev", "split: got 'dev'; give one of evaluate, test"),
        ("--sedes [1]", "unknown key 'sedes'; did you mean 'seeds'?"),
    ],
)
def test_a_mistake_is_named_with_its_cure(file: str, words: str, told: str) -> None:
    option, _, value = words.partition(" ")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared)
        work([file, option, value])
    assert told in str(error.value)


@pytest.mark.slow
def test_a_run_of_another_recipe_is_refused(file: str) -> None:
    run = runs_of(read_sweep([file]))[0]
    (run.folder / "state/step-00000004").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a run that no sweep started; name another output"):
        runs_of(read_sweep([file]))
    save_recipe(run.recipe, run.file)
    runs_of(read_sweep([file]))
    with pytest.raises(ValueError, match=r"another recipe \(training.steps: 7 -> 8\); name"):
        runs_of(read_sweep([file, "--overrides.training.steps", "8"]))
