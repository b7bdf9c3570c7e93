"""Two made benchmarks, in the forms of lmms-eval and of VLMEvalKit: name a colour, and choose one
of several under letters. Of the latter, every third question is about two pictures."""

from __future__ import annotations

import base64
import csv
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.kinds import kind_recipe
from tests.toys.recipes import with_model
from tests.toys.trained_runs import write_run
from tests.toys.world import COLOURS, picture
from vlds.schema import Decoding
from vlds.tasks import Chat

NUM_ROWS = 24
LETTERS = "ABC"
COLOUR = {"question": "what colour is it ?"}
MOST_TOKENS = 6
UTILS = """
from PIL import Image


def visuals(doc):
    return [Image.open(path).convert("RGB") for path in doc["pictures"]]
"""
TASK = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function utils.visuals
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true{options}}}]
"""
WRITES = f"generation_kwargs: {{max_new_tokens: {MOST_TOKENS}, do_sample: false}}"
ENDING = "Answer the question using a single word or phrase."
"""VLMEvalKit's, of the data set whose score is equality; in lmms-eval it is made to be the same."""
COLOUR_TEXT = "{question}\n" + ENDING
CHOICE_TEXT = (
    "Question: {question}\nOptions:\nA. {A}\nB. {B}\nC. {C}\n"
    "Please select the correct answer from the options above. \n"
)
TABLES = {"GQA_made": "made_colour", "made_choice": "made_choice"}
"""Table of VLMEvalKit -> the same rows as a task of lmms-eval, and as conversations."""
TASKS: dict[str, dict[str, str]] = {
    "made_colour": {
        "kind": "generate_until", "text": COLOUR_TEXT, "target": "answer", "more": WRITES,
        "metric": "exact_match", "options": ", ignore_case: true",
    },
    "made_choice": {
        "kind": "generate_until", "text": CHOICE_TEXT, "target": "answer", "more": WRITES,
        "metric": "exact_match", "options": "",
    },
    "made_likely": {
        "kind": "multiple_choice", "text": COLOUR_TEXT, "target": "number",
        "more": f"doc_to_choice: {list(COLOURS)}", "metric": "acc", "options": "",
    },
}  # fmt: skip
"""Tasks of lmms-eval, by what their files say differently."""


def write_benchmarks(folder: Path) -> None:
    """FOLDER/lmms_eval holds tasks of your own, FOLDER/LMUData tables of VLMEvalKit."""
    draw, colours = Random(0), list(COLOURS)
    named: list[dict[str, Any]] = []
    chosen: list[dict[str, Any]] = []
    for index in range(NUM_ROWS):
        colour = draw.choice(colours)
        file = folder / "pictures" / f"{index}.jpg"
        write(file, picture(colour, index))
        shown = {"index": index, "pictures": [str(file)], "number": colours.index(colour)}
        named.append({**shown, **COLOUR, "answer": colour})
        options = dict(zip(LETTERS, draw.sample(colours, len(colours)), strict=True))
        letter = next(name for name, option in options.items() if option == colour)
        more = [str(folder / "pictures" / "0.jpg")] if index % 3 == 0 else []
        chosen.append(
            {**shown, **COLOUR, **options, "answer": letter, "pictures": [str(file), *more]}
        )
    tasks = folder / "lmms_eval"
    write(tasks / "utils.py", UTILS)
    for name, fields in TASKS.items():
        rows = chosen if name == "made_choice" else named
        file = write(tasks / f"{name}.jsonl", "\n".join(map(json.dumps, rows)))
        text = fields["text"].replace("{", "{{").replace("}", "}}").replace("\n", r"\n")
        write(tasks / f"{name}.yaml", TASK.format(task=name, rows=file, **{**fields, "text": text}))
    _write_chat(folder / "chat" / "made_colour.jsonl", named, COLOUR_TEXT)
    _write_chat(folder / "chat" / "made_choice.jsonl", chosen, CHOICE_TEXT)
    # By their names VLMEvalKit chooses the score: of "GQA", equality that ignores case.
    _write_tsv(folder / "LMUData" / "GQA_made.tsv", named)
    _write_tsv(folder / "LMUData" / "made_choice.tsv", chosen)


def made_run(folder: Path, world: Path) -> Path:
    """A run of the task `chat`, whose drawn weights give unlike answers to both benchmarks, some of
    them right; its output is FOLDER/run."""
    recipe = kind_recipe("image_text", world, folder / "run")
    answers = (*COLOURS, *LETTERS)
    decoding = Decoding(max_new_tokens=MOST_TOKENS, answers=answers)
    task = Chat(scores=["choice", "exact_match"], max_prompt_tokens=200, decoding=decoding)
    recipe = with_model(replace(recipe, tasks={"chat": task}), num_images=2)
    return write_run(recipe, seed=6)


def pack(folder: Path, name: str) -> Path:
    """FOLDER/shards/NAME, the rows of FOLDER/chat/NAME.jsonl as a data set."""
    out = folder / "shards" / name
    rows = folder / "chat" / f"{name}.jsonl"
    words = ["--annotations", str(rows), "--images", str(folder / "pictures"), "--split", "test"]
    words += ["--id-field", "id"]
    assert main(["chat", *words, "--out", str(out)]) == 0
    return out


def _write_chat(file: Path, rows: list[dict[str, Any]], text: str) -> None:
    """Their questions in a harness's own words, behind their pictures."""
    written = []
    for row in rows:
        pictures = [{"type": "image", "image": Path(path).name} for path in row["pictures"]]
        asked = [*pictures, {"type": "text", "text": text.format(**row)}]
        turns = [("user", asked), ("assistant", row["answer"])]
        messages = [{"role": role, "content": content} for role, content in turns]
        written.append({"id": str(row["index"]), "messages": messages})
    write(file, "\n".join(map(json.dumps, written)))


def _write_tsv(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    names = [name for name in rows[0] if name not in ("pictures", "number")]
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, delimiter="\t")
        writer.writerow([*names, "image", "category"])
        for row in rows:
            coded = [base64.b64encode(Path(p).read_bytes()).decode() for p in row["pictures"]]
            image = coded[0] if len(coded) == 1 else str(coded)
            kind = "one" if len(coded) == 1 else "two"
            writer.writerow([*(row[name] for name in names), image, kind])
