"""A run or artifact of someone else runs no code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlds.cli.main import run_command
from vlds.recipe.config import load_recipe
from vlds.recipe.paths import check_classes, is_trusted, take_trust, trust
from vlds.runtime.json_files import write_manifest
from vlds.runtime.yaml_file import parse_yaml, read_yaml
from vlds.tasks import VQA

HELPER = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
from vlds.tasks import VQA
class Thing(VQA):
    pass
"""
RECIPE = """
output: run
model:
  class_path: JointSeq2Seq
  init_args:
    backbone: {class_path: T5, init_args: {config: none.json, tokenizer: none.model}}
    vision: {class_path: StoredFeatures, init_args: {dim: 4, grid: 2}}
methods: {}
tasks: {vqa: {class_path: helper.Thing, init_args: {evaluate: [none]}}}
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A working directory with a module, and a run that names a class of this module."""
    (tmp_path / "helper.py").write_text(HELPER)
    artifact = tmp_path / "run" / "artifact"
    artifact.mkdir(parents=True)
    (artifact / "weights.safetensors").write_bytes(b"")
    (artifact / "artifact.json").write_text(json.dumps({"format": 1, "sources": {}}))
    for folder in (artifact, tmp_path / "run"):
        (folder / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    write_manifest(artifact)
    return tmp_path


COMMANDS = {
    "evaluate": ["evaluate", "--run", "run"],
    "predict": ["predict", "--run", "run", "--data", "run"],
    "convert": ["convert", "hf", "--run", "run", "--out", "out"],
    "report": ["report", "run"],
}


def vlds(desk: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command line in one process, started like a rank: from the working directory."""
    program = "import sys; from vlds.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *words], cwd=desk, env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_code_beside_a_run_is_not_imported(name: str, desk: Path) -> None:
    done = vlds(desk, COMMANDS[name])
    said = done.stderr if name != "report" else (desk / "run" / "report.html").read_text()
    assert "a saved recipe may name only classes of vlds" in said
    assert "if you trust the code in helper, add --trust helper" in said
    assert done.returncode == (0 if name == "report" else 2)
    assert "Traceback" not in done.stderr
    assert not (desk / "imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "evaluate"])
def test_a_module_that_the_user_trusts_is_imported(name: str, desk: Path) -> None:
    done = vlds(desk, [*COMMANDS[name], "--trust", "helper"])
    assert done.returncode == 2, "its model's files are missing"
    assert "saved recipe" not in done.stderr
    assert (desk / "imported").exists()


def joint(**fields: str) -> dict[str, object]:
    """A change of the model's fields in a recipe."""
    return {"model": {"class_path": "JointSeq2Seq", "init_args": fields}}


DECODING = {"class_path": "VQA", "init_args": {"decoding": "helper.Thing"}}
FOREIGN = {
    "name": {"model": "helper.Thing"},
    "name of a choice's choice": joint(vision="helper.Thing"),
    "name of a method": {"methods": {"a": "helper.Thing"}},
    "text": joint(vision="{class_path: helper.Thing}"),
    "text of many": {"methods": '{"a": {"class_path": "helper.Thing"}}'},
    "options": {"optimizer": "helper.Thing"},
    "options inside": {"data": {"errors": "helper.Thing"}},
    "options of a class": {"tasks": {"a": DECODING}},
    "dotted key": {"model.class_path": "helper.Thing"},
    "base": {"base": "other.yaml"},
    "config": {"config": "other.yaml"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_saved_recipe_names_no_class_by_another_way(
    name: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(desk)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    tree = parse_yaml(RECIPE.replace("helper.Thing", "VQA"), "r")
    (desk / "other.yaml").write_text("tasks: {a: {class_path: helper.Thing}}")
    (desk / "saved.yaml").write_text(json.dumps(tree))
    load_recipe(desk / "saved.yaml")  # good without the change
    (desk / "saved.yaml").write_text(json.dumps(tree | FOREIGN[name]))
    with pytest.raises(ValueError, match=r"saved\.yaml: .*(saved recipe|unknown key)"):
        load_recipe(desk / "saved.yaml")
    assert not (desk / "imported").exists()


def test_which_classes_are_known() -> None:
    def recipe(name: str) -> object:
        return {"tasks": [{"a": {"class_path": name}}]}

    check_classes(recipe("VQA"), "r")
    check_classes(recipe(f"{VQA.__module__}.VQA"), "r")
    for name in ("os.system", "vlds.cli.start.main", "json", "helper.Thing", "1"):
        with pytest.raises(ValueError, match=rf"^r: class_path '{name}'"):
            check_classes(recipe(name), "r")


def test_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("vlds.recipe.paths._trusted", set())
    assert take_trust(["convert", "--trust", "a.b", "--x", "--trust=c"]) == ["convert", "--x"]
    assert is_trusted("a.b")
    assert is_trusted("a.b.deeper")
    assert is_trusted("c")
    assert not is_trusted("a")
    assert not is_trusted("a.bc")
    for words in (["--trust"], ["--trust", "../x"], ["--trust="]):
        with pytest.raises(ValueError, match=r"--trust: got '.*'; give the name of a Python"):
            take_trust(words)
    trust("d")
    assert os.getcwd() == sys.path[-1]


def test_yaml_is_bounded(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(ValueError, match="its aliases stand for more than 200,000 values"):
        parse_yaml(bomb, "r")
    with pytest.raises(ValueError, match="its aliases stand for more than"):
        parse_yaml("&a [*a]", "r")
    for deep in ("[" * 50, "{a: " * 50, "[" * 100_000):
        with pytest.raises(ValueError, match="nested more than 40 levels"):
            parse_yaml(deep, "r")
    with pytest.raises(ValueError, match="r, line 3: 'b' appears twice; keep one"):
        parse_yaml("a:\n  b: 1\n  b: 2", "r")
    for number, other in (("1:30", 90), ("010", 8), ("-1:30.5", -90.5)):
        with pytest.raises(ValueError, match=f"r, line 2: YAML reads {number} as {other}; write"):
            parse_yaml(f"a:\n- {number}", "r")
        with pytest.raises(ValueError, match=f"r, line 1: YAML reads {number} as"):
            parse_yaml(f"{number}: a", "r")
    assert parse_yaml("[0, 10, 0.5, 1e-3, '1:30', 089]", "r") == [0, 10, 0.5, "1e-3", "1:30", "089"]
    assert parse_yaml("a: &x [1, 2]\nb: *x", "r") == {"a": [1, 2], "b": [1, 2]}
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo: cannot read this recipe: a named pipe, not a"):
        read_yaml(tmp_path / "fifo")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes; at most 4,194,304 are read"):
        read_yaml(tmp_path / "large")


@pytest.mark.parametrize("command", ["plan --config", "report", "convert hf --out x --run"])
def test_a_name_that_is_too_long_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*command.split(), "x" * 300]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "File name too long; name another place" in error
