"""`vlds init`: from your rows to a recipe. data_prep looks at them, packs them and draws splits.
What is packed says the task, the limits of its texts and the length of the run.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from vlds.cli.supervisor import Stage, say_stage, vlds
from vlds.data.shards.info import DATASET_FILE, LEARNED
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source, fixed_examples
from vlds.recipe.build import to_yaml
from vlds.recipe.choices import ARGUMENTS, CLASS
from vlds.recipe.sketch import check_words
from vlds.runtime.files import read_text, write_whole
from vlds.runtime.json_files import read_json
from vlds.runtime.process import data_prep, find
from vlds.runtime.terminal import has_gpu_driver, shell_command, tell
from vlds.tasks import VQA, Caption, Chat, Entailment, ImageClass, Task

SCHEMA = Path("recipes/recipe.schema.json")
"""By which editors complete the recipe."""
EVALUATED = ("val", "valid", "validation", "dev")
"""Splits on which a run is evaluated while it trains; the first one that is there, in any case."""
TESTED = ("test", "testing")
TASKS: dict[str, tuple[str, Task]] = {
    "vqa": ("vqa", VQA()),
    "caption": ("caption", Caption()),
    "entailment": ("entailment", Entailment()),
    "image_class": ("classes", ImageClass()),
    "chat": ("chat", Chat()),
}
"""Kind of data -> the task's name, and the task with its defaults."""
HUB_MODEL = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
MODEL_FILES = {
    "weights": ("*.safetensors", "*.bin"),
    "processor": ("processor_config.json", "preprocessor_config.json"),
}
"""What an image-text model's folder has besides its config."""
MOST_READ = 5_000
"""Samples whose texts are read."""
SCORED = 20
"""Examples that tell which score stands for the task."""
SIDE = 256
"""Pixels of the shorter side for small models, which see less of a picture."""
STEPS, MOST_EPOCHS, FEWEST_EPOCHS = 1000, 30, 3
"""Steps that a small model needs from random weights, if they are no more than MOST_EPOCHS."""
LARGE_BATCH, SMALL_BATCH = 32, 16
TUNED_EPOCHS = 3
EVALUATIONS = 10
ROOM = 12
"""Tokens for what surrounds a text or a turn."""
LETTERS = 3
"""Fewest letters of a token in long words, on average."""
MOST_PIECES, OTHER_PIECES = 8_000, 120
"""Of a vocabulary: all, and those for parts of words, with the special ones."""
TOKENIZER, CONFIG = "spiece.model", "t5.json"
SIZES = "recipes/backbones/t5_easy_vqa.json"
"""The small T5, but for its vocabulary."""


@dataclass(frozen=True)
class Texts:
    """What a run needs to know of a split."""

    examples: int
    prompt_tokens: int
    """Bound of the tokens of a prompt or conversation, and of an answer."""
    answer_tokens: int
    pictures: int
    """Most pictures of a sample."""
    vocabulary: int
    """Pieces for all its words and letters, at most."""
    score: str
    """The score that stands for the task on such data."""


@dataclass(frozen=True)
class Packed:
    """The packed data."""

    name: str
    folder: Path
    name_of_task: str
    task: Task
    learned: str
    """The split that is learned."""
    train: Texts
    evaluated: str | None
    """The split that is evaluated while the run trains."""
    tested: str | None


