"""Says in one line what is wrong with a file of weights, sizes or a tokenizer that a recipe names.

The libraries that read these files raise anything for damaged bytes; those in Rust even panic,
which `except Exception` does not catch. They do not notice a flipped byte in a weight, so files
that vlds wrote are compared with the hashes in their manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from vlds.runtime.manifest import DESCRIPTION, damage, lacks_memory
from vlds.runtime.regular_file import check_file

COPY_AGAIN = "copy it again, or name another"


class SourceError(ValueError):
    """What is wrong with a file that a recipe names, with the cure."""


@contextmanager
def reading(what: str, cure: str = COPY_AGAIN) -> Iterator[None]:
    """Inside, a library reads a user's file.

    Errors: SourceError that begins with `what` for whatever it raises, except a lack of memory.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, SourceError):
        raise
    except BaseException as error:  # pyo3's PanicException is not an Exception
        if lacks_memory(error):
            raise
        raise SourceError(f"{what} ({_reason(error)}); {cure}") from error


def _reason(error: BaseException) -> str:
    """The first line of an error's text, and the next if the first ends in a colon."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = f"{first} {rest[0]}" if rest and first.endswith(":") else first
    return f"{type(error).__name__}: {text}"[:200]


def damaged_source(source: str) -> str | None:
    """What is wrong with a source in a folder that `vlds convert hf` wrote; None if it is intact or
    elsewhere. Hashes every byte: a second for two GB."""
    path = Path(source)
    for folder in (path, path.parent):
        if not (folder / DESCRIPTION).is_file():
            continue
        within = path.relative_to(folder).as_posix()
        wrong = damage(folder, within=None if within == "." else within)
        if wrong is not None:
            return f"{folder}: {wrong}; copy the folder again from where it was written"
    return None


def check_tensors(
    prefix: str, file: Path, wanted: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Check that a safetensors file can be read, and holds floats where `wanted` does; the shapes
    of its tensors by name.

    Errors: SourceError that begins with `prefix`.
    """
    with reading(f"{prefix}: {file} is not a whole safetensors file"):
        check_file(file)
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    not_floats = [
        f"{name} is {kind}"
        for name, kind in kinds.items()
        # Floats are called F32, F8_E4M3, BF16 and so on.
        if name in wanted and wanted[name].is_floating_point() and not kind.startswith(("F", "BF"))
    ]
    if not_floats:
        raise SourceError(
            f"{prefix}: {file} does not hold weights: {some(not_floats)}, floats expected; "
            f"{COPY_AGAIN}"
        )
    return shapes


def some(faults: list[str]) -> str:
    """The first fault, and the number of the others."""
    return f"{faults[0]} (and {len(faults) - 1} more)" if len(faults) > 1 else faults[0]
