"""What CrossModal and JointEncoder have in common: a text encoder of BERT's family reads the text
as a whole, and the answer is a class, or the words that are masked in the text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MODEL_MAPPING

from vlds.models.collate import WHOLE, batch_of, padded
from vlds.models.kinds.base import GridKind, PathKind
from vlds.models.kinds.library import row_names
from vlds.models.loading.gate import check_config, read_any_config
from vlds.models.loading.load_backbone import Longest, check_fits
from vlds.models.model import Model
from vlds.models.peers import Peer, opened
from vlds.runtime.checks import SourcePath
from vlds.schema import IGNORED_LABEL, Batch, Images, Masking, Row, Turn, plain_text
from vlds.tasks.base import Task

MASKED, RANDOM = 0.8, 0.9
"""BERT's shares of the tokens to predict: below the first a mask stands in their place, below the
second any token, else the token itself."""


@dataclass(frozen=True)
class CrossModalCollator:
    """Rows and their pictures -> Batch, padded on the right."""

    tokenizer: Any
    """A fast tokenizer of Hugging Face, which tells to which word a token belongs."""
    features: bool
    """True if images are stored features."""

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows, of one size. The label of an example with
        classes is its first token."""
        assert not isinstance(images, list)
        encoded = [self.encode(row) for row in rows]
        tokens = [ids for ids, _ in encoded]
        pad = self.tokenizer.pad_token_id
        batch = batch_of(rows, tokens, pad, evaluation=evaluation)
        labels = [labels for _, labels in encoded]
        if any(label != IGNORED_LABEL for of_row in labels for label in of_row):
            batch.labels, batch.labels_on_prompt = padded(labels, IGNORED_LABEL), True
        if (most := max(len(row.example.rivals) for row in rows)) > 0:
            self.add_rivals(batch, rows, most)
        batch.images, batch.features = (None, images) if self.features else (images, None)
        return batch

    def add_rivals(self, batch: Batch, rows: Sequence[Row], most: int) -> None:
        """Give the batch the rivals of its rows, `most` at most, and all its texts one width."""
        tokens: list[list[int]] = []
        for row in rows:
            of_row = [self.token_ids(text, row.max_prompt_tokens) for text in row.example.rivals]
            tokens += [*of_row, *[[]] * (most - len(of_row))]
        pad = self.tokenizer.pad_token_id
        ids, lengths = padded(tokens, pad), torch.tensor([len(of_text) for of_text in tokens])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        width = max(ids.shape[1], batch.input_ids.shape[1])

        def widened(values: Tensor, value: int) -> Tensor:
            return F.pad(values, (0, width - values.shape[1]), value=value)

        batch.rivals = widened(ids, pad).unflatten(0, (len(rows), most))
        batch.rivals_mask = widened(mask, False).unflatten(0, (len(rows), most))
        batch.input_ids = widened(batch.input_ids, pad)
        batch.attention_mask = widened(batch.attention_mask, False)
        if batch.labels is not None:
            batch.labels = widened(batch.labels, IGNORED_LABEL)

    def token_ids(self, text: str, most: int) -> list[int]:
        """At most so many."""
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=most)["input_ids"]
        return ids

    def encode(self, row: Row) -> tuple[list[int], list[int]]:
        """Tokens of a row's text, as the model reads them, and the label of each. A word to predict
        is masked as in BERT: all of its tokens are labels, and most have a mask in their place."""
        example = row.example
        encoding = self.tokenizer(example.prompt, truncation=True, max_length=row.max_prompt_tokens)
        ids: list[int] = list(encoding["input_ids"])
        labels = [IGNORED_LABEL] * len(ids)
        if example.class_scores is not None:
            labels[0] = ids[0]  # any label that is not ignored stands for the classes
        elif example.masking is not None:
            # Whole words: "playing" as play ##ing is predicted in both tokens or in none.
            words = encoding.word_ids()
            for word, draws in masked_words(words, example.masking).items():
                for place in (place for place, other in enumerate(words) if other == word):
                    labels[place] = ids[place]
                    # Each token draws for itself what stands in its place, as in BERT.
                    share = 0.0 if draws is None else float(draws.random())
                    if draws is None or share < MASKED:
                        ids[place] = int(self.tokenizer.mask_token_id)
                    elif share < RANDOM:
                        ids[place] = int(draws.integers(len(self.tokenizer)))
        return ids, labels

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        return [len(self.token_ids(*prompt)) for prompt in prompts]

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        """One label for each answer."""
        return [1] * len(answers)

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return self.prompt_lengths([(plain_text(turns), WHOLE)])[0]


