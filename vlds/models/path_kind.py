"""What kinds have in common that are opened from one folder of Hugging Face with a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlds.backbones.vocabulary import num_ids
from vlds.models.kind import ModelKind
from vlds.pretrained.gate import check_model
from vlds.runtime.checks import check_path_or_config
from vlds.runtime.resources import find


@dataclass(frozen=True, kw_only=True)
class PathKind(ModelKind):
    """A kind with pretrained weights from `path`, or random ones in the sizes of a `config`."""

    path: str | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: str | None = None
    """Instead of `path`: a config.json of Hugging Face, for a model with random weights."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: `path`."""

    def __post_init__(self) -> None:
        check_path_or_config(self)

    @property
    def processor_place(self) -> tuple[str | None, str]:
        from_path = self.tokenizer is None and self.path is not None
        return self.tokenizer or self.path, f"model.{'path' if from_path else 'tokenizer'}"

    @property
    def config_place(self) -> tuple[str, str]:
        """Where the config is, and the field that names it."""
        if self.config is not None:
            return str(find(self.config)), "model.config"
        return str(self.path), "model.path"

    def check_sources(self) -> None:
        if self.path is not None:
            check_model(self.path, "model.path")
        super().check_sources()

    def check_vocabulary(self, processor: Any, size: int, part: str) -> None:
        """Compare the tokenizer, if there is one, with the words that a part of the model has.

        Errors: ValueError if it has more.
        """
        if processor is not None and (ids := num_ids(processor)) > size:
            raise ValueError(
                f"model.tokenizer: it has ids up to {ids - 1}, and the {part} {size} "
                "tokens; name the tokenizer that belongs to it"
            )
