"""README.md of a converted folder: a model card of the Hugging Face hub.

It says what the run knows: recipe, trained weights, scores, licence of what it was made from. Names
of folders of this machine are not on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from vlds.artifact import (
    WEIGHTS,
    LoadedRun,
    TrainedOn,
    artifact_folder,
    own_parts,
    read_recipe,
    read_trained_on,
)
from vlds.convert.combine import task_of_head
from vlds.convert.output import Base, bases_of
from vlds.convert.peft import PeftFolders
from vlds.evaluation.result import Scored, read_scores
from vlds.models.methods import Method
from vlds.models.methods.host import is_own
from vlds.models.model import Counts
from vlds.recipe.config import MAX_WIDTH, Recipe, to_tree
from vlds.runtime.files import open_file
from vlds.runtime.folders import PREDICTIONS
from vlds.runtime.json_files import parse_json, read_json, read_metric_lines, recorded_hash
from vlds.runtime.terminal import visible
from vlds.tasks.base import Task
from vlds.tasks.metrics.plain_scores import plain

# Pieces of a model card: code, tables, and trees without the places of this machine.


WHOLE_PATH = re.compile(r"(?:file://)?(?:/|~\w*/|\$\w+/|(?:[^\s:]+/)?\.\./)\S.*")
INNER_PATH = re.compile(r"(?:file://(?=/)|(?<![\w.:/~]))~?/(?:[^\s/'\"]+/)+")
"""The folders of a path inside another text, such as a command."""


def fenced(language: str, text: str) -> str:
    """A block of code, with a fence that does not occur in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; empty without rows."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    marks = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *lines]) if lines else ""


def without_places(tree: Any) -> Any:
    """A tree whose paths are names, but those that lead down from the working folder."""
    if isinstance(tree, dict):
        return {key: without_places(entry) for key, entry in tree.items()}
    if isinstance(tree, list):
        return [without_places(entry) for entry in tree]
    if not isinstance(tree, str):
        return tree
    return Path(tree).name if WHOLE_PATH.fullmatch(tree) else INNER_PATH.sub("", tree)


# The scores of an artifact, as far as its run folder knows them.
#
# `vlds evaluate` writes RUN/predictions/scores.json; training logs the scores of its evaluations,
# with their steps, in RUN/metrics.jsonl. RUN/best/best.json says which step that artifact is of.


LONGEST_LINE = 1 << 20
"""Bytes of a prediction that are read."""


def scores_of_run(run: Path, recipe: Recipe) -> dict[str, Scored]:
    """Task -> the scores of the whole on the data that the recipe names, by the artifact's weights;
    empty where none are known."""
    folder = artifact_folder(run)
    with suppress(ValueError):  # somebody's file: a card can do without
        scored, weights = read_scores(run / PREDICTIONS), recorded_hash(folder, WEIGHTS)
        # The run may have trained on since it was evaluated.
        if of_these := {task: e for task, e in scored.items() if e.weights == weights}:
            return {task: entry for task, entry in of_these.items() if plain(entry.scores)}
    if (step := step_of(folder, recipe)) is None:
        return {}
    logged = logged_scores(folder.parent / "metrics.jsonl", step)
    return {
        task: Scored(*scored_data(folder.parent, step, task), scores)
        for task, scores in logged.items()
        if plain(scores)
    }


def scored_data(run: Path, step: int, task: str) -> tuple[str | None, int | None]:
    """The data that a run's evaluation after a step was on, and its number of examples; None where
    its predictions do not say."""
    with suppress(OSError, ValueError, AttributeError):
        with open_file(run / PREDICTIONS / f"step-{step:08d}" / f"{task}.jsonl") as file:
            line = parse_json(file.readline(LONGEST_LINE))
        data, number = line.get("data"), line.get("of")
        return (
            data if isinstance(data, str) else None,
            number if isinstance(number, int) and number >= 0 else None,
        )
    return None, None


def step_of(folder: Path, recipe: Recipe) -> int | None:
    """The step of an artifact: the run's last, or that of its best evaluation."""
    with suppress(OSError, ValueError):
        step = read_json(folder / "best.json")["step"]
        return step if isinstance(step, int) else None
    return recipe.training.num_steps if recipe.training.epochs is None else None


def logged_scores(file: Path, step: int) -> Mapping[str, Mapping[str, float]]:
    """Task -> the scores of a step in metrics.jsonl."""
    for _, line in reversed(read_metric_lines(file).lines):
        if line["step"] == step and "scores" in line:
            scores: Mapping[str, Mapping[str, float]] = line["scores"]
            return scores
    return {}


