"""Rows come from others: the files that they name lie in the folders that the user names.

`../../secret.png`, an absolute path or a link that leads out of the folder would put any picture of
this machine into shards that are handed on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from data_prep.packing.source import SourceSample, SourceSet, and_more, file_names


def check_inside(dataset: SourceSet, folders: Sequence[Path]) -> None:
    """Errors: ValueError that names the first row whose picture or features lie outside."""
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    real_folder = cache(os.path.realpath)

    def is_inside(path: Path) -> bool:
        # Many pictures share a folder, and few are links.
        real = Path(real_folder(path.parent)) / path.name
        if os.path.islink(path) or path.name == "..":
            real = Path(os.path.realpath(path))
        return any(real == root or root in real.parents for root in roots)

    outside = [(path, sample) for path, sample in _files(dataset) if not is_inside(path)]
    if outside:
        path, sample = outside[0]
        raise ValueError(
            f"{path} is outside {' and '.join(map(str, folders))}; {sample.named_by} of "
            f"{file_names(dataset.files)} names it{and_more(len(outside) - 1, 'such file')}. Give "
            f"the folder that holds all of them as {sample.option}, or --images-anywhere where "
            "you trust the rows"
        )


def _files(dataset: SourceSet) -> Iterator[tuple[Path, SourceSample]]:
    for sample in dataset.samples:
        for path in (*sample.images, *(file.path for file in sample.features)):
            yield path, sample
