"""A wheel, made of the source archive, works outside of a checkout: it is installed into an
environment of its own, and README's commands run in an empty folder.

The environment borrows the libraries of the running one. With VLDS_INDEX=1 it starts empty, and pip
brings them from the package index, as for somebody who installs vlds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.toys.files import ROOT
from vlds.cli.demo import SHIPPED
from vlds.runtime.process import shipped

pytestmark = pytest.mark.slow
NOT_SOURCES = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "benchmarks")
RUNS = """
vlds --version
vlds data --help
vlds describe --config vqa.yaml
vlds schema recipe --out recipe.schema.json
vlds completion
vlds data stats shards/mine/train
vlds train recipes/easy_vqa.yaml --output runs/other --model.backbone.tokenizer \
    shards/mine/spiece.model --tasks.vqa.train [shards/mine/train] \
    --tasks.vqa.evaluate [shards/mine/test] --ranks 2 --data.global_batch_size 8 \
    --data.num_workers 0 --training.steps 2
vlds predict runs/mine --image PHOTOS/0/017.jpg --question "How many dogs?"
vlds convert hf --run runs/mine --out models/mine
"""
"""Commands of README behind those on its own rows, and a recipe of vlds with the data they made."""


def run(words: Sequence[str | Path], folder: Path) -> str:
    """Run a command in a folder, without anything of this checkout; what it prints."""
    kept = {n: value for n, value in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(map(str, words))}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of this checkout, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("archives")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    program = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    run([sys.executable, "-c", program], folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*pip, "--wheel-dir", folder, archive], folder)
    (wheel,) = folder.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def programs(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel."""
    place = tmp_path_factory.mktemp("environment")
    python = place / "bin" / "python"
    if os.environ.get("VLDS_INDEX"):
        run([sys.executable, "-m", "venv", place], place)
        run([python, "-m", "pip", "install", "--quiet", archives[1]], place)
        return python.parent
    run([sys.executable, "-m", "venv", "--without-pip", place], place)
    (site,) = place.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # Neither the editable vlds nor the files that put its checkout on the path.
        if "vlds" not in entry.name and entry.suffix not in (".pth", ".egg-link"):
            (site / entry.name).symlink_to(entry)
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", archives[1]], place)
    return python.parent


def test_a_wheel_holds_everything_and_one_name(archives: tuple[Path, Path]) -> None:
    archive, wheel = archives
    held = set(zipfile.ZipFile(wheel).namelist())
    data = [name for top in ("recipes", "sweeps", "ds_configs") for name in shipped(top)]
    data += ["recipes/recipe.schema.json", "sweeps/sweep.schema.json"]
    data += [str(file.relative_to(ROOT)) for file in (ROOT / SHIPPED).iterdir()]
    expected = {f"vlds/{name}" for name in data}
    for top in ("vlds", "data_prep"):
        for file in (ROOT / top).rglob("*"):
            if file.suffix in (".py", ".html", ".css", ".js", ".md", ".c", ".json", ".typed"):
                name = str(file.relative_to(ROOT))
                expected.add(name if top == "vlds" else f"vlds/{name}")
    assert {"vlds/ds_configs/zero3.json", "vlds/data_prep/preview.html"} <= expected
    assert expected <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"vlds"}
    with tarfile.open(archive) as file:
        sources = {name.partition("/")[2] for name in file.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= sources
    assert {"recipes/demo.yaml", "docs/data.md", "launch.sh", "Makefile"} <= sources
    assert not any(name.startswith("tests/") for name in sources)


def test_readme_runs_outside_of_a_checkout(programs: Path, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    page = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    (recipe,) = re.findall(r"```yaml\n(# vqa\.yaml\n.*?)```", page, re.DOTALL)
    (rows,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "vqa.yaml").write_text(recipe)
    text = "".join(rows.replace("beach/", f"{place}/") for place in range(10))
    (tmp_path / "rows.jsonl").write_text(text)
    for number, row in enumerate(map(json.loads, text.splitlines())):
        picture = tmp_path / "PHOTOS" / row["file"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 30)).save(picture)
    # A user's own folder of this name does not stand in the way.
    (tmp_path / "data_prep").mkdir()
    (tmp_path / "data_prep" / "__init__.py").write_text("raise SystemExit('not vlds')")
    (own,) = re.findall(r"```sh\n(vlds init [^`]* --name mine\n.*?)```", readme, re.DOTALL)
    own = own.replace("mine.yaml\n", "mine.yaml --training.epochs 0.2\n")  # three steps
    printed = ""
    for line in (own + RUNS).replace("\\\n", "").splitlines():
        program, *words = shlex.split(line) or [None]
        printed += run([programs / program, *words], tmp_path) if program else ""
    found = run([programs / "python", "-c", "import vlds; print(vlds.__file__)"], tmp_path)
    assert Path(found.strip()).is_relative_to(programs.parent)
    assert re.search(r"^vlds \d+\.\d+\.\d+$", printed, re.MULTILINE)
    assert "trainable" in printed
    assert "shards/mine/train" in printed
    for made in (
        "runs/mine/best",
        "runs/other/artifact",
        "runs/mine/report.html",
        "models/mine/config.json",
    ):
        assert (tmp_path / made).exists(), printed
