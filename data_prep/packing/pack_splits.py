"""One source -> a data set for each split; what stands twice in it is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.packing.copies import find_copies
from data_prep.packing.pack import Options, pack_ready, ready
from data_prep.packing.same_twice import tell_copies, tell_repeats, warn_of_leaks
from data_prep.packing.source import SourceSet
from data_prep.packing.split import HashSplit, split_by_picture


def pack_splits(
    datasets: Sequence[SourceSet],
    split: HashSplit | None,
    out: Path,
    options: Options,
    *,
    apart: bool,
    noun: str | None = "id",
) -> None:
    """Check all data sets, then write them: `apart`, each to a folder called after its split, or
    the only one to `out` itself. `split` makes two out of the only one. `noun` is what ids are,
    where they are not the places of rows."""
    checked = ready(datasets, options)
    copies = find_copies(path for data in checked for s in data.samples for path in s.images)
    if split is not None:
        checked = split_by_picture(checked[0], split, copies)
    warn_of_leaks(checked, copies)
    for dataset in checked:
        pack_ready(dataset, out / dataset.split if apart else out, options)
    tell_repeats(checked, noun)
    tell_copies(checked, copies)