# The code on a model card: how to open the folder that the card is in, and to ask the model.


QUESTION = "What is in the picture?"
PHOTO = "photo.jpg"
OPEN_ALL = "vlds opens the whole model, and asks it"
SEES = "image-text-to-text"
"""The hub's word for what these models do."""


@dataclass(frozen=True)
class Address:
    """Where the folder is found."""

    name: str
    """The folder's name, or its name on the hub."""
    on_hub: bool

    @classmethod
    def of(cls, out: Path, hub_name: str | None) -> Address:
        """Of a folder that may go to the hub."""
        return cls(hub_name or out.name, hub_name is not None)

    @property
    def text(self) -> str:
        """The name as a text in Python."""
        return text_of(self.name)


@dataclass(frozen=True)
class Opening:
    """How a folder is opened."""

    library: str
    """The library that opens it, perhaps on the base model that it belongs to."""
    task: str | None
    """What the model does once it is open, in the hub's words."""
    steps: Sequence[tuple[str, Sequence[str]]]
    """What some lines of Python do, and the lines."""


def opening_of_model(run: LoadedRun, address: Address) -> Opening:
    """Of a folder that `vlds convert hf` has written."""
    kind = run.recipe.model
    if not kind.opens_whole:
        name = f"{kind.auto_class}.from_pretrained({address.text})"
        alone = [f"from transformers import {kind.auto_class}", "", f"model = {name}"]
        title = f"transformers opens the {kind.backbone_word} alone, without pictures"
        return Opening("vlds", SEES, [(OPEN_ALL, with_vlds(run, address)), (title, alone)])
    if run.recipe.methods or run.model.heads:
        return Opening("vlds", SEES, [(OPEN_ALL, with_vlds(run, address))])
    lines = [
        "from PIL import Image",
        f"from transformers import {kind.auto_class}, AutoProcessor",
        "",
        f"model = {kind.auto_class}.from_pretrained({address.text})",
        f"processor = AutoProcessor.from_pretrained({address.text})",
        *asking(run, "do_sample=False"),
    ]
    return Opening("transformers", SEES, [("transformers opens and asks the model", lines)])


def opening_of_method(
    run: LoadedRun, address: Address, base: str, folders: Sequence[str]
) -> Opening:
    """Of what `vlds convert peft` has written. `base`: name of the model that it is for;
    `folders`: those below the top that hold an adapter each."""
    kind = run.recipe.model
    name, sees = kind.auto_class, kind.opens_whole
    below = next(filter(None, folders), "")
    subfolder = f", subfolder={text_of(below)}" if below else ""
    lines = [
        "from peft import PeftModel",
        *(["from PIL import Image"] if sees else []),
        f"from transformers import {name}" + (", AutoProcessor" if sees else ""),
        "",
        f"base = {name}.from_pretrained({text_of(base)})",
        f"model = PeftModel.from_pretrained(base, {address.text}{subfolder})",
    ]
    if sees:
        # The base model may end answers elsewhere, and punish repeated words.
        ends = run.model.generation_defaults().eos_token_id
        how = f"do_sample=False, repetition_penalty=1.0, eos_token_id={ends}"
        lines += [f"processor = AutoProcessor.from_pretrained({text_of(base)})", *asking(run, how)]
    title = "peft puts the method on its base model"
    if not sees:
        title += ", which reads text alone; `vlds convert hf` writes the model that sees"
    return Opening("peft", SEES if sees else kind.backbone_task, [(title, lines)])


def asking(run: LoadedRun, how: str) -> list[str]:
    """Ask an image-text model of transformers; nothing for types without a chat template, or where
    heads answer. `how`: more arguments of `generate`."""
    task = next((task for task in run.recipe.tasks.values() if task.head is None), None)
    if task is None or not getattr(run.processor, "chat_template", None):
        return []
    pictures = ['{"type": "image", "image": Image.open("' + PHOTO + '")},'] * pictures_of(task)
    decoding = task.decoding
    options = f"max_new_tokens={decoding.max_new_tokens}, num_beams={decoding.num_beams}"
    return [
        "",
        "content = [",
        *(f"    {line}" for line in pictures),
        f'    {{"type": "text", "text": {text_of(prompt_of(task))}}},',
        "]",
        "inputs = processor.apply_chat_template(",
        '    [{"role": "user", "content": content}],',
        '    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",',
        *(f"    {name}={value}," for name, value in run.model.template_variables.items()),
        ").to(model.device, dtype=model.dtype)",
        f"ids = model.generate(**inputs, {options}, {how})",
        'answer = ids[0, inputs["input_ids"].shape[1]:]',
        "print(processor.decode(answer, skip_special_tokens=True))",
    ]