def run_init(data: Path, name: str | None, model: str | None, words: Sequence[str]) -> int:
    """Pack the data, write a recipe, and say what comes next; the exit code. `words`: those for
    data_prep.

    Errors: ValueError for data or a model that is not there, or that no recipe fits.
    """
    if (guess_type(data)[0] or "").startswith("image/"):
        raise ValueError(f"--data {data} is a picture; give a file of rows, or a folder of classes")
    if not data.exists():
        raise ValueError(
            f"--data {data} does not exist; give a file of rows, or a folder of classes"
        )
    name = name or data.resolve().stem.replace(".", "_").replace(" ", "_")
    recipe, folder = Path(f"{name}.yaml"), Path("shards") / name
    if recipe.exists():
        raise ValueError(
            f"{recipe} exists; remove it (and {folder}, to pack the data again), or give another "
            "--name"
        )
    model, why = model_for(model)
    small: list[str] = []
    if model is None:
        # The small model sees little of a picture, and learns the last answer of a conversation.
        small = ["--each-turn"]
        small += ["--image-size", str(SIDE)] if "--image-size" not in words else []
    pack = ["own", "--data", str(data), "--name", name, "--out", str(folder), *small, *words]
    # It is written last: without it, an earlier command was ended before it had packed all.
    if any(file.parent.name.lower() in LEARNED for file in folder.glob(f"*/{DATASET_FILE}")):
        tell(f"{folder} is there and stays; remove it to pack the data again")
    elif code := run_data(Stage("look at the data, and pack them", folder, pack), "1 of 2"):
        return code
    packed = look_at(name, folder)
    if model is None and (code := make_tokenizer(packed)):
        return code
    tree = recipe_of(packed, model)
    write_whole(folder / SCHEMA.name, read_text(find(SCHEMA)))
    write_whole(recipe, "".join(f"# {line}\n" for line in comments(packed, why)) + to_yaml(tree))
    check_words(["--config", str(recipe)])
    show(packed, tree, why)
    return 0


# The data.


def run_data(stage: Stage, position: str) -> int:
    """Print a command of `vlds data`, and run it in this process; the exit code. The stage has the
    words behind `vlds data`."""
    say_stage(replace(stage, command=vlds("data", *stage.command)), position)
    started = time.monotonic()
    code: int = data_prep("cli").main(stage.command)
    if not code:
        tell(f"({time.monotonic() - started:.0f} s)", flush=True)
    return code


def look_at(name: str, folder: Path) -> Packed:
    """What was packed below a folder.

    Errors: ValueError for data without a split to learn from, or of an unknown kind.
    """
    # Names as the data write them: Train, TEST.
    splits = [file.parent.name for file in folder.glob(f"*/{DATASET_FILE}")]
    names = {split.lower(): split for split in splits}

    def first_of(wanted: Sequence[str]) -> str | None:
        return next((names[name] for name in wanted if name in names), None)

    train = first_of(LEARNED)
    if train is None:
        have = ", ".join(sorted(splits)) or "none"
        raise ValueError(f"{folder}: no split is called train, of {have}; name one so in the data")
    dataset = open_dataset(folder / train)
    if (kind := dataset.info.kind) not in TASKS:
        raise ValueError(
            f"{folder / train}: `vlds init` writes no recipe for data of the kind {kind}"
        )
    name_of_task, task = TASKS[kind]
    return Packed(
        name,
        folder,
        name_of_task,
        task,
        train,
        texts_of(Source(name_of_task, task, [dataset])),
        first_of(EVALUATED),
        first_of(TESTED),
    )


def texts_of(source: Source) -> Texts:
    """What the examples of a split say."""
    examples, pictures = [], 0
    for index in range(min(source.first_sample[-1], MOST_READ)):
        with suppress(ValueError):  # a run counts samples that it cannot read
            for num, of_sample in fixed_examples(source, range(index, index + 1)):
                pictures = max(pictures, num)
                examples += of_sample
    if not examples:
        raise ValueError(f"{source.datasets[0].folder}: no sample can be read; pack the data again")
    prompts = [
        " ".join([e.prompt, *(text for turn in e.turns for text in turn.texts)]) for e in examples
    ]
    answers = [e.target for e in examples if e.target is not None]
    answers += [text for e in examples for turn in e.turns for text in turn.texts if turn.learned]
    words = {word for text in (*prompts, *answers) for word in re.findall(r"\w+", text.lower())}
    letters = {letter for text in (*prompts, *answers) for letter in text}
    few = examples[:SCORED]
    scores = source.task.score(
        {e.id: e.target or "" for e in few}, {e.id: e.reference for e in few}
    )
    return Texts(
        source.num_annotations,
        longest(prompts) + ROOM * max(len(e.turns) for e in examples),
        longest(answers),
        pictures,
        min(MOST_PIECES, len(words) + len(letters) + OTHER_PIECES),
        "word_f1" if "word_f1" in scores else next(iter(scores)),
    )


