"""What kinds have in common whose visual embedding puts visual tokens beside the text, in one
encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from vlds.methods.host import find_modules
from vlds.models.kind import GridKind
from vlds.models.model import Model


@dataclass(frozen=True, kw_only=True)
class EmbeddingKind(GridKind):
    """A kind whose model has a `visual_embedding` before its backbone."""

    train_norms: bool = False
    """Train the backbone's layer norms too."""
    train_visual_embedding: bool = True
    """Train the visual embedding."""

    @property
    def trained_text(self) -> list[str]:
        norms = ["norms"] if self.train_norms else []
        return [*norms, "visual embedding"] if self.train_visual_embedding else norms

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        if self.train_norms:
            norms = find_modules(model.backbone, model.parts["backbone"].targets, "norm").values()
            yield "norms", (p for norm in norms for p in norm.parameters(recurse=False))
        if self.train_visual_embedding:
            yield "visual_embedding", model.get_submodule("visual_embedding").parameters()

    def export_embedding(self, model: Model, folder: Path) -> str:
        """Write the visual embedding's weights into a file of a folder; the file."""
        file = folder / "visual_embedding.safetensors"
        state = model.get_submodule("visual_embedding").state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        return str(file)
