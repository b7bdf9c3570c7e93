"""Full fine-tuning: every weight of a part trains. The yardstick of the other methods, and how a
backbone is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from vlds.methods.base import Case, Method
from vlds.methods.extended import is_plain
from vlds.methods.host import Host


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Train the whole part."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """All parameters of the part.

        Errors: ValueError if the part has none (features stored in shards), or quantised ones.
        """
        model = host.model
        parameters = list(model.parameters())
        if not parameters:
            raise ValueError(
                f"Full trains the {self.part}, but {type(model).__name__} has no weights; "
                "remove the method"
            )
        if any(not is_plain(parameter) for parameter in parameters):
            raise ValueError(
                f"Full trains every weight, and {type(model).__name__} has quantised ones, which "
                "cannot train; load it unquantised, or choose another method"
            )
        return parameters

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Nothing to do: the weights are already the model's own."""
        return {}

    def after_export(self) -> None:
        """The files hold all of it."""

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        return {"": Case(cls(), decayed="")}
