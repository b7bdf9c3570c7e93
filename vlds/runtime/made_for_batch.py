"""What a module makes for one batch and another one reads."""

from __future__ import annotations

from typing import Any


class MadeForBatch:
    """What a module has made for the running batch. The model's state does not hold it: a copy of
    the model starts without it."""

    def __init__(self) -> None:
        self.value: Any = None

    def take(self) -> Any:
        """The value, which is then let go."""
        value, self.value = self.value, None
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeForBatch:
        return MadeForBatch()
