"""Every command of `vlds` and `data_prep` with a command line that works, and what it reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from data_prep.demo import write_world as write_demo_world
from data_prep.demo_world import HOME
from tests.convert.runs import recipe_with
from tests.convert.runs import write_run as write_converted_run
from tests.data_prep.pictures import jpeg, write
from tests.faults.forked import Forked
from tests.report.scored_run import lines_of, vqa_run
from tests.report.scored_run import write_run as write_scored_run
from tests.training.world import world_recipe, write_world
from vlds.config import save_recipe
from vlds.report.scores import Scores, TaskScores, write_scores
from vlds.vision import ConvNet

Maker = Callable[["Inputs"], object]


@dataclass(frozen=True)
class Command:
    """A command line; the words begin with the command and name files below the folder."""

    program: str
    words: str
    reads: tuple[str, ...]
    """The inputs that it needs."""
    codes: tuple[int, ...] = (0, 2)
    """Exit codes that say what became of it, beside 128 + n."""
    hurt: str = ""
    """Only files whose path holds this are damaged; default: all."""

    @property
    def name(self) -> str:
        """As the program's table has it."""
        parts = self.words.split()
        return " ".join([self.program, *parts[: 2 if parts[0] == "convert" else 1]])


@dataclass
class Inputs:
    """Inputs that are made when first asked for, then copied: recipes hold their own paths, so all
    copies lie in one place, one after another."""

    top: Path
    forked: Forked
    made: set[str] = field(default_factory=set)

    @property
    def place(self) -> Path:
        """The folder of the command that runs."""
        return self.top / "case"

    def lay_out(self, names: tuple[str, ...]) -> None:
        """Put fresh copies of these inputs in place, and nothing else."""
        for name in names:
            if name not in self.made:
                MAKERS[name](self)
                shutil.copytree(self.place / name, self.top / "made" / name, symlinks=True)
                self.made.add(name)
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        for name in names:
            shutil.copytree(self.top / "made" / name, self.place / name, symlinks=True)

    def folder(self, name: str, *needs: str) -> Path:
        """A new folder in which an input is made, beside others that it needs."""
        self.lay_out(needs)
        (self.place / name).mkdir()
        return self.place / name

    def run(self, program: str, words: str) -> None:
        """A command that must succeed."""
        code, said = self.forked.run(program, words.split(), self.place)
        assert code == 0, f"{program} {words}\n{said}"


def make_world(inputs: Inputs) -> None:
    write_world(inputs.folder("world"))


def make_recipe(inputs: Inputs) -> None:
    """A short run with states and evaluations."""
    folder = inputs.folder("recipe", "world")
    recipe = world_recipe(inputs.place / "world", inputs.place / "run" / "trained")
    training = replace(
        recipe.training, steps=2, save_every=1, evaluate_every=2, keep_states=1,
        best="vqa/exact_match",
    )  # fmt: skip
    save_recipe(replace(recipe, training=training), folder / "run.yaml")


def make_run(inputs: Inputs) -> None:
    inputs.folder("run", "world", "recipe")
    inputs.run("vlds", "train --config recipe/run.yaml")


def make_scored(inputs: Inputs) -> None:
    """Its report is there, and its scores beside another model's."""
    run = vqa_run(inputs.place / "world", inputs.folder("scored", "world") / "run", 3)
    inputs.run("vlds", "report scored/run --resamples 0")
    column = {"a": {"exact_match": 0.5}, "b": {"exact_match": 0.6}}
    task = TaskScores(column, examples=3, headline="exact_match")
    held = {"frozen": 3}
    scores = Scores(
        ("a", "b"), {"vqa": task}, {"total": 9, "trainable": 3}, held, {"training": 3.0}
    )
    write_scores(run / "scores.json", scores)


def make_of_method(name: str, method: str, layout: str) -> Maker:
    def make(inputs: Inputs) -> None:
        folder = inputs.folder(name, "world")
        recipe = recipe_with("T5", method, inputs.place / "world", folder)
        write_converted_run(recipe)
        save_recipe(recipe, folder / "recipe.yaml")
        ending = ".pth" if layout == "reference" else ""
        inputs.run("vlds", f"convert {layout} --run {name}/run --out {name}/{layout}{ending}")

    return make


def make_features(inputs: Inputs) -> None:
    """A recipe whose encoder is in a file."""
    import torch

    folder = inputs.folder("features", "world")
    random = ConvNet(image_size=16, grid=2, widths=[4, 8, 8])
    (folder / "net").mkdir()
    encoder = random.export(random.build(torch.float32), folder / "net")
    recipe = replace(world_recipe(inputs.place / "world", folder / "run"), vision=encoder)
    save_recipe(recipe, folder / "recipe.yaml")


