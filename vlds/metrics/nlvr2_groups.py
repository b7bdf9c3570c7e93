"""Which examples of NLVR2 belong together where its consistency is counted.

A sentence was written about several pairs of pictures; consistency is the share of the sentences
that are judged rightly on every pair. There are two readings of "a sentence": the official script
(https://github.com/lil-lab/nlvr, nlvr2/eval/metrics.py) goes by the identifier, the paper
(https://arxiv.org/abs/1811.00491) speaks of unique sentences. They differ where two people wrote
the same text: the balanced dev set has 1,116 groups and 1,111 texts.
"""

from __future__ import annotations

NUM_FIELDS = 4
PAIR = 2


def sentence_group(identifier: str) -> str | None:
    """The official group of "split-set-pair-sentence": all but the pair; None for other ids."""
    fields = identifier.split("-")
    if len(fields) != NUM_FIELDS:
        return None
    fields[PAIR] = ""
    return "-".join(fields)
