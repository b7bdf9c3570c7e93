"""Counts of parameters, in all and by part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlds.models.loading.quantised import unpacked_sizes


@dataclass(frozen=True)
class Count:
    """Weights of a part."""

    total: int
    trainable: int


@dataclass(frozen=True)
class Counts:
    """Weights of a model. The vision encoder is named, but counts in no total, as in VL-Adapter."""

    by_part: dict[str, Count]
    """backbone, visual_embedding or connector, norms, each method; the vision encoder too."""

    @classmethod
    def of(cls, model: Any) -> Counts:
        """Count the parameters of a `Model`; tied parameters count once."""
        by_part: dict[str, Count] = {}
        packed = unpacked_sizes(model)
        for name, parameter in model.named_parameters():
            part = model.part_of(name)
            old = by_part.get(part, Count(0, 0))
            # The whole size if ZeRO-3 has partitioned the parameter.
            size = int(getattr(parameter, "ds_numel", parameter.numel()))
            size = packed.get(id(parameter), size)
            trained = size if parameter.requires_grad else 0
            by_part[part] = Count(old.total + size, old.trainable + trained)
        return cls(by_part)

    @property
    def total(self) -> int:
        """All weights but the vision encoder's."""
        return sum(count.total for part, count in self.by_part.items() if part != "vision")

    @property
    def trainable(self) -> int:
        """Weights that train."""
        return sum(count.trainable for count in self.by_part.values())

    @property
    def percent(self) -> float:
        """Trainable weights in percent of all."""
        return 100 * self.trainable / self.total

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {part: asdict(count) for part, count in self.by_part.items()}
        return {
            "total": self.total,
            "trainable": self.trainable,
            "percent": self.percent,
            "by_part": parts,
        }

    def table(self) -> str:
        """For people."""
        lines = [f"{'part':<24}{'weights':>16}{'trainable':>16}{'%':>10}"]
        for part, count in self.by_part.items():
            lines.append(f"{part:<24}{count.total:>16,}{count.trainable:>16,}")
        lines.append(f"{'total':<24}{self.total:>16,}{self.trainable:>16,}{self.percent:>10.3f}")
        if "vision" in self.by_part:
            lines.append("The vision encoder is not in the total, as in VL-Adapter.")
        return "\n".join(lines)
