"""`chat` and `video`: conversations with pictures and clips, from JSON, tables, Parquet or a saved
data set of Hugging Face. Both names are one command."""

from __future__ import annotations

import argparse
import base64
import binascii
import math
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlds.data.shards.remote_folder import Folder
from vlds.runtime.files import half_made, write_whole
from vlds.runtime.terminal import tell
from vlds.schema import LONGEST_TEXT, Group

from ..command import add_shard_options, at_least, new_command, shard_options
from ..packing.pack import Options, pack_splits, text_fault
from ..packing.picture import CLIP_ENDINGS, ENDINGS, FrameRule, find_pictures
from ..packing.source import (
    WHOLE,
    Annotation,
    Dropped,
    SourceSample,
    SourceSet,
    first_few,
    parts_of,
)
from ..packing.splits import GROUP_FIELD, NEAR_COPIES, SPLIT_SIZES, split_of
from .columns import find_tables, read_columns
from .conversations import (
    MEDIA,
    Conversation,
    RowFields,
    Unusable,
    conversation_of,
    shown_value,
)
from .rows import UserRow, list_fields, read_rows, refuse_repeated_ids, text_of

DATA_URL = re.compile(r"data:[\w.+/-]+;base64,", re.ASCII)
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}", re.ASCII)
URLSAFE = str.maketrans("-_", "+/")
"""base64's other alphabet -> the usual one."""
SHORTEST_BASE64 = 200
"""Characters from which a text without a slash-separated name may be a picture."""
LARGEST_NUMBER = 2**63
"""Larger numbers, and values that are not numbers, are kept as texts."""


@dataclass(frozen=True)
class ChatForm:
    """Which field of a row holds what, and what becomes of a conversation."""

    named: RowFields
    id: str | None = None
    split: str | None = None
    group: str | None = None
    answers: bool = True
    """False: a test split, whose conversations end with a question."""
    each_turn: bool = False
    """Each answer becomes an annotation with the turns before it."""
    need_picture: bool = False
    """Answers without a picture or clip before them are dropped."""


@dataclass
class Talk:
    """A conversation and its row."""

    row: UserRow
    id: str
    split: str
    group: str
    conversation: Conversation


class Album:
    """The pictures, or the clips, of conversations as files: those of a folder, and others that are
    written into a scratch folder - from a tar file, or out of the rows."""

    def __init__(self, kind: str, place: Path | None, scratch: Path) -> None:
        """`kind`: as in MEDIA. `place`: a folder or tar file, in which rows name them."""
        option, noun = f"--{kind}s", MEDIA[kind].noun
        if place is not None and not place.exists():
            raise ValueError(f"{option} {place} does not exist; give a folder or a tar file")
        scratch.mkdir()
        self.place, self.option, self.noun = place, option, noun
        self.endings = ENDINGS if kind == "image" else CLIP_ENDINGS
        self.scratch = scratch
        self.is_tar = place is not None and place.is_file()
        self.num_bytes = 0
        """Of the files that were written into the scratch folder."""
        self._named = set[str]()

    def of(self, source: Any) -> str | Path:
        """The name of one that a row names, or the file of one that it holds.

        Errors: Unusable for something else.
        """
        is_coded = False
        if isinstance(source, dict):
            data, path = source.get("bytes"), source.get("path") or source.get("url")
            source, is_coded = (path, False) if data is None else (data, True)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return self.keep(bytes(source))
        if not isinstance(source, str) or not source.strip():
            raise Unusable(f"a {self.noun} that is {shown_value(source) if source else 'missing'}")
        if source.lower().startswith(("http://", "https://")):
            raise Unusable(f"a {self.noun} on a server")
        head = DATA_URL.match(source)
        if head is None and source.startswith("data:"):
            raise Unusable(f"a {self.noun} in an address that is not base64")
        is_coded = is_coded or len(source) >= SHORTEST_BASE64
        if head or (is_coded and BASE64.fullmatch(source)):
            coded = source[head.end() if head else 0 :].translate(URLSAFE)
            try:
                return self.keep(base64.b64decode(coded))
            except binascii.Error:
                raise Unusable(f"a {self.noun} in damaged base64") from None
        name = source.removeprefix("file://")
        if self.place is None:
            raise Unusable(f"a {self.noun} by name, without {self.option}")
        self._named.add(name)
        return name

    def keep(self, data: bytes) -> Path:
        """The file of these bytes, by their hash: what many rows hold is one file."""
        path = self.scratch / sha256(data).hexdigest()[:32]
        if not path.exists():
            write_whole(path, data)
            self.num_bytes += len(data)
        return path

    def files(self) -> Mapping[str, tuple[str, Path]]:
        """Id and file of each that rows have named."""
        folder = self.place
        if folder is None:
            return {}
        if self.is_tar:
            self._unpack(folder)
            folder = self.scratch / "tar"
        found = find_pictures(folder, sorted(self._named), self.endings)
        return {name: (picture.id, picture.path) for name, picture in found.items()}

    def _unpack(self, tar: Path) -> None:
        """Write the files of a tar file into the scratch folder, as far as rows may name them."""
        folder = self.scratch / "tar"
        folder.mkdir(exist_ok=True)
        self.num_bytes += (size := tar.stat().st_size)  # more if it is compressed
        if size > (free := free_bytes(folder)):
            raise ValueError(
                f"{self.option} {tar}: its {gigabytes(size)} are unpacked beside --out until the "
                f"shards are written, and {gigabytes(free)} are free there; make room, or unpack "
                "it and name the folder"
            )
        import tarfile  # 0.02 s, which a help page need not wait for

        try:
            with tarfile.open(tar) as archive:
                for member in archive:
                    if member.isfile() or member.islnk():
                        archive.extract(member, folder, filter="data")
        # tarfile raises each decompressor's errors, KeyError, OverflowError, ...
        except Exception as error:
            raise ValueError(
                f"{self.option} {tar} cannot be read as a tar file: {error}"
            ) from error


