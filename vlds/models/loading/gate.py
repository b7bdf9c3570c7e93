"""The gate before every folder that transformers reads: its files may name neither code nor another
place to read from.

transformers follows names in the files that it reads: it imports a class of the folder, after
asking on the terminal, fetches another model, or adds an adapter to the weights. `where` finds
these names before it reads, and while `sealed` it can neither ask nor fetch. Behind the gate,
`read_config` and `load_weights` compare a folder's config, its weights and the model's class, so
that what does not fit is said in a line before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.utils import logging

from vlds.models.loading.model_files import (
    COPY_AGAIN,
    LOCAL,
    WEIGHTS,
    SourceError,
    check_source,
    check_tensors,
    fetch,
    reading,
    some,
)
from vlds.runtime.checks import not_finite
from vlds.runtime.json_files import read_json
from vlds.runtime.limited import limited

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json",
)  # fmt: skip
"""A folder with a tokenizer of any class has one of these."""

# What transformers would follow in a folder's files.
CHECKED = ("*config*.json", "*/*config*.json")
"""Files whose keys decide what transformers does. A processor's parts may lie in subfolders."""
INDEX = "*.safetensors.index.json"
ADAPTER = "adapter_config.json"
ELSEWHERE = {
    "audio_tokenizer": "a separate model",
    "audio_tokenizer_name_or_path": "a separate model",
    "checkpoint_path": "a file of weights",
    "configuration_files": "files in place of config.json",
    "fast_tokenizer_files": "files in place of tokenizer.json",
    "gguf_file": "a file of weights",
    "repo_path": "a repository",
    "transformers_weights": "a file of weights",
    "use_pretrained_backbone": "weights of another model",
}
"""Key -> what transformers would read from elsewhere."""
PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
"""Begins of names of models that timm would read from elsewhere."""
IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Keys that name a computation; one with a slash is code on the hub."""
TOKENIZER = re.compile(r"\w*(Tokenizer\w*|Backend)")
PROCESSOR = re.compile(r"\w*Processor")
CLASS_KEYS = {"tokenizer_class": TOKENIZER, "processor_class": PROCESSOR}
PART_KEYS = ("image_processor_type", "video_processor_type", "feature_extractor_type")
PART = re.compile(r"\w*(Processor(Fast|Pil)?|FeatureExtractor)")
"""Names of classes that turn pictures into tensors. transformers would call whatever it has under
the name that a file gives, with the file's values."""
TEXT = "The quick brown fox jumps over the lazy dog: 0123456789 ?"
"""Has each letter and digit: a rule of a tokenizer may make a gigabyte of any of them."""
CURE = (
    "vlds runs no code of a model, and reads only what the recipe names: remove this entry, or "
    "name another model"
)

TIES = "tie_word_embeddings"
CORRECT = "correct the file, or copy it again"
MOST_MODULES = 50_000
"""Modules of a model. Llama 3.1 405B has two thousand; Mixtral 8x22B, with its experts, three."""
PACKED = re.compile(
    r"\.(weight_scale\w*|scales|qweight|qzeros|absmax|quant_map|SCB|lora_[AB])(\.|$)"
)
"""Names of tensors without which packed weights, or an adapter's, cannot be read."""
LAYER = re.compile(r"\.\d+(?=\.)")
"""The number of a layer in a weight's name."""


def check_model(source: str, field: str) -> None:
    """Check that a model is a local folder, is cached or can be downloaded, and that its files name
    nothing else.

    Errors: SourceError that begins with `field`.
    """
    where(source, field, model=True)


