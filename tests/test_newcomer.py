"""A newcomer's mistakes are one-line messages before any rank starts; help texts help."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import yaml

from data_prep.cli import build_parser
from tests.toys.recipes import RECIPE, recipe_complaint
from tests.toys.world import write_tokenizer
from vlds.cli.check_recipe import check_recipe
from vlds.cli.main import COMMANDS, check_before_ranks, run_command
from vlds.cli.words import split_words
from vlds.models.backbones import T5, Bart
from vlds.recipe.config import parse_recipe, save_recipe
from vlds.runtime.process import find
from vlds.runtime.terminal import SETTINGS
from vlds.training.faults import out_of_memory

LAYOUTS = ("hf", "merge", "reference", "peft", "adapters")
"""What `vlds convert` writes."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml: the recipe is empty; start from a recipe of vlds"),
        ("# nothing\n", "recipe.yaml: the recipe is empty"),
        ("- output: x\n", "recipe.yaml: a recipe has keys and values, like `output: runs/mine`; "
         "this file holds a list"),
        ("vqa\n", "this file holds only 'vqa'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe(text: str, message: str, file: Path) -> None:
    file.write_text(text)
    assert message in recipe_complaint(str(file))
    file.with_name("mine.yaml").write_text(f"base: {file}\n")
    assert message in recipe_complaint(str(file.with_name("mine.yaml")))


def joint(**fields: object) -> dict[str, object]:
    """A recipe's choice of a model."""
    return {"class_path": "JointSeq2Seq", "init_args": fields}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", {"backbone": "T5"}, "model: class_path is missing; write class_path: "),
        # Other tests' kinds may stand before these.
        ("model", {"backbone": "T5"}, " CrossModal, DualEncoder, ImageTextToText, JointEncoder, "),
        ("model", joint(backbone={"path": "x"}),
         "model.backbone: class_path is missing; write class_path: Bart, or"),
        ("model", joint(backbone={"init_args": {"path": "x"}}),
         "model.backbone: class_path is missing"),
        ("model", joint(vision={"grid": 4}),
         "model.vision: class_path is missing; write class_path: ClipTokens, or"),
        ("methods", {"mine": {"reduction": 4}}, "methods.mine: class_path is missing; write clas"),
        ("methods", {"mine": None}, "methods.mine: class_path is missing"),
        ("methods", {"mine": {"class_path": "LoRA", "rank": 4}},
         "methods.mine: 'rank' is next to class_path; write {class_path: LoRA, init_args: {"),
        ("methods", {"class_path": "LoRA"}, "methods: an entry has a name; write methods: {NAME: "),
    ],
)  # fmt: skip
def test_a_forgotten_class(key: str, value: object, message: str, file: Path) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | {key: value}))
    assert message in recipe_complaint(str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo.yaml", "did you mean 'recipes/demo.yaml'?"),
        ("recipes/demo", "did you mean 'recipes/demo.yaml'?"),
        ("recipes/dmo.yaml", "did you mean 'recipes/demo.yaml'? vlds brings: recipes/demo.yaml, "),
        ("{here}/recipee.yaml", "did you mean '{here}/recipe.yaml'?"),
        ("zzz.yaml", "check the path, or name another; vlds brings: recipes/demo.yaml, recipes/d"),
        ("recipes/vl_adapter/zzz.yaml", "vlds brings: recipes/vl_adapter/bart_image.yaml, recipes"),
        ("zzz.json", "zzz.json; check the path"),
        ("shards/my/t5.json", "t5.json; there is no folder shards/my, relative to /"),
    ],
)
def test_names_near_a_missing_file(name: str, message: str, file: Path) -> None:
    file.write_text(RECIPE)
    with pytest.raises(ValueError, match=r"^no such file: ") as error:
        find(name.format(here=file.parent))
    assert message.format(here=file.parent) in str(error.value)
    assert len(str(error.value)) < 800


