"""README.md of a converted folder: a model card of the Hugging Face hub.

It says what the run knows: recipe, trained weights, scores, licence of what it was made from. Names
of folders of this machine are not on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from vlds.config import MAX_WIDTH, Recipe, to_tree
from vlds.convert.alike import task_of_head
from vlds.convert.bases import Base, bases_of
from vlds.convert.card_code import Address, Opening, opening_of_method, opening_of_model
from vlds.convert.card_text import fenced, table, without_places
from vlds.convert.peft import PeftFolders
from vlds.convert.run_scores import scores_of_run
from vlds.evaluation.scores_json import Scored
from vlds.methods import Method
from vlds.methods.extended import is_own
from vlds.metrics.tables import plain
from vlds.models import JointSeq2Seq
from vlds.models.counts import Counts
from vlds.runtime.shown import visible

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
    if isinstance(kind, JointSeq2Seq) or name is None:
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
