"""docs/python.ipynb runs in Jupyter's kernel, from its first cell to its last."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.toys.files import ROOT

NOTEBOOK = ROOT / "docs" / "python.ipynb"
NEEDED = ("nbclient", "nbformat", "ipykernel", "pandas")
SECONDS = 900
"""For a cell, on a machine that many tests share; alone, the whole notebook takes two minutes."""


def read() -> Any:
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install 'vlds[dev]'")
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs() -> None:
    for cell in read().cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs_and_shows_pictures(tmp_path: Path) -> None:
    notebook = read()
    import nbclient

    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [
        output.get("data", {}).get("text/html") or output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    bars = [text for text in shown if "<progress" in text]
    assert len(bars) == 1  # one bar, drawn again in its place
    ((done, loss),) = re.findall(r'value="(\d+)".*loss ([\d.]+)', bars[0])
    # It ends early where the notebook's own function has had enough.
    assert int(done) == 120 or float(loss) < 0.005
    assert not [text for text in shown if re.search(r"^step \d+/", text, re.MULTILINE)]
    (table,) = [text for text in shown if "truth" in text and "<img" in text]
    assert table.count("<img") == 6
    (right,) = [m for text in shown if (m := re.search(r"(\d+) of (\d+) are right", text))]
    # Guessing would be right for three in eight: one of four colours, one of two sizes.
    assert int(right[1]) > 0.75 * int(right[2])
    last = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert last.startswith("LoRA in CLIPVisionModel: 5,376 of ")