def check_tokenizer(source: str, field: str, files: Sequence[str], what: str = "tokenizer") -> None:
    """Check that a tokenizer, or a processor, exists locally or can be downloaded, and that its
    files name nothing else. `files`: names of files in its folder, and suffixes (.model) of files
    that hold a whole tokenizer.

    Without this check, transformers would create an empty tokenizer for a folder that holds none,
    and would look on the hub for the path of a file that it cannot read.

    Errors: SourceError that begins with `field`.
    """
    path = Path(source)
    suffixes = [name for name in files if name.startswith(".")]
    names = [name for name in files if name not in suffixes]
    or_file = "".join(f"a {suffix} file or " for suffix in suffixes)
    cure = f"name {or_file}a folder that holds {' or '.join(names)}"
    if path.suffix in suffixes and not path.exists():
        raise SourceError(f"{field}: no such file: {source}; {cure}")
    check_source(source, field, cure)
    if path.is_file() and path.suffix not in suffixes:
        raise SourceError(f"{field}: {source} is not a {what}; {cure}")
    if path.is_dir() and not any((path / name).is_file() for name in names):
        raise SourceError(f"{field}: no {what} in the folder {source}; {cure}")
    where(source, field, local=cure)


def open_checked(hf_class: Any, source: str | Path, field: str, **options: Any) -> Any:
    """Call `from_pretrained` of a class of transformers for a folder or hub name; a model is
    asked for if `options` hold its config.

    Errors: SourceError that begins with `field`; whatever the class raises.
    """
    place = where(str(source), field, model="config" in options, weights="config" in options)
    with sealed():
        opened = hf_class.from_pretrained(
            source, trust_remote_code=False, local_files_only=True, **place, **options
        )
    tokenizer = getattr(opened, "tokenizer", opened)  # a processor holds one
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        # Some settings, such as model_max_length, are first looked at when a text is read.
        with reading(f"{field}: the tokenizer in {source} cannot read a text"):
            limited(lambda: str(len(tokenizer(TEXT)["input_ids"])))
    return opened


def where(
    source: str, field: str, local: str = LOCAL, *, model: bool = False, weights: bool = False
) -> dict[str, str]:
    """Check the files of a folder or hub name before transformers reads them; the options of
    `from_pretrained` that choose the checked snapshot of a hub name, none for a folder. `model`:
    check that no adapter would join the weights; `weights`: fetch these too.

    Errors: SourceError that begins with `field`.
    """
    path = Path(source)
    place: dict[str, str] = {}
    if not path.exists():
        with quiet():
            path = fetch(source, field, local)
        # A snapshot's folder is called by its commit: `from_pretrained` then reads these very
        # files, also if the branch moves in between.
        place = {"revision": path.name}
    weight_files: list[str] = []
    if path.is_dir():
        if model and (path / ADAPTER).exists():
            raise SourceError(
                f"{field}: {path / ADAPTER}: the folder holds an adapter beside the model, and "
                "transformers would add it to the weights without a word; move the adapter's files "
                "to another folder, or merge them into the weights (peft's merge_and_unload)"
            )
        for index in sorted(path.glob(INDEX)):
            with reading(f"{field}: cannot read {index}"):
                tree = read_json(index)
                files = tree.get("weight_map") if isinstance(tree, dict) else None
                if not (
                    isinstance(files, dict) and all(isinstance(f, str) for f in files.values())
                ):
                    raise ValueError("it has no weight_map, which names the file of each weight")
                names = sorted(set(files.values()))
                for name in names:
                    # transformers would open any other file as a pickle, and vlds not check it.
                    if not name.endswith(".safetensors"):
                        raise ValueError(f"it names {name!r}, which is not a .safetensors file")
                    # No part of a path, such as ../: an index may name files of its folder alone.
                    if Path(name).name != name:
                        raise ValueError(f"it names {name!r}, which is not a file beside it")
            weight_files += names
        # transformers would wait for a pipe's writer for ever.
        with reading(f"{field}: cannot read {path}"):
            for file in sorted(path.iterdir()):
                # A link that leads nowhere does not exist.
                if file.exists() and not (file.is_file() or file.is_dir()):
                    raise SourceError(f"{field}: {file} is not a regular file; {COPY_AGAIN}")
        # transformers ignores a folder's code for the types that it knows.
        config = path / "config.json"
        kind = _read(config, field).get("model_type") if config.is_file() else None
        known = kind if isinstance(kind, str) and kind in CONFIG_MAPPING else None
        for file in sorted({file for pattern in CHECKED for file in path.glob(pattern)}):
            if file.is_file():
                check_settings(_read(file, field), file, field, known)
    # Weights come last: gigabytes are worth fetching only for a folder that may be read.
    if weights and place:
        with quiet():
            fetch(source, field, local, tuple(weight_files) or WEIGHTS)
    return place


