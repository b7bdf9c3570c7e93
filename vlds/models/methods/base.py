"""What a method is: it attaches to roles of a frozen model and says which weights train. It also
says how other libraries' files name its tensors and settings; vlds.convert reads and writes them.

Several methods may extend one layer; they act in the order in which the recipe names them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from vlds.models.methods.host import Host
from vlds.runtime.checks import Choice, NotNegative

Library = Literal["peft", "adapters", "reference"]
"""Hugging Face's peft, AdapterHub's adapters, the original code of VL-T5 and VL-Adapter."""
LIBRARY_NAMES: dict[Library, str] = {
    "peft": "peft",
    "adapters": "adapters",
    "reference": "the original code",
}
"""Library -> its name in messages."""
# PeftModel holds its tuner as base_model, and the tuner holds the model as model.
PEFT_MODEL = "base_model.model."
"""Prefix of layers' names in peft's files."""


@dataclass(frozen=True)
class Stored:
    """Names and shape of a tensor, or of one task's slice of it, in a library's files."""

    keys: tuple[str, ...]
    """Its names there, more than one for aliases. `{task}` stands for a task's name."""
    shape: tuple[int, ...] | None = None
    """Shape of the slice there, if it differs from ours."""
    stacked: bool = True
    """False if our tensor has no first dimension (tasks or 1)."""
    num_parts: int = 1
    """Number of tensors there that hold a slice, by rows; `{part}` stands for a tensor's number."""


@dataclass(frozen=True)
class Layout:
    """A method in the files of a library."""

    tensors: Mapping[str, Stored]
    """Path of a tensor in our backbone, aliases included -> where it is stored."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings beside the weights, where the library has any."""


def is_t5(model: Any) -> bool:
    """True for backbones of Hugging Face's T5 classes, FLAN-T5 included."""
    return bool(model.config.model_type == "t5")


Sharing = Literal["single", "multiple", "half_shared_up", "half_shared_down"]


@dataclass(frozen=True, kw_only=True)
class Method(Choice, ABC):
    """A way of tuning a few of a model's weights. All facts about a method are here: the class
    variables and hooks serve training, merging and conversion."""

    recomputable: ClassVar[bool] = True
    """True if layers compute the same again in the backward pass (activation checkpointing)."""
    needs_whole_model: ClassVar[bool] = False
    """True if the frozen model computes the method's first values; ZeRO-3 partitions its weights
    only after that."""
    compares_examples: ClassVar[bool] = False
    """True if the method's loss compares all examples of a global batch, which a rank then computes
    in one micro-batch."""
    merges_to_itself: ClassVar[bool] = False
    """True if `merge` keeps the method and only drops what training needed."""
    libraries: ClassVar[frozenset[Library]] = frozenset()
    """Libraries whose files can hold the method; `layout` describes them."""
    reasons: ClassVar[Mapping[Library, str]] = {}
    """Why other libraries cannot, if there is more to say than that they lack it."""
    cure_of_sizes: ClassVar[str] = "give the sizes of its recipe"
    """What to do where a run cannot begin with another one's weights of unlike sizes (`start`)."""

    part: str = "backbone"
    """Part of the model that is tuned: backbone, vision, or another one that the kind of model
    names."""
    learning_rate: NotNegative | None = None
    """Peak learning rate of this method's weights; default: the optimizer's."""

    @property
    def partitionable(self) -> bool:
        """False if ZeRO stage 3 cannot partition what the method trains."""
        return True

    def check_steps(self, num_steps: int) -> None:
        """Check the method against the number of steps of a run, before any long work.

        Errors: ValueError that names the field.
        """

    def schedule_starts(self, num_steps: int) -> Sequence[int]:
        """Steps of a run at which the learning rate's schedule begins again."""
        return ()

    @abstractmethod
    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put the method into a frozen model; the parameters that train.

        Errors: ValueError if nothing in the model plays the roles that the method needs.
        """

    # From here on, defaults suit a method that only adds modules: it cannot be folded, takes
    # nothing from other runs, and stays beside exported weights.

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Fold what was attached as `name` into the model's own weights, or make it plainer; name
        -> method that stays beside them, empty if none does.

        Errors: ValueError if neither can be done.
        """
        raise ValueError(
            f"{type(self).__name__} computes what no plain layer computes; use `vlds convert hf`, "
            "which keeps it beside the backbone"
        )

    def in_artifact(self) -> Method:
        """The method in the recipe of an artifact, which holds what it took from other runs."""
        return self

    def resumed(self) -> Method:
        """The method of a run that goes on, whose state holds what it read at the start."""
        return self

    def source_hashes(self) -> Mapping[str, str]:
        """Field -> sha256 of another run's weights that stay frozen here, which a run state does
        not hold."""
        return {}

    def after_export(self) -> Method | None:
        """The method beside an exported model, whose files hold the model's own weights as
        attaching and training have changed them; None if it adds nothing to them."""
        return self

    def refusal(self, library: Library, model: Any) -> str | None:
        """Why a library's files cannot hold the method in a Hugging Face backbone; None if they
        can."""
        if library in self.libraries:
            return None
        lacks = f"{LIBRARY_NAMES[library]} has no {type(self).__name__}"
        return self.reasons.get(library, lacks)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The files of one of its `libraries`, for what was attached as `name` to a backbone."""
        raise NotImplementedError


def check_sharing(part: str, sharing: str) -> None:
    """Errors: ValueError if tasks would have separate weights in the vision encoder."""
    if part == "vision" and sharing != "single":
        raise ValueError(
            f"sharing: got {sharing} for the vision encoder, where tasks share pictures; use single"
        )


def num_slices(sharing: Sharing, num_tasks: int) -> tuple[int, int]:
    """Slices of the two stacked weights of a pair (down and up, A and B): one per task, or one."""
    # half_shared_up shares the second of the pair: up halves, and in LoRA B.
    shares_first = sharing in ("single", "half_shared_down")
    shares_second = sharing in ("single", "half_shared_up")
    return 1 if shares_first else num_tasks, 1 if shares_second else num_tasks
