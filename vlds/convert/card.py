"""README.md of a converted folder: a model card of the Hugging Face hub.

card.md is its text. This file collects what the run knows: recipe, trained weights, scores, licence
of what it was made from. Names of folders of this machine are not on the card.
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
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlds.artifact import (
    LoadedRun,
    TrainedOn,
    own_parts,
    read_begun_from,
    read_recipe,
    read_trained_on,
)
from vlds.convert.bases import bases_of
from vlds.convert.combine import task_of_head
from vlds.convert.peft import PeftFolders
from vlds.evaluation.result import Scored, read_scores
from vlds.models.loading.quantised import Bits
from vlds.models.methods.host import is_own
from vlds.models.model import Counts
from vlds.recipe.build import MAX_WIDTH, to_tree
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import WEIGHTS, artifact_folder, best_step, home_of
from vlds.runtime.files import open_file
from vlds.runtime.folders import PREDICTIONS
from vlds.runtime.json_files import parse_json, read_metric_lines, recorded_hash
from vlds.runtime.terminal import visible
from vlds.tasks.metrics.plain_scores import plain

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
QUESTION, PHOTO = "What is in the picture?", "photo.jpg"
SEES = "image-text-to-text"
"""The hub's word for what these models do."""
HUB_DATA = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)")
# Texts that are one path, such as /data/x, file:///data/x, ~/x, $HOME/x, ../x and runs/../x.
WHOLE_PATH = re.compile(r"(?:file://)?(?:/|~\w*/|\$\w+/|(?:[^\s:]+/)?\.\./)\S.*")
INNER_PATH = re.compile(r"(?:file://(?=/)|(?<![\w.:/~]))~?/(?:[^\s/'\"]+/)+")
"""The folders of a path inside another text, such as a command."""
LONGEST_LINE = 1 << 20
"""Bytes of a prediction that are read."""


@dataclass(frozen=True)
class Address:
    """Where the folder is found."""

    name: str
    """The folder's name, or its name on the hub."""
    on_hub: bool

    @classmethod
    def of(cls, out: Path, hub_name: str | None) -> Address:
        """The address of a folder that may go to the hub."""
        return cls(hub_name or out.name, hub_name is not None)


@dataclass(frozen=True)
class Described:
    """What a card is about."""

    recipe: Recipe
    """The run's, before anything was folded."""
    counts: Counts
    """Weights of the run's model."""
    scores: Mapping[str, Scored]
    trained_on: Mapping[str, TrainedOn]
    best_step: int | None
    """None of the last step's weights."""
    begun_from: str | None
    """A run whose weights it began with."""


def describe(run: Path, counts: Counts) -> Described:
    """What is known of a run."""
    folder = artifact_folder(run)
    recipe = read_recipe(folder)
    scores = scores_of_run(run, recipe)
    begun_from = read_begun_from(folder)
    return Described(recipe, counts, scores, read_trained_on(folder), best_step(run), begun_from)


def write_model_card(
    folder: Path, described: Described, written: LoadedRun, address: Address
) -> None:
    """Write the card of a folder with a whole model. `written`: the run that the folder holds."""
    # Name the methods and heads whose weights only vlds' own file holds.
    stored = own_parts(written.model)
    owners = {written.model.trained_by.get(name) for name in stored}
    inside = {word for name in stored if not is_own(name) for word in name.split(".")}
    left = [f"`{name}`" for name in written.recipe.methods if name in owners | inside]
    left += ["the tasks' heads"] if any(task_of_head(name) for name in stored) else []
    apart = f" The weights of {', '.join(left)} are kept apart, in `{WEIGHTS}`." if left else ""
    kind, library = written.recipe.model, "vlds"
    use: dict[str, Any] = {"opens": ["vlds"], "question": question_of(written)}
    if not kind.opens_whole:
        use["opens"].append("backbone")
        use["backbone"] = kind.backbone_word
        use["auto_class"] = kind.auto_class
    elif not written.recipe.methods and not written.model.heads:
        library, use = "transformers", {"opens": ["transformers"]}
        use["chat"] = chat_of(written, "do_sample=False")
    holds = f"This folder holds the whole model.{apart}"
    write_card(folder, described, address, holds, library, SEES, use)


def question_of(run: LoadedRun) -> dict[str, Any] | None:
    """What vlds asks the run's first task; None if it reads stored features."""
    name, task = next(iter(run.recipe.tasks.items()))
    if run.recipe.image is None:
        return None
    photos = [PHOTO] * (task.num_pictures or 1)
    return {
        "photos": photos[0] if len(photos) == 1 else photos,
        "text": QUESTION if task.input_field else None,
        "task": name,
    }


