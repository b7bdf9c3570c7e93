"""Checks of a stream's saved state: whoever wrote it may have written anything."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from vlds.data.order.mixed_order import Phase
from vlds.data.order.mixture import mixture_of

FURTHEST = 1 << 53
"""Beyond any run; positions are 64-bit integers."""
KINDS = {"consumed": int, "global_batch_size": int, "phase": dict, "fingerprint": dict}
SHARE = re.compile(r"\d+(/\d+)?")
"""Stricter than Fraction, which would make a huge integer of 1e999999999."""


def check_state(state: Mapping[str, Any]) -> None:
    """Errors: ValueError that names a field and its value that no stream saves."""
    for name, kind in KINDS.items():
        if type(state.get(name)) is not kind:
            raise nonsense(name, state.get(name))
    if not 0 <= state["consumed"] < FURTHEST:
        raise nonsense("consumed", state["consumed"])
    if state["global_batch_size"] < 1:
        raise nonsense("global_batch_size", state["global_batch_size"])
    order = state["fingerprint"].get("order")
    if not isinstance(order, dict):
        raise nonsense("fingerprint.order", order)
    if not _is_phase(state["phase"], state["consumed"], order.get("lanes")):
        raise nonsense("phase", state["phase"])


def _is_phase(phase: Mapping[str, Any], consumed: int, lanes: Any) -> bool:
    """True if it began before this position, and has counts of examples for each lane."""
    at, given = phase.get("at"), phase.get("given")
    if phase.keys() != {"at", "given"} or type(at) is not int or not isinstance(given, dict):
        return False
    if not 0 <= at <= consumed:
        return False
    return all(
        isinstance(counts, list)
        and len(counts) == lanes
        and all(type(count) is int and 0 <= count <= at for count in counts)
        for counts in given.values()
    )


def given_before(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Examples of each source before a state, lane by lane. They follow from the mixture in which
    the state was saved.

    Errors: ValueError for a mixture that no run has.
    """
    order = state["fingerprint"]["order"]
    try:
        if not all(map(SHARE.fullmatch, order["shares"].values())):
            raise nonsense("fingerprint.order.shares", order["shares"])
        mixture = mixture_of(order)
        mixture.phase = Phase(**state["phase"])
        return mixture.given(state["consumed"])
    # A hand-written state may hold any numbers and words.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise nonsense("fingerprint.order", order) from error


def nonsense(name: str, value: Any) -> ValueError:
    """The error of a field that no stream saves."""
    return ValueError(
        f"its position in the data is invalid: data.{name} is {reprlib.repr(value)}, which no run "
        "has saved; move that folder away to resume from the state before it, or name another "
        "output"
    )
