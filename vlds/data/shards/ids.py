"""Ids of samples and annotations: text on one line, because they stand in tables, lists and lines
of files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Control characters, ends of lines, and halves of characters, which no file can hold."""
MOST_SHOWN = 60
"""Characters of an id that a message shows."""


class UnfitId(ValueError):
    """An id that is not a line of text."""


def id_fault(found: Any) -> str:
    """An id and what is wrong with it; "" where nothing is."""
    if not isinstance(found, str) or not found:
        return f"{json.dumps(found)[:MOST_SHOWN]}, text expected"
    if UNFIT.search(found):
        return f"{json.dumps(found)[:MOST_SHOWN]}, with a control character or a line break in it"
    return ""


def check_ids(fields: Mapping[str, Any]) -> None:
    """Check the ids in a sample's json.

    Errors: UnfitId that shows the first one that is not fit; KeyError or TypeError where there
    is none.
    """
    if fault := id_fault(fields["id"]):
        raise UnfitId(f"the sample's id is {fault}")
    for number, annotation in enumerate(fields["annotations"]):
        if fault := id_fault(annotation["id"]):
            raise UnfitId(f"the id of annotation {number} is {fault}")