def write_method_card(
    folder: Path, described: Described, files: PeftFolders, address: Address
) -> None:
    """Write the card of a folder of peft."""
    run = files.run
    kind = run.recipe.model
    sources = {base.part: base.name for base in bases_of(kind)}
    name = sources.get("backbone") or sources.get("language model")
    if kind.own_backbone or name is None:
        name = "backbone"
        note = "They are for the folder that `vlds convert hf` writes of this run"
        note += ", here called `backbone`." if files.base is None else "."
    else:
        note = f"They are for `{files.base or name}`."
    packing = packing_of(files.backbone, kind.packed_bits)
    if packing:
        note += f" They were trained beside weights of {kind.packed_bits} bits."
    below = [folder for folder, _ in files.folders()]  # one for each adapter; "" is the top
    connector = " and of the connector" if files.saved_modules else ""
    holds = f"This folder holds the weights of `{files.name}`{connector} alone. {note}"
    if any(below):
        holds += f" Each task has a folder: {', '.join(f'`{each}`' for each in below)}."
    sees = kind.opens_whole
    chat = None
    if sees:
        # The base model may end answers elsewhere, and punish repeated words.
        ends = run.model.generation_defaults().eos_token_id
        chat = chat_of(run, "do_sample=False", "repetition_penalty=1.0", f"eos_token_id={ends}")
    use = {
        "opens": ["peft"],
        "sees": sees,
        "auto_class": kind.auto_class,
        "base": files.base or name,
        "subfolder": next(filter(None, below), ""),
        "packing": packing,
        "chat": chat,
    }
    write_card(folder, described, address, holds, "peft", SEES if sees else kind.backbone_task, use)


def packing_of(backbone: Any, bits: Bits | None) -> Mapping[str, Any]:
    """The arguments of BitsAndBytesConfig that pack a base model as a run did; none for floats."""
    if bits is None:
        return {}
    packing = backbone.config.quantization_config
    known = packing if isinstance(packing, dict) else packing.to_diff_dict()
    kept = {
        name: value
        for name, value in known.items()
        if name == "llm_int8_skip_modules" or (bits == 4 and name.startswith("bnb_4bit"))
    }
    return {f"load_in_{bits}bit": True, **kept}


def chat_of(run: LoadedRun, *options: str) -> dict[str, Any] | None:
    """How an image-text model of transformers is asked, with more `options` of `generate`; None for
    types without a chat template, or where heads answer."""
    task = next((task for task in run.recipe.tasks.values() if task.head is None), None)
    if task is None or not getattr(run.processor, "chat_template", None):
        return None
    decoding = task.decoding
    lengths = f"max_new_tokens={decoding.max_new_tokens}", f"num_beams={decoding.num_beams}"
    return {
        "pictures": task.num_pictures or 1,
        "prompt": task.prompt + (QUESTION if task.input_field else ""),
        "variables": run.model.template_variables,
        "options": [*lengths, *options],
    }