def make_official(inputs: Inputs) -> None:
    """The publishers' layouts of VQA v2, GQA, NLVR2, and COCO's captions in two of them."""
    folder = inputs.folder("official")
    write_demo_world(folder, HOME, 40, 0)
    pictures = [{"id": n, "file_name": f"{n}.jpg"} for n in (7, 8)]
    captions = [{"image_id": n, "id": n, "caption": f"a dog {n}"} for n in (7, 8)]
    write(folder / "captions/annotations/captions_val2014.json",
          {"info": {}, "images": pictures, "annotations": captions})  # fmt: skip
    for picture in pictures:
        write(folder / "captions/val2014" / str(picture["file_name"]), jpeg())


def make_vg(inputs: Inputs) -> None:
    folder = inputs.folder("vg")
    asked = [{"qa_id": n, "image_id": 1, "question": "What?", "answer": "a dog."} for n in (1, 2)]
    write(folder / "question_answers.json", [{"id": 1, "qas": asked}])
    write(folder / "image_data.json", [{"image_id": 1, "coco_id": 70}])
    write(folder / "dataset_coco.json", {"images": [{"cocoid": 70, "split": "train"}]})
    write(folder / "VG_100K/1.jpg", jpeg())


def make_snli_ve(inputs: Inputs) -> None:
    folder = inputs.folder("snli_ve")
    rows = [
        {"pairID": f"{n}#0", "gold_label": "neutral", "sentence1": "Two.", "sentence2": "Dogs.",
         "Flickr30K_ID": str(n), "captionID": f"{n}.jpg#0"}
        for n in (1, 2)
    ]  # fmt: skip
    write(folder / "snli_ve_dev.jsonl", lines(rows))
    for n in (1, 2):
        write(folder / "flickr30k-images" / f"{n}.jpg", jpeg())


def make_value(inputs: Inputs) -> None:
    folder = inputs.folder("value")
    asked: dict[str, Any] = {f"a{n}": f"Choice {n}." for n in range(5)} | {"q": "Who?"}
    moment = {"vid_name": "s1", "duration": 9.5, "ts": [1, 2.5], "clip_id": 4}
    told = [{"desc": "Ann waves.", "desc_id": 31, "type": "v"}]
    row = {"qid": 1, "ts": "1.5-3", "vid_name": "s1", "answer_idx": 2, **asked}
    four = {key: value for key, value in row.items() if key != "a4"}
    write(folder / "ann/tvqa/tvqa_train.jsonl", lines([row]))
    write(folder / "ann/how2qa_val_release.jsonl", lines([four]))
    write(folder / "ann/tvc/tvc_val_release.jsonl", lines([{**moment, "descs": told}]))
    write(folder / "ann/yc2c/yc2c_train_release.jsonl", lines([{**moment, "descs": told}]))
    spoken = {"vid_name": "s1", "sub": [{"text": "Oh no.", "start": 0.0, "end": 1.0}]}
    for videos in ("tv", "how2", "yc2"):
        write(folder / f"ann/{videos}_subtitles.jsonl", lines([spoken]))
        place = folder / "vis_features" / videos / "clip-vit"
        place.mkdir(parents=True)
        np.savez(place / "s1.npz", features=np.ones((10, 5), np.float16))


def make_rows(inputs: Inputs) -> None:
    """A user's own rows, in three formats, with pictures and with features."""
    folder = inputs.folder("rows")
    rows = [{"image": f"{n}.jpg", "question": f"why {n}?", "answer": "so"} for n in range(3)]
    write(folder / "rows.json", rows)
    write(folder / "rows.jsonl", lines(rows))
    csv = "".join(f"{row['image']},{row['question']},{row['answer']}\n" for row in rows)
    write(folder / "rows.csv", f"image,question,answer\n{csv}")
    for n in range(3):
        write(folder / "images" / f"{n}.jpg", jpeg())
        (folder / "arrays").mkdir(exist_ok=True)
        np.save(folder / "arrays" / f"{n}.npy", np.ones((4, 3), np.float16))


def make_demo(inputs: Inputs) -> None:
    """The folder of a demo whose stages are done; its report is not."""
    folder = inputs.folder("demo", "world")
    recipe = world_recipe(inputs.place / "world", folder / "adapters")
    recipe = replace(recipe, tasks={"vqa": recipe.tasks["vqa"]})
    answers = lines_of(recipe.tasks["vqa"], wrong_every=3)
    for name in ("pretrain/artifact", "backbone", "tuned", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "data/spiece.model").touch()
    for name in ("adapters", "control"):
        write_scored_run(folder / name, recipe, {"vqa": answers})
        (folder / name / "artifact").mkdir()


