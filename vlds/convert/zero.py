"""DeepSpeed's own checkpoints, of engine.save_checkpoint under ZeRO 2 or 3, as artifacts.

    CHECKPOINT/latest                                      name of the newest folder
    CHECKPOINT/TAG/*_model_states.pt                       shapes, frozen weights, buffers
    CHECKPOINT/TAG/*_zero_pp_rank_*_optim_states.pt        each rank's part of the fp32 masters

DeepSpeed's functions join the parts. Its own script would unpickle the files unchecked; here they
are read as tensors, plain containers and four harmless classes of DeepSpeed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import zero_to_fp32
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from vlds.convert.output import say
from vlds.convert.target import Target, read_torch
from vlds.runtime.files import read_text
from vlds.runtime.terminal import follow

ALLOWED = (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)
"""Classes whose instances DeepSpeed 0.19 writes: numbers with names."""
CURE = "If you trust it, save it again without objects in `client_state`"
MODEL, OPTIMIZER = "*_model_states.pt", "*_optim_states.pt"


def fill_from_zero(target: Target, checkpoint: Path, tag: str | None) -> None:
    """Fill a model from a ZeRO checkpoint.

    Errors: ValueError if the checkpoint is not whole or not the recipe's.
    """
    folder = tagged(checkpoint, tag)
    bare = {name.removeprefix("module."): t for name, t in consolidated(folder).items()}
    model = target.run.model
    # The checkpoint has tied weights under each of their names; `fill` takes one.
    aliases = set(model.state_dict()) - {name for name, _ in model.unique_state()}
    target.fill({name: t for name, t in bare.items() if name not in aliases}, folder)


def tagged(checkpoint: Path, tag: str | None) -> Path:
    """The folder of one step.

    Errors: ValueError if there is none.
    """
    if any(checkpoint.glob(OPTIMIZER)) and tag is None:
        return checkpoint
    if tag is None:
        latest = checkpoint / "latest"
        if not latest.is_file():
            raise ValueError(
                f"--from: {checkpoint} holds neither `latest` nor {OPTIMIZER} files; name the "
                "folder that engine.save_checkpoint wrote"
            )
        tag = read_text(latest, errors="replace").strip()
    # `latest` may be a stranger's: a tag with slashes or dots could lead anywhere.
    folder = checkpoint / tag
    if Path(tag).name != tag or not folder.is_dir():
        folders = ", ".join(sorted(path.name for path in checkpoint.glob("*/"))) or "none"
        raise ValueError(f"--tag: {checkpoint} has no folder '{tag[:80]}'; its folders: {folders}")
    return folder


def consolidated(folder: Path) -> dict[str, Tensor]:
    """Name -> whole tensor: masters in fp32, frozen weights as they were saved, buffers.

    Errors: ValueError if files are missing, damaged or of another kind.
    """
    weights, masters = files(folder, MODEL), files(folder, OPTIMIZER)
    models, states = (
        [read_torch(file, ALLOWED, CURE) for file in follow(files, f"reading {what}", len(files))]
        for what, files in (("weights", weights), ("masters", masters))
    )
    with reported(folder):
        optimizers = [state["optimizer_state_dict"] for state in states]
        stage, num_parts = int(optimizers[0]["zero_stage"]), optimizers[0]["partition_count"]
        # DeepSpeed writes one count, or one for each group of parameters. Only in stage 3 has each
        # rank a file of weights too.
        num_parts = max(num_parts) if isinstance(num_parts, list) else num_parts
        if num_parts != len(optimizers) or (stage == 3 and num_parts != len(models)):
            raise ValueError(
                f"{folder} has the files of {len(optimizers)} ranks, but {num_parts} wrote it; "
                "copy the missing ones"
            )
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        flat = [optimizer[key] for optimizer in optimizers]
        known = []
        for model in models:
            buffers, shapes = set(model["buffer_names"]), model.get("frozen_param_shapes")
            fragments = model.get("frozen_param_fragments")
            state = zero_to_fp32.zero_model_state(
                buffers={name: t for name, t in model["module"].items() if name in buffers},
                param_shapes=model["param_shapes"],
                shared_params=[list(pair) for pair in model["shared_params"].items()],
                ds_version=model.get("ds_version"),
                # A checkpoint that was saved without frozen weights has their shapes alone.
                frozen_param_shapes=shapes if fragments else None,
                frozen_param_fragments=fragments or None,
            )
            known.append(state)
    say(f"putting together ZeRO-{stage} weights of {num_parts} ranks")
    with reported(folder):
        # Private functions of DeepSpeed 0.19: the public one unpickles the files unchecked.
        if stage == 3:
            merged = zero_to_fp32._get_fp32_state_dict_from_zero3_checkpoint(
                num_parts, flat, known, False
            )
        else:
            merged = zero_to_fp32._get_fp32_state_dict_from_zero2_checkpoint(
                num_parts, flat, known, False, optimizers[0].get("param_alignment_paddings")
            )
        whole: dict[str, Tensor] = zero_to_fp32.to_torch_tensor(merged)
    return whole


def files(folder: Path, pattern: str) -> list[Path]:
    """The files of all ranks, in their order.

    Errors: ValueError if there are none.
    """
    # By the numbers in their names, rank 10 comes after rank 9.
    paths = sorted(folder.glob(pattern), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    if not paths:
        raise ValueError(f"--from: {folder} has no {pattern} files; is it a ZeRO checkpoint?")
    return paths


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Inside, DeepSpeed prints nothing, and its errors over unexpected content, which may be of any
    type, become the user's."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    except Exception as error:
        # What this file itself has found names the folder already.
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        raise ValueError(
            f"{folder} is not a ZeRO checkpoint that DeepSpeed 0.19 can put together "
            f"({type(error).__name__}: {str(error)[:120]})"
        ) from error
