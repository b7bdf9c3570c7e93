"""Where the official caption scorers are, the package pycocoevalcap, and what they need.

Its `COCOEvalCap` is never called: it makes SPICE whether that is wanted or not, and SPICE downloads
360 MB. Its Java programs are started from here, because its own wrappers write temporary files into
site-packages and leave processes behind.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path


def missing() -> str | None:
    """What stands in the way of the official scores, with the cure; None where nothing does."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap is missing (pip install 'vlds[coco]')"
    if shutil.which("java") is None:
        return "java is missing (install a Java runtime, such as openjdk-17-jre-headless)"
    return None


def folder(part: str) -> Path:
    """Folder of a part of the package: "meteor", "spice", "tokenizer"."""
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / part