def longest(texts: Iterable[str]) -> int:
    """A bound of the tokens of the longest text, with what surrounds it."""

    def tokens(word: str) -> int:
        # Chinese has no blanks, and a token for each sign; long words have some for their parts.
        return max(min(2, len(word)), len(word) // LETTERS) if word.isascii() else len(word)

    return ROOM + max((sum(map(tokens, text.split())) for text in texts), default=0)


# The model.


def model_for(given: str | None) -> tuple[str | None, str]:
    """The image-text model to tune, None for a small one from random weights; and why.

    Errors: ValueError for a model that is not there, or reads no pictures.
    """
    if given is not None:
        check_model(given)
        return given, f"{given} with LoRA, as --model says"
    small = "a small model from random weights, as"
    if not has_gpu_driver():
        return None, f"{small} this machine has no GPU (--model: another)"
    try:
        check_model(HUB_MODEL)
    except ValueError as error:
        tell(str(error))
        return None, f"{small} {HUB_MODEL} cannot be had here (--model: another)"
    return HUB_MODEL, f"{HUB_MODEL} with LoRA, as this machine has a GPU (--model: another)"


def check_model(name: str) -> None:
    """Errors: ValueError for a folder without an image-text model; for a name that the hub does not
    know, or whose files are neither here nor on a hub that answers."""
    folder = Path(name).expanduser()
    files = dict(MODEL_FILES)
    if not folder.is_dir():
        # Here, because it imports torch; it takes what is in Hugging Face's cache, too.
        from huggingface_hub import constants

        from vlds.models.loading.model_files import fetch

        folder = fetch(name, "--model", "name a folder with an image-text model")
        if not constants.is_offline_mode():
            del files["weights"]  # the run downloads them
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"--model {name} holds no config.json; name a folder of Hugging Face")
    tree = read_json(config)
    if not isinstance(tree, dict) or "vision_config" not in tree:
        kind = tree.get("model_type") if isinstance(tree, dict) else None
        raise ValueError(
            f"--model {name} is a model of the type {kind}, which reads no pictures by itself; "
            "name an image-text model, or write a recipe as docs/models.md says"
        )
    # Before the pictures are packed: training would find it out after that.
    for what, patterns in files.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise ValueError(
                f"--model {name} holds no {what} ({' or '.join(patterns)}); copy the whole folder"
            )


def make_tokenizer(packed: Packed) -> int:
    """Write a tokenizer of the data's words, and the sizes of a small T5 that uses it; the exit
    code."""
    num = packed.train.vocabulary
    file = packed.folder / TOKENIZER
    words = ["tokenizer", str(packed.folder / packed.learned), "--out", str(file)]
    words += ["--vocab-size", str(num)]
    if code := run_data(Stage("make a tokenizer of the words", file, words), "2 of 2"):
        return code
    config = read_json(find(SIZES))
    assert isinstance(config, dict)
    # The pieces are at most so many; rows that no piece has are not used.
    config |= {"vocab_size": num, "dropout_rate": 0.1}
    write_whole(packed.folder / CONFIG, json.dumps(config, indent=1))
    return 0


# The recipe.


