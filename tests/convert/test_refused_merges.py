"""Runs that cannot be merged by transport or by peft's prunings: each is named with its cure, and
nothing is written."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.few_examples import wide_recipe
from tests.toys.trained_runs import (
    assert_same,
    convert,
    convert_code,
    recipe_with,
    save_run,
    state_of,
    trained_run,
    write_run,
)
from vlds.artifact import LoadedRun
from vlds.convert.transport import modules_of
from vlds.models.backbones import T5
from vlds.models.methods import Adapter, Full, LoRA, Shrinking
from vlds.models.methods.shrinking import replace_leaf
from vlds.recipe.config import Recipe

PRUNINGS = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
ALL = ("transport", *PRUNINGS)
CASES: list[tuple[tuple[str, ...], str, str]] = [
    (ALL, "one", "--run: {how} takes 2 or more, got 1"),
    (ALL, "one nowhere", "--run: no such folder: nowhere"),
    (ALL, "one hollow", "hollow holds no artifact; name the folder that `vlds train` wrote"),
    (ALL, "one bart", "model.backbone: T5 in one, Bart in bart; only runs of one model"),
    (ALL, "wide one", "backbone.d_model: 48 in wide, 16 in one; only runs of one model"),
    (ALL, "one elsewhere", "frozen, but not the same in all runs; combine runs that started from"),
    (ALL, "one narrow", "methods.method.reduction: 4 in one, 8 in narrow; only runs of one model"),
    (ALL, "shrunk shrunk_more", r"down_bias: \(1, 2\) in shrunk, \(1, 0\) in shrunk_more; only"),
    (ALL, "lora two", "methods.method: LoRA in lora, Adapter in two; only runs of one model"),
    (ALL, "one other_name", "methods.method: Adapter in one, None in other_name; only runs of one"),
    (ALL, "one two cut", "cut/artifact: weights.safetensors is not what was written .*copy it"),
    (ALL, "one two changed", "changed/artifact: weights.safetensors is not what was written"),
    (ALL, "one nan", "nan/artifact: .*method.down_weight holds numbers that are NaN or infinite"),
    (ALL, "one two --out taken", "--out: taken exists; name a new folder"),
    (ALL, "one two --out one", "--out: one exists; name a new folder"),
    (ALL, "one two --out one/recipe.txt/x", "--out: .*recipe.txt is not a folder; name a new"),
    (ALL, "one two --base one", "--base goes with --how arithmetic, not with {how}"),
    (("transport",), "bare bare", "--how transport: bare: no methods, so there are no neurons"),
    (("transport",), "full full", "full: methods.method is Full, and only the halves of Adapter"),
    (("transport",), "one two --weights 1 1", "--weights goes with --how average and"),
    (("transport",), "one two --density 0.5", "--density goes with --how ties and"),
    (("transport",), "one two --entropic nan", "--entropic: got nan; give a number above 0"),
    (("transport",), "one two --cost norms", "'norms': no such --cost; choose from weights_in,"),
    (("transport",), "one two --samples one/recipe.txt", "--samples: goes with --cost activations"),
    (
        ("transport",),
        "one two --cost activations --samples one/recipe.txt",
        "--samples: .*recipe.txt: .*; name pictures that can be read",
    ),
    (PRUNINGS, "bare bare", "--how {how}: bare: its methods .none. add no weights to the model"),
    (PRUNINGS, "full full", "--how {how}: full: its methods .Full. add no weights to the model"),
    (PRUNINGS, "one two --density 0", "--density: got 0.0; give a share above 0, at most 1"),
    (PRUNINGS, "one two --density 1.01", "--density: got 1.01; give a share above 0, at most 1"),
    (PRUNINGS, "one two --density nan", "--density: got nan; give a share above 0, at most 1"),
    (PRUNINGS, "one two --density half", "--density: invalid float value: 'half'"),
    (PRUNINGS, "one two --density 1e-9", "--density: got 1e-09, which leaves no weight"),
    (PRUNINGS, "one two --weights 1", "--weights: 1 for 2 runs; give each run one"),
    (PRUNINGS, "one two --weights 1 1 1", "--weights: 3 for 2 runs; give each run one"),
    (PRUNINGS, "one two --weights nan 1", "--weights: .nan, 1.0. are not finite"),
    (PRUNINGS, "one two --weights 1 -1", "--weights: .1.0, -1.0. sum to 0"),
    (PRUNINGS, "one two --weights 1e39 1", "--weights: .* is beyond float32 in the sum"),
    (PRUNINGS, "one two --cost weights_in", "--cost goes with --how transport, not with {how}"),
]
"""Ways of merging, words of the command line, pattern of the message."""


@pytest.fixture(scope="module")
def desk(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which only `one` and `two` go together."""
    folder = tmp_path_factory.mktemp("desk")
    recipe = recipe_with("T5", "Adapter", world, folder)

    def write(name: str, source: Recipe, seed: int = 1) -> Path:
        return write_run(replace(source, output=str(folder / name)), seed)

    def with_methods(name: str, **methods: Adapter | LoRA | Full) -> None:
        write(name, replace(recipe, methods=dict(methods)))

    one, _ = write("one", recipe), write("two", recipe, seed=2)
    (one / "recipe.txt").write_text("not a folder, and no picture")
    with_methods("narrow", method=Adapter(reduction=8))
    with_methods("lora", method=LoRA(rank=4, train_biases=False))
    with_methods("other_name", adapter=Adapter(reduction=4))
    with_methods("full", method=Full())
    with_methods("bare")
    for name in ("hollow", "taken", "other", "bart_source", "wide_source"):
        (folder / name).mkdir()
    write("bart", recipe_with("Bart", "Adapter", world, folder / "bart_source"))
    wide = wide_recipe(world, folder / "wide_source", list(recipe.tasks))
    write("wide", replace(wide, methods=recipe.methods))
    elsewhere = recipe_with("T5", "Adapter", world, folder / "other")
    model = T5.model_class.from_pretrained(folder / "other" / "source")
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.q.weight.add_(0.1)
    model.save_pretrained(folder / "other" / "source")
    write("elsewhere", elsewhere)
    nan = trained_run(replace(recipe, output=str(folder / "nan")))
    with torch.no_grad():
        weights = dict(nan.model.unique_state())
        next(t for n, t in weights.items() if n.endswith("down_weight"))[0, 0, 0] = float("nan")
    save_run(nan)
    for name, neurons in (("shrunk", 2), ("shrunk_more", 0)):
        shrunk = replace(recipe, methods={"method": Shrinking()}, output=str(folder / name))
        save_shrunk(trained_run(shrunk), neurons)
    damage(folder, "cut", lambda data: data[:-1])
    damage(folder, "changed", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    return folder


def save_shrunk(run: LoadedRun, neurons: int) -> None:
    """Save a run with so many neurons in the first of its adapters."""
    module: Any = next(module for _, module in modules_of(run, "method"))
    for leaf, dim in module.neurons.items():
        replace_leaf(module, leaf, getattr(module, leaf).data.narrow(dim, 0, neurons))
    save_run(run)


def damage(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """A copy of a run whose file of weights a disk has changed."""
    shutil.copytree(folder / "two", folder / name)
    file = folder / name / "artifact" / "weights.safetensors"
    file.write_bytes(change(file.read_bytes()))


def files_of(folder: Path) -> dict[str, int]:
    """File -> when it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.sampled(63)
@pytest.mark.parametrize(
    ("how", "words", "message"),
    [(how, words, message) for ways, words, message in CASES for how in ways],
)
def test_what_is_refused(
    how: str, words: str, message: str, desk: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if how == "transport":
        pytest.importorskip("ot", reason="needs the extra `transport`")
    monkeypatch.chdir(desk)
    before = files_of(desk)
    out = [] if "--out" in words else ["--out", "out"]
    assert convert_code("merge", "--how", how, "--run", *words.split(), *out) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message.format(how=how), said), said
    assert "Traceback" not in said
    assert "Warning" not in said
    assert files_of(desk) == before


@pytest.mark.slow
def test_a_layer_without_neurons_merges_with_itself(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ot", reason="needs the extra `transport`")
    monkeypatch.chdir(desk)
    runs = ["--run", "shrunk_more", "shrunk_more", "--out", tmp_path / "out"]
    convert("merge", "--how", "transport", *runs)
    assert_same(state_of(tmp_path / "out"), state_of(desk / "shrunk_more"))


@pytest.mark.parametrize(
    ("how", "package", "extra"),
    [("transport", "ot", "transport"), *((how, "peft.utils", "peft") for how in PRUNINGS)],
)
def test_a_missing_package_is_named_first(
    how: str, package: str, extra: str, desk: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Before runs are opened, however many do not go together."""
    monkeypatch.chdir(desk)
    monkeypatch.setitem(sys.modules, package, None)
    assert convert_code("merge", "--how", how, "--run", "one", "cut", "bart", "--out", "out") == 2
    assert f"pip install 'vlds[{extra}]'" in capsys.readouterr().err
    assert not (desk / "out").exists()
