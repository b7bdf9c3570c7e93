"""Makes dialogues of VQA-RAD: all questions about a radiograph and their answers, as conversations.

    python benchmarks/vqa_rad_talks.py --source VQA_RAD

The folder holds the publisher's rows (a JSON file) and `images`. Shards go to runs/vqa_rad/talks:
`whole` has each dialogue once, to learn; `each` every answer with the true turns before it, to
score. A fifth of the radiographs is for the test, the same in both.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from image_text_demo import run

OUT = Path("runs/vqa_rad")


def main() -> None:
    """Write the dialogues, and pack them twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of VQA-RAD")
    source = parser.parse_args().source
    (rows,) = source.glob("*.json")
    talks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in json.loads(rows.read_text(encoding="utf-8")):
        # Some answers are numbers.
        for role, text in (("user", row["question"]), ("assistant", row["answer"])):
            talks[row["image_name"]].append({"role": role, "content": str(text).strip()})
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"image": name, "messages": talk}) for name, talk in talks.items()]
    (OUT / "talks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, words in (("whole", []), ("each", ["--each-turn"])):
        files = ("--annotations", OUT / "talks.jsonl", "--images", source / "images")
        sizes = ("--image-size", "256", "--split-sizes", "test=0.2", *words)
        run(
            "data_prep",
            "chat",
            *files,
            *sizes,
            "--name",
            "radiographs",
            "--out",
            OUT / "talks" / name,
        )


if __name__ == "__main__":
    main()