def with_vlds(run: LoadedRun, address: Address) -> list[str]:
    """Open a folder with vlds, and ask its first task."""
    name, task = next(iter(run.recipe.tasks.items()))
    lines, folder = ["import vlds"], address.text
    if address.on_hub:
        lines += ["from huggingface_hub import snapshot_download"]
        folder = f"snapshot_download({folder})"
    lines += ["", f"model = vlds.load({folder})"]
    if run.recipe.image is None:  # stored features
        return lines
    photos = [text_of(PHOTO)] * pictures_of(task)
    shown = photos[0] if len(photos) == 1 else f"[{', '.join(photos)}]"
    question = [text_of(QUESTION)] if task.input_field else []
    words = ", ".join([shown, *question, f"task={text_of(name)}"])
    return [*lines, f"answer = model.answer({words})", "print(answer.text)"]


def prompt_of(task: Task) -> str:
    """A question as the task writes it."""
    return task.prompt + (QUESTION if task.input_field else "")


def pictures_of(task: Task) -> int:
    """Pictures of a sample."""
    return task.num_pictures or 1


def text_of(text: str) -> str:
    """A text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


CARD = "README.md"
HUB_DATA = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Described:
    """What a card is about."""

    recipe: Recipe
    """Of the run, before anything was folded."""
    counts: Counts
    """Weights of the run's model."""
    scores: Mapping[str, Scored]
    trained_on: Mapping[str, TrainedOn]


def describe(run: Path, counts: Counts) -> Described:
    """What is known of a run."""
    folder = artifact_folder(run)
    recipe = read_recipe(folder)
    return Described(recipe, counts, scores_of_run(run, recipe), read_trained_on(folder))


def write_model_card(
    folder: Path, described: Described, written: LoadedRun, address: Address
) -> None:
    """Write the card of a folder with a whole model. `written`: the run that the folder holds."""
    left = kept_apart(written)
    apart = f" The weights of {left} are kept apart, in `{WEIGHTS}`." if left else ""
    holds = f"This folder holds the whole model.{apart}"
    write_card(folder, described, opening_of_model(written, address), address, holds)


def kept_apart(written: LoadedRun) -> str:
    """What has weights that only vlds' own file holds, in words; "" for nothing."""
    stored = own_parts(written.model)
    owners = {written.model.trained_by.get(name) for name in stored}
    inside = {word for name in stored if not is_own(name) for word in name.split(".")}
    methods = [f"`{name}`" for name in written.recipe.methods if name in owners | inside]
    heads = ["the tasks' heads"] if any(task_of_head(name) for name in stored) else []
    return ", ".join([*methods, *heads])


def write_method_card(
    folder: Path, described: Described, files: PeftFolders, address: Address
) -> None:
    """Write the card of a folder of peft."""
    base, note = base_name(files)
    below = [folder for folder, _ in files.folders()]
    opening = opening_of_method(files.run, address, base, below)
    connector = " and of the connector" if files.saved_modules else ""
    holds = f"This folder holds the weights of `{files.name}`{connector} alone. {note}"
    if any(below):
        holds += f" Each task has a folder: {', '.join(f'`{each}`' for each in below)}."
    write_card(folder, described, opening, address, holds)


def base_name(files: PeftFolders) -> tuple[str, str]:
    """Name of the model that a folder of peft is for, and a sentence about it."""
    kind = files.run.recipe.model
    sources = {base.part: base.name for base in bases_of(kind)}
    name = sources.get("backbone") or sources.get("language model")
    if kind.own_backbone or name is None:
        name = "backbone"
        note = "They are for the folder that `vlds convert hf` writes of this run"
        note += ", here called `backbone`." if files.base is None else "."
    else:
        note = f"They are for `{files.base or name}`."
    return files.base or name, note


def write_card(
    folder: Path, described: Described, opening: Opening, address: Address, holds: str
) -> None:
    """Write README.md into a folder. `holds`: sentences about what the folder has of the model."""
    bases = bases_of(described.recipe.model)
    sections = {
        "": f"{summary(described, bases)} {holds}",
        "Use": code(opening),
        "Scores": scores_table(described),
        "Data": data_table(described),
        "Recipe": recipe_text(described.recipe),
        "Licence": "\n".join(license_lines(bases)),
    }
    title = address.name.rpartition("/")[2]
    parts = [f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text]
    data = metadata(described.recipe, bases, opening)
    text = "\n\n".join([f"---\n{data.to_yaml()}\n---", f"# {title}", *parts])
    ModelCard(visible(text) + "\n").save(folder / CARD)


