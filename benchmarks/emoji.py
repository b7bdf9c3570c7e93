"""Makes three tasks of pictures that packages ship: emoji of two artists, and handwritten digits.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    pip install scikit-learn
    python benchmarks/emoji.py --packages .

kind: which of nine kinds of things does the emoji show; exact: which of 79 more exact kinds; digit:
which digit is written (scans of 8 by 8 pixels by 13 people, of scikit-learn).

A fifth of the emoji are in `test` and a tenth in `val`, in all tasks and of both artists; of some,
a woman, a man or a person is in another split (emoji_answers.py). The last digits of the list are
the test. Rows and pictures go to `--out`, and each task's shards beside them, to be read with the
task `Chat`.

The pictures are Noto Emoji (Google, Apache 2.0) and Twemoji (Twitter, CC BY 4.0).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ARTISTS = ("google", "twitter")
FEWEST = 7
"""Emoji of an exact kind; those of smaller ones are left out of that task."""
DIGITS = {"train": range(1_100), "val": range(1_100, 1_297), "test": range(1_297, 1_797)}
"""Places in scikit-learn's list, which repeats the digits in 14 blocks."""
SIDE = 64
SYSTEM = "Answer briefly."
"""In place of SmolLM2's own, which is four times as long and says nothing of these tasks."""
ASKED = {
    "kind": "what kind of thing is this ?",
    "exact": "what exactly is this ?",
    "digit": "which digit is this ?",
}


class Emoji(NamedTuple):
    """What an emoji shows, and which split it is in."""

    image: str
    """Name of its file in each artist's package."""
    kind: str
    exact: str
    split: str


def main() -> None:
    """Unpack the pictures, write the rows, and pack them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder with the .tgz files")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji/data"))
    options = parser.parse_args()
    pictures = options.out / "pictures"
    listed = [
        unpack(find_package(options.packages, artist), artist, pictures) for artist in ARTISTS
    ]
    emoji = list(split(unlike(listed, pictures)))
    rows = {
        "kind": [row(one, each, one.kind) for one in emoji for each in ARTISTS],
        "exact": [row(one, each, one.exact) for one in of_large(emoji) for each in ARTISTS],
        "digit": list(digits(pictures)),
    }
    for task, of_task in rows.items():
        file = options.out / f"{task}.jsonl"
        file.write_text("".join(json.dumps(talk(task, each)) + "\n" for each in of_task))
        source = ("--annotations", file, "--images", pictures, "--split-field", "split")
        words = ("chat", *source, "--name", task, "--out", options.out / task)
        subprocess.run([sys.executable, "-m", "data_prep", *map(str, words)], check=True)


def find_package(folder: Path, artist: str) -> Path:
    """The file that `npm pack` wrote.

    Errors: SystemExit if there is none.
    """
    found = sorted(folder.glob(f"emoji-datasource-{artist}-*.tgz"))
    if not found:
        raise SystemExit(
            f"--packages: {folder} has no emoji-datasource-{artist}-*.tgz; npm pack it"
        )
    return found[-1]


def unpack(package: Path, artist: str, pictures: Path) -> Sequence[Mapping[str, Any]]:
    """Write an artist's pictures on white; the entries of those that exist."""
    folder = pictures / artist
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as tar:
        entries = json.load(tar.extractfile("package/emoji.json") or sys.exit(f"{package}: empty"))
        kept = [e for e in entries if e[f"has_img_{artist}"] and e["category"] != "Component"]
        for entry in kept:
            member = tar.extractfile(f"package/img/{artist}/64/{entry['image']}")
            assert member is not None
            with Image.open(member) as drawn:
                picture = Image.new("RGBA", drawn.size, "white")
                picture.alpha_composite(drawn.convert("RGBA"))
            picture.convert("RGB").save(folder / entry["image"])
    return kept


def unlike(
    listed: Sequence[Sequence[Mapping[str, Any]]], pictures: Path
) -> Iterator[Mapping[str, Any]]:
    """The entries that all artists have drawn, without those whose picture another one has too, as
    flags of islands do."""
    first, *others = listed
    common = set.intersection(*({entry["image"] for entry in some} for some in others))
    seen: set[bytes] = set()
    for entry in first:
        drawn = {(pictures / artist / entry["image"]).read_bytes() for artist in ARTISTS}
        if entry["image"] in common and seen.isdisjoint(drawn):
            seen |= drawn
            yield entry


def split(entries: Iterable[Mapping[str, Any]]) -> Iterator[Emoji]:
    """Draw the split of each emoji, by its kind: those of one kind come in the same shares."""
    of_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: str(entry["image"])):
        of_kind[entry["subcategory"]].append(entry)
    rng = Random("splits")
    for exact, some in sorted(of_kind.items()):
        rng.shuffle(some)
        for place, entry in enumerate(some):
            # Of ten emoji, two are tested and one is for choices.
            name = {0: "test", 5: "test", 9: "val"}.get(place % 10, "train")
            kind = entry["category"].lower().replace("&", "and")
            yield Emoji(entry["image"], kind, exact.replace("-", " ").replace("&", "and"), name)


def of_large(emoji: Sequence[Emoji]) -> list[Emoji]:
    """Those of exact kinds with enough emoji."""
    counts = Counter(one.exact for one in emoji)
    return [one for one in emoji if counts[one.exact] >= FEWEST]


def row(one: Emoji, artist: str, answer: str) -> dict[str, str]:
    """A question about one picture."""
    return {"image": f"{artist}/{one.image}", "answer": answer, "split": one.split}


def digits(pictures: Path) -> Iterator[dict[str, str]]:
    """Scikit-learn's digits, black on white and larger."""
    from sklearn.datasets import load_digits

    folder = pictures / "digits"
    folder.mkdir(exist_ok=True)
    data = load_digits()
    for name, places in DIGITS.items():
        for place in places:
            ink = (255 - data.images[place] / 16 * 255).astype(np.uint8)
            file = folder / f"{place}.png"
            Image.fromarray(ink).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
                file
            )
            answer = str(data.target[place])
            yield {"image": f"digits/{file.name}", "answer": answer, "split": name}


def talk(task: str, asked: Mapping[str, str]) -> dict[str, Any]:
    """A row as a conversation of one question."""
    question = f"<image> {ASKED[task]}"
    said = [("system", SYSTEM), ("user", question), ("assistant", asked["answer"])]
    messages = [{"role": role, "content": words} for role, words in said]
    return {"messages": messages, "images": [asked["image"]], "split": asked["split"]}


if __name__ == "__main__":
    main()
