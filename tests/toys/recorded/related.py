"""Cases recorded from the codes of systems related to VL-Adapter: each says its kind, its sizes and
its formulas' inputs and results."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.toys.recorded.case import FOLDER


class RelatedCase:
    """One `<case>.json`, and `<case>.safetensors` if it has tensors; floating ones in float64."""

    def __init__(self, path: Path) -> None:
        self.record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        file = path.with_suffix(".safetensors")
        self.tensors = {
            name: tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in (load_file(file) if file.exists() else {}).items()
        }

    def __getitem__(self, name: str) -> Any:
        """A tensor by its name, else a setting."""
        return self.tensors[name] if name in self.tensors else self.record[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


@cache
def paths_by_kind() -> dict[str, list[Path]]:
    """Kind -> files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(FOLDER.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and "kind" in record:
            found.setdefault(record["kind"], []).append(path)
    return found


def json_fields(path: Path) -> set[str]:
    """What a case says beside its tensors."""
    return set(json.loads(path.read_text(encoding="utf-8")))


def recorded(kind: str, field: str = "kind") -> pytest.MarkDecorator:
    """Runs a test for every case of a kind that has a field, or skips it where there is none."""
    paths = [path for path in paths_by_kind().get(kind, []) if field in json_fields(path)]
    params = [pytest.param(path, id=path.stem) for path in paths]
    reason = f"no recorded case of {kind} in VLDS_GOLDENS"
    nothing = [pytest.param(None, marks=pytest.mark.skip(reason))]
    return pytest.mark.parametrize("path", params or nothing)


def check_gradient(gradient: Tensor | None, expected: dict[str, float] | None, name: str) -> None:
    """Compare a gradient with a recorded norm and product with cosines; None: it has none."""
    if expected is None:
        assert gradient is None or not gradient.any(), name
        return
    assert gradient is not None, name
    flat = gradient.flatten()
    cosine = torch.arange(len(flat), dtype=flat.dtype).cos()
    assert abs(flat.norm().item() - expected["grad_norm"]) < 1e-7, name
    assert abs((flat * cosine).sum().item() - expected["grad_dot_cos"]) < 1e-7, name


CLIP_VIL_NAMES = {
    "bert.encoder.visn_fc.visn_fc": "visual_embedding.projection",
    "bert.encoder.visn_fc.visn_layer_norm": "visual_embedding.norm",
    "bert.encoder.visual_pos.x_position_embedding": "visual_embedding.rows",
    "bert.encoder.visual_pos.y_position_embedding": "visual_embedding.columns",
    "output.adapter.adapters.vqa.down_sampler.": "output.dense.extensions.adapter.down_",
    "output.adapter.adapters.vqa.up_sampler.": "output.dense.extensions.adapter.up_",
    "bert.": "backbone.",
    "logit_fc.": "heads.vqa.",
}
"""How names in CLIP-ViL's code begin, or a part of them -> ours."""
