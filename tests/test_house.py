"""Project rules that no linter knows: names, words and docstrings."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.toys.files import ROOT
from vlds.cli.demo import SHIPPED
from vlds.runtime.process import find, shipped

CODE = [file for folder in ("vlds", "data_prep") for file in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NOT_SHARED = {
    "tests/examples/counting.py": "a task that docs/tasks.md prints",
    "tests/examples/norms_later.py": "a method that docs/add_a_method.md names",
    "tests/examples/cosine_head.py": "a head that docs/heads.md prints",
    "tests/examples/picture_scale.py": "a method that docs/add_a_method.md names",
    "tests/examples/two_passes.py": "a method that docs/add_a_method.md names",
    "tests/examples/output_scale.py": "a method that docs/add_a_method.md prints",
    "tests/examples/visual_prefix.py": "a kind of model that docs/add_a_model.md prints",
    "tests/lowest_versions.py": "a command of the Makefile",
    "tests/reader.py": "a command of the Makefile",
    "tests/oracles/record.py": "a command for environments with other libraries",
}
"""Files outside tests/toys that are not tests, and what they are."""
TEXT = {".py", ".md", ".toml", ".yaml", ".json", ".sh", ""}


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def test_printed_commands_quote_what_others_have_named() -> None:
    """`shell_command` writes them: a folder called $(rm x) is copied with the rest of a line."""
    bare = re.compile(r"`vlds [^`\n]*\{(?!shell_command)(\w+)")
    found = {(f.stem, name) for f in CODE for name in bare.findall(f.read_text())}
    # A word of ours, and one that is quoted above its use.
    assert found == {("main", "meant"), ("faults", "config")}


def test_every_file_says_what_it_is() -> None:
    assert len(CODE) > 3
    silent = [_name(f) for f in CODE if not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []


@pytest.mark.slow
def test_one_gate_opens_what_strangers_wrote() -> None:
    """`open_checked` looks at the files first, and lets transformers neither ask nor fetch. peft
    opens only what vlds has just written."""
    opened = {
        _name(file)
        for file in CODE
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in {"from_pretrained", "get_config_dict"}
        and ast.unparse(node) not in {"nn.Embedding.from_pretrained", "PeftModel.from_pretrained"}
    }
    assert opened == {"vlds/models/loading/gate.py"}


def test_one_room_knows_devices() -> None:
    named = {_name(file) for file in CODE if "cuda" in file.read_text("utf-8")}
    assert named == {"vlds/runtime/deepspeed_start.py", "vlds/runtime/devices.py"}


def test_nothing_unpickles_what_others_wrote() -> None:
    """`vlds.runtime.pickles` reads such files; pickle is between our own processes."""
    opens = re.compile(r"^ *(?:import|from) (?:pickle|marshal|shelve|dill|cloudpickle)\b", re.M)
    loads = re.compile(r"torch\.load\(|allow_pickle=True|joblib\.load")
    assert [_name(f) for f in CODE if loads.search(f.read_text())] == []
    assert {f.stem for f in CODE if opens.search(f.read_text())} == {
        "cluster",
        "ranks",
        "features",
        "leaving",
    }


def test_one_function_starts_python() -> None:
    named = {_name(file) for file in CODE if "sys.executable" in file.read_text("utf-8")}
    assert named == {"vlds/runtime/process.py"}


def test_doors_open_without_heavy_libraries() -> None:
    """`vlds --help` answers at once, and a supervisor is small as long as its run lives."""
    doors = "vlds.cli.main, vlds.cli.supervisor, vlds.cli.local, vlds.convert.command"
    heavy = "{'torch', 'transformers', 'deepspeed', 'numpy', 'rich', 'pydantic'}"
    program = f"import sys, {doors}; print(sorted({heavy} & sys.modules.keys()))"
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "[]\n"


def test_every_package_is_one() -> None:
    folders = {file.parent for file in CODE}
    assert [_name(f) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_no_room_for_homeless_functions() -> None:
    homeless = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert [_name(file) for file in CODE if file.name in homeless] == []


def _is_test(name: str) -> bool:
    return name.startswith("test_") or name == "conftest"


def _imports(file: Path) -> set[str]:
    """Dotted names of what a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module if node.level == 0 else f"tests.{node.module or ''}"
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.slow
def test_tests_import_no_tests() -> None:
    """What several test modules need is in tests/toys, and their fixtures in a conftest.py."""
    assert len(TESTS) > 200
    imported = {
        f"{_name(file)}: {name}"
        for file in TESTS
        for name in _imports(file)
        if name.startswith("tests.") and any(map(_is_test, name.split(".")))
    }
    assert imported == set()


def test_what_tests_share_is_in_toys() -> None:
    toys = ROOT / "tests" / "toys"
    elsewhere = {
        _name(file) for file in TESTS if not _is_test(file.stem) and not file.is_relative_to(toys)
    }
    assert elsewhere == NOT_SHARED.keys()


def test_code_is_ascii() -> None:
    assert [_name(file) for file in CODE if not file.read_bytes().isascii()] == []


def test_no_local_paths() -> None:
    local = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/\w")
    found = []
    for file in _tracked():
        if file.suffix in TEXT and file != Path(__file__).resolve():
            found += [_name(file) for _ in local.finditer(file.read_text(errors="ignore"))]
    assert found == []


def test_repository_stays_small() -> None:
    large = {_name(file) for file in _tracked() if file.stat().st_size > 2_000_000}
    assert large <= {f"{SHIPPED}/model.safetensors"}


def test_dependencies_are_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    assert len(wanted) > 10
    assert [line for line in wanted if "==" in line or "@" in line] == []


def test_resources_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in shipped("ds_configs"):
        assert find(name).read_bytes() == (ROOT / name).read_bytes()
    own = tmp_path / "ds_configs" / "zero3.json"
    own.parent.mkdir()
    own.write_text("{}")
    assert find("ds_configs/zero3.json").read_text() == "{}"


def test_a_missing_resource_is_named_with_the_choice() -> None:
    with pytest.raises(ValueError, match=r"no such file: ds_configs/zero9.json; .*zero3.json"):
        find("ds_configs/zero9.json")
    with pytest.raises(ValueError, match=r"no such file: my.yaml; check the path"):
        find("my.yaml")
    with pytest.raises(ValueError, match="no such file"):
        find("recipes/../pyproject.nothing")
