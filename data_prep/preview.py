"""Look at samples of shards, in the terminal or on a page."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlds.data.errors import ShardError
from vlds.data.shards.info import DATASET_FILE, KIND
from vlds.data.shards.pictures import page_picture, thumbnail, upright_size
from vlds.data.shards.remote_folder import Folder, RemoteFolder, address, folder_at, read_from
from vlds.data.shards.sample import UNUSABLE
from vlds.data.shards.store import Dataset, open_dataset
from vlds.runtime.files import write_whole
from vlds.runtime.json_files import in_words
from vlds.runtime.terminal import follow, open_console, tell, visible
from vlds.schema import Encoded, SkipSample

from .command import any_folder, at_least, new_command
from .packed.stats import find_datasets
from .packing.pack import text_in

MOST_ANNOTATIONS = 6
"""Shown of each sample, unless it is the only one."""
MOST_ANSWERS = 4
NOTHING_SAID = "(nothing is said: a test split)"


@dataclass(frozen=True)
class SampleView:
    """One sample, ready to be shown; control characters in its texts are escaped."""

    place: str
    """SHARD:NUMBER, as `preview` takes it."""
    id: str = ""
    facts: str = ""
    """Sizes and counts."""
    pictures: tuple[Encoded, ...] = ()
    features: tuple[str, ...] = ()
    """Shape of each array that is stored instead of a picture."""
    annotations: tuple[tuple[str, str], ...] = ()
    """(question, caption or sentence; answer, which may be empty)."""
    num_left_out: int = 0
    """Annotations that are not shown."""
    trouble: str = ""
    """Why the sample cannot be read."""


def view_sample(
    dataset: Dataset,
    number: int,
    most: int | None = MOST_ANNOTATIONS,
    ids: Collection[str] | None = None,
) -> SampleView:
    """Read a sample; one that is damaged says so. `most` None shows all its annotations. `ids`:
    show the annotations that have one of these, or all of a sample that has."""
    place = place_of(dataset, number)
    try:
        sample = dataset.read(number)
        chosen = sample.annotations
        if ids is not None and sample.id not in ids:
            chosen = tuple(entry for entry in chosen if str(entry.get("id")) in ids)
        count, shown = len(sample.annotations), chosen[:most]
        features = tuple(shape_text(array.shape) for array in sample.features)
        facts = [size_text(data) for data in sample.images] + [f"features {f}" for f in features]
        facts.append(f"{count} annotation{'' if count == 1 else 's'}")
        if lines := sample.extra.get("subtitles"):
            facts.append(f"{len(lines)} line{'' if len(lines) == 1 else 's'} of subtitles")
        if sample.kind == KIND:
            said = [(visible(entry.get("label", NOTHING_SAID)), "") for entry in shown]
        else:
            said = [
                (visible_lines(text_of(entry)), visible_lines(answer_of(entry))) for entry in shown
            ]
        return SampleView(
            place,
            visible(sample.id),
            ", ".join(facts),
            sample.images,
            features,
            tuple(said),
            count - len(shown),
        )
    except (SkipSample, ShardError) as error:
        return SampleView(place, trouble=visible(error))
    except UNUSABLE as error:  # readable, but with a field of another type than its kind has
        return SampleView(place, trouble=visible(f"not what it should be: {in_words(error)}"))


def place_of(dataset: Dataset, number: int) -> str:
    """Shard and number in it."""
    for shard in dataset.info.shards:
        # From a number in the data set to one in its shard.
        if number < shard.samples:
            return visible(f"{shard.name}:{number}")
        number -= shard.samples
    raise IndexError(number)


def text_of(annotation: Mapping[str, Any]) -> str:
    """What is asked or said; all of an annotation of an unknown kind. A conversation begins with
    its id, which leads to its row in the user's file."""
    if (known := text_in(annotation)) is not None:
        return f"id {annotation['id']}\n{known}" if "turns" in annotation else known
    rest = {key: value for key, value in annotation.items() if key != "id"}
    return json.dumps(rest, ensure_ascii=False) if rest else NOTHING_SAID


