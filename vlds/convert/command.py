"""`vlds convert`: one sub-command a layout, each of which parses, then runs one function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vlds.convert.merge_options import HELP, add_merge_options, check_merge
from vlds.convert.output import check_absent, stoppable, tell
from vlds.runtime.command_line import CommandParser

if TYPE_CHECKING:  # importing them for good would make each help wait for torch
    from vlds.artifact import LoadedRun
    from vlds.convert.adapter_folders import AdapterFolders
    from vlds.convert.target import Target
    from vlds.convert.verify import Verification

Options = argparse.Namespace
Layouts: TypeAlias = "argparse._SubParsersAction[CommandParser]"

DESCRIPTION = """\
Write a run in another layout, or take another layout's weights for a recipe.

  vlds convert hf --run runs/vqa --out models/vqa
  vlds convert reference --from LAST.pth --config recipe.yaml --out models/old
  vlds convert LAYOUT --help                                 a layout's options
"""
EPILOG = """\
--out must be new; it is there whole or not at all. Files that come from others
are read without running anything in them.
"""
RUN_HELP = "folder that `vlds train` or `vlds convert` wrote"
FROM_RUN_HELP = "run whose recipe it is; what the files lack (visual embedding, ...) is the run's"
EXAMPLES = {
    "hf": """\
  vlds convert hf --run runs/vqa --out models/vqa
  vlds convert hf --run runs/vqa --out models/vqa --verify beach.jpg""",
    "merge": """\
  vlds convert merge --run runs/lora --out models/merged
  vlds convert merge --how average --run runs/a runs/b --out runs/mean""",
    "zero": """\
  vlds convert zero --from CHECKPOINT --config my.yaml --out models/mine""",
    "reference": """\
  vlds convert reference --run runs/vqa --out vqa.pth
  vlds convert reference --from LAST.pth --config my.yaml --out models/old""",
    "peft": """\
  vlds convert peft --run runs/lora --out adapters/lora
  vlds convert peft --from adapters/lora --run runs/lora --out models/lora""",
    "adapters": """\
  vlds convert adapters --run runs/vqa --out adapters/vqa
  vlds convert adapters --from adapters/vqa --run runs/vqa --out models/vqa""",
}
TWO_WAYS = """\
With --from, the files become an artifact, for a model that --config or --run
describes. Without, the run is written in this layout.
"""


def convert(arguments: list[str]) -> int:
    """Parse and run one sub-command; the exit code."""
    options = parse(arguments)
    check_options(options)
    with stoppable():
        options.function(options)
    tell(f"wrote {options.out}")
    return 0


def parse(arguments: list[str]) -> Options:
    """The options of a sub-command; `keys`: those that are keys of a recipe."""
    parser = build_parser()
    options, keys = parser.parse_known_args(arguments)
    if keys and not getattr(options, "config", None):
        options.parser.refuse(keys)
    options.keys = keys
    return options


def build_parser() -> CommandParser:
    """The parser of all layouts."""
    parser = CommandParser(
        prog="vlds convert", description=DESCRIPTION, epilog=EPILOG, accepts_keys=True
    )
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT", title="layouts")
    add_layout(layouts, "hf", to_hf).add_argument("--run", type=Path, required=True, help=RUN_HELP)
    add_merge_options(add_layout(layouts, "merge", merge, HELP), RUN_HELP)
    zero = add_layout(layouts, "zero", from_zero)
    add_source(zero, "folder that engine.save_checkpoint wrote", required=True)
    zero.add_argument("--tag", help="the checkpoint's subfolder; default: what `latest` names")
    original = add_layout(layouts, "reference", reference, TWO_WAYS)
    add_source(original, "a .pth file of the original code", required=False)
    opens = "`PeftModel.from_pretrained` opens it on the backbone that `vlds convert hf`\nwrites."
    in_peft = add_layout(layouts, "peft", peft, f"{TWO_WAYS}{opens}")
    add_source(in_peft, "folder of peft's files, or of one such folder a task", required=False)
    in_peft.add_argument("--base", help="backbone's name in adapter_config.json; default: none")
    opens = "`model.load_adapter` opens it on the backbone that `vlds convert hf` writes."
    in_adapters = add_layout(layouts, "adapters", adapters, f"{TWO_WAYS}{opens}")
    add_source(in_adapters, "folder of the library's files, or of one a task", required=False)
    return parser


def add_layout(
    layouts: Layouts,
    name: str,
    function: Callable[[Options], None],
    more: str = "",
) -> CommandParser:
    """A sub-command, with the options that all have."""
    text = function.__doc__ or ""
    parser = layouts.add_parser(
        name,
        help=text.split("\n")[0],
        description=f"{text}\n\n{EXAMPLES[name]}\n\n{more}".rstrip(),
        accepts_keys=True,
    )
    parser.set_defaults(function=function, parser=parser)
    parser.add_argument("--out", type=Path, required=True, help="what is made; must be new")
    parser.add_argument(
        "--verify", nargs="*", type=Path, metavar="PICTURE",
        help="compare outputs before and after, on these pictures or on made ones; a difference "
        "above the tolerance is an error, and nothing is written",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="of --verify, as a share of the largest logit; default: 1e-5 in float32, 0.05 in "
        "bfloat16",
    )  # fmt: skip
    return parser


def add_source(parser: CommandParser, what: str, required: bool) -> None:
    """The options that say where weights come from and what model they are for."""
    parser.add_argument("--from", dest="source", type=Path, required=required, help=what)
    parser.add_argument(
        "--config", metavar="RECIPE",
        help="recipe of the model that --from is for; further options are keys of the recipe",
    )  # fmt: skip
    also = "" if required else "without --from, what is written: "
    parser.add_argument("--run", type=Path, help=f"{also}{RUN_HELP}; with --from, {FROM_RUN_HELP}")


def to_hf(options: Options) -> None:
    """One folder: the text backbone for Hugging Face, the rest beside it."""
    from vlds.convert.hf import convert_run

    convert_run(options.run, options.out, merge=False, verification=verification_of(options))


def merge(options: Options) -> None:
    """Fold methods into the weights, or make one run of several."""
    check_merge(options)
    verification = verification_of(options)
    if options.how == "fold":
        from vlds.convert.hf import convert_run

        return convert_run(options.run[0], options.out, merge=True, verification=verification)
    from vlds.convert import combine

    if options.how == "average":
        return combine.average(options.run, options.weights, options.out, verification)
    if options.how == "arithmetic":
        return combine.arithmetic(
            options.base, options.run, options.weights, options.out, verification
        )
    if options.how == "take":
        return combine.take(options.run[0], options.task, options.out, verification)
    receiver, giver = options.run
    return combine.put(receiver, giver, options.task, options.out, verification)


def from_zero(options: Options) -> None:
    """From a DeepSpeed checkpoint of ZeRO 2 or 3, of any number of ranks."""
    from vlds.convert.zero import import_zero

    target = target_of(options)
    import_zero(options.source, options.tag, target, options.out, verification_of(options))


def reference(options: Options) -> None:
    """From and to the .pth files of the original VL-T5 and VL-Adapter code."""
    from vlds.convert.reference import export_reference, import_reference

    if options.source is None:
        return export_reference(exported_run(options), options.out, verification_of(options))
    target = target_of(options)
    return import_reference(options.source, target, options.out, verification_of(options))


def peft(options: Options) -> None:
    """From and to peft's layout: LoRA, IA3, and prompts of T5."""
    from vlds.convert.peft import PeftFolders

    if options.source is not None and options.base is not None:
        raise ValueError("--base: goes with a run that is written, not with --from")
    convert_folders(options, partial(PeftFolders, base=options.base))


