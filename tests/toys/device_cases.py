"""A model of each kind with a batch and questions, to be run on two devices and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from tests.toys import cross_modal, dual, joint_encoder, models
from tests.toys.image_text.rows import tiny
from tests.toys.kinds import built
from tests.toys.method_cases import BACKBONES, methods_of_case
from tests.toys.wide_models import wide
from vlds.models.kinds.dual_encoder_model import DualEncoderModel
from vlds.models.methods import Full, Method
from vlds.models.model import Model
from vlds.schema import Batch, Decoding

GREEDY, BEAMS = Decoding(max_new_tokens=6), Decoding(max_new_tokens=6, num_beams=3)


class DeviceCase(NamedTuple):
    """What is compared."""

    make: Callable[[], Model]
    """The same model at each call, on the CPU."""
    batch: Batch
    decodings: Sequence[Decoding] = ()
    questions: Batch | None = None
    """What is asked; the batch if there is none."""


def joint_case(family: str, case: str) -> DeviceCase:
    """An encoder-decoder with a case's method."""
    folder = Path(mkdtemp())

    def make() -> Model:
        return models.build(models.backbone(BACKBONES[family], folder), methods_of_case(case))

    return DeviceCase(make, models.batch(), [GREEDY, BEAMS, Decoding(choices=("w5", "w6"))])


def wide_case(model_type: str, method: Method) -> DeviceCase:
    """A causal or image-text model of a type."""
    source = wide(model_type)
    rows = source.rows()
    return DeviceCase(
        lambda: source.build({"method": method}),
        source.batch(rows),
        [GREEDY, BEAMS, Decoding(choices=("red", "blue"))],
        source.batch(rows, evaluation=True),
    )


def packed_case(model_type: str, method: Method) -> DeviceCase:
    """An image-text model that computes short rows beside each other."""
    model = tiny(model_type)
    packs = replace(model, kind=replace(model.kind, pack=True))
    rows = [row._replace(task_index=0) for row in (*model.rows(), *model.rows()[2:])]
    batch = model.batch(rows)
    assert packs.build().lines(batch) is not None
    return DeviceCase(
        lambda: packs.build({"method": method}),
        batch,
        [GREEDY, Decoding(choices=("red", "blue"))],
        model.batch(rows, evaluation=True),
    )


def encoder_case(kind: str) -> DeviceCase:
    """A model that only classifies."""
    folder = Path(mkdtemp())
    if kind == "CrossModal":
        recipe = cross_modal.cross_modal_recipe(folder, folder / "run")
    else:
        recipe = joint_encoder.joint_encoder_recipe(folder, folder / "run")
    batch = cross_modal.batch_of(recipe, cross_modal.TEXTS)
    return DeviceCase(lambda: built(recipe), batch, [GREEDY])


def dual_case(method: Method, folder: Path | None = None) -> DeviceCase:
    """CLIP with a head of classes, or, if all of it trains, over pairs; from a folder that holds
    it, or from a new one."""
    folder = folder or dual.save_clip(Path(mkdtemp()))
    head = None if isinstance(method, Full) else dual.colour_head()

    def make() -> DualEncoderModel:
        return dual.build(folder, {"method": method}, head=head)

    if head is None:
        return DeviceCase(make, dual.pairs(make(), ["a photo of red", "it is blue .", "green"]))
    return DeviceCase(make, dual.classed(make(), [0, 1, 2]), [GREEDY])
