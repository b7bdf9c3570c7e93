"""What a stream saves of itself: checked, whoever wrote it, before a stream goes on from it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from vlds.data.order.mixture import Phase, mixture_of

FURTHEST = 1 << 53
"""No run gets as far, and positions are 64-bit integers."""
KINDS = {"consumed": int, "global_batch_size": int, "phase": dict, "fingerprint": dict}
SHARE = re.compile(r"\d+(/\d+)?")
"""Not all that Fraction takes: of 1e999999999 it would make an integer."""


def check_state(state: Mapping[str, Any]) -> None:
    """Errors: ValueError that names the field and its value, where no stream has saved this."""
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
    """Whether it began before this position, and says of sources what each had given in each of
    the lanes."""
    at, given = phase.get("at"), phase.get("given")
    if phase.keys() != {"at", "given"} or type(at) is not int or not isinstance(given, dict):
        return False
    if not 0 <= at <= consumed:
        return False
    if not all(isinstance(counts, list) and len(counts) == lanes for counts in given.values()):
        return False
    every = [count for counts in given.values() for count in counts]
    return all(type(count) is int and 0 <= count <= at for count in every)


def given_before(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """What each source has given up to a state, lane by lane: it follows from the mixture that the
    state was saved in, and a state need not hold it.

    Errors: ValueError where the state's mixture is none.
    """
    order = state["fingerprint"]["order"]
    try:
        if not all(map(SHARE.fullmatch, order["shares"].values())):
            raise nonsense("fingerprint.order.shares", order["shares"])
        mixture = mixture_of(order)
        mixture.phase = Phase(**state["phase"])
        return mixture.given(state["consumed"])
    # Whoever wrote it, the numbers and words in it may be any.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise nonsense("fingerprint.order", order) from error


def nonsense(name: str, value: Any) -> ValueError:
    """The error of a field that no stream has saved."""
    return ValueError(
        f"its place in the data is none: data.{name} is {reprlib.repr(value)}, which no run has "
        "saved; move that folder away to go on from the state before it, or name another output"
    )
