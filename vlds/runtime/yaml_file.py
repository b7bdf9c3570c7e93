"""YAML from anybody's file: bytes, depth and number of values are checked before it is built."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from vlds.runtime.files import read_text

LARGEST_FILE = 4 << 20
"""Bytes. A recipe has a few kilobytes."""
DEEPEST = 40
"""Levels of nesting."""
MOST_NODES = 200_000
"""Values, with those that aliases repeat."""
LONGEST_SCALAR = 100_000
"""Characters of a text or a number: PyYAML needs minutes for a number as long as a file."""
LONGEST_REASON = 1000
"""Characters of PyYAML's reasons, which quote the file."""
COUNTER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Counts values: libyaml is twenty times as fast as Python, where PyYAML has it."""

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
ODD = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-9_.]+)+)")
"""Numbers in base 8 or 60."""

YAML_CURES = {
    "mapping values are not allowed": "; look at this line and the one before: a colon needs a "
    "blank behind it, text with a colon needs quotes, and keys of one level begin in one column",
    "cannot start any token": "; indent with blanks, not tabs, and write text with such a "
    "character in quotes",
    "unhashable key": "; a key is text, neither a list nor keys of its own",
    "expected ',' or": "; close the bracket that was opened before",
    "expected <block end>": "; keys of one level begin in one column",
}
"""What PyYAML says -> what to do."""


class RefusedYaml(ValueError):
    """A text that is larger, deeper or more repetitive than any recipe, or has a key twice."""


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Errors: ValueError that names the file if it is not a readable regular file, not YAML, has a key
    twice, or is larger, deeper or more repetitive than any recipe.
    """
    try:
        text = read_text(file, LARGEST_FILE)
    except OSError as error:
        raise ValueError(f"{file}: cannot read this recipe: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML text; errors begin with `name`.

    Errors: ValueError as above.
    """
    node = None
    try:
        # Each check makes the next one safe: counting the events builds nothing, the tree of nodes
        # keeps aliases as links, and only then the values are built, with what aliases repeat.
        check_extent(text, name)
        node = yaml.compose(text, yaml.SafeLoader)
        check_nodes(node, name)
        if node is not None and size(node, {}) > MOST_NODES:
            raise RefusedYaml(
                f"{name}: its aliases stand for more than {MOST_NODES:,} values; write it without "
                "aliases"
            )
        return yaml.safe_load(text)
    except RefusedYaml:
        raise
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, str(error.problem)
        problem = problem[:LONGEST_REASON]
        line = "" if mark is None else f", line {mark.line + 1}"
        cure = next((cure for words, cure in YAML_CURES.items() if words in problem), "")
        raise ValueError(f"{name}{line}: not YAML: {problem}{cure}") from None
    except Exception as error:  # PyYAML raises no YAMLError for a wrong date or number
        if node is not None and (odd := unreadable(node)) is not None:
            number, kind = odd.start_mark.line + 1, odd.tag.rpartition(":")[2]
            raise ValueError(
                f"{name}, line {number}: {odd.value!r:.60} cannot be read as {kind}"
            ) from None
        reason = " ".join(str(error).split())[:LONGEST_REASON]  # it draws the line and an arrow
        raise ValueError(f"{name}: not YAML: {reason}") from None


def unreadable(node: yaml.Node) -> yaml.ScalarNode | None:
    """The first value under a node that PyYAML cannot build; None if it is not a single one."""
    waiting = [node]
    for node in waiting:  # grows while it runs
        if isinstance(node, yaml.ScalarNode):
            try:
                yaml.SafeLoader("").construct_object(node)
            except yaml.YAMLError:  # such as "<<", which is no value by itself
                pass
            except Exception:  # of any class, as above
                return node
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            waiting += child if isinstance(child, tuple) else [child]
    return None


def check_extent(text: str, name: str) -> None:
    """Errors: RefusedYaml if there are more values, or they are nested deeper, or are longer, than
    in any recipe. Reading a million values takes minutes, so that they are counted first."""
    # libyaml scans far ahead, so that an error further on hides what stands before it: then the
    # parser that reads the text afterwards counts, and says what is not YAML in its own words.
    for loader in (COUNTER, yaml.SafeLoader):
        with suppress(yaml.YAMLError):
            depth = 0
            for number, event in enumerate(yaml.parse(text, loader)):
                if isinstance(event, yaml.CollectionStartEvent):
                    depth += 1
                elif isinstance(event, yaml.CollectionEndEvent):
                    depth -= 1
                elif isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_SCALAR:
                    raise RefusedYaml(f"{name}: a value of more than {LONGEST_SCALAR:,} characters")
                if depth > DEEPEST:
                    raise RefusedYaml(f"{name}: nested more than {DEEPEST} levels deep")
                if number > 2 * MOST_NODES:  # a list or mapping begins and ends
                    raise RefusedYaml(
                        f"{name}: more than {MOST_NODES:,} values; no recipe has so many"
                    )
            return


def check_nodes(node: yaml.Node | None, name: str) -> None:
    """Errors: RefusedYaml if a mapping has a key twice, of which YAML would keep the last one; or
    for a number that YAML reads otherwise than people: 1:30 is 90, and 010 is 8."""
    seen: set[int] = set()
    waiting = [] if node is None else [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and ODD.fullmatch(node.value):
            value = yaml.SafeLoader("").construct_object(node)
            raise RefusedYaml(
                f"{name}, line {node.start_mark.line + 1}: YAML reads {node.value:.60} as "
                f"{value!s:.60}; write the number in digits, or a text in quotes"
            )
        # An alias is the same node again, perhaps inside itself.
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys: set[str] = set()
        for key, value in node.value:
            # YAML reads {rate: 0,001} as a rate of 0 and a key without a value, which is refused
            # with the better reason where the keys have a meaning.
            alone = isinstance(value, yaml.ScalarNode) and not value.value
            waiting += [value] if alone else [key, value]
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    line = key.start_mark.line + 1
                    raise RefusedYaml(f"{name}, line {line}: '{key.value}' appears twice; keep one")
                keys.add(key.value)


def size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values under a node, with those that its aliases repeat; more than MOST_NODES for a
    node that contains itself."""
    if id(node) in known:
        return known[id(node)]
    # While its children are counted, a node that comes again contains itself.
    known[id(node)] = MOST_NODES + 1
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(size(child, known) for child in children)
    return known[id(node)]
