"""Trains a tiny CLIP on the demo's captions, then few-shot methods on classes that it has not met.

    python benchmarks/clip_demo.py --seeds 0 1 2 --shots 1 2 4 8 16

The model is a CLIP of 1 M random weights: a tower of 4 layers for pictures, whose patches are as
large as the cells in which the shapes lie, and one of 3 layers for texts. For each seed, it trains
by `demo_clip.yaml`; then `demo_few_shot.yaml` runs with each method and number of shots. The 24
classes are six colors, which the captions name, of four figures, which no picture and no text of
the demo has. Each method has its own learning rate, epsilon and decay (ROWS).

The table of accuracies goes to stdout. All files go to runs/clip_demo and, like those of `vlds
demo`, to runs/demo/data. Finished runs are not repeated: delete runs/clip_demo after a change.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import AutoConfig, PreTrainedTokenizerFast

from data_prep.demo.world import FIGURES
from vlds.runtime.metrics_file import read_metric_lines

DATA, OUT = Path("runs/demo/data"), Path("runs/clip_demo")
SIDE, PATCH, WIDTH, EMBEDDING = 48, 16, 128, 64
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def one(name: str, **fields: Any) -> dict[str, Any]:
    """The recipe's `methods` with one method."""
    return {name.lower(): {"class_path": name, "init_args": fields}}


@dataclass(frozen=True)
class Row:
    """A method of the table."""

    methods: Mapping[str, Any]
    learning_rate: float
    eps: float = 1e-6
    decay: float = 0.01
    head: Mapping[str, Any] = field(default_factory=dict)
    """Replaces the recipe's head, if it is not empty."""


ROWS = {
    "linear probe": Row({}, 0.05, head={"class_path": "LinearHead"}),
    "Tip-Adapter-F": Row(one("TipAdapter", alpha=3.0, beta=3.0), 0.002, eps=1e-4),
    "SimNL": Row(one("SimNL", alpha=3.0, beta=3.0), 0.002, eps=1e-3, decay=0.1),
    "APoLLo": Row(one("APoLLo", depth=3, length=1, heads=4), 0.002),
    "prompts alone": Row(one("APoLLo", depth=3, length=1, adapters=False), 0.002),
    "Adapter, both towers": Row(one("Adapter", reduction=8, init="identity"), 0.002),
    "LoRA, vision": Row(one("LoRA", rank=4, train_biases=False, part="vision"), 0.002),
}


def main() -> None:
    """Make what all seeds share, train, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    if not (DATA / "spiece.model").exists():
        run("data_prep", "demo", "--out", DATA)
    if not (OUT / "model").exists():
        write_model(OUT / "model")
    first_scores: list[float] = []
    seeds = ", ".join(map(str, options.seeds))
    print(f"Accuracy on 24 classes after training, mean and deviation over seeds {seeds}:\n")
    print(f"| method | {' | '.join(f'{n} shots' for n in options.shots)} |", flush=True)
    print(f"|---|{'---|' * len(options.shots)}", flush=True)
    for name in ROWS:
        cells = []
        for shots in options.shots:
            values = [few_shot(name, shots, seed) for seed in options.seeds]
            cells.append(shown([last for _, last in values]))
            # A linear probe's weights are drawn: before training it is at chance.
            first_scores += [first for first, _ in values if not ROWS[name].head]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    lowest, highest = min(first_scores), max(first_scores)
    print(f"\nBefore training, linear probe left out: {lowest:.3f} to {highest:.3f}")


def shown(values: Sequence[float]) -> str:
    """Mean, and deviation over seeds if there are several."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def few_shot(name: str, shots: int, seed: int) -> tuple[float, float]:
    """Accuracy before and after training on `shots` pictures of each class."""
    folder, row = OUT / str(seed), ROWS[name]
    clip = pretrain(seed, folder)
    recipe = yaml.safe_load(Path("recipes/demo_few_shot.yaml").read_text(encoding="utf-8"))
    output = folder / f"{name.replace(',', '').replace(' ', '_')}_{shots}"
    task = recipe["tasks"]["figures"]["init_args"]
    task["shots"], task["head"] = shots, row.head or task["head"]
    rates = {"learning_rate": row.learning_rate, "eps": row.eps, "weight_decay": row.decay}
    recipe |= {"output": str(output), "seed": seed, "methods": dict(row.methods)}
    recipe["optimizer"] |= rates
    recipe["model"]["init_args"]["path"] = str(clip)
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    if not (output / "artifact").exists():
        run("vlds", "train", file)
    first, *_, last = scores_of(output)
    return first["figures"]["accuracy"], last["figures"]["accuracy"]


def pretrain(seed: int, folder: Path) -> Path:
    """The folder of a seed's CLIP."""
    clip, trained = folder / "clip", folder / "pretrain"
    if not (trained / "artifact").exists():
        run("vlds", "train", "recipes/demo_clip.yaml", "--seed", seed, "--output", trained)
    if not clip.exists():
        run("vlds", "convert", "hf", "--run", trained, "--out", clip)
    return clip


def run(module: str, *words: object) -> None:
    """Run a command; its own output goes to stderr."""
    command = [sys.executable, "-m", module, *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def scores_of(trained: Path) -> list[Any]:
    """The scores of each of a run's evaluations."""
    lines = [line for _, line in read_metric_lines(trained / "metrics.jsonl").lines]
    return [line["scores"] for line in lines if "scores" in line]


def write_model(folder: Path) -> None:
    """The tokenizer and the config of the tiny CLIP."""
    raw = Tokenizer(WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    trainer = WordLevelTrainer(special_tokens=list(SPECIAL.values()), show_progress=False)
    # Figures get words too. Pretraining never sees them: their embeddings stay random.
    texts = (DATA / "text.txt").read_text(encoding="utf-8").splitlines()
    raw.train_from_iterator([*texts, *FIGURES], trainer)
    ids = {token: raw.token_to_id(token) for token in SPECIAL.values()}
    raw.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    words = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="right", **SPECIAL)
    words.save_pretrained(folder)
    layers = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": EMBEDDING,
    }
    named = {f"{name}_token_id": ids[SPECIAL[f"{name}_token"]] for name in ("pad", "bos", "eos")}
    config = AutoConfig.for_model(
        "clip",
        projection_dim=EMBEDDING,
        text_config={
            **layers,
            **named,
            "num_hidden_layers": 3,
            "vocab_size": len(words),
            "max_position_embeddings": 24,
        },
        vision_config={**layers, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH},
    )
    config.save_pretrained(folder)


if __name__ == "__main__":
    main()