def check_settings(tree: Any, file: Path, field: str, known: str | None = None) -> None:
    """Check that the settings in a file name neither code nor another place. `known`: the type of
    the model beside it.

    Errors: SourceError that begins with `field`.
    """
    if (fault := next(_faults(tree, known), None)) is not None:
        raise SourceError(f"{field}: {file}: {fault}; {CURE}")


@contextmanager
def sealed() -> Iterator[None]:
    """Inside, transformers can fetch nothing and ask nothing, whatever it reads."""
    # Both are read at each use, so that setting them here is enough.
    offline, seconds = constants.HF_HUB_OFFLINE, dynamic_module_utils.TIME_OUT_REMOTE_CODE
    constants.HF_HUB_OFFLINE = True
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # no time for an answer: it asks nothing
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Hugging Face draws no progress bars (each rank would) and prints no report."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _read(file: Path, field: str) -> dict[str, Any]:
    state = file.stat()
    with reading(f"{field}: cannot read {file}"):
        tree = _parsed(file, (state.st_mtime_ns, state.st_size, state.st_ino))
        if not isinstance(tree, dict):
            raise TypeError(f"it holds a {type(tree).__name__}, not settings by name")
    return tree


@lru_cache(256)
def _parsed(file: Path, state: tuple[int, ...]) -> Any:
    """A file of settings, which is read again once it changes: configs are looked up often."""
    return read_json(file)


def _faults(tree: Any, known: str | None, path: str = "") -> Iterator[str]:
    """What is wrong with settings: the key, its value, and what transformers would do."""
    if isinstance(tree, list):
        for number, entry in enumerate(tree):
            yield from _faults(entry, known, f"{path}[{number}]")
    if not isinstance(tree, Mapping):
        return
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        if value is not None and (why := _reason(key, value, tree, known)) is not None:
            yield f"{name} is {str(value)[:100]!r}, {why}"
        yield from _faults(value, known, name)


def _reason(key: str, value: Any, beside: Mapping[str, Any], known: str | None) -> str | None:
    """Why a key may not have a value; None if it may."""
    texts = list(_texts(value))
    if key in ELSEWHERE and value not in (False, [], ""):
        return f"which names {ELSEWHERE[key]} to read"
    if key == "backbone" and isinstance(value, str):
        inside = beside.get("backbone_config") or beside.get("model_type") == "timm_backbone"
        return None if inside else "which names another model to read"
    if isinstance(value, str) and value.startswith(PREFIXES):
        return "which names another model to read"
    if key in IMPLEMENTATIONS and any("/" in text for text in texts):
        return "which names code to fetch"
    model_type = beside.get("model_type")
    has_class = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if key == "auto_map" and known is None and not has_class:
        # transformers ignores the folder's code where it has its own class for the type.
        named = [beside.get(key) for key in (*CLASS_KEYS, *PART_KEYS)]
        if not any(isinstance(name, str) and hasattr(transformers, name) for name in named):
            return "which names code to run, and transformers itself has no class for it"
    if key == "trust_remote_code" and value:
        return "which lets code run"
    if key in PART_KEYS and not all(map(PART.fullmatch, texts)):
        return "which is not a class that reads pictures"
    # transformers would open a folder's files by any of its classes, also by that of a model.
    if key in CLASS_KEYS and not all(map(CLASS_KEYS[key].fullmatch, texts)):
        return f"which is not the class of a {key.removesuffix('_class')}"
    return None


