"""Recorded cases of one task whose config leaves out sizes that the others name."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.toys.recorded.case import FOLDER, RecordedCase


def recorded_paths(task: str) -> list[Path]:
    """Files of cases with the task."""
    return [
        path
        for path in sorted(FOLDER.rglob("*.json"))
        if isinstance(record := json.loads(path.read_text("utf-8")), dict)
        and isinstance(tasks := record.get("tasks"), dict)
        and task in tasks
    ]


def recorded_case(source: Path, task: str, folder: Path) -> RecordedCase:
    """The case of a task, with all sizes; `folder` gets a copy of its files."""
    record = json.loads(source.read_text("utf-8"))
    tensors = load_file(source.with_suffix(".safetensors"))
    size, encoder = record["config"], "weights/model.encoder."
    size |= {
        "tasks": [task],
        "grid_in": size["n_boxes"],
        "n_images": len(
            next(t for name, t in tensors.items() if name.endswith("img_order_embedding.weight"))
        ),
        "encoder_layers": size["layers"],
        "decoder_layers": size["layers"],
    }
    if size["backbone"] == "bart":
        size |= {
            "ffn": len(tensors[f"{encoder}layers.0.fc1.weight"]),
            "max_position_embeddings": len(tensors[f"{encoder}embed_positions.weight"]) - 2,
            "activation": "gelu",
            "scale_embedding": False,
        }
    else:
        size |= {
            "d_kv": size["d_model"] // size["heads"],
            "d_ff": len(tensors["weights/encoder.block.0.layer.1.DenseReluDense.wi.weight"]),
            "feed_forward": "relu",
            "relative_attention_num_buckets": 32,
            "layer_norm_epsilon": 1e-6,
        }
    if f"{task}/loss_weights" in tensors:
        tensors[f"{task}/scores"] = tensors.pop(f"{task}/loss_weights")
    (folder / source.name).write_text(json.dumps(record), "utf-8")
    save_file(tensors, folder / source.with_suffix(".safetensors").name)
    return RecordedCase(folder / source.name)
