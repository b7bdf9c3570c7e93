"""What the commands of `vlds` and `data_prep` read, small and valid."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.classes.few_shot import LAYOUTS
from data_prep.demo.command import write_world as write_demo_world
from data_prep.demo.world import HOME
from tests.toys import few_shot_sets, lxmert_files, official_sets
from tests.toys.class_folders import cifar10
from tests.toys.class_folders import folders as class_folders
from tests.toys.faults.forked_commands import run_forked
from tests.toys.files import json_lines, write
from tests.toys.films import film
from tests.toys.pictures import jpeg
from tests.toys.recipes import with_model
from tests.toys.scored_runs import lines_of, vqa_run, write_scored_run
from tests.toys.trained_runs import recipe_with
from tests.toys.trained_runs import write_run as write_converted_run
from tests.toys.world import world_recipe, write_world
from vlds.evaluation.result import Scored, write_scores
from vlds.models.vision import ConvNet
from vlds.recipe.config import save_recipe

Maker = Callable[["Inputs"], object]


@dataclass
class Inputs:
    """Inputs of commands, made when first needed and then copied.

    Recipes contain absolute paths, so all copies use the same folder, one after another.
    """

    top: Path
    finished: set[str] = field(default_factory=set)

    @property
    def case_folder(self) -> Path:
        """The folder in which the command runs."""
        return self.top / "case"

    def lay_out(self, names: tuple[str, ...]) -> None:
        """Empty the case folder and copy these inputs into it."""
        for name in names:
            if name not in self.finished:
                MAKERS[name](self)
                shutil.copytree(self.case_folder / name, self.top / "made" / name, symlinks=True)
                self.finished.add(name)
        shutil.rmtree(self.case_folder, ignore_errors=True)
        self.case_folder.mkdir()
        for name in names:
            shutil.copytree(self.top / "made" / name, self.case_folder / name, symlinks=True)

    def folder(self, name: str, *needs: str) -> Path:
        """A new folder for an input, next to the inputs that it needs."""
        self.lay_out(needs)
        (self.case_folder / name).mkdir()
        return self.case_folder / name

    def run(self, program: str, words: str) -> None:
        """Run a command, which must succeed."""
        code, output = run_forked(program, words.split(), self.case_folder)
        assert code == 0, f"{program} {words}\n{output}"


def make_world(inputs: Inputs) -> None:
    write_world(inputs.folder("world"))


def make_recipe(inputs: Inputs) -> None:
    """A short run with states and evaluations."""
    folder = inputs.folder("recipe", "world")
    recipe = world_recipe(inputs.case_folder / "world", inputs.case_folder / "run" / "trained")
    training = replace(
        recipe.training, steps=2, save_every=1, evaluate_every=2, keep_states=1,
        best="vqa/exact_match",
    )  # fmt: skip
    save_recipe(replace(recipe, training=training), folder / "run.yaml")


def make_run(inputs: Inputs) -> None:
    inputs.folder("run", "world", "recipe")
    inputs.run("vlds", "train --config recipe/run.yaml")


def make_scored(inputs: Inputs) -> None:
    """A scored run with its report, and another model's scores to compare with."""
    run = vqa_run(inputs.case_folder / "world", inputs.folder("scored", "world") / "run", 3)
    inputs.run("vlds", "report scored/run --resamples 0")
    compared = {"a": {"exact_match": 0.5}}
    scored = Scored(None, 3, {"exact_match": 0.6}, headline="exact_match", compared=compared)
    write_scores(run, {"vqa": scored})


def make_sweep(inputs: Inputs) -> None:
    """A sweep whose only run is done."""
    folder = inputs.folder("sweep", "world", "recipe")
    sweep = {
        "output": "sweep/table", "recipes": {"one": "recipe/run.yaml"}, "seeds": [7],
        "scores": {"vqa": "exact_match"},
    }  # fmt: skip
    write(folder / "table.yaml", sweep)
    inputs.run("vlds", "sweep sweep/table.yaml")


def make_of_method(name: str, method: str, layout: str) -> Maker:
    def make(inputs: Inputs) -> None:
        folder = inputs.folder(name, "world")
        recipe = recipe_with("T5", method, inputs.case_folder / "world", folder)
        write_converted_run(recipe)
        save_recipe(recipe, folder / "recipe.yaml")
        ending = ".pth" if layout == "reference" else ""
        inputs.run("vlds", f"convert {layout} --run {name}/run --out {name}/{layout}{ending}")

    return make


def make_features(inputs: Inputs) -> None:
    """A recipe whose vision encoder has its weights in a file."""
    import torch

    folder = inputs.folder("features", "world")
    random = ConvNet(image_size=16, grid=2, widths=[4, 8, 8])
    (folder / "net").mkdir()
    encoder = random.export(random.build(torch.float32), folder / "net")
    recipe = with_model(world_recipe(inputs.case_folder / "world", folder / "run"), vision=encoder)
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
    write(folder / "snli_ve_dev.jsonl", json_lines(rows))
    for n in (1, 2):
        write(folder / "flickr30k-images" / f"{n}.jpg", jpeg())


def make_sets(inputs: Inputs) -> None:
    """The data sets that have a recipe each."""
    folder = inputs.folder("sets")
    for name in ("okvqa", "aokvqa", "textvqa", "scienceqa", "refcoco", "flickr30k"):
        getattr(official_sets, f"write_{name}")(folder / name)
    official_sets.write_refcoco(folder / "refcoco-plus", "refcoco+")
    official_sets.write_refcoco(folder / "refcocog", "refcocog", "umd")


