"""`vlds convert`: a sub-command for each layout."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vlds.convert.output import check_absent, say, stoppable
from vlds.runtime.command_line import CommandParser, description_of
from vlds.runtime.terminal import tell

if TYPE_CHECKING:
    from vlds.artifact import LoadedRun
    from vlds.convert.target import RunFiles, Target
    from vlds.convert.verify import Verification
    from vlds.models.model import Counts


Options = argparse.Namespace
Layouts: TypeAlias = "argparse._SubParsersAction[CommandParser]"

DESCRIPTION = """\
Export a run to another layout, or import weights from one.

  vlds convert hf --run runs/vqa --out models/vqa
  vlds convert reference --from LAST.pth --config recipe.yaml --out models/old
  vlds convert clip --from OPEN_CLIP_FOLDER --out models/clip
  vlds convert LAYOUT --help                                 a layout's options
"""
EPILOG = """\
--out must not exist; it is written whole or not at all. Other people's files
are read without running code in them.
"""
BASE_HELP = (
    "backbone's name in adapter_config.json; default: its name on the hub, if no weights but those "
    "in the folder differ from it"
)
RUN_HELP = "folder that `vlds train` or `vlds convert` wrote"
FROM_RUN_HELP = "run with the recipe, and with what the files lack (visual embedding, ...)"
TWO_WAYS = """\
With --from, read files and write an artifact of the model that --config or
--run describes. Without it, write the run in this layout.
"""
MERGE_HELP = """\
  fold        fold every method into the weights, or simplify it (Compacter to
              Adapter, ...); an error if neither is possible; writes what
              `vlds convert hf` writes
  average     the mean of the weights of several runs of one model
  arithmetic  base + sum of weight x (run - base); a negative weight forgets
  take        a run of --task only: its slices of weights that are stacked
              over tasks, and all weights that tasks share
  put         the first run, with the second run's slices for --task
  transport   the mean, after the neurons of adapters have been brought into
              the first run's order (MerA)
  ties, dare_linear, dare_ties, magnitude_prune
              the sum of what methods have added, without small or random
              entries (peft's functions)
"""
MERGES: dict[str, tuple[range, tuple[str, ...]]] = {
    "fold": (range(1, 2), ()),
    "average": (range(2, 1000), ("weights",)),
    "arithmetic": (range(1, 1000), ("base", "weights")),
    "take": (range(1, 2), ("task",)),
    "put": (range(2, 3), ("task",)),
    "transport": (range(2, 1000), ("cost", "entropic", "samples")),
    **dict.fromkeys(
        ("ties", "dare_linear", "dare_ties", "magnitude_prune"),
        (range(2, 1000), ("weights", "density")),
    ),
}
"""Way of combining -> possible numbers of runs, and options."""
REQUIRED = ("base", "task")
"""Options that the ways which have them need."""
COSTS = ("weights_in", "weights_in_out", "activations")
"""What transport compares neurons by."""
PACKING = "--model.bits"
"""Key of a recipe: `--model.bits null` opens a run on unquantised weights."""
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)


def add_layout(
    layouts: Layouts,
    name: str,
    function: Callable[[Options], None],
    more: str = "",
    compares: bool = True,
) -> CommandParser:
    """A sub-command with the options that all have, described by its function's docstring.
    `compares`: it can compare a run before and after."""
    text = description_of(function)
    parser = layouts.add_parser(
        name,
        help=text.split("\n")[0],
        description=f"{text}\n\n{more}".rstrip(),
        accepts_keys=True,
    )
    # Not all layouts have --push, but all are asked for it.
    parser.set_defaults(function=function, parser=parser, push=None, private=False)
    parser.add_argument("--out", type=Path, required=True, help="new file or folder to write")
    if not compares:
        parser.set_defaults(verify=None, tolerance=None, run=None)
        return parser
    parser.add_argument(
        "--verify", nargs="*", type=Path, metavar="PICTURE",
        help="compare outputs before and after, on these pictures or on generated ones; above the "
        "tolerance, nothing is written",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="with --verify: largest difference, as a share of the largest logit; default: 1e-5 "
        "in float32, 0.05 in bfloat16",
    )  # fmt: skip
    return parser


def add_source(parser: CommandParser, what: str) -> None:
    """Add the options that say where weights come from, and for which model they are."""
    parser.add_argument("--from", dest="source", type=Path, help=what)
    parser.add_argument(
        "--config", metavar="RECIPE",
        help="recipe of the model that --from is for; further options are keys of the recipe",
    )  # fmt: skip
    also = "without --from, what is written"
    parser.add_argument(
        "--run", type=Path, help=f"{also}: {RUN_HELP}; with --from, {FROM_RUN_HELP}"
    )


def add_merge(parser: CommandParser) -> None:
    """Add the options that only merge has."""
    # argparse (Python 3.11) takes -1e-3 for an option; the field is private.
    parser._negative_number_matcher = NEGATIVE
    parser.add_argument(
        "--run", type=Path, nargs="+", required=True, help=f"one or several runs: {RUN_HELP}"
    )
    parser.add_argument(
        "--how", choices=sorted(MERGES), default="fold", metavar="WAY",
        help="one of the ways above; default: fold",
    )  # fmt: skip
    parser.add_argument("--base", type=Path, help="for arithmetic: the run that all began with")
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="WEIGHT",
        help="for average and arithmetic: one for each run; default: 1 each",
    )  # fmt: skip
    parser.add_argument("--task", help="for take and put: the task's name")
    parser.add_argument(
        "--cost", choices=COSTS, metavar="COST",
        help="for transport: what neurons are compared by: weights_in, weights_in_out (default; "
        "also the weights behind them) or activations",
    )  # fmt: skip
    parser.add_argument(
        "--entropic", type=float, metavar="SHARE",
        help="for transport: regularise the plan by this share of the largest cost, which mixes "
        "neurons; default: the exact plan",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=Path, nargs="+", metavar="PICTURE",
        help="for transport with --cost activations: pictures; default: generated ones",
    )  # fmt: skip
    parser.add_argument(
        "--density", type=float, metavar="SHARE",
        help="for ties, dare_* and magnitude_prune: share of the entries that stay; default: 0.5",
    )  # fmt: skip


def check_options(options: Options) -> None:
    """Find mistakes before anything is loaded.

    Errors: ValueError that names the option.
    """
    # For the message: `reference` writes a .pth file, all others a folder.
    check_absent(options.out, "file" if options.out.suffix == ".pth" else "folder")
    # A folder of peft is compared in any case.
    is_compared = options.verify is not None or options.layout == "peft"
    if options.tolerance is not None and not is_compared:
        raise ValueError("--tolerance: goes with --verify")
    if options.private and options.push is None:
        raise ValueError("--private: goes with --push")
    if options.push is not None:
        if getattr(options, "source", None) is not None:
            raise ValueError("--push: goes with a run that is written, not with --from")
        if (how := getattr(options, "how", "fold")) != "fold":
            raise ValueError(
                f"--push: {how} writes a run, which needs the files that it was trained on; push "
                "what `vlds convert hf` writes of it"
            )
    for picture in options.verify or ():
        if not picture.is_file():
            raise ValueError(f"--verify: no such picture: {picture}")
    if (source := getattr(options, "source", None)) is not None and not source.exists():
        raise ValueError(f"--from: no such file or folder: {source}")
    if source is None and getattr(options, "config", None):
        raise ValueError("--config: goes with --from")
    # `merge` takes several runs, all others one.
    runs = options.run if isinstance(options.run, list) else [options.run]
    for run in filter(None, runs):
        if not run.is_dir():
            raise ValueError(f"--run: no such folder: {run}")


def check_merge(options: Options) -> None:
    """Errors: ValueError if options do not go with each other, or the base does not exist."""
    how = options.how
    num, wanted = MERGES[how]
    if len(options.run) not in num:
        least = f"{num.start}" if len(num) == 1 else f"{num.start} or more"
        raise ValueError(f"--run: {how} takes {least}, got {len(options.run)}")
    for name in ("base", "weights", "task", "cost", "entropic", "samples", "density"):
        given = getattr(options, name) is not None
        if given and name not in wanted:
            fitting = " and ".join(h for h, (_, names) in MERGES.items() if name in names)
            raise ValueError(f"--{name} goes with --how {fitting}, not with {how}")
        if not given and name in wanted and name in REQUIRED:
            raise ValueError(f"--{name}: --how {how} needs it")
    if options.entropic is not None and not 0 < options.entropic < math.inf:
        raise ValueError(f"--entropic: got {options.entropic}; give a number above 0, such as 0.05")
    if options.density is not None and not 0 < options.density <= 1:
        raise ValueError(f"--density: got {options.density}; give a share above 0, at most 1")
    if options.samples is not None and options.cost != "activations":
        raise ValueError("--samples: goes with --cost activations")
    for picture in options.samples or ():
        if not picture.is_file():
            raise ValueError(f"--samples: no such picture: {picture}")
    if options.base is not None and not options.base.is_dir():
        raise ValueError(
            f"--base: no such folder: {options.base}; name one that `vlds train` or "
            "`vlds convert` wrote"
        )


def convert(arguments: list[str]) -> int:
    """Parse and run one sub-command; the exit code."""
    # Modules that load transformers or DeepSpeed are imported where they are needed: that takes
    # seconds, and mistakes in options should be told at once.
    options = parse(arguments)
    check_options(options)
    with stoppable():
        if options.push is not None:
            from vlds.convert.hf import check_push, push

            # Before the long work: a wrong login should be told at once.
            check_push(options.push, private=options.private)
        options.function(options)
        tell(f"wrote {options.out}", flush=True)
        if options.push is not None:
            say(f"uploading {options.out} to {options.push}")
            tell(f"pushed to {push(options.out, options.push, private=options.private)}")
    return 0


def parse(arguments: list[str]) -> Options:
    """The options of a sub-command; `keys`: those that are keys of a recipe. Without a recipe, only
    the one that opens a run on unquantised weights is."""
    words, rest = arguments[:1], arguments[1:]
    # As `vlds convert hf RUN OUT`, too.
    for option in ("--from" if words == ["clip"] else "--run", "--out"):
        if words and rest and not rest[0].startswith("-"):
            words += [option, rest.pop(0)]
    parser = build_parser()
    options, keys = parser.parse_known_args([*words, *rest])
    folds = options.layout == "hf" or getattr(options, "how", None) == "fold"
    taken = getattr(options, "config", None) or (folds and keys and keys[0].startswith(PACKING))
    if keys and not taken:
        options.parser.refuse(keys)
    options.keys = keys
    return options


def build_parser() -> CommandParser:
    """The parser of all layouts."""
    parser = CommandParser(
        prog="vlds convert", description=DESCRIPTION, epilog=EPILOG, accepts_keys=True
    )
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT", title="layouts")
    in_hf = add_layout(layouts, "hf", to_hf)
    in_hf.add_argument("--run", type=Path, required=True, help=RUN_HELP)
    in_merge = add_layout(layouts, "merge", merge, MERGE_HELP)
    add_merge(in_merge)
    original = add_layout(layouts, "reference", reference, TWO_WAYS)
    add_source(original, "a .pth file of the original code")
    opens = (
        "`PeftModel.from_pretrained` opens it on a folder that `vlds convert hf` writes; if the\n"
        "model is of kind ImageTextToText or Causal, on the base model."
    )
    in_peft = add_layout(layouts, "peft", peft, f"{TWO_WAYS}{opens}")
    add_source(in_peft, "folder of peft's files, or of one such folder a task")
    in_peft.add_argument("--base", help=BASE_HELP)
    for layout in (in_hf, in_merge, in_peft):
        layout.add_argument(
            "--push", metavar="OWNER/NAME",
            help="then upload the folder to this model on the Hugging Face hub, which is created "
            "if need be: all files; a recipe.yaml among them has the paths of your data",
        )  # fmt: skip
        layout.add_argument(
            "--private", action="store_true",
            help="with --push: only you and your organisation see the model; default: as the hub's "
            "settings say, else everybody",
        )  # fmt: skip
    opens = "`model.load_adapter` opens it on the backbone that `vlds convert hf` writes."
    in_adapters = add_layout(layouts, "adapters", adapters, f"{TWO_WAYS}{opens}")
    add_source(in_adapters, "folder of the library's files, or of one a task")
    in_clip = add_layout(layouts, "clip", clip, compares=False)
    in_clip.add_argument(
        "--from", dest="source", type=Path, required=True,
        help="folder with open_clip_config.json and open_clip_model.safetensors, as the hub's "
        "timm/resnet50_clip.openai has them",
    )  # fmt: skip
    in_clip.add_argument(
        "--tokenizer", metavar="FOLDER",
        help="folder or hub name with CLIP's tokenizer; default: --from",
    )  # fmt: skip
    return parser


def to_hf(options: Options) -> None:
    """One folder: Hugging Face opens the model, or its text backbone; the rest beside it.

    vlds convert hf --run runs/vqa --out models/vqa
    vlds convert hf --run runs/vqa --out models/vqa --verify beach.jpg
    """
    write_model(options, options.run, merge=False)


def merge(options: Options) -> None:
    """Fold methods into the weights, or make one run of several.

    vlds convert merge --run runs/lora --out models/merged
    vlds convert merge --how average --run runs/a runs/b --out runs/mean
    """
    check_merge(options)
    runs, verification = options.run, verification_of(options)
    # `fold` takes one run and writes a whole model, all others write a run.
    if options.how == "fold":
        return write_model(options, runs[0], merge=True)
    from vlds.convert import combine
    from vlds.convert.target import write_run
    from vlds.convert.transport import transport

    match options.how:
        case "average":
            combined = combine.average(runs, options.weights)
        case "arithmetic":
            combined = combine.arithmetic(options.base, runs, options.weights)
        case "take":
            combined = combine.take(runs[0], options.task)
        case "put":
            receiver, giver = runs
            combined = combine.put(receiver, giver, options.task)
        case "transport":
            pictures = options.samples or ()
            combined = transport(runs, options.cost, options.entropic, pictures)
        case how:
            density = 0.5 if options.density is None else options.density
            combined = combine.pruned(runs, how, options.weights, density)
    return write_run(*combined, options.out, verification)


def write_model(options: Options, run: Path, *, merge: bool) -> None:
    """The whole model as one folder."""
    from vlds.convert.hf import convert_run

    convert_run(
        run,
        options.out,
        merge=merge,
        verification=verification_of(options),
        changes=options.keys,
        hub_name=options.push,
    )


def reference(options: Options) -> None:
    """From and to the .pth files of the original code of a kind of model.

    JointSeq2Seq: VL-T5's and VL-Adapter's. CrossModal: METER's.
    JointEncoder: CLIP-ViL's, with --from alone.

    vlds convert reference --run runs/vqa --out vqa.pth
    vlds convert reference --from LAST.pth --config my.yaml --out models/old
    """
    from vlds.convert.originals import original_file

    convert_files(options, original_file)


def peft(options: Options) -> None:
    """From and to peft's layout: LoRA, IA3, and prompts of T5. With --run, peft opens what was
    written on the run's backbone, if it is installed, and must give the run's logits.

    vlds convert peft --run runs/lora --out adapters/lora
    vlds convert peft --from adapters/lora --run runs/lora --out models/lora
    """
    from vlds.convert.adapters import plain
    from vlds.convert.card import Address, describe, write_method_card
    from vlds.convert.peft import PeftFolders

    if options.source is not None and options.base is not None:
        raise ValueError("--base: goes with a run that is written, not with --from")

    def card(files: RunFiles, counts: Counts, folder: Path) -> None:
        assert isinstance(files, PeftFolders)
        address = Address.of(options.out, options.push)
        write_method_card(folder, describe(options.run, counts), files, address)

    convert_files(options, partial(PeftFolders, base=options.base), plain, card)


def adapters(options: Options) -> None:
    """From and to the layout of the library adapters: Adapter and Compacter.

    vlds convert adapters --run runs/vqa --out adapters/vqa
    vlds convert adapters --from adapters/vqa --run runs/vqa --out models/vqa
    """
    from vlds.convert.adapters import AdaptersFolders, plain

    convert_files(options, AdaptersFolders, plain)


def clip(options: Options) -> None:
    """From a folder of the hub that open_clip reads to one that DualEncoder opens.

    hf download timm/resnet50_clip.openai --local-dir OPEN_CLIP_FOLDER
    vlds convert clip --from OPEN_CLIP_FOLDER --out models/clip-rn50
    """
    from vlds.convert.clip import convert_clip

    convert_clip(options.source, options.tokenizer, options.out)


def convert_files(
    options: Options,
    files_of: Callable[[LoadedRun], RunFiles],
    prepare: Callable[[LoadedRun], LoadedRun] = lambda run: run,
    card: Callable[[RunFiles, Counts, Path], None] | None = None,
) -> None:
    """From or to the files of a library. `card`: as in `export_run`."""
    from vlds.convert.target import export_run

    verification = verification_of(options)
    if options.source is not None:
        target = target_of(options)
        files = files_of(target.run)
        say(f"reading {options.source}")
        target.fill(files.read(options.source), options.source)
        target.write(options.out, verification)
    elif options.run is not None:
        tolerance = options.tolerance
        export_run(options.run, files_of, options.out, verification, prepare, card, tolerance)
    else:
        raise ValueError("name --run, what to write, or --from, what to read")


def verification_of(options: Options) -> Verification | None:
    """What `--verify` asks for."""
    from vlds.convert.verify import Verification

    return None if options.verify is None else Verification(options.verify, options.tolerance)


def target_of(options: Options) -> Target:
    """The model that read weights are for.

    Errors: ValueError unless just one of --config and --run describes it.
    """
    from vlds.convert.target import target_of_recipe, target_of_run
    from vlds.evaluation.sources import with_lists
    from vlds.recipe.config import parse_recipe

    if (options.config is None) == (options.run is None):
        raise ValueError("--from: give one of --config and --run, which describes the model")
    if options.run is not None:
        return target_of_run(options.run)
    words = ["--config", options.config, *options.keys]
    return target_of_recipe(with_lists(parse_recipe(words, f"vlds convert {options.layout}")))
