"""All properties, in the order in which they are tried: what others stand on comes first."""

from __future__ import annotations

from vlds.prove.answers import answers
from vlds.prove.arithmetic import batch_free, gradient_parity, source_parity
from vlds.prove.finding import Property
from vlds.prove.learning import learns, uses_the_picture, what_trains
from vlds.prove.leaving import leaves_right
from vlds.prove.reading import reads_right
from vlds.prove.runs import fits, rank_free, resume_free

PROPERTIES: tuple[Property, ...] = (
    Property("reads-right", "The model reads and learns what the data say.", reads_right),
    Property(
        "batch-free", "Loss and gradients depend on no other row, and on no cut of the batch.",
        batch_free, needs=("reads-right",), cost=10,
    ),
    Property(
        "source-parity",
        "Without methods, the model computes what the library of its weights computes.",
        source_parity, needs=("batch-free",), cost=10,
    ),
    Property(
        "gradient-parity",
        "Loss and gradients of a training step are those of a plain loop over rows, and of peft.",
        gradient_parity, needs=("source-parity",), cost=8,
    ),
    Property(
        "uses-the-picture",
        "The pictures reach the loss; the notes say how much worse it is with others.",
        uses_the_picture, needs=("reads-right",), cost=40,
    ),
    Property(
        "what-trains",
        "Exactly the weights that `vlds describe` counts train; all others stay bit for bit.",
        what_trains, needs=("uses-the-picture",), cost=8,
    ),
    Property(
        "answers",
        "An answer depends on no other row, and is as sure as the model's logits say.",
        answers, needs=("source-parity",), cost=12,
    ),
    Property(
        "learns", "A few rows are learnt by heart.",
        learns, needs=("gradient-parity", "what-trains"), in_short=False,
    ),
    Property(
        "rank-free",
        "On other ranks, at other ZeRO stages and with offload a run is the same but for rounding.",
        rank_free, needs=("batch-free",), in_short=False, cost=120,
    ),
    Property(
        "resume-free", "A run that was killed and resumed is the one that was not.",
        resume_free, needs=("rank-free",), in_short=False, cost=60,
    ),
    Property(
        "leaves-right", "The artifact and what is converted from it answer as the run does.",
        leaves_right, needs=("rank-free",), in_short=False, cost=20,
    ),
    Property(
        "fits", "A run takes the bytes that its plan says.", fits, in_short=False, cost=20
    ),
)  # fmt: skip