def write_card(
    folder: Path,
    described: Described,
    address: Address,
    holds: str,
    library: str,
    hub_task: str | None,
    use: Mapping[str, Any],
) -> None:
    """Write README.md into a folder.

    `holds`: sentences about what the folder has of the model. `library`: which opens it, perhaps on
    the base model that it belongs to. `hub_task`: what the model does once it is open, in the hub's
    words. `use`: what the template's section of this name needs.
    """
    recipe, bases = described.recipe, bases_of(described.recipe.model)
    methods = recipe.methods.values()
    # A method is called by its class; peft's methods share one and differ in `type`.
    names = [" ".join(filter(None, [type(m).__name__, getattr(m, "type", "")])) for m in methods]
    hub_names = list(dict.fromkeys(base.hub_name for base in bases if base.hub_name))
    train_data = [place for task in recipe.tasks.values() for place in task.train]
    hub_data = list(dict.fromkeys(m[1] for place in train_data if (m := HUB_DATA.match(place))))
    # The hub shows one licence: only where everything that the model is made of has the same.
    licenses = [dict(base.license) for base in bases]
    common = licenses[0] if licenses and all(each == licenses[0] for each in licenses) else {}
    metadata = ModelCardData(
        base_model=hub_names[0] if len(hub_names) == 1 else hub_names or None,
        library_name=library,
        pipeline_tag=hub_task,
        tags=["vlds", *(word.lower() for name in names for word in name.split())],
        datasets=hub_data or None,
        license=common.get("license"),
        license_name=common.get("license_name"),
        license_link=common.get("license_link"),
    )
    scores = [
        [
            task,
            entry.data.partition("@")[0] if entry.data else "",
            "" if entry.examples is None else f"{entry.examples:,}",
            name,
            f"{value:.4f}",
        ]
        for task, entry in described.scores.items()
        for name, value in plain(entry.scores).items()
    ]
    data = []
    for task_name, task in recipe.tasks.items():
        known = described.trained_on.get(task_name)
        examples = "" if known is None or known.examples is None else f"{known.examples:,}"
        trained, evaluated = (
            ", ".join(without_places(to_tree(list(places))))
            for places in (task.train, task.evaluate)
        )
        data.append([task_name, type(task).__name__, trained, examples, evaluated])
    terms = []
    for base in bases:
        licence = base.license.get("license_name") or base.license.get("license")
        link = base.license.get("license_link", "")
        if licence is not None and link:
            licence = f"{licence}, {link}"
        terms.append({"name": base.name, "part": base.part, "licence": licence})
    tree = without_places(to_tree(recipe))
    templates = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"fenced": fenced, "quoted": quoted}
    text = templates.get_template(TEMPLATE.name).render(
        use,
        table=table,
        metadata=metadata.to_yaml(),
        title=address.name.rpartition("/")[2],
        name=address.name,
        on_hub=address.on_hub,
        origin=" + ".join(f"`{base.name}` ({base.part})" for base in bases),
        trained=" + ".join([*names, *recipe.trained_text]),
        tasks=recipe.tasks,
        counts=described.counts,
        holds=holds,
        best_step=described.best_step,
        begun_from=described.begun_from,
        scores=scores,
        data=data,
        recipe=yaml.safe_dump(tree, sort_keys=False, width=MAX_WIDTH, allow_unicode=True),
        bases=terms,
    )
    # Names and texts are anybody's: no control character may reach a terminal that shows the card.
    ModelCard(visible(text.strip()) + "\n").save(folder / CARD)


def fenced(text: str, language: str) -> str:
    """A block of code, with a fence that does not occur in it."""
    # A text with ``` gets a fence of four.
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def quoted(value: str | list[str]) -> str:
    """A text, or a list of them, as Python writes it, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; empty without rows."""
    # A bar or a line break inside a cell would end it.
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    marks = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *lines]) if lines else ""


def without_places(tree: Any) -> Any:
    """A tree whose paths are names, but those that lead down from the working folder."""
    if isinstance(tree, dict):
        return {key: without_places(entry) for key, entry in tree.items()}
    if isinstance(tree, list):
        return [without_places(entry) for entry in tree]
    # /data/vqa -> vqa; "zcat /data/vqa/a.gz" -> "zcat a.gz"; shards/vqa stays.
    if not isinstance(tree, str):
        return tree
    return Path(tree).name if WHOLE_PATH.fullmatch(tree) else INNER_PATH.sub("", tree)


def scores_of_run(run: Path, recipe: Recipe) -> dict[str, Scored]:
    """Task -> the scores of the whole on the data that the recipe names, by the artifact's weights;
    empty where none are known.

    `vlds evaluate` writes predictions/scores.json. Training logs the scores of its evaluations,
    with their steps, in RUN/metrics.jsonl.
    """
    folder = artifact_folder(run)
    with suppress(ValueError):  # somebody's file: a card can do without
        scored, weights = read_scores(home_of(run) / PREDICTIONS), recorded_hash(folder, WEIGHTS)
        # The run may have trained on since it was evaluated.
        if of_these := {task: e for task, e in scored.items() if e.weights == weights}:
            return {task: entry for task, entry in of_these.items() if plain(entry.scores)}
    # The artifact's step: the run's last, or that of its best evaluation.
    step = recipe.training.num_steps if recipe.training.epochs is None else None
    if (step := best_step(run) or step) is None:
        return {}
    logged: Mapping[str, Mapping[str, float]] = {}
    for _, line in read_metric_lines(folder.parent / "metrics.jsonl").lines:
        if line["step"] == step and "scores" in line:
            logged = line["scores"]
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
            # One line says it, and somebody's file may have a line of any length.
            line = parse_json(file.readline(LONGEST_LINE))
        data, number = line.get("data"), line.get("of")
        return (
            data if isinstance(data, str) else None,
            number if isinstance(number, int) and number >= 0 else None,
        )
    return None, None
