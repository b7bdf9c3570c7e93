"""The command line: official files -> shards, one command a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep import coco_karpathy, gqa, nlvr2, vqav2
from data_prep.demo import HOME_SCENES, make_demo
from data_prep.easy_vqa import load_easy_vqa
from data_prep.jsonl import FieldNames, HashSplit, parse_jsonl
from data_prep.pack import Options, pack
from data_prep.picture import PictureRule
from data_prep.stats import describe, find_datasets
from data_prep.tokenizer import texts_of, train_tokenizer
from vlds.data import ShardError
from vlds.data.index import index_folder

Run = Callable[[argparse.Namespace], None]
USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; user errors are one line and exit code 2."""
    args = build_parser().parse_args(arguments)
    run: Run = args.run
    try:
        run(args)
    except (ValueError, ShardError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: the data set being written is incomplete", file=sys.stderr)
        return INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Pack vision-and-language data sets into WebDataset shards.",
        epilog="`python -m data_prep COMMAND --help` says more about a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_vqav2, _add_gqa, _add_nlvr2, _add_karpathy, _add_jsonl, _add_easy_vqa, _add_demo,
        _add_index, _add_tokenizer, _add_stats,
    ):  # fmt: skip
        add(commands)
    return parser


def _add_vqav2(commands: Any) -> None:
    parser = _official(commands, "vqav2", "VQA v2: questions with ten answers each", vqav2.SPLITS)
    parser.add_argument("--questions", type=Path, metavar="FILE", help="another questions file")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another answers file")

    def run(args: argparse.Namespace) -> None:
        dataset = vqav2.parse_vqav2(
            args.src, args.split, args.name, args.questions, args.annotations, args.images
        )
        pack(dataset, args.out, _options(args))

    parser.set_defaults(run=run)


def _add_gqa(commands: Any) -> None:
    text = "GQA: questions about Visual Genome's scene graphs"
    parser = _official(commands, "gqa", text, gqa.SPLITS)
    parser.add_argument(
        "--questions",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="other question files, several for train_all (default: SPLIT_balanced_questions.json)",
    )
    parser.add_argument(
        "--scene-graphs",
        type=Path,
        metavar="FILE",
        help="keep its objects with the samples (default: SPLIT_sceneGraphs.json, if there)",
    )

    def run(args: argparse.Namespace) -> None:
        dataset = gqa.parse_gqa(
            args.src, args.split, args.name, args.questions, args.scene_graphs, args.images
        )
        pack(dataset, args.out, _options(args))

    parser.set_defaults(run=run)


def _add_nlvr2(commands: Any) -> None:
    parser = _official(commands, "nlvr2", "NLVR2: statements on picture pairs", nlvr2.SPLITS)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another file")

    def run(args: argparse.Namespace) -> None:
        dataset = nlvr2.parse_nlvr2(args.src, args.split, args.name, args.annotations, args.images)
        pack(dataset, args.out, _options(args))

    parser.set_defaults(run=run)


