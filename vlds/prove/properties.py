"""All properties, in the order in which they are tried: what others stand on comes first."""

from __future__ import annotations

from vlds.prove.answers import answers
from vlds.prove.arithmetic import batch_free, gradient_parity
from vlds.prove.finding import Property
from vlds.prove.learning import learns, uses_the_picture, what_trains
from vlds.prove.leaving import leaves_right
from vlds.prove.reading import reads_right
from vlds.prove.runs import fits, rank_free, resume_free

PROPERTIES: tuple[Property, ...] = (
    Property(
        "reads-right", "The model reads and learns what the data say.", reads_right
    ),
    Property(
        "gradient-parity",
        "Loss and gradients of a training step are those of a plain loop.",
        gradient_parity, needs=("reads-right",),
    ),
    Property(
        "batch-free",
        "Loss and gradients depend on no other row, and on no cut of the batch.",
        batch_free, needs=("reads-right",),
    ),
    Property(
        "what-trains",
        "Exactly the weights that `vlds describe` counts train; all others stay bit for bit.",
        what_trains,
    ),
    Property(
        "answers",
        "An answer depends on no other row, and is as sure as the model's logits say.",
        answers, needs=("batch-free",),
    ),
    Property(
        "learns", "A few rows are learnt by heart.", learns,
        needs=("gradient-parity", "what-trains"),
    ),
    Property(
        "uses-the-picture", "The pictures reach the loss, and other ones make it worse.",
        uses_the_picture, needs=("reads-right", "learns"),
    ),
    Property(
        "rank-free",
        "On other ranks, at other ZeRO stages and with offload a run is the same but for rounding.",
        rank_free, needs=("batch-free",), in_short=False,
    ),
    Property(
        "resume-free",
        "A run that was killed and resumed is the one that was not.",
        resume_free, needs=("rank-free",), in_short=False,
    ),
    Property(
        "leaves-right",
        "The artifact and what is converted from it answer as the run does.",
        leaves_right, needs=("rank-free",), in_short=False,
    ),
    Property(
        "fits", "A run takes the bytes that its plan says.", fits, in_short=False,
    ),
)  # fmt: skip