def free_bytes(folder: Path) -> int:
    """What the disk of a folder can still hold."""
    return shutil.disk_usage(folder).free


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"


def parse_chat(
    rows: Iterator[tuple[str | None, UserRow]],
    form: ChatForm,
    albums: Mapping[str, Album],
    files: Sequence[Path],
    name: str,
    split: str | None,
) -> list[SourceSet]:
    """Rows, each with the split of its file, -> one data set for each split. `albums`: by the type
    of a part that shows one. `split`: of all rows."""
    talks: list[tuple[Talk, list[str | Path]]] = []
    dropped: dict[str, list[Dropped]] = defaultdict(list)
    used: list[tuple[str, str, UserRow]] = []
    moved = silent = 0
    images_field, has_images_field = form.named.image, False
    unkept = Counter[str]()
    for of_file, row in rows:
        has_images_field |= images_field in row.fields
        for field in (form.id, form.split, form.group):
            if field is not None and not text_of(row.fields, field):
                raise ValueError(f"{files[0]}, {row.place}: no {field!r}; name another field")
        part = text_of(row.fields, form.split) if form.split else split or of_file or "train"
        # Each split counts its rows from 1.
        number = row.number if of_file in (None, part) else f"{of_file}-{row.number}"
        row_id = text_of(row.fields, form.id) if form.id else number
        try:
            if fault := text_fault({"id": row_id, "group": text_of(row.fields, form.group or "")}):
                row_id = ascii(row_id)
                raise Unusable(fault)
            talk = conversation_of(row.fields, form.named)
            for turn in talk.turns:
                if "source" in turn:
                    turn["source"] = _as_json(turn["source"])
            sources = [albums[shown.type].of(shown.source) for shown in talk.shown]
            _check(talk, form)
        except Unusable as reason:
            dropped[part].append(Dropped(row_id, str(reason)))
            continue
        moved += talk.moved
        silent += any(not _says(turn) for turn in talk.turns)
        unkept.update(sorted(talk.unkept))
        # Without the sources, whose bytes are in files by now.
        talk.shown = [shown._replace(source=None) for shown in talk.shown]
        group = text_of(row.fields, form.group) if form.group else ""
        fields = {k: v for k, v in row.fields.items() if k not in talk.consumed}
        row = replace(row, fields=fields)
        talks.append((Talk(row, row_id, part, group, talk), sources))
        used.append((part, row_id, row))
    if not talks and not dropped:
        raise ValueError(f"{files[0]}: no rows")
    if images_field is not None and not has_images_field:
        raise ValueError(f"--image-field {images_field}: no row of {files[0]} has such a field")
    if talks and albums["image"].place is not None and not any(sources for _, sources in talks):
        have = list_fields(talks[0][0].row.fields)
        tell(f"no row shows a picture, though --images was given; {have}: name it by --image-field")
    if form.id is not None:
        refuse_repeated_ids(used, form.id, files[0])
    if moved:
        tell(
            f"{moved:,} rows do not say where their pictures or clips stand: these stand before "
            "the first question"
        )
    if silent:
        tell(f"{silent:,} conversations have an empty turn, which is kept")
    if unkept:
        listed = [f"{name} ({count:,})" for name, count in unkept.most_common()]
        tell(f"fields of parts that are not kept, of so many conversations: {first_few(listed)}")
    known = {kind: album.files() for kind, album in albums.items()}
    # By picture or row: a picture may be called "row 1".
    samples: dict[str, dict[tuple[bool, str], SourceSample]] = defaultdict(dict)
    named = [
        [
            (source.name, source) if isinstance(source, Path) else known[of.type][source]
            for of, source in zip(kept.conversation.shown, sources, strict=True)
        ]
        for kept, sources in talks
    ]
    photos = {
        name
        for (kept, _), pictures in zip(talks, named, strict=True)
        for of, (name, _) in zip(kept.conversation.shown, pictures, strict=True)
        if of.type == "image"
    }
    for (kept, _), pictures in zip(talks, named, strict=True):
        shown = kept.conversation.shown
        parts = samples[kept.split]
        # The same with --each-turn and without, so that both give the same splits.
        lead = "" if kept.group else pictures[0][0] if pictures else f"row {kept.id}"
        for annotation, count in annotations_of(kept, form):
            if form.need_picture and count == 0:
                dropped[kept.split].append(Dropped(annotation["id"], "no picture before it"))
                continue
            shown_pictures = pictures[:count]
            # Conversations about one picture share its sample; others are samples themselves.
            sample_id = shown_pictures[0][0] if count == 1 else f"row {annotation['id']}"
            paths = tuple(path for _, path in shown_pictures)
            clips = {n: of.span for n, of in enumerate(shown[:count]) if of.type == "video"}
            if count == 1 and clips and (clips[0] != WHOLE or sample_id in photos):
                # Other seconds of a clip are another sample, and so is a picture of its name.
                start, end = clips[0]
                sample_id += f" {start:g}-{'end' if end is None else f'{end:g}'} s"
            place = kept.row.place
            new = SourceSample(sample_id, paths, [], lead=lead, place=place, clips=clips)
            key = (count == 1, sample_id)
            sample = parts.setdefault(key, new)
            sample.annotations.append(annotation)
            if form.group is not None:
                groups = dict.fromkeys((*sample.groups, Group(form.group, kept.group)))
                parts[key] = replace(sample, groups=tuple(groups))
    asked = [a for of in samples.values() for s in of.values() for a in s.annotations]
    if unlearned := sum("answer" in a and not _teaches(a) for a in asked):
        tell(
            f"{unlearned:,} of {len(asked):,} conversations mark none of their answers as one to "
            "learn: these can be scored, and train nothing"
        )
    return [
        SourceSet(name, "chat", part, tuple(files), [*samples[part].values()], tuple(dropped[part]))
        for part in sorted({*samples, *dropped})
    ]