def metadata(recipe: Recipe, bases: Sequence[Base], opening: Opening) -> ModelCardData:
    """What the hub reads. A licence is named where it is that of all that the model is made of."""
    names = list(dict.fromkeys(base.hub_name for base in bases if base.hub_name))
    licenses = [dict(base.license) for base in bases]
    common = licenses[0] if licenses and all(each == licenses[0] for each in licenses) else {}
    tags = ["vlds", *(tag for method in recipe.methods.values() for tag in tags_of(method))]
    return ModelCardData(
        base_model=names[0] if len(names) == 1 else names or None,
        library_name=opening.library,
        pipeline_tag=opening.task,
        tags=tags,
        datasets=hub_datasets(recipe) or None,
        license=common.get("license"),
        license_name=common.get("license_name"),
        license_link=common.get("license_link"),
    )


def tags_of(method: Method) -> list[str]:
    """A method's name, and the type of one of peft's."""
    return [word.lower() for word in name_of(method).split()]


def name_of(method: Method) -> str:
    """A method's class, with the type of one of peft's."""
    return " ".join(filter(None, [type(method).__name__, getattr(method, "type", "")]))


def summary(described: Described, bases: Sequence[Base]) -> str:
    """What was trained, from what, and how much of it."""
    recipe, counts = described.recipe, described.counts
    origin = " + ".join(f"`{base.name}` ({base.part})" for base in bases)
    methods = [name_of(method) for method in recipe.methods.values()]
    trained = [*methods, *recipe.trained_text]
    uncounted = "" if "vision" not in counts.by_part else " without the vision encoder"
    return (
        f"{origin or 'A model with random weights'}, tuned by vlds with "
        f"{' + '.join(trained) or 'nothing'} on {', '.join(recipe.tasks)}: {counts.percent:.3g} % "
        f"of its weights trained ({counts.trainable:,} of {counts.total:,}{uncounted})."
    )


def code(opening: Opening) -> str:
    """The code that opens the folder, with what each piece does."""
    return "\n\n".join(
        f"{title}:\n\n{fenced('python', chr(10).join(lines))}" for title, lines in opening.steps
    )


def scores_table(described: Described) -> str:
    """Scores of the whole of each task, as far as the run has them."""
    rows = []
    for task, entry in described.scores.items():
        data = entry.data.partition("@")[0] if entry.data else ""
        examples = "" if entry.examples is None else f"{entry.examples:,}"
        for name, value in plain(entry.scores).items():
            rows.append([task, data, examples, name, f"{value:.4f}"])
    return table(["task", "data", "examples", "score", "value"], rows)


def data_table(described: Described) -> str:
    """The data sets of each task, by the names of their folders or URLs, and the number of its
    training examples, where the run knows it."""
    rows = []
    for name, task in described.recipe.tasks.items():
        known = described.trained_on.get(name)
        examples = "" if known is None or known.examples is None else f"{known.examples:,}"
        data = names_of(task.train), examples, names_of(task.evaluate)
        rows.append([name, type(task).__name__, *data])
    return table(["task", "kind", "trained on", "examples", "evaluated on"], rows)


def names_of(places: Sequence[str]) -> str:
    """Data sets by their names."""
    return ", ".join(without_places(to_tree(list(places))))


def hub_datasets(recipe: Recipe) -> list[str]:
    """Data sets of the hub that the tasks train on."""
    places = [place for task in recipe.tasks.values() for place in task.train]
    return list(dict.fromkeys(m[1] for place in places if (m := HUB_DATA.match(place))))


def recipe_text(recipe: Recipe) -> str:
    """The run's recipe; of files and folders of this machine, their names."""
    tree = without_places(to_tree(recipe))
    text = yaml.safe_dump(tree, sort_keys=False, width=MAX_WIDTH, allow_unicode=True)
    return f"<details><summary>Recipe of vlds</summary>\n\n{fenced('yaml', text)}\n\n</details>"


def license_lines(bases: Sequence[Base]) -> list[str]:
    """A line about the licence of each model that this one is made from."""
    lines = []
    for base in bases:
        name = base.license.get("license_name") or base.license.get("license")
        if name is None:
            lines.append(
                f"- `{base.name}` ({base.part}): its licence is not known here; it applies to this "
                "model too."
            )
            continue
        link = base.license.get("license_link", "")
        lines.append(f"- `{base.name}` ({base.part}): {name}{f', {link}' if link else ''}.")
    return lines
