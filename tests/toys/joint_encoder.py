"""A tiny joint encoder, and the world's recipe with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.toys.cross_modal import write_configs
from tests.toys.world import COLOURS, world_recipe
from vlds.models import JointEncoder
from vlds.models.heads import MLPHead
from vlds.models.methods import Adapter
from vlds.models.vision import ConvNet
from vlds.recipe.config import Recipe
from vlds.tasks import VQA

CLASSES = (*COLOURS, "dark")


def joint_encoder_kind(folder: Path, **fields: Any) -> JointEncoder:
    """The kind; the first call writes its files."""
    if not (folder / "bert.json").exists():
        write_configs(folder)
    return JointEncoder(
        config=str(folder / "bert.json"),
        tokenizer=str(folder / "words"),
        vision=ConvNet(image_size=16, grid=2, widths=[4, 8, 8]),
        train_norms=True,
        **fields,
    )


def joint_encoder_recipe(
    world: Path, output: Path, stage: int = 2, precision: str = "fp32"
) -> Recipe:
    """The world's questions, answered by a head; adapters, norms and the visual embedding train."""
    recipe = world_recipe(world, output, stage, precision)
    vqa = recipe.tasks["vqa"]
    assert isinstance(vqa, VQA)
    return replace(
        recipe,
        model=joint_encoder_kind(world),
        methods={"adapter": Adapter(reduction=4)},
        tasks={"vqa": replace(vqa, head=MLPHead(classes=CLASSES))},
    )