def _says(turn: Mapping[str, Any]) -> bool:
    """True if a turn has a picture, a clip or a text that is not blank."""
    return any(part["type"] in MEDIA or part["text"].strip() for part in parts_of(turn))


def _teaches(annotation: Annotation) -> bool:
    """True if an answer of a conversation is to be learned, the last one or one before."""
    answers = [turn for turn in annotation["turns"] if turn["role"] == "assistant"]
    return any(answer.get("learn") is not False for answer in [annotation, *answers])


def _check(talk: Conversation, form: ChatForm) -> None:
    """Errors: Unusable for a conversation without what is asked for."""
    if fault := text_fault({"turns": talk.turns}):
        raise Unusable(fault)
    texts = (part.get("text", "") for turn in talk.turns for part in parts_of(turn))
    if sum(map(len, texts)) > LONGEST_TEXT:
        raise Unusable(f"more than {LONGEST_TEXT:,} characters")
    ends = talk.turns[-1]["role"] == "assistant"
    if form.answers and not ends:
        raise Unusable("no answer to the last question")
    if not form.answers and ends:
        raise Unusable("an answer at the end, which --no-answers has none of")
    first = next((turn["role"] for turn in talk.turns if turn["role"] != "system"), "")
    if ends and first == "assistant":
        raise Unusable("an answer before any question")


