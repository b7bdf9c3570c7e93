"""docs/types.md says what the installed transformers' types are."""

from __future__ import annotations

import subprocess
import sys

import pytest
import transformers

from tests.toys.files import ROOT


@pytest.mark.slow
def test_the_page_of_types_is_up_to_date() -> None:
    page = (ROOT / "docs/types.md").read_text("utf-8")
    version = ".".join(transformers.__version__.split(".")[:2])
    if f"transformers {version} maps" not in page:
        pytest.skip(f"the page is about another version of transformers than {version}")
    made = subprocess.run(
        [sys.executable, "benchmarks/model_types.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == page
