"""`vlds train --prove`: the proof comes before all ranks, once, and stops a run that it refutes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.toys.files import ROOT, write
from tests.toys.launched_run import Launch, last_step
from tests.toys.rank_pool import rank_environment
from tests.toys.recipes import short_recipe, with_model
from vlds.cli.main import main
from vlds.cli.rank import run_rank
from vlds.cli.words import Words, split_words
from vlds.recipe.config import save_recipe

MIXING = '''
"""An encoder with a fault: a picture's features depend on the others of its batch."""
from dataclasses import dataclass
from vlds.models.vision import ConvNet

@dataclass(frozen=True, kw_only=True)
class Mixing(ConvNet):
    def build(self, dtype):
        net = super().build(dtype)
        net.register_forward_hook(lambda module, given, grid: grid - grid.mean(0, keepdim=True))
        return net
'''


def test_the_word_goes_to_the_supervisor_alone() -> None:
    words = split_words(["train", "recipes/demo.yaml", "--prove", "--ranks", "2"])
    assert words == Words(("train", "recipes/demo.yaml"), ranks=2, prove=True)
    assert words.for_ranks == ["train", "recipes/demo.yaml"]


def test_started_ranks_do_not_prove(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under torchrun, and where other machines start their own."""
    for name, value in rank_environment(0, 1, port=1).items():
        monkeypatch.setenv(name, value)
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    run_rank(["train", "recipes/demo.yaml", "--prove"], lambda _: 0)
    assert ended == [2]
    assert "--prove: a launcher has started the ranks already" in capsys.readouterr().err
    for name in rank_environment(0, 1, port=1):
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLDS_LAUNCHER_ARGS", "--hostfile hosts")
    save_recipe(short_recipe(world, tmp_path / "run", stage=2), tmp_path / "run.yaml")
    assert main(["train", str(tmp_path / "run.yaml"), "--prove"]) == 2
    assert "--prove: each machine would prove the recipe" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.launcher
def test_a_fault_stops_the_run_before_it_starts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mixing.py", MIXING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    from mixing import Mixing  # type: ignore[import-not-found]

    recipe = short_recipe(world, tmp_path / "run", stage=2)
    vision = Mixing(image_size=16, grid=2, widths=[4, 8, 8])
    launch = Launch(with_model(recipe, vision=vision), tmp_path / "run.yaml", "--prove")
    code, said = launch.end(timeout=400)
    assert code == 2, said
    assert re.search(r"\] batch-free +fails", said)
    assert "the proof fails, so no rank has started" in said
    assert "batch-free" in (tmp_path / "run-proof" / "proof.html").read_text("utf-8")
    assert last_step(tmp_path / "run") == 0
    del sys.modules["mixing"]


@pytest.mark.slow
@pytest.mark.launcher
def test_a_proof_comes_once(world: Path, tmp_path: Path) -> None:
    recipe = short_recipe(world, tmp_path / "run", stage=2)
    code, said = Launch(recipe, tmp_path / "run.yaml", "--prove").end(timeout=400)
    assert code == 0, said
    assert said.count(" properties hold; ") == 1
    assert last_step(tmp_path / "run") == 10
    code, said = Launch(recipe, tmp_path / "run.yaml", "--prove", "--resume", "auto").end(
        timeout=400
    )
    assert code == 0, said
    assert "properties" not in said