def make_few_shot(inputs: Inputs) -> None:
    folder = inputs.folder("few_shot")
    few_shot_sets.write_zhou(folder / LAYOUTS[0].folder, LAYOUTS[0])
    few_shot_sets.write_aircraft(folder / "fgvc_aircraft")
    few_shot_sets.write_imagenet(folder / "imagenet")


def make_lxmert(inputs: Inputs) -> None:
    folder = inputs.folder("lxmert")
    lxmert_files.write_aggregate(folder)
    lxmert_files.features(folder)


def make_value(inputs: Inputs) -> None:
    folder = inputs.folder("value")
    asked: dict[str, Any] = {f"a{n}": f"Choice {n}." for n in range(5)} | {"q": "Who?"}
    moment = {"vid_name": "s1", "duration": 9.5, "ts": [1, 2.5], "clip_id": 4}
    described = json_lines(
        [{**moment, "descs": [{"desc": "Ann waves.", "desc_id": 31, "type": "v"}]}]
    )
    row = {"qid": 1, "ts": "1.5-3", "vid_name": "s1", "answer_idx": 2, **asked}
    four = {key: value for key, value in row.items() if key != "a4"}
    write(folder / "ann/tvqa/tvqa_train.jsonl", json_lines([row]))
    write(folder / "ann/how2qa_val_release.jsonl", json_lines([four]))
    write(folder / "ann/tvc/tvc_val_release.jsonl", described)
    write(folder / "ann/yc2c/yc2c_train_release.jsonl", described)
    spoken = {"vid_name": "s1", "sub": [{"text": "Oh no.", "start": 0.0, "end": 1.0}]}
    for videos in ("tv", "how2", "yc2"):
        write(folder / f"ann/{videos}_subtitles.jsonl", json_lines([spoken]))
        features = folder / "vis_features" / videos / "clip-vit"
        features.mkdir(parents=True)
        np.savez(features / "s1.npz", features=np.ones((10, 5), np.float16))


def make_rows(inputs: Inputs) -> None:
    """A user's own rows, in three formats, with pictures and with features."""
    folder = inputs.folder("rows")
    rows = [{"image": f"{n}.jpg", "question": f"why {n}?", "answer": "so"} for n in range(3)]
    write(folder / "rows.json", rows)
    write(folder / "rows.jsonl", json_lines(rows))
    talks = [
        {"messages": [{"role": "user", "content": f"<image>why {n}?"},
                      {"role": "assistant", "content": "so"}],
         "images": [f"{n}.jpg"], "patient": f"p{n}"}
        for n in range(3)
    ]  # fmt: skip
    write(folder / "talks.jsonl", json_lines(talks))
    films = [{"video": f"{n}.mp4", "question": f"why {n}?", "answer": "so"} for n in range(2)]
    write(folder / "films.jsonl", json_lines(films))
    for n in range(2):
        film(folder / "clips" / f"{n}.mp4", 1)
    csv = "".join(f"{row['image']},{row['question']},{row['answer']}\n" for row in rows)
    write(folder / "rows.csv", f"image,question,answer\n{csv}")
    for n in range(3):
        write(folder / "images" / f"{n}.jpg", jpeg())
        (folder / "arrays").mkdir(exist_ok=True)
        np.save(folder / "arrays" / f"{n}.npy", np.ones((4, 3), np.float16))


def make_classes(inputs: Inputs) -> None:
    """Pictures of classes in folders, a list, a table and CIFAR's batches."""
    folder = inputs.folder("classes")
    class_folders(folder / "flat", {"ant": 4, "bee": 4})
    rows = [[f"{name}/{n}.jpg", number, name] for number, name in enumerate(("ant", "bee"))
            for n in range(3)]  # fmt: skip
    write(folder / "split.json", {"train": rows[::2], "test": rows[1::2]})
    csv = "".join(f"{picture},{name}\n" for picture, _, name in rows)
    write(folder / "rows.csv", f"image,label\n{csv}")
    write(folder / "names.json", {"ant": "an ant", "bee": "a bee"})
    cifar10(folder / "cifar", ("ant", "bee"), {"data_batch_1.bin": [0, 1], "test_batch.bin": [1]})


def make_packed(inputs: Inputs) -> None:
    """A packed data set of classes."""
    inputs.folder("packed", "classes")
    inputs.run("data_prep", "imagefolder --images classes/flat --out packed --workers 1")


def make_demo(inputs: Inputs) -> None:
    """The folder of a demo that has finished all stages but its report."""
    folder = inputs.folder("demo", "world")
    recipe = world_recipe(inputs.case_folder / "world", folder / "adapters")
    recipe = replace(recipe, tasks={"vqa": recipe.tasks["vqa"]})
    answers = lines_of(recipe.tasks["vqa"], wrong_every=3)
    for name in ("pretrain/artifact", "backbone", "tuned", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "data/spiece.model").touch()
    for name in ("adapters", "control"):
        write_scored_run(folder / name, recipe, {"vqa": answers})
        (folder / name / "artifact").mkdir()


MAKERS: Mapping[str, Maker] = {
    "world": make_world, "recipe": make_recipe, "run": make_run, "scored": make_scored,
    "lora": make_of_method("lora", "LoRA", "peft"),
    "adapter": make_of_method("adapter", "Adapter", "adapters"),
    "reference": make_of_method("reference", "Adapter", "reference"),
    "features": make_features, "official": make_official, "vg": make_vg, "snli_ve": make_snli_ve,
    "sets": make_sets, "few_shot": make_few_shot, "lxmert": make_lxmert, "sweep": make_sweep,
    "value": make_value, "rows": make_rows, "demo": make_demo, "classes": make_classes,
    "packed": make_packed,
}  # fmt: skip
