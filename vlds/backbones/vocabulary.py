"""The extra tokens of a vocabulary, and its two tables: the token table that a model reads with,
and the head that it writes with.

In T5 and BART they are one tensor. T5 v1.1 and FLAN-T5 have a separate head. transformers 5
forgets that: its T5Config says `tie_word_embeddings: true` whatever the file says, so that each
call of `resize_token_embeddings` would replace the head by the token table. Here the checkpoint's
tensors decide, and the config is made to agree with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from vlds.runtime.regular_file import check_file

HEAD = "lm_head.weight"


def num_ids(tokenizer: Any) -> int:
    """Rows of a table that every id of a tokenizer finds; a foreign file may give a token any
    id, also one beyond the number of tokens."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def check_ids(tokenizer: Any, source: str) -> None:
    """Errors: ValueError if an id is not below the number of tokens."""
    if (ids := num_ids(tokenizer)) > len(tokenizer):
        raise ValueError(
            f"tokenizer: {source} has {len(tokenizer)} tokens, and one with the id {ids - 1}; copy "
            "it again, or name another"
        )


def add_extra_tokens(tokenizer: Any, num_sentinels: int, num_visual: int, source: str) -> None:
    """Append the missing sentinel and visual tokens to a tokenizer, in descending order.

    Errors: ValueError if the visual tokens are not its last ones, so that the ids would be wrong,
    or if other ids are beyond the number of tokens.
    """
    check_ids(tokenizer, source)
    names = [f"<extra_id_{i}>" for i in reversed(range(num_sentinels))]
    names += [f"<vis_extra_id_{i}>" for i in reversed(range(num_visual))]
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_tokens([name for name in names if name not in vocabulary], special_tokens=True)
    expected = list(range(len(tokenizer) - num_visual, len(tokenizer)))
    if tokenizer.convert_tokens_to_ids(names[num_sentinels:]) != expected:
        raise ValueError(
            f"tokenizer: {source} has <vis_extra_id_*> tokens, but not {num_visual} of them as its "
            "last tokens; set visual_tokens to their number, or take a tokenizer without them"
        )


def check_tables(model: Any, path: str) -> None:
    """Errors: ValueError if encoder and decoder do not share the token table."""
    table = model.get_input_embeddings().weight
    for part, stack in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        if stack.embed_tokens.weight is not table:
            raise ValueError(
                f"path: {path} has a token table for the {part} alone; vlds gives encoder and "
                "decoder one table, so choose a checkpoint that has one"
            )


def has_own_head(model: Any) -> bool:
    """True if the head is not the token table."""
    separate: bool = model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    return separate


def give_own_head(model: Any, std: float | None) -> None:
    """Replace a tied head by a random one. `std` as for all new linear layers: None is PyTorch's
    default.

    transformers draws an untied T5 head from N(0, 1). The states in front of it are normalised and
    not scaled down, so its first logits would be sqrt(d_model) wide.
    """
    table = model.get_input_embeddings()
    rows, width = table.weight.shape
    options = {"device": table.weight.device, "dtype": table.weight.dtype}
    head = nn.Linear(width, rows, bias=False, **options)
    if std is not None:
        nn.init.normal_(head.weight, std=std)
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False


def holds_own_head(folder: Path, table: str) -> bool | None:
    """True if a folder's safetensors hold a head that differs from `table`, None if they hold
    neither."""
    tables: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        check_file(file)
        with safe_open(file, "pt") as opened:
            names = {HEAD, table} & set(opened.keys())
            tables |= {name: opened.get_tensor(name) for name in names}
    if not tables:
        return None
    return len(tables) == 2 and not torch.equal(tables[HEAD], tables[table])


@torch.no_grad()
def resize_vocabulary(model: Any, size: int) -> dict[str, int]:
    """Give the tables `size` rows, and make the config say whether they are tied; name of each
    resized table -> number of leading rows that are as before.

    Whoever builds the model draws the new rows of the token table. New rows of a separate head
    are the mean of the old ones: a new token's logit is then the mean of the others, so by Jensen's
    inequality its probability is at most the mean of theirs, whatever the state is. Rows as wide as
    the token table's would outshout all trained tokens.
    """
    model.config.tie_word_embeddings = not has_own_head(model)
    old_rows = model.get_input_embeddings().num_embeddings
    if size == old_rows:
        return {}
    model.resize_token_embeddings(size, mean_resizing=False)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if size > old_rows and head is not table:
        head.data[old_rows:] = head.data[:old_rows].mean(0, dtype=torch.float32)
    kept = min(size, old_rows)
    return {name: kept for name, p in model.named_parameters() if p is table or p is head}