def visible_lines(text: str) -> str:
    """As `visible`, with the lines of a conversation as lines."""
    return "\n".join(map(visible, text.split("\n")))


def answer_of(annotation: Mapping[str, Any]) -> str:
    """The answer in a few words; empty where there is none."""
    if choices := list(map(str, annotation.get("choices") or ())):
        if (right := annotation.get("answer_index")) is None:
            return f"one of: {' / '.join(choices)}"
        others = choices[:right] + choices[right + 1 :]
        return f"{choices[right]} (not: {' / '.join(others)})"
    if answers := annotation.get("answers"):
        counts = Counter(map(str, answers)).most_common()
        if len(answers) == 1:
            return counts[0][0]
        return _first([f"{answer} ({count})" for answer, count in counts])
    label = annotation.get("label", annotation.get("answer", ""))
    if isinstance(label, Mapping):
        best = sorted(label.items(), key=lambda entry: -entry[1])
        return _first([f"{answer} ({score:g})" for answer, score in best])
    # NLVR2's label is true or false.
    text = str(label).lower() if isinstance(label, bool) else str(label)
    whole = annotation.get("full_answer")
    return f"{text} ({whole})" if whole else text


def _first(parts: list[str]) -> str:
    return ", ".join(parts[:MOST_ANSWERS]) + (", ..." if len(parts) > MOST_ANSWERS else "")


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def size_text(data: Encoded) -> str:
    """Width and height of a picture, from its head alone."""
    try:
        return shape_text(upright_size(data))
    except ValueError:
        return "not a picture"


SAMPLES = 8
TEMPLATE = Path(__file__).with_name("preview.html")


def preview(
    place: str, samples: int = SAMPLES, out: Path | None = None, ids: Collection[str] = ()
) -> None:
    """Show `samples` of each data set in or below a folder, or of a shard, evenly spread; `place`
    may end in `:` and the number of one sample. `ids`: show what has these ids instead.

    Errors: ValueError if `place` or an id does not exist, or `out` does not end in .html.
    """
    if out is not None and out.suffix != ".html":
        raise ValueError(f"--out {out}: a preview is a web page; give a name that ends in .html")
    begin, colon, end = place.rpartition(":")
    # SHARD:7, unless a file has that name.
    is_one = colon and end.isdigit() and not Path(place).exists()
    path, number = (folder_at(begin), int(end)) if is_one else (folder_at(place), None)
    # A folder of data sets has a part for each; a data set or a shard is a part by itself.
    has_several = not str(path).endswith(".tar") and read_from(path, DATASET_FILE) is None
    has_several = has_several and (isinstance(path, RemoteFolder) or path.is_dir())
    parts = [find_samples(part) for part in (find_datasets(path) if has_several else [path])]
    total = sum(len(numbers) for _, numbers in parts)
    if number is not None and (len(parts) > 1 or number >= total):
        having = f"{len(parts)} data sets" if len(parts) > 1 else f"samples 0 to {total - 1}"
        raise ValueError(f"{path} has {having}, but no {number}")
    if ids and number is not None:
        raise ValueError(f"--ids {' '.join(ids)}: {place} is one sample; give one of the two")
    most = MOST_ANNOTATIONS if number is None and not ids else None
    wanted = find_ids(parts, ids, path) if ids else None
    views = [
        view_sample(dataset, sample, most, ids or None)
        for part, (dataset, numbers) in enumerate(parts)
        for sample in (
            wanted[part] if wanted is not None
            else spread(numbers, samples) if number is None else [numbers[number]]
        )
    ]  # fmt: skip
    first = parts[0][0]
    title = visible(f"{first.name} {first.split} ({first.kind})")
    title = title if len(parts) == 1 else f"{len(parts)} data sets"
    counts = visible(f"{len(views):,} of {total:,} samples in {path}")
    if out is None:
        print_views(title, counts, views)
        return
    write_whole(out, page_of(title, counts, views), stream=True)
    tell(f"{counts} -> {out}")


