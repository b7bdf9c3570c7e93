"""Reads Hugging Face's configs and weights from a folder, file or hub name, and compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.integrations import deepspeed as hf_deepspeed

from vlds.pretrained.files import SourceError, check_tensors, reading, some
from vlds.pretrained.gate import check_settings, open_checked, quiet, sealed, where
from vlds.runtime.checks import not_finite
from vlds.runtime.json_file import read_json

TIES = "tie_word_embeddings"
CORRECT = "correct the file, or copy it again"
MOST_MODULES = 50_000
"""Of a model. Llama 3.1 405B has two thousand, and Mixtral 8x22B with its experts apart three."""
LAYER = re.compile(r"\.\d+(?=\.)")


def read_config(config_class: Any, source: str, field: str) -> tuple[Any, dict[str, Any]]:
    """The config of a folder, hub name or file, and the raw settings in it. The recipe's `field`
    names the source.

    Errors: SourceError if it cannot be read, or holds values of the wrong kind.
    """
    is_file = source.endswith(".json")
    place = {} if is_file else where(source, field, model=True)
    with reading(f"{field}: cannot read the model's config from {source}", CORRECT), sealed():
        if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
            raise OSError("the folder has no config.json")
        if is_file:
            fields = read_json(Path(source))
            check_settings(fields, Path(source), field)
        else:
            fields, _ = config_class.get_config_dict(source, local_files_only=True, **place)
        if not isinstance(fields, dict):
            raise TypeError(f"it holds a {type(fields).__name__}, not settings by name")
        part = getattr(config_class, "base_config_key", "")  # the vision model in a whole CLIP
        if part and fields.get("model_type") != config_class.model_type:
            fields = fields.get(part, fields)
        config = config_class.from_dict(fields)
        if fields.get("quantization_config") is not None:
            raise ValueError(
                "it has a quantization_config: vlds reads whole weights, and packs them itself "
                "where a recipe has `bits`"
            )
        for name, value in not_finite(fields):
            # Bounds of ranges may be infinite, as in Mamba's `time_step_limit`.
            if value != value or not name.endswith("]"):
                raise ValueError(f"{name} is {value}, a finite number expected")
        if not isinstance(fields.get(TIES, True), bool):
            raise TypeError(f"{TIES} is {fields[TIES]!r}, true or false expected")
    return config, fields


def read_any_config(source: str, field: str) -> Any:
    """The config of a model of any type that transformers knows.

    Errors: SourceError if it cannot be read, or is of a type that transformers does not know.
    """
    _, fields = read_config(PreTrainedConfig, source, field)
    kind = fields.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise SourceError(
            f"{field}: {source} is a model of type {kind!r}, which this version of transformers "
            "does not know; name another, or install a newer transformers"
        )
    return read_config(CONFIG_MAPPING[kind], source, field)[0]


def check_config(
    config: Any, prefix: str, sizes: Sequence[str], tokens: Sequence[str] = ()
) -> None:
    """Check that a config's `sizes` are positive, and that it has ids of the `tokens`.

    Errors: SourceError that begins with `prefix`.
    """
    for names, least in ((sizes, 1), (tokens, 0)):
        for name in names:
            value = getattr(config, name, None)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SourceError(
                    f"{prefix}: {name} is {value!r} in the model's config, a number from {least} "
                    f"expected; {CORRECT}"
                )


def load_weights(
    model_class: Any, path: str, config: Any, dtype: torch.dtype, field: str, **packing: Any
) -> tuple[Any, set[str]]:
    """The model of a folder or hub name, and the names of buffers that its weights lack. The
    recipe's `field` names the source; `packing`, Hugging Face's options that quantise it.

    Errors: SourceError if the weights cannot be read, or do not fit the config.
    """
    with (
        reading(f"{field}: the config in {path} describes no model", CORRECT),
        torch.device("meta"),
        unpartitioned(),
        sealed(),
    ):
        wanted = model_class(config).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        shapes |= check_tensors(field, file, wanted)
    _check_fit(f"{field}: the weights in {path}", shapes, wanted)
    with reading(f"{field}: cannot read weights from {path}"), quiet():
        model, report = open_checked(
            model_class,
            path,
            field,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            **packing,
        )
    missing = set(report["missing_keys"])
    if lost := sorted(missing.intersection(name for name, _ in model.named_parameters())):
        raise _misfit(f"{field}: the weights in {path}", [f"{name} is missing" for name in lost])
    return model, missing


def _check_fit(
    what: str, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor]
) -> None:
    """Compare the shapes in a folder's files with the config before anything is loaded, because
    loading under ZeRO-3 reports no mismatch.

    Errors: SourceError for other shapes, and for layers that the model does not have.
    """
    kinds = {LAYER.sub(".*", name) for name in wanted}
    faults = [
        f"{name} is {_text(shape)}, the config asks for {_text(wanted[name].shape)}"
        for name, shape in sorted(shapes.items())
        if name in wanted and shape != tuple(wanted[name].shape)
    ]
    faults += [
        f"{name} is in no layer of the config"
        for name in sorted(shapes)
        if name not in wanted and LAYER.sub(".*", name) in kinds
    ]
    if faults:
        raise _misfit(what, faults)


def _misfit(what: str, faults: list[str]) -> SourceError:
    return SourceError(
        f"{what} do not fit the config.json beside them: {some(faults)}; restore the config.json "
        "that belongs to the weights"
    )


def _text(shape: Any) -> str:
    return " x ".join(map(str, shape))


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Inside, models of several parts are made whole, as others are. Under ZeRO-3's loading hint,
    transformers would partition the parts that a model makes by `_from_config`."""
    hint = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = hint


def check_finite(model: nn.Module, what: str) -> None:
    """Errors: SourceError that begins with `what` for weights, or numbers that a config leads to,
    that are NaN or infinite. Masks may hold minus infinity."""
    weights = {name for name, _ in model.named_parameters()}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        if tensor.sum(dtype=torch.float32).isfinite():  # many times as fast as to look at each
            continue
        good = tensor.isfinite()
        bad = tensor[~(good if name in weights else good | tensor.isneginf())]
        if len(bad):
            raise SourceError(
                f"{what}: {name} holds {bad[0].item()}, finite numbers expected; copy the weights "
                "and the config again, or name others"
            )


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, a model is made of no more modules than any real one has, whatever a config or a
    recipe asks for: to make a hundred thousand layers takes hours, even without memory.

    Errors: SourceError.
    """
    num_modules = 0

    def count(*_: object) -> None:
        nonlocal num_modules
        num_modules += 1
        if num_modules > MOST_MODULES:
            raise SourceError(
                f"the model would have more than {MOST_MODULES:,} modules; correct the number of "
                "layers in its config, or the sizes of the recipe's methods"
            )

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
