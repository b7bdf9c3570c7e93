"""What a model was made from: names and licences of the pretrained models that its recipe names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants, try_to_load_from_cache

from vlds.models.kinds.base import ModelKind
from vlds.runtime.json_files import read_json

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
"""In the path of a folder of the hub's cache."""
NAMED_BY_ONE_WORD = ("backbone", "language model")
"""Sources whose hub names may lack an owner, such as t5-base; others would be timm's names."""
LICENSE = ("license", "license_name", "license_link")
"""Fields of a card, and of some configs."""
PLAIN_LICENSE = re.compile(r"[\w.,:/()+ -]{1,200}")
"""Cards are anybody's text: what could be Markdown or HTML does not get into ours."""
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Base:
    """A pretrained model."""

    part: str
    """What it is in the model: backbone, vision, ..."""
    name: str
    """Its name on the hub; of a local one, the name of its file or folder."""
    hub_name: str | None
    """As far as it is known."""
    license: Mapping[str, str]
    """Fields of its card; empty where it is not known."""


def bases_of(kind: ModelKind) -> list[Base]:
    """The models and files that a kind of model reads its weights from."""
    return [base_of(part, source) for part, source in kind.sources.items()]


def base_of(part: str, source: str) -> Base:
    """The model or file that a part's weights are read from."""
    path, hub_name = Path(source), hub_name_of(part, source)
    # A folder outside the cache may be a changed copy: its own card counts, not the hub's.
    if path.exists():
        license = license_in(path / "README.md") or license_fields(config_of(path))
        name = hub_name if hub_name and in_cache(path) else path.resolve().name
        return Base(part, name, hub_name, license)
    return Base(part, source, hub_name, license_on_hub(source) if hub_name else {})


def language_base(kind: ModelKind) -> str | None:
    """The hub name of the model that the backbone's weights are read from. A folder outside the
    hub's cache has none: its config may name the model that it was tuned from."""
    for part, source in kind.sources.items():
        if part in NAMED_BY_ONE_WORD:
            is_hub_model = not Path(source).exists() or in_cache(Path(source))
            return hub_name_of(part, source) if is_hub_model else None
    return None


def hub_name_of(part: str, source: str) -> str | None:
    """The name on the hub of a pretrained model, as far as it is known. A folder has one by its
    place in the hub's cache, or in its config."""
    # What does not exist here is the hub's, or timm's, whose names have no owner.
    path = Path(source)
    if not path.exists():
        return source if HUB_NAME.fullmatch(source) or part in NAMED_BY_ONE_WORD else None
    if not path.is_dir():
        return None
    if match := in_cache(path):
        return f"{match[1]}/{match[2]}"
    name = config_of(path).get("_name_or_path")
    return name if isinstance(name, str) and HUB_NAME.fullmatch(name) else None


def in_cache(folder: Path) -> re.Match[str] | None:
    """Where a path names a model in the hub's cache."""
    return SNAPSHOT.search(f"{folder.absolute().as_posix()}/")


def license_in(card: Path) -> dict[str, str]:
    """What a card says of the licence; empty where it says nothing, or cannot be read."""
    if card.is_file():
        with suppress(Exception):  # anybody's file: YAML's errors are of many kinds
            return license_fields(ModelCard.load(card, ignore_metadata_errors=True).data)
    return {}


@cache
def license_on_hub(name: str) -> dict[str, str]:
    """What the hub's card of a model says of the licence; empty where there is no answer."""
    with suppress(Exception):  # the HTTP library may raise anything, and a card can do without
        # A card in the hub's cache needs no network.
        cached = try_to_load_from_cache(name, "README.md")
        if isinstance(cached, str) and (found := license_in(Path(cached))):
            return found
        if not constants.is_offline_mode():
            data = HfApi().model_info(name, timeout=TIMEOUT_S).card_data
            return license_fields(data) if data is not None else {}
    return {}


def license_fields(about: Any) -> dict[str, str]:
    """The fields about the licence that have a plain text, in a card's data or a config."""
    tree = about if isinstance(about, Mapping) else vars(about)
    found = {name: tree.get(name) for name in LICENSE}
    fields = {
        name: value
        for name, value in found.items()
        if isinstance(value, str) and PLAIN_LICENSE.fullmatch(value)
    }
    # The others explain a `license` of "other", and say nothing without it.
    return fields if "license" in fields else {}


def config_of(folder: Path) -> Mapping[str, Any]:
    """A folder's config.json; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        tree = read_json(folder / "config.json")
        return tree if isinstance(tree, dict) else {}
    return {}
