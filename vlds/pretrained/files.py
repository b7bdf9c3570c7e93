"""The files of weights, sizes and tokenizers that a recipe names: what is wrong with them, in one
line.

The libraries that read them raise whatever damaged bytes lead them to; Rust's even panic, which no
`except Exception` catches. And a flipped byte in a weight is no error to them at all, so what vlds
wrote is compared with the hashes beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from vlds.runtime.manifest import DESCRIPTION, damage, lacks_memory

COPY_AGAIN = "copy it again, or name another"


class SourceError(ValueError):
    """What is wrong with such a file; the message says all, cure included."""


@contextmanager
def reading(what: str, cure: str = COPY_AGAIN) -> Iterator[None]:
    """Inside, a library reads a file of the user's.

    Errors: ValueError that begins with `what` for everything that it raises, but want of memory.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, SourceError):
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        if lacks_memory(error):
            raise
        raise SourceError(f"{what} ({_reason(error)}); {cure}") from error


def _reason(error: BaseException) -> str:
    """The first line of an error's text, and the next one where that only leads up to it."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = f"{first} {rest[0]}" if rest and first.endswith(":") else first
    return f"{type(error).__name__}: {text}"[:200]


def damaged_source(source: str) -> str | None:
    """What is wrong with a source that lies in a folder of `vlds convert hf`; None where it is as
    it was written, or lies elsewhere. Every byte is hashed: a second for two GB."""
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
    place: str, file: Path, wanted: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Check that a safetensors file can be read, and holds floats where `wanted` does; name ->
    shape of what it holds.

    Errors: ValueError that begins with `place`.
    """
    with reading(f"{place}: {file} is no whole safetensors file"), safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        kinds = {name: part.get_dtype() for name, part in slices.items()}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    odd = [
        f"{name} is {kind}"
        for name, kind in kinds.items()
        if name in wanted and wanted[name].is_floating_point() and not is_float(kind)
    ]
    if odd:
        raise SourceError(
            f"{place}: {file} holds no weights: {some(odd)}, floats expected; {COPY_AGAIN}"
        )
    return shapes


def is_float(kind: str) -> bool:
    """Whether safetensors' name of a type is that of floats."""
    return kind.startswith(("F", "BF"))


def some(found: list[str]) -> str:
    """The first one, and how many more there are."""
    return f"{found[0]} (and {len(found) - 1} more)" if len(found) > 1 else found[0]
