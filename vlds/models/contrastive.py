"""CLIP's loss (Radford et al. 2021, https://arxiv.org/abs/2103.00020): each picture finds its text
among those of the whole global batch, and each text its picture.

With N pairs on all ranks, unit embeddings x and y, and a scale s, the loss of pair i is

    1/2 [ -log softmax_j(s x_i y_j)_i - log softmax_j(s x_j y_i)_i ],    j = 1 ... N,

and the loss of the batch is their mean. Each rank computes the terms of its own pairs against the
embeddings of all ranks. Gradients flow back through these, so it does not matter how ranks share
the pairs. Pairs of different micro-batches would not be compared: kinds refuse more than one
micro-batch a step.

Shapes: b rows of this rank, n of all ranks, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.runtime.gathered_rows import gather_rows


def contrastive_nll(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """(b,) the loss of each pair of embeddings (b, d) of length 1, against all ranks' pairs.
    Collective."""
    both = gather_rows(torch.cat([images, texts], 1))
    every_image, every_text = both.rows.chunk(2, 1)
    own = torch.arange(both.first, both.first + len(images), device=images.device)
    to_texts = F.cross_entropy(scale * images @ every_text.mT, own, reduction="none")
    to_images = F.cross_entropy(scale * texts @ every_image.mT, own, reduction="none")
    return (to_texts + to_images) / 2
