"""What all conversions share: how they write their output and report progress, the check that a
converted run answers as before (`Verification`), and what a model was made from (`Base`).

Nothing that exists is overwritten.
"""

from __future__ import annotations

import math
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, ModelCard, constants, try_to_load_from_cache
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.data.shards.pictures import decode_image
from vlds.data.streams.assemble import new_stack
from vlds.models.kinds.base import ModelKind
from vlds.models.methods.host import states_type
from vlds.runtime import terminal
from vlds.runtime.disk import CannotWrite
from vlds.runtime.files import Taken, read_file, remove_half_made, whole_file, whole_folder
from vlds.runtime.json_files import read_json
from vlds.runtime.process import Interrupted, interruptible
from vlds.runtime.terminal import follow
from vlds.schema import Batch, Example, Images, NaturalSize, RefusedRows, Row, SkipSample

Kind = Literal["file", "folder"]
"""What a conversion writes."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
"""In the path of a folder of the hub's cache."""
NAMED_BY_ONE_WORD = ("backbone", "language model")
"""Sources whose hub names may lack an owner, such as t5-base; others would be timm's names."""
LICENSE = ("license", "license_name", "license_link")
"""Fields of a card, and of some configs."""
PLAIN_LICENSE = re.compile(r"[\w.,:/()+ -]{1,200}")
"""Cards are anybody's text: what could be Markdown or HTML does not get into ours."""
TIMEOUT_S = 5.0
TOLERANCES = {torch.bfloat16: 0.05, torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest difference of logits, as a share of the largest logit, that rounding explains."""
NUM_GENERATED = 2
"""Pictures, where the user names none."""
PROMPT, TARGET = 8, 6
"""Tokens of the generated texts."""


@contextmanager
def new_output(out: Path, kind: Kind) -> Iterator[Path]:
    """An empty folder, or the name of a file, that becomes `out` if all goes well, and vanishes if
    not.

    Errors: ValueError if `out` exists or cannot be written.
    """
    check_absent(out, kind)
    whole = whole_folder(out, new=True) if kind == "folder" else whole_file(out, new=True)
    try:
        with whole as partial:
            yield partial
    except (CannotWrite, Taken) as error:
        raise ValueError(f"--out: {error}") from error


def check_absent(out: Path, kind: Kind) -> None:
    """Errors: ValueError if the path exists, as a dead link for instance, or leads through a
    file."""
    if not out.name or out.name == ".." or os.path.lexists(beside_others(out)):
        raise ValueError(f"--out: {out} exists; name a new {kind}")
    for above in beside_others(out).parents:
        if os.path.exists(above) and not os.path.isdir(above):
            raise ValueError(f"--out: {above} is not a folder; name a new {kind}")


def beside_others(out: Path) -> Path:
    """The path with all links resolved but the last."""
    return Path(os.path.realpath(out.parent)) / out.name


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal that asks for an end removes unfinished outputs, and ends the program with
    one line.

    Errors: SystemExit, with the shell's code for the signal.
    """
    try:
        with interruptible():
            yield
    except Interrupted as end:
        remove_half_made()  # the signal may have arrived before a `finally` was reached
        say("vlds convert: stopped; --out is there whole or not at all")
        raise SystemExit(end.exit_code) from None


def check_plain(name: str, what: str) -> str:
    """A name that is to be a folder's inside the output.

    Errors: ValueError if it would lead elsewhere.
    """
    if not name or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        raise ValueError(f"{what}: '{name}' cannot be a folder's name; rename it in the recipe")
    return name


def first_names(names: Sequence[str], most: int) -> str:
    """The first names of tensors, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more tensors" if more > 0 else "")


def say(text: str) -> None:
    """Report progress on stderr; stdout is for results."""
    terminal.tell(text, error=True, flush=True)


def save_torch(tensors: dict[str, Tensor], file: Path) -> None:
    """torch.save, whose own errors hide the system's.

    Errors: OSError if the file cannot be written.
    """
    try:
        with file.open("wb") as opened:
            torch.save(tensors, opened)
    except RuntimeError as error:
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def tell(text: str) -> None:
    """Print a result to stdout; a closed pipe is no error, since the output is written anyway."""
    try:
        terminal.tell(text, flush=True)
    except BrokenPipeError:
        # Otherwise Python writes again when it ends, and fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Verification:
    """The pictures on which outputs are compared, and the tolerance."""

    pictures: Sequence[Path] = ()
    """Files; default: generated pictures."""
    tolerance: float | None = None
    """As a share of the largest logit; default: by the precision."""

    def compare(self, before: Mapping[str, LoadedRun], after: LoadedRun) -> float:
        """Compare each task's logits with those of the run that it comes from. Prints the largest
        difference; returns it as a share of the largest logit.

        Errors: ValueError if it is above the tolerance.
        """
        shares = {}
        for task, run in follow(before.items(), "comparing tasks", len(before)):
            expected, given = (logits(each, task, self.pictures) for each in (run, after))
            distance, largest = (expected - given).abs().max(), expected.abs().max()
            shares[task] = float(distance / largest), float(distance)
        # NaN counts as the largest.
        worst = max(shares, key=lambda task: (math.isnan(shares[task][0]), shares[task]))
        share, difference = shares[worst]
        limit = self.tolerance
        if limit is None:
            limit = TOLERANCES[states_type(after.model)]
        num = len(self.pictures)
        named = f"{num} picture{'s' * (num > 1)}" if num else f"{NUM_GENERATED} generated pictures"
        message = (
            f"largest difference of logits on {named}: {difference:.3g}, or {share:.3g} of the "
            f"largest logit (task {worst}; tolerance {limit:g})"
        )
        if not share <= limit:
            raise ValueError(f"--verify: {message}: too much, so nothing was written")
        tell(message)
        return share


def all_tasks(run: LoadedRun) -> dict[str, LoadedRun]:
    """Each task of a run -> the run."""
    return dict.fromkeys(run.recipe.tasks, run)


@torch.no_grad()
def logits(run: LoadedRun, task: str, pictures: Sequence[Path]) -> Tensor:
    """A task's logits, in float64: (b, t, w), or (b, c) of its head."""
    # Torch has other kernels for trainable weights, which round differently on some CPUs.
    model = run.model.eval().requires_grad_(False)
    batch = probe(run, task, pictures)
    if task in model.heads:
        head: Tensor = model.heads[task](model.first_states(batch))
        return head.double()
    return model.logits(batch).double()


def probe(run: LoadedRun, task: str, pictures: Sequence[Path], option: str = "--verify") -> Batch:
    """A batch of one task: each picture once, with a generated text and target. `option`: what
    names the pictures.

    Errors: ValueError if a picture cannot be read.
    """
    draw = torch.Generator().manual_seed(zlib.crc32(task.encode()))
    num, spec = len(pictures) or NUM_GENERATED, run.recipe.image
    if spec is None and pictures:
        raise ValueError(
            f"{option}: StoredFeatures reads no pictures; leave the files out to compare on "
            "generated features"
        )
    images: Images
    if pictures:
        assert spec is not None
        try:
            decoded = [decode_image(read_file(path), spec, str(path)) for path in pictures]
        except (OSError, SkipSample) as error:
            raise ValueError(f"{option}: {error}; name pictures that can be read") from None
        stack = new_stack(spec, num)
        stack.add(decoded)
        images = stack.images()
    # Without pictures: noise in their place, or in that of stored features.
    elif isinstance(spec, NaturalSize):
        sizes = [(3, 48 + 8 * n, 64) for n in range(num)]
        images = [torch.randint(256, size, generator=draw, dtype=torch.uint8) for size in sizes]
    elif spec is not None:
        shape = (num, 3, spec.height, spec.width)
        images = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    else:
        geometry = run.recipe.encoder.geometry
        channels = geometry.feature_dim + geometry.box_channels
        images = torch.randn((num, geometry.grid_size**2, channels), generator=draw).half()
    rows = [
        Row(
            example=Example(
                id=str(n),
                task=task,
                prompt=generated_text(run.model.tokenizer, PROMPT - n % 3, draw),
                target=generated_text(run.model.tokenizer, TARGET, draw),
            ),
            task_index=list(run.recipe.tasks).index(task),
            max_prompt_tokens=PROMPT,
            max_target_tokens=TARGET,
            images=range(n, n + 1),
        )
        for n in range(num)
    ]
    try:
        return run.collator(rows, images, evaluation=False)
    except RefusedRows as error:
        raise ValueError(f"{option}: {error}; name other pictures") from None


def generated_text(tokenizer: Any, length: int, draw: torch.Generator) -> str:
    """Text of tokens from anywhere in the vocabulary, so that no row of its table stays unseen."""
    ids = torch.randint(len(tokenizer), (length,), generator=draw).tolist()
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


@dataclass(frozen=True)
class Base:
    """A pretrained model."""

    part: str
    """What it is in the model: backbone, vision, ..."""
    name: str
    """Its name on the hub; of a local one, the name of its file or folder."""
    hub_name: str | None
    """As far as it is known."""
    license: Mapping[str, str]
    """Fields of its card; empty where it is not known."""


def bases_of(kind: ModelKind) -> list[Base]:
    """The models and files that a kind of model reads its weights from."""
    return [base_of(part, source) for part, source in kind.sources.items()]


def base_of(part: str, source: str) -> Base:
    """The model or file that a part's weights are read from."""
    path, hub_name = Path(source), hub_name_of(part, source)
    if path.exists():
        license = license_in(path / "README.md") or license_fields(config_of(path))
        name = hub_name if hub_name and in_cache(path) else path.resolve().name
        return Base(part, name, hub_name, license)
    return Base(part, source, hub_name, license_on_hub(source) if hub_name else {})


def language_base(kind: ModelKind) -> str | None:
    """The hub name of the model that the backbone's weights are read from. A folder outside the
    hub's cache has none: its config may name the model that it was tuned from."""
    for part, source in kind.sources.items():
        if part in NAMED_BY_ONE_WORD:
            is_hub_model = not Path(source).exists() or in_cache(Path(source))
            return hub_name_of(part, source) if is_hub_model else None
    return None


def hub_name_of(part: str, source: str) -> str | None:
    """The name on the hub of a pretrained model, as far as it is known. A folder has one by its
    place in the hub's cache, or in its config."""
    path = Path(source)
    if not path.exists():
        return source if HUB_NAME.fullmatch(source) or part in NAMED_BY_ONE_WORD else None
    if not path.is_dir():
        return None
    if match := in_cache(path):
        return f"{match[1]}/{match[2]}"
    name = config_of(path).get("_name_or_path")
    return name if isinstance(name, str) and HUB_NAME.fullmatch(name) else None


def in_cache(folder: Path) -> re.Match[str] | None:
    """Where a path names a model in the hub's cache."""
    return SNAPSHOT.search(f"{folder.absolute().as_posix()}/")


def license_in(card: Path) -> dict[str, str]:
    """What a card says of the licence; empty where it says nothing, or cannot be read."""
    if card.is_file():
        with suppress(Exception):  # anybody's file: YAML's errors are of many kinds
            return license_fields(ModelCard.load(card, ignore_metadata_errors=True).data)
    return {}


@cache
def license_on_hub(name: str) -> dict[str, str]:
    """What the hub's card of a model says of the licence; empty where there is no answer."""
    with suppress(Exception):  # the HTTP library may raise anything, and a card can do without
        cached = try_to_load_from_cache(name, "README.md")
        if isinstance(cached, str) and (found := license_in(Path(cached))):
            return found
        if not constants.is_offline_mode():
            data = HfApi().model_info(name, timeout=TIMEOUT_S).card_data
            return license_fields(data) if data is not None else {}
    return {}


def license_fields(about: Any) -> dict[str, str]:
    """The fields about the licence that have a plain text, in a card's data or a config."""
    tree = about if isinstance(about, Mapping) else vars(about)
    found = {name: tree.get(name) for name in LICENSE}
    fields = {
        name: value
        for name, value in found.items()
        if isinstance(value, str) and PLAIN_LICENSE.fullmatch(value)
    }
    return fields if "license" in fields else {}


def config_of(folder: Path) -> Mapping[str, Any]:
    """A folder's config.json; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        tree = read_json(folder / "config.json")
        return tree if isinstance(tree, dict) else {}
    return {}
