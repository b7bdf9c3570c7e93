"""Look at samples of shards, in the terminal or on a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from data_prep.command import at_least, local_folder, new_command
from data_prep.packed.stats import find_datasets
from data_prep.preview.sample import MOST_ANNOTATIONS, SampleView, view_sample
from vlds.data.shards.info import DATASET_FILE
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.shards.thumbnail import page_picture, thumbnail
from vlds.runtime.shown import visible
from vlds.runtime.templating import page
from vlds.runtime.terminal import open_console, tell
from vlds.runtime.whole_file import write_whole

SAMPLES = 8
TEMPLATE = Path(__file__).with_name("preview.html")


def preview(place: str, samples: int = SAMPLES, out: Path | None = None) -> None:
    """Show `samples` of each data set in or below a folder, or of a shard, evenly spread; `place`
    may end in `:` and the number of one sample.

    Errors: ValueError if `place` does not exist, or `out` does not end in .html.
    """
    if out is not None and out.suffix != ".html":
        raise ValueError(f"--out {out}: a preview is a web page; give a name that ends in .html")
    path, number = split_place(place)
    parts = [find_samples(part) for part in parts_of(path)]
    total = sum(len(numbers) for _, numbers in parts)
    if number is not None and (len(parts) > 1 or number >= total):
        having = f"{len(parts)} data sets" if len(parts) > 1 else f"samples 0 to {total - 1}"
        raise ValueError(f"{path} has {having}, but no {number}")
    most = MOST_ANNOTATIONS if number is None else None
    views = [
        view_sample(dataset, sample, most)
        for dataset, numbers in parts
        for sample in (spread(numbers, samples) if number is None else [numbers[number]])
    ]
    first = parts[0][0]
    title = visible(f"{first.name} {first.split} ({first.kind})")
    title = title if len(parts) == 1 else f"{len(parts)} data sets"
    counts = visible(f"{len(views):,} of {total:,} samples in {path}")
    if out is None:
        print_views(title, counts, views)
        return
    write_whole(out, page_of(title, counts, views), stream=True)
    tell(f"{counts} -> {out}")


def print_views(title: str, counts: str, views: Sequence[SampleView]) -> None:
    """Print what is known of each sample; pictures by their sizes."""
    console = open_console()
    console.print(Text(title, "bold"))
    console.print(Text(counts, "dim"))
    for view in views:
        console.print()
        console.print(Text.assemble((view.place, "cyan"), "  ", (f"id {view.id}", "bold")))
        if view.trouble:
            console.print(Padding(Text(f"cannot be read: {view.trouble}", "red"), (0, 0, 0, 2)))
            continue
        console.print(Padding(Text(view.facts, "dim"), (0, 0, 0, 2), expand=False))
        console.print(Padding(_table(view), (0, 0, 0, 2)))
        if view.num_left_out:
            console.print(Text(f"  and {view.num_left_out} more", "dim"))


def _table(view: SampleView) -> Table:
    """Questions left, answers right; captions over the whole width."""
    table = Table.grid(padding=(0, 2), expand=True)
    answered = any(answer for _, answer in view.annotations)
    table.add_column(ratio=3)
    if answered:
        table.add_column(ratio=2)
    for text, answer in view.annotations:
        cells = [Text(text)] + ([Text(answer, "green")] if answered else [])
        table.add_row(*cells)
    return table


def page_of(title: str, counts: str, views: Sequence[SampleView]) -> str:
    """The page about some samples, with their pictures inside."""
    samples = []
    for view in views:
        copies = map(thumbnail, view.pictures)
        samples.append((view, [copy and page_picture(copy) for copy in copies]))
    return page(TEMPLATE, title=title, counts=counts, samples=samples)


def split_place(place: str) -> tuple[Path, int | None]:
    """A path, and the number after its last colon, if there is one."""
    path, colon, number = place.rpartition(":")
    if colon and number.isdigit() and not Path(place).exists():
        return Path(path), int(number)
    return Path(place), None


def parts_of(path: Path) -> list[Path]:
    """The folders of the data sets in or below a folder; a shard is a part by itself."""
    below = path.is_dir() and not (path / DATASET_FILE).exists()
    return find_datasets(path) if below else [path]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread."""
    count = min(count, len(numbers))
    return [numbers[turn * len(numbers) // count] for turn in range(count)]


def find_samples(path: Path) -> tuple[Dataset, range]:
    """The data set, and the numbers in it of the samples that lie in a folder or shard.

    Errors: ValueError if there is no such shard.
    """
    if path.suffix != ".tar":
        dataset = open_dataset(path)
        return dataset, range(dataset.num_samples)
    if not path.is_file():
        raise ValueError(f"{path}: no such shard; check the path")
    dataset = open_dataset(path.parent)
    first = 0
    for shard in dataset.info.shards:
        if shard.name == path.name:
            return dataset, range(first, first + shard.samples)
        first += shard.samples
    raise ValueError(
        f"{path} is not among the {len(dataset.info.shards)} shards of its dataset.json; "
        "index the folder: `python -m data_prep index`"
    )


def add_command(commands: Any) -> None:
    """Add `preview`."""
    parser = new_command(
        commands,
        "preview",
        "look at samples, in the terminal or on a page",
        "Shows samples with their questions, answers and captions: in the terminal, or with their "
        "pictures in a file.",
        examples=["preview shards/mine", "preview shards/mine --out page.html"],
    )
    parser.add_argument(
        "folder",
        type=local_folder,
        metavar="PLACE",
        help="folder of a data set or of several, or one shard; :N behind it: the sample of that "
        "number",
    )
    parser.add_argument(
        "--samples",
        type=at_least(1),
        default=SAMPLES,
        metavar="N",
        help=f"how many of each data set, evenly spread (default: {SAMPLES})",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a page, FILE.html")

    def run(args: argparse.Namespace) -> None:
        preview(str(args.folder), args.samples, args.out)

    parser.set_defaults(run=run)