def masked_words(
    words: Sequence[int | None], masking: Masking
) -> dict[int, np.random.Generator | None]:
    """Each word to predict, of those that tokens belong to -> where its draws come from; None where
    masks alone are wanted. At least one word."""
    known = sorted({word for word in words if word is not None})  # None: special tokens
    # By the example's seed, so that its masks are the same on any rank and in any worker.
    draws = np.random.default_rng(masking.seed)
    order = draws.random(len(known))
    chosen = [word for word, draw in zip(known, order, strict=True) if draw < masking.share]
    if not chosen and known:  # the word whose draw came nearest
        chosen = [known[int(order.argmin())]]
    return {word: None if masking.always_mask else draws for word in chosen}


TEXT_ENCODERS = ("bert", "roberta", "xlm-roberta")
"""Types of text encoders whose layers have the names that roles expect."""
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, kw_only=True)
class TextEncoderKind(PathKind, GridKind):
    """A kind with a text encoder of BERT's family and grid features of pictures."""

    ranks_pairs: ClassVar[bool] = True

    path: SourcePath | None = None
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
        # RoBERTa's positions begin behind the padding's: with pad_token_id 1, at 2 of 514.
        begin = config.pad_token_id + 1 if config.model_type != "bert" else 0
        check_fits(task, {"prompt": longest.prompt}, config.max_position_embeddings - begin)

    def collator(self, processor: Any, dtype: torch.dtype = torch.float32) -> CrossModalCollator:
        return CrossModalCollator(processor, features=self.image is None)

    @abstractmethod
    def read_alone(self, model: Model, batch: Batch) -> tuple[Any, Tensor]:
        """The text encoder of a model, and its states (b, k, d) of the first k tokens of texts that
        have no picture."""

    def peers(self, model: Model, rows: Sequence[Row], images: Images) -> Iterator[Peer | str]:
        yield from super().peers(model, rows, images)
        yield f"{type(self).__name__}: no library has the layers that read text and picture"
        texts = [
            row._replace(images=(), example=replace(row.example, masking=None, rivals=()))
            for row in rows
        ]
        device = next(model.parameters()).device
        collator = self.collator(model.processor)
        some = None if images is None else images[:1]
        batch = collator(texts, some, evaluation=False).to(device)
        ours, states = self.read_alone(model, batch)
        config, pools = self.read_config(), ours.pooler is not None
        theirs = opened(
            MODEL_MAPPING[type(config)], self.path, "model.path", config, ours.state_dict(),
            add_pooling_layer=pools,
        )  # fmt: skip
        tokenizer = self.load_processor()
        ours_of: dict[str, Tensor] = {}
        theirs_of: dict[str, Tensor] = {}
        for number, (name, row) in enumerate(zip(row_names(texts), texts, strict=True)):
            asked = tokenizer(
                row.example.prompt, truncation=True, max_length=row.max_prompt_tokens,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            read = theirs(**asked).last_hidden_state[0, : states.shape[1]]
            ours_of[name], theirs_of[name] = states[number, : len(read)], read
        yield Peer(
            f"states of texts: ours, and Hugging Face's {type(theirs).__name__}", ours_of, theirs_of
        )

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