def annotations_of(talk: Talk, form: ChatForm) -> Iterator[tuple[Annotation, int]]:
    """The annotations of a conversation, each with the number of pictures and clips before its
    answer."""
    turns = talk.conversation.turns
    known = (form.id, form.split)
    rest = _as_json({k: v for k, v in talk.row.fields.items() if k not in known})
    source = {"source": rest} if rest else {}
    ends = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not form.answers:
        yield {"id": talk.id, "turns": turns, **source}, _num_pictures(turns)
        return
    for end in ends if form.each_turn else ends[-1:]:
        # Conversation 7 with three answers -> 7-0, 7-1, 7-2.
        number = f"-{ends.index(end)}" if form.each_turn and len(ends) > 1 else ""
        answer = turns[end]
        annotation = {"id": f"{talk.id}{number}", "turns": turns[:end], "answer": answer["content"]}
        if "learn" in answer:
            annotation["learn"] = answer["learn"]
        about = source
        if "source" in answer:
            about = {"source": {**rest, "answer": answer["source"]}}
        yield annotation | about, _num_pictures(turns[:end])


def _num_pictures(turns: Sequence[Mapping[str, Any]]) -> int:
    return sum(part["type"] in MEDIA for turn in turns for part in parts_of(turn))


def _as_json(value: Any) -> Any:
    """A value as JSON can hold it, without missing fields: Parquet has dates, decimal numbers and
    bytes, which are named by their number."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    is_number = isinstance(value, (int, float)) and abs(value) < LARGEST_NUMBER
    return value if isinstance(value, (str, bool)) or value is None or is_number else str(value)


READS = (
    "Reads OpenAI's messages, the conversations of LLaVA and ShareGPT, the files of LLaMA-Factory "
    "and ms-swift, and rows of a question with its answer: JSON lines, a JSON list, a table (CSV), "
    "Parquet, or a folder of Parquet files or that `save_to_disk` has written. Texts are kept as "
    "they are. Pictures are files below --images, clips below --videos, members of a tar file, or "
    "inside the rows. Of a clip, frames are kept, with their times. A conversation that cannot be "
    "kept whole is dropped and counted."
)


def add_command(commands: Any) -> None:
    _add(
        commands,
        "chat",
        "--images PLACE",
        [
            "chat --annotations chats.jsonl --images PHOTOS \\\n      --out shards/chats",
            "chat --annotations HF_FOLDER --out shards/chats \\\n"
            "      --split-sizes val=0.1 test=0.1 --group-field patient",
        ],
    )
    _add(
        commands,
        "video",
        "--videos PLACE",
        [
            "video --annotations questions.csv --videos CLIPS \\\n      --out shards/clips",
            "video --annotations chats.jsonl --videos CLIPS --fps 1 \\\n"
            "      --image-size 448 --image-format jpeg --out shards/clips",
        ],
    )


def _add(commands: Any, name: str, places: str, examples: Sequence[str]) -> None:
    parser = new_command(commands, name, READS, examples=examples)
    parser.usage = (
        "%(prog)s --annotations PLACE --out DIR\n"
        f"                                [{places}] [OPTIONS]"
    )
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="PLACE", help="file or folder of rows"
    )
    parser.add_argument(
        "--images", type=Path, metavar="PLACE", help="folder or tar file of the pictures"
    )
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="PLACE",
        help="folder or tar file of the clips",
    )
    group = parser.add_argument_group("frames of clips (needs vlds[video])")
    how_many = group.add_mutually_exclusive_group()
    how_many.add_argument(
        "--frames",
        type=at_least(1),
        metavar="N",
        help=f"cut a clip into N equal stretches of time, and keep the frame in the middle of each "
        f"(default: {FrameRule.num}); a clip of fewer frames gives all",
    )
    how_many.add_argument(
        "--fps", type=_rate, metavar="RATE", help="keep frames for each second instead, such as 0.5"
    )
    group.add_argument(
        "--most-frames",
        type=at_least(1),
        metavar="N",
        help=f"with --fps: of longer clips, this many, evenly spread (default: {FrameRule.most})",
    )
    group = parser.add_argument_group("rows")
    group.add_argument(
        "--image-field", metavar="NAME", help="a picture or a list (default: images or image)"
    )
    group.add_argument(
        "--video-field", metavar="NAME", help="a clip or a list (default: videos or video)"
    )
    group.add_argument(
        "--question-field",
        metavar="NAME",
        help="of rows without turns (default: question, query or instruction)",
    )
    group.add_argument(
        "--answer-field", metavar="NAME", help="(default: answer, response or output)"
    )
    group.add_argument("--id-field", metavar="NAME", help="default: the row's line")
    group.add_argument(
        "--each-turn",
        action="store_true",
        help="make an annotation of each answer, with the true turns before it: to score all",
    )
    group.add_argument(
        "--need-picture",
        action="store_true",
        help="drop and count answers with no picture before them, which JointSeq2Seq cannot learn",
    )
    group.add_argument(
        "--no-answers", action="store_true", help="conversations that end with a question"
    )
    group.add_argument(
        "--strict", action="store_true", help="write nothing if anything would be dropped"
    )
    parser.add_argument("--name", help="name of the data set (default: that of the annotations)")
    splits = parser.add_argument_group("splits")
    one = splits.add_mutually_exclusive_group()
    one.add_argument("--split", help="name of the split (default: what the files say, or train)")
    one.add_argument(
        "--split-field", metavar="NAME", help="field that names a row's split, for OUT/SPLIT"
    )
    one.add_argument("--split-sizes", **SPLIT_SIZES)
    splits.add_argument("--group-field", **GROUP_FIELD)
    splits.add_argument("--near-copies", **NEAR_COPIES)
    add_shard_options(parser)
    parser.set_defaults(run=_run_chat)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}; give frames a second, such as 1 or 0.5")
    return rate


def _run_chat(args: argparse.Namespace) -> None:
    form = ChatForm(
        named=RowFields(args.image_field, args.video_field, args.question_field, args.answer_field),
        id=args.id_field,
        split=args.split_field,
        group=args.group_field,
        answers=not args.no_answers,
        each_turn=args.each_turn,
        need_picture=args.need_picture,
    )
    division = split_of(args)
    tables = find_tables(args.annotations)
    if division is not None and len({table.split for table in tables}) > 1:
        raise ValueError(
            "--split-sizes: the files of --annotations name their splits; give one of them, or "
            "leave --split-sizes out"
        )
    files = [table.path for table in tables] or [args.annotations]
    rows = read_columns(tables) if tables else ((None, row) for row in read_rows(args.annotations))
    with scratch_beside(args.out) as scratch:
        albums = {
            "image": Album("image", args.images, scratch / "images"),
            "video": Album("video", args.videos, scratch / "videos"),
        }
        name = args.name or args.annotations.resolve().stem.replace(".", "_")
        of_all = args.split or (None if division is None else "train")
        if args.most_frames is not None and args.fps is None:
            raise ValueError("--most-frames limits what --fps gives, which is missing; give both")
        datasets = parse_chat(rows, form, albums, files, name, of_all)
        kept = sum(album.num_bytes for album in albums.values())
        if (free := free_bytes(scratch)) < kept:
            tell(
                f"{gigabytes(kept)} of pictures and clips from rows or tar files lie in "
                f"{scratch.parent} until the shards are written, which may need as much again; "
                f"{gigabytes(free)} are free"
            )
        options = shard_options(args)
        frames = FrameRule(
            args.frames or FrameRule.num, args.fps, args.most_frames or FrameRule.most
        )
        options = replace(options, rule=replace(options.rule, frames=frames))
        pack_splits(
            datasets,
            division,
            args.out,
            with_albums(options, [*albums.values()], scratch, args.images_anywhere),
            apart=len(datasets) > 1 or division is not None or form.split is not None,
            noun="id" if form.id else None,
            cure="--split-sizes keeps a picture in one split",
            near=args.near_copies,
            strict=args.strict,
        )


@contextmanager
def scratch_beside(out: Folder) -> Iterator[Path]:
    """Inside, a new folder for what rows hold: on the disk of the output, which has room for it. If
    the process is killed, the next command that writes beside the output removes it."""
    place = out if isinstance(out, Path) else out.workplace
    # The output itself may not exist yet, nor may folders above it.
    beside = next(folder for folder in place.absolute().parents if folder.is_dir())
    with half_made(beside / f"scratch-{place.name}") as scratch:
        scratch.mkdir(0o700)
        yield scratch


def with_albums(
    options: Options, albums: Sequence[Album], scratch: Path, anywhere: bool
) -> Options:
    """The options with the folders in which pictures and clips may lie; `anywhere`: as far as they
    are no members of tar files."""
    tars = {album.place for album in albums if album.is_tar}
    places = [album.place for album in albums if album.place and not album.is_tar]
    unpacked = [album.scratch / "tar" for album in albums if album.is_tar]
    allowed = (*(folder for folder in options.folders if folder not in tars), *places, scratch)
    return replace(
        options,
        images=next(iter((*places, *unpacked)), None),
        folders=() if anywhere and not tars else tuple(dict.fromkeys(allowed)),
    )