def lines(rows: list[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


MAKERS: Mapping[str, Maker] = {
    "world": make_world, "recipe": make_recipe, "run": make_run, "scored": make_scored,
    "lora": make_of_method("lora", "lora", "peft"),
    "adapter": make_of_method("adapter", "adapter", "adapters"),
    "reference": make_of_method("reference", "adapter", "reference"),
    "features": make_features, "official": make_official, "vg": make_vg, "snli_ve": make_snli_ve,
    "value": make_value, "rows": make_rows, "demo": make_demo,
}  # fmt: skip


def vlds(words: str, *reads: str, hurt: str = "") -> Command:
    return Command("vlds", words, reads, hurt=hurt)


def prep(words: str, *reads: str, hurt: str = "", codes: tuple[int, ...] = (0, 2)) -> Command:
    return Command("data_prep", words, reads, codes, hurt)


PACK = "--out out --workers 1"
COMMANDS: tuple[Command, ...] = (
    vlds("train --config recipe/run.yaml", "world", "recipe"),
    vlds("train --config recipe/run.yaml --resume --training.steps 3", "world", "recipe", "run"),
    vlds("train --config recipe/run.yaml --resume auto", "world", "recipe", "run", hurt="state"),
    vlds("describe --config recipe/run.yaml", "world", "recipe"),
    vlds("plan --config recipe/run.yaml", "world", "recipe"),
    vlds("evaluate --run run/trained --out out", "world", "run"),
    vlds("evaluate --run lora/run --data vqa=world/vqa --out out", "world", "lora"),
    vlds("evaluate --predictions run/trained/predictions/step-00000002/vqa.jsonl --data world/vqa",
         "world", "run", hurt="vqa"),
    vlds("predict --run run/trained --image rows/images/0.jpg --question what --task vqa",
         "world", "run", "rows"),
    vlds("predict --run run/trained --data vqa=world/vqa --out out", "world", "run"),
    vlds("features --config features/recipe.yaml --data world/vqa --out out", "world", "features"),
    vlds("convert hf --run run/trained --out out", "world", "run"),
    vlds("convert merge --run lora/run --out out", "world", "lora"),
    vlds("convert merge --how average --run lora/run lora/run --out out", "world", "lora"),
    vlds("convert reference --run reference/run --out out.pth", "world", "reference"),
    vlds("convert reference --from reference/reference.pth --run reference/run --out out",
         "world", "reference"),
    vlds("convert peft --run lora/run --out out", "world", "lora"),
    vlds("convert peft --from lora/peft --run lora/run --out out", "world", "lora"),
    vlds("convert adapters --run adapter/run --out out", "world", "adapter"),
    vlds("convert adapters --from adapter/adapters --run adapter/run --out out",
         "world", "adapter"),
    vlds("report run/trained scored/run --out out --resamples 9", "world", "run", "scored"),
    vlds("report run/trained --format md", "world", "run"),
    vlds("report scored/run --format csv --out out", "world", "scored"),
    vlds("demo --out demo", "world", "demo"),
    prep(f"vqav2 --src official/coco --split val {PACK}", "official", hurt="coco"),
    prep(f"gqa --src official/gqa --split val {PACK}", "official", hurt="gqa"),
    prep(f"nlvr2 --src official/nlvr2 --split dev {PACK}", "official", hurt="nlvr2"),
    prep(f"coco-karpathy --src official/coco --split val {PACK}", "official", hurt="coco"),
    prep(f"coco-captions --src official/captions --split val {PACK}", "official", hurt="captions"),
    prep(f"vg --src vg --what questions --without-coco vg/dataset_coco.json {PACK}", "vg"),
    prep(f"snli-ve --src snli_ve --split dev {PACK}", "snli_ve"),
    prep(f"value-tvqa --src value --split train {PACK}", "value"),
    prep(f"value-how2qa --src value --split val {PACK}", "value"),
    prep(f"value-tvc --src value --split val {PACK}", "value"),
    prep(f"value-yc2c --src value --split train {PACK}", "value"),
    prep(f"jsonl --task vqa --annotations rows/rows.json --images rows/images {PACK}", "rows"),
    prep(f"jsonl --task vqa --annotations rows/rows.csv --images rows/images {PACK} --image-size 9",
         "rows"),
    prep(f"jsonl --task vqa --annotations rows/rows.jsonl --images rows/images {PACK} "
         "--features rows/arrays --encoder net", "rows"),
    prep("index world/vqa --name vqa --kind vqa --split train", "world", hurt="vqa"),
    prep("tokenizer world/vqa --out out.model", "world", hurt="vqa"),
    prep("answers world/vqa --out out.json --min-count 1", "world", hurt="vqa"),
    prep("stats world", "world"),
    prep("verify world --workers 1", "world", codes=(0, 1, 2)),
    prep("preview world/vqa", "world", hurt="vqa"),
    prep("preview world/vqa --out out.html", "world", hurt="vqa"),
    prep("preview world/caption --out out.png", "world", hurt="caption"),
    prep("simulate-order world/vqa world/caption --steps 5", "world"),
)  # fmt: skip


def drawn_file(folder: Path, command: Command, draw: Random) -> Path:
    """A file of the inputs: first a kind is drawn, then one of it, since most files are shards."""
    files = [
        path for path in sorted(folder.rglob("*"))
        if path.is_file() and command.hurt in str(path.relative_to(folder))
    ]  # fmt: skip
    ending = draw.choice(sorted({path.suffix for path in files}))
    return draw.choice([path for path in files if path.suffix == ending])
