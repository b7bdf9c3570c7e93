"""What kinds have in common that read text with an encoder of BERT's family and answer with
classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlds.models.cross_modal_collate import CrossModalCollator
from vlds.models.kind import GridKind
from vlds.models.loading.learned_positions import Longest, check_fits
from vlds.models.path_kind import PathKind
from vlds.pretrained.weights import check_config, read_any_config
from vlds.tasks.base import Task

TEXT_ENCODERS = ("bert", "roberta", "xlm-roberta")
"""Types of text encoders whose layers have the names that roles expect."""
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, kw_only=True)
class TextEncoderKind(PathKind, GridKind):
    """A kind with a text encoder of BERT's family and grid features of pictures."""

    path: str | None = None
    """The text encoder, BERT or RoBERTa: a Hugging Face hub name or a local folder."""

    @property
    def fewest_images(self) -> int:
        return 1

    def check_tasks(self, tasks: Mapping[str, Task], num_micro_batches: int) -> None:
        for name, task in tasks.items():
            if task.head is None and not task.masks_words:
                raise ValueError(
                    f"tasks.{name}.head: missing, and {type(self).__name__} writes no text; name a "
                    "head, such as MLPHead"
                )

    def check_length(self, task: str, longest: Longest) -> None:
        config = self.read_config()
        # RoBERTa's positions begin behind the padding's.
        begin = config.pad_token_id + 1 if config.model_type != "bert" else 0
        check_fits(task, {"prompt": longest.prompt}, config.max_position_embeddings - begin)

    def collator(self, processor: Any) -> CrossModalCollator:
        return CrossModalCollator(processor, features=self.image is None)

    def read_config(self) -> Any:
        """The text encoder's config.

        Errors: ValueError if it is not one of BERT's family.
        """
        source, place = self.config_place
        config = read_any_config(source, place)
        if config.model_type not in TEXT_ENCODERS:
            raise ValueError(
                f"{place}: {source} is a {config.model_type} model; name a text encoder of type "
                f"{', '.join(TEXT_ENCODERS)}"
            )
        check_config(config, f"{place}: {source}", SIZES)
        return config