def _texts(value: Any) -> Iterator[str]:
    """The texts of a setting, which may be given for each part of a model."""
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


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
        parts = [fields, *(value for value in fields.values() if isinstance(value, dict))]
        if any(part.get("quantization_config") is not None for part in parts):
            raise SourceError(
                f"{field}: {source} is quantised (its config has a quantization_config), and vlds "
                "reads whole weights; name the unquantised model"
            )
        # The config of a whole CLIP holds that of its vision model.
        part = getattr(config_class, "base_config_key", "")
        if part and fields.get("model_type") != config_class.model_type:
            fields = fields.get(part, fields)
        config = config_class.from_dict(fields)
        for name, value in not_finite(fields):
            # Bounds of ranges may be infinite, as in Mamba's `time_step_limit`. `value != value`
            # is true of NaN alone.
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
        reading(f"{field}: the config in {path} does not describe a model", CORRECT),
        torch.device("meta"),
        unpartitioned(),
        sealed(),
    ):
        wanted = model_class(config).state_dict()
    # A hub name has no such files here: its shapes are compared by transformers alone.
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        held = check_tensors(field, file, wanted)
        # transformers passes over what the model lacks, also where weights mean nothing without it.
        # It reads no others of these files.
        odd = [n for n in sorted(held) if n not in wanted and PACKED.search(n)]
        if odd and file.name.startswith("model"):
            raise SourceError(
                f"{field}: {file} holds {some(odd)}, which belongs to packed weights or to an "
                "adapter; name the folder of the whole, merged model"
            )
        shapes |= held
    # Compared before anything is loaded, because loading under ZeRO-3 reports no mismatch. A weight
    # that differs from the model's by the layer's number alone shows that the config asks for too
    # few layers; other weights too many, such as the head of another task, are ignored.
    kinds = {LAYER.sub(".*", name) for name in wanted}
    faults = [
        f"{name} is {' x '.join(map(str, shape))}, the config asks for "
        f"{' x '.join(map(str, wanted[name].shape))}"
        for name, shape in sorted(shapes.items())
        if name in wanted and shape != tuple(wanted[name].shape)
    ]
    faults += [
        f"{name} is in no layer of the config"
        for name in sorted(shapes)
        if name not in wanted and LAYER.sub(".*", name) in kinds
    ]
    missing: set[str] = set()
    if not faults:
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
        if not packing:
            # transformers keeps some weights of some types in fp32 beside fp16; DeepSpeed does not,
            # and what is scored must be what has trained.
            for weight in model.parameters():
                weight.data = weight.data.to(dtype)
        # A missing buffer is computed or drawn; a missing parameter would be random.
        missing = set(report["missing_keys"])
        lost = missing.intersection(name for name, _ in model.named_parameters())
        faults = [f"{name} is missing" for name in sorted(lost)]
    if faults:
        raise SourceError(
            f"{field}: the weights in {path} do not fit the config.json beside them: "
            f"{some(faults)}; restore the config.json that belongs to the weights"
        )
    return model, missing


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Inside, models of several parts are made whole, as others are.

    Under ZeRO-3's loading hint, transformers 5 partitions the parts that a model makes by
    `_from_config`.
    """
    hint = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = hint


BOUNDS = ("_min", "_max")
"""What buffers that limit numbers end with."""


def check_finite(model: nn.Module, what: str) -> None:
    """Errors: SourceError that begins with `what` for weights, or numbers that a config leads to,
    that are NaN or infinite. Masks may hold minus infinity, and bounds (Gemma 4's `input_max`)
    either."""
    weights = {name for name, _ in model.named_parameters()}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        if tensor.sum(dtype=torch.float32).isfinite():  # many times as fast as to test each number
            continue
        good = tensor.isfinite()
        if name not in weights:
            good |= tensor.isinf() if name.endswith(BOUNDS) else tensor.isneginf()
        bad = tensor[~good]
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
