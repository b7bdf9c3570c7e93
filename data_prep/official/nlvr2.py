"""NLVR2: JSON lines despite the files' names; pairs of pictures; some .png files are JPEGs."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path

from ..json_rows import JsonRow, read_lines
from ..packing.source import Annotation, SourceSample, SourceSet, find_file
from .lxmert import is_lxmert, nlvr2_annotation, read_lxmert
from .published import Download, OfficialSet, other_file

SITE = "https://github.com/lil-lab/nlvr/tree/master/nlvr2/data/"
FORM = "https://goo.gl/forms/yS29stWnFWzrDBFH3"


def parse_nlvr2(
    src: Path,
    split: str,
    name: str = "nlvr2",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; sentences about the same pair of pictures become one sample."""
    path = annotations or find_file(src, ("", "data"), f"{split}.json")
    from_lxmert = is_lxmert(path)
    if from_lxmert:
        rows, parse = read_lxmert(path, "identifier", "img0", "img1"), nlvr2_annotation
    else:
        rows, parse = [row for _, row in read_lines(path)], _annotation
    folders = PictureFolders(images or src, split)
    statements: dict[str, list[Annotation]] = defaultdict(list)
    pictures: dict[str, tuple[Path, Path]] = {}
    for row in rows:
        identifier = row.text("identifier")
        # All sentences about a pair share the sample of its two pictures: train-12-0-3 is the
        # sentence 3 of the pair train-12-0.
        pair, _, sentence = identifier.rpartition("-")
        if not (pair and sentence):
            raise ValueError(
                f"{path}: identifier {identifier!r} is not of the form split-set-pair-sentence"
            )
        statements[pair].append(parse(row.at(f"{path}, {identifier}")))
        if pair not in pictures:
            keys = ("img0", "img1")
            stems = [row.id(key) if from_lxmert else f"{pair}-{key}" for key in keys]
            # Official rows name no files: dev-0-1-2 is about dev-0-1-img0.png and dev-0-1-img1.png.
            left, right = (folders.find(stem, row.fields.get("directory")) for stem in stems)
            pictures[pair] = left, right
    samples = [SourceSample(pair, pictures[pair], said) for pair, said in statements.items()]
    return SourceSet(name, "nlvr2", split, (path,), samples)


def _annotation(row: JsonRow) -> Annotation:
    annotation: Annotation = {
        "id": row.text("identifier"),
        "sentence": row.text("sentence").strip(),
    }
    if "label" in row:  # the official labels are the strings "True" and "False"
        label = str(row.value("label")).lower()
        if label not in ("true", "false"):
            raise ValueError(f"{row.place}: label {row.value('label')!r} is neither True nor False")
        annotation["label"] = label == "true"
    return row.annotate(annotation, "identifier", "sentence", "label")


class PictureFolders:
    """The folders of pictures: those of train are numbered, the other splits have one folder."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.plain = (split, f"images/{split}", "")
        self.numbered = (f"images/{split}", split, "")

    def find(self, stem: str, directory: int | None) -> Path:
        """A picture's file; LXMERT's rows do not say in which numbered folder (`directory`)."""
        # Official rows of train name the folder; without it, all of them are listed once.
        numbered = [] if directory is None else [f"{place}/{directory}" for place in self.numbered]
        path = find_file(self.folder, (*numbered, *self.plain), f"{stem}.png")
        return path if path.is_file() else self._in_numbered.get(path.name, path)

    @cached_property
    def _in_numbered(self) -> dict[str, Path]:
        """Name -> picture in any numbered folder; a listing of 100,000 files, made once."""
        folders = [self.folder / place for place in self.numbered]
        return {path.name: path for folder in folders for path in folder.glob("[0-9]*/*.png")}


NLVR2 = OfficialSet(
    title="NLVR2",
    command="nlvr2",
    folders="--src NLVR2",
    needs={
        split: (
            Download(f"NLVR2/{split}.json", f"{SITE}{split}.json"),
            Download(f"NLVR2/images/{split}", FORM, licence="by request, for research"),
        )
        for split in ("train", "dev", "test1", "test2")
    },
    parse=parse_nlvr2,
    options={"--annotations": other_file("another file, also one of LXMERT")},
)
