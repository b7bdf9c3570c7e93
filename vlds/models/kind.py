"""What a kind of model is: a recipe chooses one as its `model`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlds.models.model import Model
from vlds.models.quantised import Bits
from vlds.runtime.manifest import sha256
from vlds.schema import Collator, PictureSpec


@dataclass(frozen=True, kw_only=True)
class ModelKind(ABC):
    """Builds a model, and the collator that makes its batches.

    A processor is what turns text, or text and pictures, into tensors: a tokenizer, or a
    processor of Hugging Face. A run saves it with its weights.
    """

    # Where it comes from.

    @property
    @abstractmethod
    def sources(self) -> dict[str, str]:
        """Name of a part -> file, folder or hub name that its weights come from."""

    @property
    @abstractmethod
    def read_files(self) -> list[str]:
        """All files, folders and hub names that the model is read from."""

    @property
    def packed_bits(self) -> Bits | None:
        """Bits of each packed weight; None if all weights are floats. Packed weights can be neither
        partitioned (stage 3) nor exported."""
        return None

    @abstractmethod
    def check_sources(self) -> None:
        """Check, before any long work, that these exist here or can be fetched.

        Errors: ValueError that names the field.
        """

    def source_hashes(self) -> dict[str, str]:
        """sha256 of the sources; for hub names, of the name."""
        return {part: hash_source(source) for part, source in self.sources.items()}

    # Pictures and text.

    @property
    @abstractmethod
    def image(self) -> PictureSpec | None:
        """The pictures that the model takes; None if it takes stored features."""

    @property
    @abstractmethod
    def most_images(self) -> tuple[int, str]:
        """Most pictures of an example, and the field that sets this number."""

    @abstractmethod
    def load_processor(self) -> Any:
        """The processor from where the model is read.

        Errors: ValueError if there is none.
        """

    @abstractmethod
    def load_processor_from(self, folder: Path) -> Any:
        """A processor that a run has saved."""

    @abstractmethod
    def local_processor(self) -> Any:
        """The processor if its files are on this machine, else None."""

    @abstractmethod
    def collator(self, processor: Any) -> Collator:
        """What makes batches in the loader's workers."""

    # The model.

    @abstractmethod
    def build(self, dtype: torch.dtype, processor: Any) -> Model:
        """All parts, frozen, with the weights of the sources; on the meta device, their shapes."""

    def draw_rows(self, model: Model, seed: int) -> None:  # noqa: B027 (most kinds have none)
        """Draw the new rows of tables that a source fills in part."""

    @abstractmethod
    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        """Parts that train as a whole beside the methods, and their parameters."""

    @property
    @abstractmethod
    def trained_text(self) -> list[str]:
        """These parts, in words."""

    @abstractmethod
    def enable_checkpointing(self, model: Model) -> None:
        """Recompute each layer's activations in the backward pass."""

    @abstractmethod
    def export(self, model: Model, folder: Path) -> ModelKind:
        """Write all weights of the model but those of methods into a folder; the kind that reads
        them from there and trains nothing beside methods."""


def hash_source(source: str) -> str:
    """sha256 over a file, or over a folder's weight files and config; over the name if it is not
    local."""
    path, digest = Path(source), hashlib.sha256()
    inside = path.iterdir() if path.is_dir() else ()
    weights = [f for f in inside if f.suffix in {".safetensors", ".bin"} or f.name == "config.json"]
    files = [path] if path.is_file() else sorted(weights)
    for file in files:
        digest.update(file.name.encode())
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest() if files else hash_name(source)


def hash_name(source: str) -> str:
    """sha256 of a source that is only a name, such as one on the hub."""
    return hashlib.sha256(source.encode()).hexdigest()