def find_ids(
    parts: Sequence[tuple[Dataset, Sequence[int]]], ids: Collection[str], path: Folder
) -> list[list[int]]:
    """For each data set, the numbers of the samples that have one of these ids, or an annotation
    with one. Samples that cannot be read have none.

    Errors: ValueError if an id is nowhere.
    """
    missing, found = dict.fromkeys(ids), list[list[int]]()
    for dataset, numbers in parts:
        found.append([])
        for number in follow(iter(numbers), f"looking in {dataset.name}", len(numbers)):
            try:
                sample = dataset.read(number)
            except (SkipSample, ShardError):
                continue
            named = {sample.id, *(str(entry.get("id")) for entry in sample.annotations)}
            if not named.isdisjoint(ids):
                found[-1].append(number)
                missing = {name: None for name in missing if name not in named}
    if missing:
        raise ValueError(
            f"--ids: neither a sample nor an annotation in {path} has the id "
            f"{' or '.join(missing)}; `preview` without --ids shows some ids, and dataset.json "
            "lists those that were dropped"
        )
    return found


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
    """Questions left, answers right; captions and conversations over the whole width."""
    table = Table.grid(padding=(0, 2), expand=True)
    answered = any(answer for _, answer in view.annotations)
    if any("\n" in text for text, _ in view.annotations):
        # An answer beside the first line of a conversation would stand far from its question.
        for text, answer in view.annotations:
            table.add_row(Text.assemble(text, ("\n" + answer if answer else "", "green")))
        return table
    table.add_column(ratio=3)
    if answered:
        table.add_column(ratio=2)
    for text, answer in view.annotations:
        cells = [Text(text)] + ([Text(answer, "green")] if answered else [])
        table.add_row(*cells)
    return table


def page_of(title: str, counts: str, views: Sequence[SampleView]) -> str:
    """The page about some samples, with their pictures inside."""
    from vlds.runtime.limited import page

    samples = []
    for view in views:
        # A picture that cannot be decoded has no thumbnail: None marks its place.
        copies = map(thumbnail, view.pictures)
        samples.append((view, [copy and page_picture(copy) for copy in copies]))
    return page(TEMPLATE, title=title, counts=counts, samples=samples)


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread."""
    # 10 numbers, 4 of them -> 0 2 5 7; the first one is always among them.
    count = min(count, len(numbers))
    return [numbers[turn * len(numbers) // count] for turn in range(count)]


def find_samples(path: Folder) -> tuple[Dataset, range]:
    """The data set, and the numbers in it of the samples that lie in a folder or shard.

    Errors: ValueError if there is no such shard.
    """
    text = str(address(path))
    if not text.endswith(".tar"):
        dataset = open_dataset(address(path), copies=False)
        return dataset, range(dataset.num_samples)
    if isinstance(path, Path) and not path.is_file():
        raise ValueError(f"{path}: no such shard; check the path")
    place, _, name = text.rpartition("/")
    dataset = open_dataset(address(folder_at(place)), copies=False)
    first = 0
    for shard in dataset.info.shards:
        if shard.name == name:
            return dataset, range(first, first + shard.samples)
        first += shard.samples
    raise ValueError(
        f"{path} is not among the {len(dataset.info.shards)} shards of its dataset.json; "
        "index the folder: `vlds data index`"
    )


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "preview",
        "Shows samples with their questions, answers and captions: in the terminal, or with their "
        "pictures in a file.",
        examples=["preview shards/mine --out page.html", "preview shards/mine --ids 17 a.jpg"],
    )
    parser.add_argument(
        "folder",
        type=any_folder,
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
    parser.add_argument(
        "--ids",
        nargs="+",
        default=[],
        metavar="ID",
        help="show the samples or annotations with these ids instead",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a page, FILE.html")

    def run(args: argparse.Namespace) -> None:
        preview(str(address(args.folder)), args.samples, args.out, args.ids)

    parser.set_defaults(run=run)
