"""The cases of all methods, which the contract tests iterate over.

A class that is imported, here or by vlds.models.methods, is tested.
"""

from __future__ import annotations

import inspect

import pytest

import tests.examples.output_scale
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods import Method
from vlds.models.methods.base import Case

HOMES = ("vlds.models.methods.", tests.examples.__name__)
"""Where methods that keep the contract are; other tests have methods that break it."""


def concrete_methods(base: type[Method] = Method) -> list[type[Method]]:
    """All classes of methods that a recipe can name."""
    methods = [] if inspect.isabstract(base) else [base]
    for subclass in base.__subclasses__():
        methods += concrete_methods(subclass)
    return [method for method in methods if method.__module__.startswith(HOMES)]


def method_cases() -> dict[str, Case]:
    """Class and word of a case -> the case."""
    return {
        f"{method.__name__} {word}".strip(): case
        for method in concrete_methods()
        for word, case in method.cases().items()
    }


ALL_CASES = method_cases()
METHOD_CASES = {name: case for name, case in ALL_CASES.items() if case.families}
"""Those that an encoder-decoder of vlds can have."""
FAMILY_CASES = [(family, name) for name, case in METHOD_CASES.items() for family in case.families]
"""Backbone's class and name of a case, of all that go together."""


BACKBONES: dict[str, type[Backbone]] = {"T5": T5, "Bart": Bart}


FAMILIES = pytest.mark.parametrize("family", [T5, Bart])


def cost_of(family: str, name: str) -> list[pytest.MarkDecorator]:
    """Marks of a test of one pair: in each run, both have the first case of each method, and T5
    those with weights for each task."""
    is_first = " " not in name or (family == "T5" and name.endswith("per task"))
    return [] if is_first else [pytest.mark.slow]


PAIRS = pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param(BACKBONES[f], name, marks=cost_of(f, name)) for f, name in FAMILY_CASES],
)


def methods_of_case(name: str) -> dict[str, Method]:
    """The methods of a recipe that has the one of a case."""
    return {"method": METHOD_CASES[name].method}


def is_idle(parameter: str) -> bool:
    """True for gates of layers that LST's ladder leaves out: published counts hold them, and no
    loss reads them."""
    return ".idle_gates." in parameter
