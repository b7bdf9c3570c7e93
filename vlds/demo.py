"""The demo: every room of the house once, on made pictures, with the commands that a user would type.

    data_prep demo -> train demo_pretrain (Full, ZeRO-2) -> convert hf (the frozen backbone)
      -> train demo_control, demo (adapters, ZeRO-3; evaluates before its first step: the frozen model) -> report
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from vlds.config import load_recipe
from vlds.report.inputs import Scores, TaskScores, write_scores
from vlds.resources import find
from vlds.training.baseline import majority_scores

STAGES = ("pretrain", "control", "adapters")
RECIPES = {
    "pretrain": "recipes/demo_pretrain.yaml",
    "control": "recipes/demo_control.yaml",
    "adapters": "recipes/demo.yaml",
}


def run_demo(out: Path, seed: int, ranks: int) -> int:
    """Run all stages below `out`; stages that are done already are not repeated. Returns the exit code."""