MERGE = "convert merge --run a --out b"
MISTAKES = [
    ("init --data https://x.org/rows.csv", "https://x.org/rows.csv is an address; download", "y:/"),
    ("init --data a.csv --epochs 3", "--epochs: no option of vlds init; the recipe that it", ""),
    ("init --data a.csv --out x", "--out: no option of vlds init; the shards lie in sha", "split"),
    ("init --data pic.png", "--data pic.png is a picture; give a file of rows, or a folder", "UTF"),
    ("convert hf gone out", "--run: no such folder: gone", "required"),
    ("train latin.yaml", "latin.yaml: not UTF-8 (byte 0xe4); save it as UTF-8", "codec"),
    ("trian", "trian: no such command; did you mean 'train'? commands: ", ""),
    ("finetune r.yaml", "did you mean `vlds train`?", "features'?"),
    ("test", "did you mean `vlds evaluate`?", ""),
    ("serve", "did you mean `vlds predict --serve`?", ""),
    ("train", "name a recipe first, your own file or a recipe of vlds", ""),
    ("train --seed 3 r.yaml", "name a recipe first, ", ""),
    ("train --model_name_or_path x", "name a recipe first, ", "Bart"),
    ("train r.yaml --device cuda", "unknown key 'device'; every GPU that is visible is used", ""),
    ("train r.yaml --methods.lora.rank 8", "has adapter; for another one, write class_p", "APoLLo"),
    ("train r.yaml --tasks.caption.train x", "the recipe has vqa; for another one, ", "SpanPred"),
    ("sweep r.yaml", "r.yaml is a recipe, for `vlds train`; a sweep has `recipes`", "seeds"),
    ("compare r.yaml", "r.yaml is a recipe, for `vlds train`", "seeds"),
    ("train sweeps/demo.yaml", "demo.yaml is a sweep, for `vlds sweep`; a recipe has", ""),
    ("--verison", "vlds: --verison: no such option; did you mean '--version'? `vlds --help`", ""),
    ("evaluate --rnu a", "vlds evaluate: --rnu: no such option; did you mean '--run'? `vlds", ""),
    ("evaluate --seed 3", "one of the arguments RUN --predictions is required; `vlds eval", ""),
    ("predict --rnu a --tasks.vqa.weight 2", "--rnu: no such option; did you mean '--run'?", ""),
    ("predict --image a", "arguments are required: RUN; `vlds predict --help` says more", ""),
    ("evaluate gone --data.eval_batch_size 16", "gone: no such folder in ", ""),
    ("evaluate --out x gone", "gone: no such folder in ", ""),
    ("evaluate gone too", "'too': unexpected word; `vlds evaluate` takes one run, and an", ""),
    ("predict gone --serve", "gone: no such folder in ", ""),
    ("report", "arguments are required: RUN; `vlds report --help` says more", ""),
    ("report a --fromat md", "--fromat: no such option; did you mean '--format'?", ""),
    ("convert hff", "'hff': no such layout; did you mean 'hf'? choose from hf, merge, refere", ""),
    ("convert peft --rnu a --out b", "--rnu: no such option; did you mean '--run'? `vlds con", ""),
    (f"{MERGE} --wieght 1", "did you mean '--weights'? `vlds convert merge --help` says more", ""),
    ("plan --ranks", "vlds plan: --ranks: expected at least one argument; `vlds plan --help`", ""),
]