def recipe_of(packed: Packed, model: str | None) -> dict[str, Any]:
    """The recipe's keys."""
    data = packed.train
    batch = min(LARGE_BATCH if model is None else SMALL_BATCH, max(1, data.examples // 8))
    epochs = TUNED_EPOCHS
    if model is None:
        epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(STEPS * batch / data.examples)))
    steps = math.ceil(epochs * data.examples / batch)
    gpu = has_gpu_driver()
    training: dict[str, Any] = {
        "epochs": epochs,
        "precision": "bf16" if gpu else "fp32",
        "deepspeed": "ds_configs/zero2.json",
        "log_every": max(1, min(20, steps // 20)),
        "save_every": steps,
    }
    if packed.evaluated is not None:
        training |= {
            "evaluate_every": max(1, math.ceil(steps / EVALUATIONS)),
            "best": f"{packed.name_of_task}/{data.score}",
        }
    tree: dict[str, Any] = {"output": f"runs/{packed.name}", "seed": 0}
    if model is None:
        tree |= small_model(packed)
        rates = {
            "learning_rate": 7e-4,
            "betas": [0.9, 0.98],
            "clip_norm": 1.0,
            "warmup_ratio": 0.05,
        }
        batches = {"global_batch_size": batch, "eval_batch_size": 64}
    else:
        tree |= tuned_model(model, data.pictures)
        training["activation_checkpointing"] = gpu
        rates = {"learning_rate": 1e-4, "clip_norm": 1.0}
        batches = {"global_batch_size": batch, "micro_batch_size": 1, "eval_batch_size": 8}
    return tree | {
        "tasks": {packed.name_of_task: task_of(packed)},
        "data": batches,
        "optimizer": rates,
        "training": training,
    }


def small_model(packed: Packed) -> dict[str, Any]:
    """A T5 of the data's words behind a small net for pictures; all its weights train."""
    backbone = {
        "config": str(packed.folder / CONFIG),
        "tokenizer": str(packed.folder / TOKENIZER),
        "extra_tokens": 0,
        "visual_tokens": 16,
    }
    vision = {"image_size": 64, "grid": 4, "widths": [8, 16, 64, 128], "downsample": "pool"}
    vision |= {"coordinates": True, "add_mean": True}
    return {
        "model": chosen(
            "JointSeq2Seq",
            backbone=chosen("T5", **backbone),
            vision=chosen("ConvNet", **vision),
            visual_embedding={"boxes": "grid", "num_images": max(1, packed.train.pictures)},
        ),
        "methods": {"full": chosen("Full"), "encoder": chosen("Full", part="vision")},
    }


def tuned_model(path: str, pictures: int) -> dict[str, Any]:
    """An image-text model of Hugging Face, with LoRA on the layers of its language model."""
    roles = ["attn_q", "attn_k", "attn_v", "attn_out", "ffn_in", "ffn_out"]
    return {
        "model": chosen(
            "ImageTextToText", path=path, num_images=max(1, pictures), train_connector=False
        ),
        "methods": {"lora": chosen("LoRA", rank=16, alpha=32, roles=roles, train_biases=False)},
    }


def task_of(packed: Packed) -> dict[str, Any]:
    """The task, with limits that hold its longest texts."""
    folder, data, usual = packed.folder, packed.train, packed.task
    options: dict[str, Any] = {"train": [f"{folder}/{packed.learned}"]}
    if packed.evaluated is not None:
        options["evaluate"] = [f"{folder}/{packed.evaluated}"]
    if packed.tested is not None:
        options["test"] = [f"{folder}/{packed.tested}"]
    options["max_prompt_tokens"] = max(usual.max_prompt_tokens, data.prompt_tokens)
    options["max_target_tokens"] = max(usual.max_target_tokens, data.answer_tokens)
    options["decoding"] = {"num_beams": 1, "max_new_tokens": data.answer_tokens}
    if isinstance(packed.task, ImageClass):
        options["decoding"] = {
            "num_beams": 1,
            "answers": f"{folder}/{packed.learned}/{DATASET_FILE}",
        }
    return chosen(type(packed.task).__name__, **options)


def chosen(name: str, **arguments: Any) -> dict[str, Any]:
    """A class of a recipe, with its arguments."""
    return {CLASS: name, ARGUMENTS: arguments} if arguments else {CLASS: name}


def comments(packed: Packed, why: str) -> list[str]:
    """What stands on top of the recipe."""
    return [
        f"yaml-language-server: $schema={packed.folder / SCHEMA.name}",
        f"Written by `vlds init` for {packed.train.examples:,} examples in {packed.folder}.",
        f"The model: {why}.",
        *(f"{what}: {words}" for what, words in next_commands(packed)),
    ]


def next_commands(packed: Packed) -> list[tuple[str, str]]:
    """What to do next, and the command for it."""
    run = f"runs/{packed.name}"
    commands = [("train", shell_command("vlds", "train", f"{packed.name}.yaml"))]
    if packed.tested is not None:
        words = shell_command("vlds", "evaluate", run, "--split", "test")
        commands.append(("at the very end, score new pictures", words))
    commands.append(("see mistakes and curves", shell_command("vlds", "report", run)))
    return commands


def show(packed: Packed, tree: dict[str, Any], why: str) -> None:
    """Say what was written, and the next two commands."""
    training, splits = tree["training"], [packed.evaluated, packed.tested]
    tell(f"wrote {packed.name}.yaml; the model: {why}")
    tell(
        f"it learns {packed.train.examples:,} examples for {training['epochs']} epochs"
        + (f"; the best of {EVALUATIONS} evaluations on {splits[0]} is kept" if splits[0] else "")
        + (f"; {splits[1]} stays unseen until you ask" if splits[1] else "")
    )
    for what, words in next_commands(packed):
        tell(f"{what}:\n  {words}")
