"""`vlds convert`: a sub-command for each layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlds.convert.options import (
    BASE_HELP,
    DESCRIPTION,
    EPILOG,
    MERGE_HELP,
    PACKING,
    RUN_HELP,
    TWO_WAYS,
    Options,
    add_layout,
    add_merge,
    add_push,
    add_source,
    check_merge,
    check_options,
)
from vlds.convert.output import say, stoppable, tell
from vlds.runtime.command_line import CommandParser

if TYPE_CHECKING:  # imported at run time, they would make each help wait for torch
    from vlds.artifact import LoadedRun
    from vlds.convert.target import RunFiles, Target
    from vlds.convert.verify import Verification
    from vlds.models.counts import Counts


def convert(arguments: list[str]) -> int:
    """Parse and run one sub-command; the exit code."""
    options = parse(arguments)
    check_options(options)
    with stoppable():
        if options.push is not None:
            from vlds.convert.push import check_push, push

            check_push(options.push, private=options.private)
        options.function(options)
        tell(f"wrote {options.out}")
        if options.push is not None:
            say(f"uploading {options.out} to {options.push}")
            tell(f"pushed to {push(options.out, options.push, private=options.private)}")
    return 0


def parse(arguments: list[str]) -> Options:
    """The options of a sub-command; `keys`: those that are keys of a recipe. Without a recipe, only
    the one that opens a run on unquantised weights is."""
    parser = build_parser()
    options, keys = parser.parse_known_args(arguments)
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
    zero = add_layout(layouts, "zero", from_zero)
    add_source(zero, "folder that engine.save_checkpoint wrote", required=True)
    zero.add_argument("--tag", help="the checkpoint's subfolder; default: what `latest` names")
    original = add_layout(layouts, "reference", reference, TWO_WAYS)
    add_source(original, "a .pth file of the original code", required=False)
    opens = (
        "`PeftModel.from_pretrained` opens it on a folder that `vlds convert hf` writes; if the\n"
        "model is of kind ImageTextToText or Causal, on the base model."
    )
    in_peft = add_layout(layouts, "peft", peft, f"{TWO_WAYS}{opens}")
    add_source(in_peft, "folder of peft's files, or of one such folder a task", required=False)
    in_peft.add_argument("--base", help=BASE_HELP)
    for layout in (in_hf, in_merge, in_peft):
        add_push(layout)
    opens = "`model.load_adapter` opens it on the backbone that `vlds convert hf` writes."
    in_adapters = add_layout(layouts, "adapters", adapters, f"{TWO_WAYS}{opens}")
    add_source(in_adapters, "folder of the library's files, or of one a task", required=False)
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
    if options.how == "fold":
        return write_model(options, runs[0], merge=True)
    from vlds.convert import combine, merged_adapters
    from vlds.convert.target import write_run

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
            combined = merged_adapters.transport(runs, options.cost, options.entropic, pictures)
        case how:
            density = 0.5 if options.density is None else options.density
            combined = merged_adapters.pruned(runs, how, options.weights, density)
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


def from_zero(options: Options) -> None:
    """From a DeepSpeed checkpoint of ZeRO 2 or 3, of any number of ranks.

    vlds convert zero --from CHECKPOINT --config my.yaml --out models/mine
    """
    from vlds.convert.zero import fill_from_zero

    target = target_of(options)
    fill_from_zero(target, options.source, options.tag)
    target.write(options.out, verification_of(options))


def reference(options: Options) -> None:
    """From and to the .pth files of the original VL-T5 and VL-Adapter code.

    vlds convert reference --run runs/vqa --out vqa.pth
    vlds convert reference --from LAST.pth --config my.yaml --out models/old
    """
    from vlds.convert.reference import ReferenceFile

    convert_files(options, ReferenceFile)


def peft(options: Options) -> None:
    """From and to peft's layout: LoRA, IA3, and prompts of T5.

    vlds convert peft --run runs/lora --out adapters/lora
    vlds convert peft --from adapters/lora --run runs/lora --out models/lora
    """
    from vlds.convert.adapter_folders import plain
    from vlds.convert.card import describe, write_method_card
    from vlds.convert.card_code import Address
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
    from vlds.convert.adapter_folders import plain
    from vlds.convert.adapters import AdaptersFolders

    convert_files(options, AdaptersFolders, plain)


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
        export_run(options.run, files_of, options.out, verification, prepare, card)
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
    from vlds.config import parse_recipe
    from vlds.convert.target import target_of_recipe, target_of_run
    from vlds.evaluation.sources import with_lists

    if (options.config is None) == (options.run is None):
        raise ValueError("--from: give one of --config and --run, which describes the model")
    if options.run is not None:
        return target_of_run(options.run)
    words = ["--config", options.config, *options.keys]
    return target_of_recipe(with_lists(parse_recipe(words, f"vlds convert {options.layout}")))
