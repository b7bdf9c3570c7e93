"""The recipe fills DeepSpeed's "auto" fields, and contradictions are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlds.training.deepspeed_config import fill


def test_auto_is_filled_and_another_value_is_a_contradiction(tmp_path: Path) -> None:
    config = {"bf16": {"enabled": "auto"}, "gradient_clipping": 1.0}
    fill(config, "bf16.enabled", True, tmp_path)
    assert config["bf16"] == {"enabled": True}
    with pytest.raises(ValueError, match=r"gradient_clipping = 1.0, the recipe says 5.0"):
        fill(config, "gradient_clipping", 5.0, tmp_path)


@pytest.mark.parametrize(
    "name", ["zero2", "zero3", "zero3_small", "zero2_offload", "zero3_offload"]
)
def test_shipped_files_leave_to_the_recipe_what_it_decides(name: str, root: Path) -> None:
    config = json.loads((root / "ds_configs" / f"{name}.json").read_text())
    assert config["zero_optimization"]["stage"] == int(name[4])
    for field in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[field] == "auto"