@pytest.mark.parametrize(("command", "has", "lacks"), MISTAKES)
def test_a_mistake_names_its_cure(
    command: str,
    has: str,
    lacks: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(file.parent)
    file.with_name("r.yaml").write_text(RECIPE)
    file.with_name("latin.yaml").write_bytes("output: ä".encode("latin-1"))
    words = split_words(command.split())
    code = check_before_ranks(words) if words.starts_ranks else run_command(words.rest)
    error = capsys.readouterr().err
    assert (code, has in error, error.count("\n")) == (2, True, 1), error
    assert error.startswith("vlds")
    assert not lacks or lacks not in error


def test_more_ranks_than_examples(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = file.with_name("pieces.model")
    write_tokenizer(pieces)
    sizes = str(find("recipes/backbones/t5_demo.json"))
    file.write_text(RECIPE.replace("pieces.model", str(pieces)).replace("sizes.json", sizes))
    words = [str(file), "--data.global_batch_size", "2"]
    # Before anything starts; and before a run starts again on other ranks.
    for refused in (
        partial(
            check_before_ranks, split_words(["train", *words, "--ranks", "3", "--resume=auto"])
        ),
        partial(check_recipe, ["train", *words], 3),
    ):
        assert refused() == 2
        assert "data.global_batch_size: 2 examples for 3 ranks; give at" in capsys.readouterr().err
    assert check_recipe(["train", *words], 2) == 0


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    """transformers would ask the hub for the file, and make an empty tokenizer of the folder."""
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    for source, message in (
        (text, "notes.txt is not a tokenizer; name a .model file or a folder that holds spiece"),
        (tmp_path / "empty", "no tokenizer in the folder .*empty; name a .model file or a folder"),
        (tmp_path / "x.model", "no such file: .*x.model; name a .model file"),
    ):
        with pytest.raises(ValueError, match=f"^model.backbone.tokenizer: .*{message}"):
            T5(config="x.json", tokenizer=str(source)).check_sources()
    with pytest.raises(ValueError, match="is not a tokenizer; name a folder that holds tokenizer"):
        Bart(config="x.json", tokenizer=str(text)).load_tokenizer()


def test_advice_is_what_can_help(file: Path, tmp_path: Path) -> None:
    file.write_text(RECIPE)
    words = ["--output", str(tmp_path / "run"), "--data.micro_batch_size", "1"]
    recipe = parse_recipe([str(file), *words, "--data.eval_batch_size", "1"])
    said = out_of_memory(recipe)
    assert "--resume" not in said  # no state was written
    assert "micro_batch_size" not in said
    assert "eval_batch_size" not in said
    (tmp_path / "run" / "state" / "step-00000001").mkdir(parents=True)
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    said = out_of_memory(recipe)
    assert said.endswith("What was saved is whole: --resume continues from it")
    assert f"`vlds plan --config {tmp_path}/run/recipe.yaml --ranks N`" in said


@pytest.mark.slow  # 25 s, and by the clock
@pytest.mark.parametrize("seconds", [0.25, 0.9])
@pytest.mark.parametrize("program", ["vlds", "data_prep"])
def test_ctrl_c_while_importing(program: str, seconds: float, root: Path) -> None:
    words = ["report", "nowhere"] if program == "vlds" else ["stats", "nowhere"]
    process = subprocess.Popen(
        [sys.executable, "-m", program, *words],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode in (130, 2)  # 2: it was done
    if process.returncode == 130:
        assert said.endswith(("vlds: ended by Ctrl-C\n", "interrupted by Ctrl-C\n"))
        assert said.count("\n") <= 2  # the second line is that of a command that had already ended


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with suppress(SystemExit):
        run_command([*command.split(), "--help"])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"convert {layout}" for layout in LAYOUTS)])
def test_help_has_examples_and_fits(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(command, capsys)
    assert lines[0].startswith("usage: vlds")
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(f"  vlds {command}".rstrip()) for line in lines)
    assert not any("(required" in line for line in lines)
    if command in ("train", "evaluate", "predict", "features", "demo"):
        assert any(line.startswith("  --ranks N") for line in lines)


def test_help_of_data_prep(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = build_parser()
    for name in ("vqav2", "gqa", "jsonl", "stats", "verify", "preview", "demo"):
        with pytest.raises(SystemExit):
            parser.parse_args([name, "--help"])
        text = capsys.readouterr().out
        assert f"  vlds data {name} " in text
        shown = [line for line in text.splitlines() if "vlds data" in line]
        assert max(map(len, shown)) <= 80


def test_nothing_is_imported_for_a_help() -> None:
    """A help text does not wait for the import of torch."""
    program = "import sys; from vlds.cli.main import run_command\n"
    program += "try: run_command(['report', '--help'])\n"
    program += "except SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_libraries_keep_quiet() -> None:
    """DeepSpeed reports a missing GPU when it is imported; only errors stay."""
    program = "from vlds.runtime.terminal import quiet_libraries; quiet_libraries()"
    program += "; import deepspeed"
    program += "; import warnings; warnings.warn('old')"
    environment = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", *SETTINGS)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
