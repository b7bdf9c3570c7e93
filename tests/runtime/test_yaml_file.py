"""YAML on which PyYAML fails with errors other than its own, or needs minutes."""

from __future__ import annotations

import time

import pytest

from vlds.runtime.yaml_file import parse_yaml


@pytest.mark.parametrize(
    "text",
    ["a: 2020-99-99", '!!timestamp "x"', "!!bool maybe", "!!int x", f"a: {'9' * 5000}"],
)
def test_a_value_that_is_none_of_its_kind_is_shown(text: str) -> None:
    # A merge key is no value by itself.
    merged = f"x: &x {{b: 1}}\ny: {{<<: *x}}\nz:\n  {text}"
    with pytest.raises(ValueError, match=r"^recipe\.yaml, line 4: '.* cannot be read as [a-z]+$"):
        parse_yaml(merged, "recipe.yaml")


@pytest.mark.parametrize("text", ['"\\UFFFFFFFF"', "? [a, b]\n: 1"])
def test_whatever_it_raises_names_the_file(text: str) -> None:
    with pytest.raises(ValueError, match=r"^recipe\.yaml(, line 1)?: not YAML: "):
        parse_yaml(text, "recipe.yaml")


def test_a_number_that_fills_the_file_is_refused_at_once() -> None:
    before = time.monotonic()
    with pytest.raises(ValueError, match=r"recipe\.yaml: a value of more than 100,000 characters"):
        parse_yaml("a: " + ":".join(["59"] * 200_000), "recipe.yaml")
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("text", ["[" + "[]," * 900_000, "{" + "a, " * 900_000])
def test_a_file_full_of_values_is_refused_before_they_are_read(text: str) -> None:
    before = time.process_time()
    with pytest.raises(ValueError, match=r"recipe\.yaml: more than 200,000 values; no recipe"):
        parse_yaml(text, "recipe.yaml")
    assert time.process_time() - before < 10


def test_a_long_tag_is_not_shown_as_a_whole() -> None:
    with pytest.raises(ValueError, match=r"not YAML: could not determine a constructor") as error:
        parse_yaml(f"a: !<{'x' * 50_000}> b", "recipe.yaml")
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 2", "a: !!python/object/apply:os.getpid []"])
def test_an_error_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^recipe\.yaml, line \d+: not YAML: [^\n]*$"):
        parse_yaml(text, "recipe.yaml")
