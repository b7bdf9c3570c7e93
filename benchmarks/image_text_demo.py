"""Trains a tiny image-text model from random weights on the demo's world.

    python benchmarks/image_text_demo.py --seeds 0 1 2

The model is an InternVL of 1 M weights: a tower of 4 layers on patches of 8 pixels, 9 visual tokens
a picture, a Llama of 4 layers. For each seed, three recipes follow each other:

    demo_image_text_see    list the 9 cells of a picture; a model this small cannot learn to see and
                           to read at once in minutes
    demo_image_text_home   the demo's four tasks on the home world; all weights train
    demo_image_text        the same tasks on the shifted world; the model is frozen, adapters train

All files go to runs/image_text_demo and, as those of `vlds demo`, to runs/demo/data. What is there
already is not made again. The scores go to stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import (
    AutoConfig,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from vlds.runtime.json_files import read_metric_lines
from vlds.training.alignment import cell_of

DATA, OUT = Path("runs/demo/data"), Path("runs/image_text_demo")
SIDE, PATCH, GRID = 48, 8, 3
"""Pixels of a picture's side and of a patch's, and cells along the side."""
WIDTH, LAYERS, HEADS = 128, 4, 4
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PICTURE = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
EMPTY = ["no", "no"]
"""How a cell without an object is spelled. All cells have two words, so that each has its place."""
HEADLINES = {"vqa": "vqa_accuracy", "gqa": "accuracy", "nlvr2": "accuracy", "caption": "word_f1"}


def main() -> None:
    """Make what all seeds share, train, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    if not (DATA / "spiece.model").exists():
        run("data_prep", "demo", "--out", DATA)
    if not (OUT / "model").exists():
        write_model(OUT / "model")
    if not (OUT / "cells" / "train").exists():
        write_cells(OUT / "cells")
    print("| seed | world | VQA | GQA | NLVR2 | word F1 |\n|---|---|---|---|---|---|")
    for seed in seeds:
        for world, scores in train(seed, OUT / str(seed)).items():
            row = [f"{scores[task][name]:.3f}" for task, name in HEADLINES.items()]
            print(f"| {' | '.join([str(seed), world, *row])} |", flush=True)


def train(seed: int, folder: Path) -> dict[str, Any]:
    """World -> task -> scores of the last step, of one seed."""
    see, home, shifted = folder / "see", folder / "home", folder / "shifted"
    seeing, backbone = folder / "seeing", folder / "backbone"
    run_recipe("demo_image_text_see", seed, see)
    convert(see, seeing)
    run_recipe("demo_image_text_home", seed, home, "--model.path", seeing)
    convert(home, backbone)
    run_recipe("demo_image_text", seed, shifted, "--model.path", backbone)
    return {"home": last_scores(home), "shifted": last_scores(shifted)}


def run_recipe(name: str, seed: int, output: Path, *changes: Any) -> None:
    """Train, unless it is done."""
    if not (output / "artifact").exists():
        run("vlds", "train", f"recipes/{name}.yaml", "--seed", seed, "--output", output, *changes)


def convert(trained: Path, out: Path) -> None:
    """Make a run a backbone, unless it is done."""
    if not out.exists():
        run("vlds", "convert", "hf", "--run", trained, "--out", out)


def run(module: str, *words: Any) -> None:
    """Run a command; its own output goes to stderr."""
    command = [sys.executable, "-m", module, *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def last_scores(trained: Path) -> Any:
    """Task -> the scores that a run logged last."""
    lines = [line for _, line in read_metric_lines(trained / "metrics.jsonl").lines]
    return [line["scores"] for line in lines if "scores" in line][-1]


def write_model(folder: Path, lines: Iterable[str] = (), template: str | None = None) -> None:
    """The processor and the config of the tiny InternVL, which knows the words of the demo and of
    more lines."""
    raw = Tokenizer(WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    trainer = WordLevelTrainer(special_tokens=list(SPECIAL.values()), show_progress=False)
    raw.train_from_iterator([*(DATA / "text.txt").read_text().splitlines(), *lines], trainer)
    words = PreTrainedTokenizerFast(
        tokenizer_object=raw, extra_special_tokens=PICTURE, padding_side="right", **SPECIAL
    )
    square = {"height": SIDE, "width": SIDE}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=square, crop_to_patches=False),
        video_processor=InternVLVideoProcessor(size=square),
        tokenizer=words,
        image_seq_length=GRID**2,
        chat_template=template,
    )
    layers = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    language = {
        **layers,
        "model_type": "llama",
        "vocab_size": len(words),
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    config = AutoConfig.for_model(
        "internvl",
        text_config=language,
        vision_config={**layers, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=GRID**2,
        downsample_ratio=PATCH * GRID / SIDE,
    )
    processor.save_pretrained(folder / "processor")
    config.save_pretrained(folder)


def write_cells(folder: Path) -> None:
    """Pack the home world's pictures, each with the list of its cells as a caption."""
    source = DATA / "official" / "home" / "gqa"
    graphs = json.loads((source / "train_sceneGraphs.json").read_text())
    rows = [{"image": f"{key}.jpg", "caption": cells(graph)} for key, graph in graphs.items()]
    folder.mkdir(parents=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "train"
    asked = ("--task", "caption", "--annotations", file, "--images", source / "images")
    run("data_prep", "jsonl", *asked, "--name", "cells", "--out", out)


def cells(graph: dict[str, Any]) -> str:
    """Color and shape of each cell of a picture, row by row."""
    words = [EMPTY] * GRID**2
    for entry in graph["objects"].values():
        color = next(word for word in entry["attributes"] if word not in ("small", "large"))
        words[cell_of(entry, graph["width"], graph["height"], GRID)] = [color, entry["name"]]
    return " ".join(word for cell in words for word in cell)


if __name__ == "__main__":
    main()