def adapters(options: Options) -> None:
    """From and to the layout of the library adapters: Adapter and Compacter."""
    from vlds.convert.adapters import AdaptersFolders

    convert_folders(options, AdaptersFolders)


def convert_folders(options: Options, folders_of: Callable[[LoadedRun], AdapterFolders]) -> None:
    """From or to folders of a library."""
    from vlds.convert.adapter_folders import export_folders, import_folders

    verification = verification_of(options)
    if options.source is None:
        return export_folders(exported_run(options), options.out, folders_of, verification)
    target = target_of(options)
    return import_folders(options.source, target, options.out, folders_of, verification)


def check_options(options: Options) -> None:
    """Find mistakes that need no long work to find.

    Errors: ValueError that names the option.
    """
    check_absent(options.out, "file" if options.out.suffix == ".pth" else "folder")
    if options.tolerance is not None and options.verify is None:
        raise ValueError("--tolerance: goes with --verify")
    for picture in options.verify or ():
        if not picture.is_file():
            raise ValueError(f"--verify: no such picture: {picture}")
    if (source := getattr(options, "source", None)) is not None and not source.exists():
        raise ValueError(f"--from: no such file or folder: {source}")
    if source is None and getattr(options, "config", None):
        raise ValueError("--config: goes with --from, for whose weights it is")
    runs = options.run if isinstance(options.run, list) else [options.run]
    for run in filter(None, runs):
        if not run.is_dir():
            raise ValueError(f"--run: no such folder: {run}")


def verification_of(options: Options) -> Verification | None:
    """What `--verify` asks for."""
    from vlds.convert.verify import Verification

    return None if options.verify is None else Verification(options.verify, options.tolerance)


def exported_run(options: Options) -> Path:
    """The run that is written.

    Errors: ValueError if none is named.
    """
    if options.run is None:
        raise ValueError("name --run, what to write, or --from, what to read")
    run: Path = options.run
    return run


def target_of(options: Options) -> Target:
    """The model that read weights are for.

    Errors: ValueError unless just one of --config and --run describes it.
    """
    from vlds.config import parse_recipe
    from vlds.convert.target import target_of_recipe, target_of_run

    if (options.config is None) == (options.run is None):
        raise ValueError("--from: give one of --config and --run, for the model that it is for")
    if options.run is not None:
        return target_of_run(options.run)
    words = ["--config", options.config, *options.keys]
    return target_of_recipe(parse_recipe(words, f"vlds convert {options.layout}"))
