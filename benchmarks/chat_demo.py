"""Trains a tiny image-text model on conversations about the demo's pictures.

    python benchmarks/chat_demo.py --seeds 0 1 2

A conversation has three turns and two pictures: a question about the first one; "and here ?" with
the second one, which asks the same of it; and a statement about both. The first question is one of
the demo's VQA or GQA, or asks for a caption. For each seed, an InternVL of 1.6 M random weights
first learns to see (demo_image_text_see), then to converse (recipes/chat/demo.yaml).

Controls: the same model with grey pictures, and in conversations where nothing was said and shown
before the last question (the turns before it are "no").

All files go to runs/chat_demo and, as those of `vlds demo`, to runs/demo/data. What is there
already is not made again. The scores go to stdout.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from image_text_demo import (
    DATA,
    convert,
    last_scores,
    run,
    run_recipe,
    write_cells,
    write_model,
)

from data_prep.demo.text import (
    HOME_PHRASES,
    PLAIN,
    absent_look,
    ask_gqa,
    ask_vqa,
    caption_scene,
)
from data_prep.demo.world import HOME, Scene, draw, random_scene
from vlds.evaluation.result import read_scores

OUT = Path("runs/chat_demo")
SCENES = {"train": 12_000, "val": 600}
"""Pictures of each kind of question. In val, no picture is one of train."""
KINDS = {"vqa": "exact_match", "gqa": "exact_match", "caption": "rouge_l"}
"""Kind of the first two questions -> its score."""
AGAIN = ("and here ?", "what about this one ?")
CAPTION = "what is in the picture ?"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for part in m.content %}"
    "{% if part.type == 'image' %}<IMG_CONTEXT>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "</s>{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
WORDS = (f"system user assistant : {CAPTION}", *AGAIN)


class Asked(NamedTuple):
    scene: Scene
    answer: str


def main() -> None:
    """Make what all seeds share, train, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="none: only data")
    seeds = parser.parse_args().seeds
    if not (DATA / "spiece.model").exists():
        run("data_prep", "demo", "--out", DATA)
    if not (OUT / "model").exists():
        write_model(OUT / "model", WORDS, TEMPLATE)
    if not (OUT / "cells" / "train").exists():
        write_cells(OUT / "cells")
    for kind in KINDS:
        for split in SCENES:
            write_talks(OUT / "talks" / kind, kind, split)
    print("| seed | model | turn | VQA | GQA | caption |\n|---|---|---|---|---|---|")
    for seed in seeds:
        folder = OUT / str(seed)
        config, processor = OUT / "model" / "config.json", OUT / "model" / "processor"
        source = ("--model.config", config, "--model.processor", processor)
        cells = ("--tasks.cells.train", json.dumps([str(OUT / "cells" / "train")]))
        run_recipe("demo_image_text_see", seed, folder / "see", *source, *cells)
        convert(folder / "see", folder / "seeing")
        run_recipe("chat/demo", seed, folder / "chat", "--model.path", folder / "seeing")
        show(seed, "conversations", last_scores(folder / "chat"))
        blank = ("--data.blank_images", "true")
        alone = [f"{kind}={OUT / 'talks' / kind / 'alone-val'}" for kind in KINDS]
        for name, words in (("grey pictures", blank), ("without history", ("--data", *alone))):
            out = folder / name.replace(" ", "_")
            run("vlds", "evaluate", folder / "chat", *words, "--out", out)
            show(seed, name, {task: scored.scores for task, scored in read_scores(out).items()})


def show(seed: int, name: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print a row for each turn: exact match, and ROUGE-L of captions."""
    for turn in ("1", "2", "3"):
        row = [f"{scores[kind][f'{score}/turn/{turn}']:.3f}" for kind, score in KINDS.items()]
        print(f"| {' | '.join([str(seed), name, turn, *row])} |", flush=True)


def write_talks(folder: Path, kind: str, split: str) -> None:
    """Draw pictures, and pack conversations about them, whole and turn by turn."""
    if (folder / split).exists():
        return
    rng = Random(f"{kind} {split}")
    photos = folder / "photos" / split
    photos.mkdir(parents=True, exist_ok=True)
    talks, alone = [], []
    for number, (question, pair) in enumerate(pairs(kind, SCENES[split], rng)):
        names = [f"{split}/{number}-{side}.jpg" for side in (0, 1)]
        for name, asked in zip(names, pair, strict=True):
            (folder / "photos" / name).write_bytes(draw(asked.scene, HOME, rng))
        statement, holds = state_of_both(pair[0].scene, pair[1].scene, rng)
        turns = [
            (f"<image> {question}", pair[0].answer, names[:1]),
            (f"<image> {rng.choice(AGAIN)}", pair[1].answer, names[1:]),
            (statement, "true" if holds else "false", []),
        ]
        talk = [line for asked, answer, _ in turns for line in said(asked, answer)]
        talks.append({"messages": talk, "images": names})
        for before, (words, reply, shown) in enumerate(turns):
            silent = said("no", "no", weight=0) * before
            alone.append({"messages": silent + said(words, reply), "images": shown})
    # The folder `split` comes last: it says that all is done.
    controls = {"alone-val": alone} if split == "val" else {}
    for name, rows in (controls | {split: talks}).items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        each = ("--each-turn",) if name == "val" else ()
        source = ("--annotations", file, "--images", folder / "photos", "--split", split, *each)
        run("data_prep", "chat", *source, "--name", f"{kind}_{name}", "--out", folder / name)


def said(question: str, answer: str, weight: int = 1) -> list[dict[str, Any]]:
    """A question and its answer as messages."""
    learned = {"role": "assistant", "content": answer, "weight": weight}
    return [{"role": "user", "content": question}, learned]


def pairs(kind: str, scenes: int, rng: Random) -> Iterator[tuple[str, tuple[Asked, Asked]]]:
    """Questions, each with two scenes and the answers about them."""
    asked: dict[str, list[Asked]] = defaultdict(list)
    for _ in range(scenes):
        scene = random_scene(rng, fewest=2)
        if kind == "caption":
            asked[CAPTION].append(Asked(scene, caption_scene(scene, HOME_PHRASES)[0]))
            continue
        if questions := (ask_vqa if kind == "vqa" else ask_gqa)(scene, HOME_PHRASES, rng):
            one = rng.choice(questions)
            asked[one.question].append(Asked(scene, one.answer))
    talks = [
        (question, (first, second))
        for question, about in sorted(asked.items())
        for first, second in zip(about[::2], about[1::2], strict=False)
    ]
    rng.shuffle(talks)
    yield from talks


def state_of_both(first: Scene, second: Scene, rng: Random) -> tuple[str, bool]:
    """A statement about two scenes, and whether it holds; both are equally frequent in each kind of
    statement, and most false ones are near misses."""
    left, right = ({thing.look for thing in scene} for scene in (first, second))
    common, one = sorted(left & right), sorted(left ^ right)
    nowhere = [absent_look(left | right, rng)]
    kinds = {"left": (sorted(left), sorted(right - left) or nowhere)}
    if one:
        kinds["either"] = (one, common or nowhere)
    if common:
        kinds["both"] = (common, one or nowhere)
    kind = rng.choice(sorted(kinds))
    holds = rng.random() < 0.5
    choices = kinds[kind][not holds]
    if not holds and rng.random() < 0.5 and kind != "both":
        choices = nowhere
    look = PLAIN.say(rng.choice(choices))
    return HOME_PHRASES.statements[kind].format(look=look), holds


if __name__ == "__main__":
    main()
