"""The code on a model card: how to open the folder that the card is in, and to ask the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlds.artifact import LoadedRun
from vlds.models import Causal, ImageTextToText, JointSeq2Seq
from vlds.models.image_text_model import ImageTextModel
from vlds.models.kind import ModelKind
from vlds.tasks.base import Task

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
    if not isinstance(kind, ImageTextToText):
        name = f"{auto_class(kind)}.from_pretrained({address.text})"
        part = "language model" if isinstance(kind, Causal) else "text backbone"
        alone = [f"from transformers import {auto_class(kind)}", "", f"model = {name}"]
        title = f"transformers opens the {part} alone, without pictures"
        return Opening("vlds", SEES, [(OPEN_ALL, with_vlds(run, address)), (title, alone)])
    if run.recipe.methods or run.model.heads:
        return Opening("vlds", SEES, [(OPEN_ALL, with_vlds(run, address))])
    lines = [
        "from PIL import Image",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f"model = AutoModelForImageTextToText.from_pretrained({address.text})",
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
    name = auto_class(kind)
    below = next(filter(None, folders), "")
    subfolder = f", subfolder={text_of(below)}" if below else ""
    sees = isinstance(kind, ImageTextToText)
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
    writes = "text-generation" if isinstance(kind, Causal) else None
    return Opening("peft", SEES if sees else writes, [(title, lines)])


def auto_class(kind: ModelKind) -> str:
    """The class of transformers that opens the backbone."""
    if isinstance(kind, ImageTextToText):
        return "AutoModelForImageTextToText"
    if isinstance(kind, Causal):
        return "AutoModelForCausalLM"
    return "AutoModelForSeq2SeqLM" if isinstance(kind, JointSeq2Seq) else "AutoModel"


def asking(run: LoadedRun, how: str) -> list[str]:
    """Ask an image-text model of transformers; nothing for types without a chat template, or where
    heads answer. `how`: more arguments of `generate`."""
    task = next((task for task in run.recipe.tasks.values() if task.head is None), None)
    if task is None or not getattr(run.processor, "chat_template", None):
        return []
    assert isinstance(run.model, ImageTextModel)
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
        *(f"    {name}={value}," for name, value in run.model.collator.chat.variables.items()),
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
