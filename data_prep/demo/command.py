"""`demo`: drawn pictures in the publishers' file layouts, packed like any other, and a tokenizer.

    OUT/official/WORLD/{coco,gqa,nlvr2}       the layout of a download of the real data sets
    OUT/official/classes/{looks,figures}      pictures in folders of classes (class_pictures.py)
    OUT/shards/WORLD/DATASET-SPLIT            vqav2, gqa, regions, nlvr2, coco; train and val
                                              (nlvr2: dev)
    OUT/shards/classes/SET-SPLIT              train, val and test
    OUT/text.txt, OUT/spiece.model            every text of both worlds; a sentencepiece model of it

The seed decides every byte. World `home` is for pretraining, `shifted` for tuning (world.py).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from data_prep.command import add_shard_options, at_least, new_command, shard_options
from data_prep.demo.class_pictures import CLASS_SETS, parse_class_set, write_class_set
from data_prep.demo.files import PAIRS_PER_SET, WorldWriter
from data_prep.demo.phrases import PHRASES, word_lines
from data_prep.demo.regions import regions_of
from data_prep.demo.world import HOME, SHIFTED, WORLDS, World
from data_prep.official.coco import parse_coco_karpathy
from data_prep.official.gqa import parse_gqa
from data_prep.official.nlvr2 import parse_nlvr2
from data_prep.official.vqav2 import parse_vqav2
from data_prep.packed.vocabularies import train_tokenizer
from data_prep.packing.pack import Options, pack
from data_prep.packing.parallel import ordered_map
from data_prep.packing.source import SourceSet
from vlds.runtime.disk import writable
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole

HOME_SCENES = 12_000
SHIFTED_TO_HOME = 5 / 12
"""The shifted world is smaller: tuning should need little data."""
COCO_SHARE, GQA_SHARE = 0.32, 0.30
"""Shares of the scenes; NLVR2's pairs get the rest."""
VAL_SHARES = {HOME.name: 0.08, SHIFTED.name: 0.2}
"""Shares of scenes kept for evaluation; the shifted world needs 300 captioned pictures."""
FEWEST_SCENES = 200
"""With fewer, a split could be empty."""
VOCABULARY = 224
"""Upper limit of the pieces; the text has fewer words."""


def make_demo(out: Path, seed: int, scenes: int, options: Options) -> None:
    """Draw both worlds and the classes, pack all data sets, train the tokenizer."""
    make_classes(out, seed, scenes, options)
    make = partial(make_world, out=out, seed=seed, scenes=scenes, options=options)
    drawn = ordered_map(make, WORLDS, len(WORLDS), chunk=1, pieces=scenes)
    texts = set[str]().union(*drawn)
    lines = sorted(texts) + word_lines()
    write_whole(out / "text.txt", "".join(f"{line}\n" for line in lines))
    write_whole(out / "spiece.model", train_tokenizer(lines, VOCABULARY))
    tell(f"text in {out / 'text.txt'}, tokenizer in {out / 'spiece.model'}")


def make_classes(out: Path, seed: int, scenes: int, options: Options) -> None:
    """Draw and pack the sets of classes."""
    for name in CLASS_SETS:
        folder = out / "official" / "classes" / name
        if folder.exists():
            shutil.rmtree(folder)
        with writable(folder):
            write_class_set(folder, name, scenes, seed)
        for dataset in parse_class_set(folder, name):
            pack(dataset, out / "shards" / "classes" / f"{name}-{dataset.split}", options)


def make_world(world: World, out: Path, seed: int, scenes: int, options: Options) -> set[str]:
    """Draw and pack one world; returns its texts."""
    options = replace(options, workers=1)  # its pictures are tiny
    folder = out / "official" / world.name
    if folder.exists():
        shutil.rmtree(folder)
    count = scenes if world == HOME else round(scenes * SHIFTED_TO_HOME)
    with writable(folder):
        texts = write_world(folder, world, count, seed)
    for dataset in parse_world(folder, world):
        short_name = dataset.name.removeprefix(f"{world.name}-")
        pack(dataset, out / "shards" / world.name / f"{short_name}-{dataset.split}", options)
    return texts


def write_world(folder: Path, world: World, scenes: int, seed: int) -> set[str]:
    """Official files of one world; returns its texts."""
    writer = WorldWriter(folder, world, PHRASES[world.name], Random(f"{seed} {world.name}"))
    share = VAL_SHARES[world.name]
    coco, gqa = round(scenes * COCO_SHARE), round(scenes * GQA_SHARE)
    sets = (scenes - coco - gqa) // (2 * PAIRS_PER_SET)
    for write, total in ((writer.coco, coco), (writer.gqa, gqa), (writer.nlvr2, sets)):
        val = max(1, round(total * share))
        write(total - val, val)
    return writer.texts


def parse_world(folder: Path, world: World) -> Iterator[SourceSet]:
    """Read the official files back with the parsers of the real data sets."""
    for split in ("train", "val"):
        gqa = parse_gqa(folder / "gqa", split)
        datasets = (
            parse_vqav2(folder / "coco", split),
            gqa,
            regions_of(gqa),
            parse_nlvr2(folder / "nlvr2", "dev" if split == "val" else split),
            parse_coco_karpathy(folder / "coco", split),
        )
        # The shard names include the world: other readers' caches use the file name only.
        yield from (replace(dataset, name=f"{world.name}-{dataset.name}") for dataset in datasets)


def add_command(commands: Any) -> None:
    """Add `demo`."""
    parser = new_command(
        commands,
        "demo",
        "drawn pictures of colored shapes in official layouts",
        "Draws two worlds of colored shapes, writes them as VQA v2, GQA, NLVR2 and COCO captions "
        "in the publishers' file layouts (OUT/official), packs them and the names of GQA's things "
        "by cell (OUT/shards), and trains a sentencepiece model on their text (OUT/spiece.model). "
        "Two more sets, looks "
        "and figures, are pictures of one thing in folders of 24 classes (OUT/shards/classes).",
        examples=["demo --out runs/demo/data"],
    )
    parser.add_argument(
        "--scenes",
        type=at_least(FEWEST_SCENES),
        default=HOME_SCENES,
        help=f"pictures of the home world (default: {HOME_SCENES})",
    )
    add_shard_options(parser)

    def run(args: argparse.Namespace) -> None:
        # The seed draws the worlds; shuffling the shards by it as well would add nothing.
        make_demo(args.out, args.seed, args.scenes, replace(shard_options(args), seed=0))

    parser.set_defaults(run=run)
