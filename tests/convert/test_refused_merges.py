"""Runs that cannot be merged: each is named with its cure, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.recipes import with_model
from tests.toys.trained_runs import (
    convert_code,
    recipe_with,
    save_run,
    trained_run,
    write_run,
)
from vlds.artifact import LoadedRun
from vlds.convert.transport import modules_of
from vlds.models.methods import Adapter, Full, LoRA, Method, Shrinking
from vlds.models.methods.shrinking import replace_leaf
from vlds.recipe.config import Recipe

CASES = [
    ("transport", "one", "--run: transport takes 2 or more, got 1"),
    ("transport", "one two --entropic 0", "--entropic: got 0.0; give a number above 0"),
    ("transport", "one two --samples recipe.txt", "--samples: goes with --cost activations"),
    (
        "transport",
        "one two --cost activations --samples recipe.txt",
        "--samples: .*recipe.txt: .*; name pictures that can be read",
    ),
    ("average", "one nowhere", "--run: no such folder: nowhere"),
    ("arithmetic", "one --base nowhere", "--base: no such folder: nowhere; name one"),
    ("ties", "one two --weights 1", "--weights: 1 for 2 runs; give each run one"),
    ("ties", "one two --weights nan 1", "--weights: .nan, 1.0. are not finite"),
    ("average", "one two --weights 1e308 1e308", "nor is their sum"),
    ("average", "one two --weights 1 -1", "--weights: .1.0, -1.0. sum to 0"),
    ("arithmetic", "one --base two --weights 1e40", "beyond float32 in the sum .*; give smaller"),
    ("dare_ties", "one two --density 1e-9", "--density: got 1e-09, which leaves no weight"),
    ("take", "one --task nlvr", "--task: one has no task nlvr; its tasks: vqa, caption"),
    ("put", "one two --task vqa", "share all weights"),
    ("put", "stack0 stack1 --task vqa", "shared by the tasks, but not the same in all runs"),
    ("average", "one bart", "model.backbone: T5 in one, Bart in bart; only runs of one model"),
    ("transport", "one far", "backbone.relative_attention_max_distance: 128 in one, 99 in far"),
    ("average", "one mean", "model.vision.add_mean: False in one, True in mean; only runs of one"),
    ("ties", "one wider", "methods.method.reduction: 4 in one, 8 in wider; only runs of one"),
    ("average", "lora two", "methods.method: LoRA in lora, Adapter in two; only runs of one"),
    ("ties", "one other_name", "methods.method: Adapter in one, None in other_name; only runs"),
    ("average", "shrunk shrunk_more", r"down_bias: \(1, 2\) in shrunk, \(1, 0\) in shrunk_more"),
    ("average", "one own", "'caption'., own has .'vqa'., and tasks have weights of their own"),
    ("transport", "one rows", "shared.weight: frozen, but not the same in all runs; combine runs"),
    ("arithmetic", "one --base full", "--base: full has no backbone.*extensions"),
    ("arithmetic", "one --base wider", "--base: wider has no .*down_weight"),
    ("arithmetic", "stack0 --base turned", "--base: the tasks of turned are .*'caption', 'vqa'"),
    ("transport", "bare bare", "--how transport: bare: no methods, so there are no neurons"),
    ("transport", "half half", "tasks share one half of their adapters"),
    ("ties", "bare bare", "--how ties: bare: its methods .none. add no weights to the model"),
]
"""Ways of merging, words of the command line, pattern of the message."""


@pytest.fixture(scope="module")
def desk(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which only `one` and `two` go together; others differ from them in one thing."""
    folder = tmp_path_factory.mktemp("desk")
    recipe = recipe_with("T5", "Adapter", world, folder)
    kind = recipe.model
    (folder / "recipe.txt").write_text("no picture")

    def write(name: str, source: Recipe, seed: int = 1) -> None:
        write_run(replace(source, output=str(folder / name)), seed)

    def of_case(name: str, family: str, case: str, seed: int = 1) -> Recipe:
        (folder / f"{name}-source").mkdir()
        made = recipe_with(family, case, world, folder / f"{name}-source")
        write(name, made, seed)
        return made

    write("one", recipe)
    write("two", recipe, seed=2)
    methods: dict[str, dict[str, Method]] = {
        "wider": {"method": Adapter(reduction=8)},
        "lora": {"method": LoRA(rank=4, train_biases=False)},
        "other_name": {"adapter": Adapter(reduction=4)},
        "full": {"method": Full()},
        "bare": {},
    }
    for name, each in methods.items():
        write(name, replace(recipe, methods=each))
    own = {"method": Adapter(sharing="multiple")}
    write("own", replace(recipe, tasks={"vqa": recipe.tasks["vqa"]}, methods=own))
    of_case("bart", "Bart", "Adapter")
    of_case("half", "T5", "Adapter shared up")
    stack = of_case("stack0", "T5", "Compacter per task")
    write("stack1", stack, seed=2)
    write("turned", replace(stack, tasks=dict(reversed(stack.tasks.items()))))
    write("mean", with_model(recipe, vision=replace(kind.vision, add_mean=True)))
    shutil.copytree(folder / "source", folder / "far-source")
    config = json.loads((folder / "source" / "config.json").read_text())
    (folder / "far-source" / "config.json").write_text(
        json.dumps(config | {"relative_attention_max_distance": 99})
    )
    far = replace(kind.backbone, path=str(folder / "far-source"))
    write("far", with_model(recipe, backbone=far))
    rows = trained_run(replace(recipe, output=str(folder / "rows")))
    with torch.no_grad():
        # As a run with another seed has it.
        rows.model.backbone.get_input_embeddings().weight[-1] += 1
    save_run(rows)
    for name, neurons in (("shrunk", 2), ("shrunk_more", 0)):
        shrunk = replace(recipe, methods={"method": Shrinking()}, output=str(folder / name))
        save_shrunk(trained_run(shrunk), neurons)
    return folder


def save_shrunk(run: LoadedRun, neurons: int) -> None:
    """Save a run with so many neurons in the first of its adapters."""
    module: Any = next(module for _, module in modules_of(run, "method"))
    for leaf, dim in module.neurons.items():
        replace_leaf(module, leaf, getattr(module, leaf).data.narrow(dim, 0, neurons))
    save_run(run)


def files_of(folder: Path) -> dict[str, int]:
    """File -> when it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("how", "words", "message"), CASES)
def test_what_is_refused(
    how: str, words: str, message: str, desk: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if how == "transport":
        pytest.importorskip("ot", reason="needs the extra `transport`")
    monkeypatch.chdir(desk)
    before = files_of(desk)
    assert convert_code("merge", "--how", how, "--run", *words.split(), "--out", "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert "Warning" not in said
    assert files_of(desk) == before


@pytest.mark.parametrize(
    ("how", "package", "extra"), [("transport", "ot", "transport"), ("ties", "peft.utils", "peft")]
)
def test_a_missing_package_is_named_first(
    how: str, package: str, extra: str, desk: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Before runs are opened, however many do not go together."""
    monkeypatch.chdir(desk)
    monkeypatch.setitem(sys.modules, package, None)
    assert convert_code("merge", "--how", how, "--run", "one", "bart", "--out", "out") == 2
    assert f"pip install 'vlds[{extra}]'" in capsys.readouterr().err
    assert not (desk / "out").exists()