def _add_karpathy(commands: Any) -> None:
    parser = _official(
        commands,
        "coco-karpathy",
        "COCO captions in Karpathy's split; train includes restval",
        coco_karpathy.SPLITS,
        name="coco",
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another JSON file")

    def run(args: argparse.Namespace) -> None:
        dataset = coco_karpathy.parse_coco_karpathy(
            args.src, args.split, args.name, args.annotations, args.images
        )
        pack(dataset, args.out, _options(args))

    parser.set_defaults(run=run)


def _add_jsonl(commands: Any) -> None:
    parser = _command(
        commands,
        "jsonl",
        "your own data: rows in JSON lines, a JSON list or CSV",
        "One row a question or caption. All rows about a picture become one sample. Answers are "
        "stripped and lower-cased; a list of ten is weighed as in VQA v2. Rows without a picture, "
        "question or answer are dropped and counted.",
    )
    parser.add_argument("--task", choices=("vqa", "caption"), required=True)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    fields = parser.add_argument_group("fields of a row")
    fields.add_argument("--image-field", default="image", metavar="NAME", help="below --images")
    fields.add_argument("--question-field", default="question", metavar="NAME")
    fields.add_argument(
        "--answer-field", default="answer", metavar="NAME", help="or numbers, lists"
    )
    fields.add_argument("--no-answers", action="store_true", help="questions only (a test set)")
    fields.add_argument("--caption-field", default="caption", metavar="NAME", help="text or list")
    fields.add_argument("--id-field", metavar="NAME", help="default: the row's number, from 0")
    parser.add_argument("--name", help="of the data set (default: of the annotations file)")
    splits = parser.add_argument_group("splits").add_mutually_exclusive_group()
    splits.add_argument("--split", default="train", help="name of the one split (default: train)")
    splits.add_argument(
        "--split-field", metavar="NAME", help="a row says its split; writes OUT/SPLIT for each"
    )
    splits.add_argument(
        "--split-by-image",
        type=float,
        metavar="FRACTION",
        help="this share of the pictures, with all their rows, goes to OUT/test, the others to "
        "OUT/train, by a hash of the picture's name and --seed",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --split-by-image (default: 0)")
    _shared(parser)
    parser.set_defaults(run=_run_jsonl)


def _run_jsonl(args: argparse.Namespace) -> None:
    asks = args.task == "vqa"
    names = FieldNames(
        image=args.image_field,
        question=args.question_field if asks else None,
        answer=args.answer_field if asks and not args.no_answers else None,
        caption=None if asks else args.caption_field,
        id=args.id_field,
        split=args.split_field,
    )
    by_image = args.split_by_image is not None
    split = HashSplit(args.split_by_image, args.seed) if by_image else args.split
    name = args.name or args.annotations.stem.replace(".", "_")
    datasets = parse_jsonl(args.task, args.annotations, args.images, names, name, split)
    for dataset in datasets:
        dataset.check()  # all of them, before the first shard is written
    for dataset in datasets:
        apart = by_image or args.split_field is not None
        pack(dataset, args.out / dataset.split if apart else args.out, _options(args))


def _add_easy_vqa(commands: Any) -> None:
    parser = _command(
        commands,
        "easy-vqa",
        "easy-VQA: the small data set that the package easy-vqa ships",
        "Writes OUT/train and OUT/test, and of each the questions without and with a negation: "
        "OUT/plain-train, OUT/negated-train, OUT/plain-test, OUT/negated-test. "
        "Needs `pip install easy-vqa`.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    _shared(parser)

    def run(args: argparse.Namespace) -> None:
        for subset, dataset in load_easy_vqa():
            folder = dataset.split if subset == "all" else f"{subset}-{dataset.split}"
            pack(dataset, args.out / folder, _options(args))

    parser.set_defaults(run=run)


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "made pictures of colored shapes in four official layouts",
        "Draws two worlds of colored shapes, writes them as VQA v2, GQA, NLVR2 and COCO captions "
        "in the publishers' file layouts (OUT/official), packs all eight data sets (OUT/shards) "
        "and trains a sentencepiece model on their text (OUT/spiece.model).",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--scenes",
        type=int,
        default=HOME_SCENES,
        help=f"pictures of the home world (default: {HOME_SCENES})",
    )
    _shared(parser)
    parser.set_defaults(
        run=lambda args: make_demo(args.out, args.seed, args.scenes, _options(args))
    )


def _add_index(commands: Any) -> None:
    parser = _command(
        commands,
        "index",
        "make a data set of tars that lie there already",
        "Writes the .idx and .cnt beside every tar of a folder, and dataset.json.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--name", required=True, help="of the data set")
    parser.add_argument("--kind", required=True, help="of its annotations: vqa, gqa, caption, ...")
    parser.add_argument("--split", required=True)

    def run(args: argparse.Namespace) -> None:
        info = index_folder(args.folder, name=args.name, kind=args.kind, split=args.split)
        print(f"{info.name} {info.split}: {len(info.shards)} shards, {info.samples:,} samples")

    parser.set_defaults(run=run)


def _add_stats(commands: Any) -> None:
    parser = _command(commands, "stats", "count what a folder of shards holds")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data set, or several below")

    def run(args: argparse.Namespace) -> None:
        print("\n\n".join(describe(folder) for folder in find_datasets(args.folder)))

    parser.set_defaults(run=run)


def _add_tokenizer(commands: Any) -> None:
    parser = _command(
        commands,
        "tokenizer",
        "train a small sentencepiece model on the text of packed data sets",
        "For models that start from nothing: a sentencepiece model with T5's special tokens, made "
        "of the questions, statements, captions and answers of one or several data sets.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of shards")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.model")
    parser.add_argument("--vocab-size", type=int, default=1000, help="most pieces (default 1000)")

    def run(args: argparse.Namespace) -> None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(train_tokenizer(texts_of(args.folders), args.vocab_size))
        print(f"wrote {args.out}")

    parser.set_defaults(run=run)


def _command(
    commands: Any, name: str, summary: str, description: str | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description or f"{summary[0].upper()}{summary[1:]}."
    )
    return parser


def _official(
    commands: Any, command: str, summary: str, splits: Iterable[str], name: str | None = None
) -> argparse.ArgumentParser:
    """A command that reads a publisher's files."""
    parser = _command(commands, command, summary)
    parser.add_argument(
        "--src", type=Path, required=True, metavar="DIR", help="folder of the official files"
    )
    parser.add_argument("--split", choices=tuple(splits), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures (default: --src)")
    name = name or command
    parser.add_argument("--name", default=name, help=f"of the data set (default: {name})")
    _shared(parser)
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--shard-samples", type=int, default=1000, metavar="N", help="most a shard (default: 1000)"
    )
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="make larger pictures smaller: the shorter side (default: as they are)",
    )
    group.add_argument(
        "--square", action="store_true", help="both sides to --image-size, proportions given up"
    )


def _options(args: argparse.Namespace) -> Options:
    given = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key != "run" and value is not None
    }
    if given.get("questions"):
        given["questions"] = str(given["questions"])
    return Options(PictureRule(args.image_size, args.square), args.shard_samples, given)
