"""`answers`: the vocabulary of frequent answers in packed data sets."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.command import local_folder, new_command
from data_prep.packed.stats import read_annotations
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole

OFTEN = 9
"""The usual 3,129 answers of VQA v2 occur nine times or more."""


def best_answer(annotation: Mapping[str, Any]) -> str | None:
    """The official best answer of a question, else the one with the highest score, if any."""
    official = annotation.get("source", {}).get("multiple_choice_answer", annotation.get("answer"))
    if official is not None:
        return str(official).strip().lower()
    label = annotation.get("label")
    return (
        max(label, key=lambda answer: label[answer]) if isinstance(label, dict) and label else None
    )


def add_command(commands: Any) -> None:
    """Add `answers`."""
    parser = new_command(
        commands,
        "answers",
        "list the answers that occur often",
        "Counts the best answer of every question and writes those that occur often, the most "
        "frequent first, as a JSON list: for `vqav2 --vocabulary`, for example.",
        examples=["answers shards/mine --out answers.json --min-count 3"],
    )
    parser.add_argument(
        "folders", type=local_folder, nargs="+", metavar="DIR", help="folders of shards"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument(
        "--min-count", type=int, default=OFTEN, metavar="N", help=f"default: {OFTEN}"
    )

    def run(args: argparse.Namespace) -> None:
        counts = Counter(filter(None, map(best_answer, read_annotations(args.folders))))
        often = [answer for answer, count in counts.most_common() if count >= args.min_count]
        if not often:
            raise ValueError(
                f"--min-count {args.min_count}: none of {len(counts):,} answers occurs so often; "
                "give a smaller number"
            )
        write_whole(args.out, json.dumps(often, ensure_ascii=False, indent=0), stream=True)
        share = sum(counts[answer] for answer in often) / counts.total()
        tell(f"{len(often):,} of {len(counts):,} answers, to {share:.1%} of the questions")

    parser.set_defaults(run=run)
