"""Hidden words and regions give the texts that VL-T5's pre-training code gave for the same
permutations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.toys.recorded.case import FOLDER
from vlds.tasks.grounding import POINTERS, names_of
from vlds.tasks.masked_words import corrupted, hidden_runs

SOURCES = sorted(FOLDER.rglob("pretrain_strings.json"))


@pytest.fixture(scope="module", params=SOURCES or [None], ids=lambda path: path and path.stem)
def recorded(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The recorded texts of a file."""
    if request.param is None:
        pytest.skip("no pretrain_strings.json in VLDS_GOLDENS")
    path: Path = request.param
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["corruptions"]
    assert len(rows) >= 168
    return rows


def with_prefix(row: dict[str, Any], text: str) -> str:
    """The recorded prefix before a text; none stands there if `lm` is the only loss."""
    return text if row["prefix"] is None else f"{row['prefix']} {text}"


@pytest.mark.parametrize(
    ("name", "written"), [("corrupt_spans", "spans"), ("corrupt_bart", "sentence")]
)
def test_hidden_words(recorded: list[dict[str, Any]], name: str, written: Any) -> None:
    rows = [row for row in recorded if row["fn"] == name]
    assert len(rows) >= 72
    for row in rows:
        runs = hidden_runs(row["permutation"], row["mask_ratio"])
        source, target = corrupted(row["sentence"].split(), runs, written)
        assert (with_prefix(row, source), target) == (row["source"], row["target"])


@pytest.mark.parametrize("name", ["ground_caption", "refer_expression"])
def test_regions(recorded: list[dict[str, Any]], name: str) -> None:
    rows = [row for row in recorded if row["fn"] == name]
    assert len(rows) >= 12
    for row in rows:
        chosen = row["permutation"][: row["n_ground"]]
        chosen = sorted(chosen) if row["sort"] else chosen
        tokens = " ".join(POINTERS[number] for number in chosen)
        texts = tokens, names_of(row["captions"], chosen)
        source, target = texts if name == "ground_caption" else texts[::-1]
        assert (with_prefix(row, source), target) == (row["source"], row["target"])
