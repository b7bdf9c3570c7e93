"""Finds the mistakes of a recipe that need no library: files, keys, and names of classes.

The classes that a recipe can name import torch and transformers, which takes seconds. Their sources
tell their names and fields at once. A sketch of them goes through the same checks as the real
classes do later, and so gives the same messages. It has neither defaults nor methods: what goes
together is for the real classes.
"""

from __future__ import annotations

import ast
import importlib
import re
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlds.recipe.build import check_part
from vlds.recipe.choices import NotSketched, Sketched, SketchedChoice
from vlds.recipe.parse import CONFIG, HELP, PRINT, read_words
from vlds.recipe.paths import check_data, check_files
from vlds.runtime.process import find

RECIPE, SWEEP = "vlds.recipe.config.Recipe", "vlds.report.sweep.Sweep"
"""The dataclasses that files of users describe."""
PACKAGE = Path(__file__).parents[1]
ROOMS = ("models", "tasks")
"""Where the classes are that recipes choose by name."""
LIGHT = ("vlds.runtime.", "typing", "collections.abc", "pathlib", "builtins")
"""Modules whose names are imported, because types of fields hold them."""
PROSE = re.compile(r'^""".*?"""', re.MULTILINE | re.DOTALL)
STATEMENT = re.compile(r"^(?=[^\s)\]}])", re.MULTILINE)
METHOD = re.compile(
    r"^(    def [^\n]*?(?:\n {8}[^\n]*?|\n    \)[^\n]*?)*?:(?:  #[^\n]*)?\n)(?:(?: {8}[^\n]*)?\n)+",
    re.MULTILINE,
)
"""A method: its head, and the body, which takes Python longer to parse than all the rest."""
NEEDED = re.compile(r"from [\w.]+ import |@dataclass|\w+(: TypeAlias)? = ")
"""Begins the statements that a sketch needs, besides the classes of `@dataclass`."""


def check_words(
    words: Sequence[str], options: str = RECIPE, files: bool = False
) -> dict[str, Any] | None:
    """Check recipe files and options, as `parse` does, as far as no library is needed; the tree
    that they make, None if they name a class of the user. `options`: the dataclass that they
    describe; `files`: also look for the files and folders that they name.

    Errors: ValueError that names the key, class or file, and a near one.
    """
    # A missing file needs no sketch, which takes longer than all the rest.
    for option, value in pairwise(words):
        if option == CONFIG and not value.startswith("--"):
            find(value)
    cls = sketched(options)
    try:
        tree = read_words([word for word in words if word not in (HELP, PRINT)], cls)
        check_part(tree, cls)
        if files:
            check_files(tree, cls)
            check_data(tree, cls)
    except NotSketched:
        return None
    return tree


@cache
def sketched(options: str) -> type:
    """The sketch of a dataclass, with those of all classes that its fields may hold."""
    sources = Sources()
    for room in ROOMS:
        for file in sorted((PACKAGE / room).rglob("*.py")):
            if "\n@dataclass" in file.read_text(encoding="utf-8"):
                parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
                sources[".".join(parts)].make_classes()
    module, _, name = options.rpartition(".")
    cls: type = sources[module].named(name)
    # After all of them are there, because types of fields name classes of any file, also further.
    while sources.bare:
        set_fields(sources.bare.pop(), sources)
    # A class does not hold its subclasses: without this, they would go with the next collection.
    cls.sketches = sources  # type: ignore[attr-defined]
    return cls


def set_fields(cls: type, sources: Sources) -> None:
    """Give a sketch its fields, and make it a dataclass; its bases first."""
    if cls in (Sketched, SketchedChoice, object) or "__dataclass_fields__" in vars(cls):
        return
    for base in cls.__bases__:
        set_fields(base, sources)
    source, node = sources.origins[cls]
    types: dict[str, Any] = {}
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign):
            kind = ast.unparse(entry.annotation)
            if not kind.startswith("ClassVar"):
                types[ast.unparse(entry.target)] = source.value(entry.annotation)
    cls.__annotations__ = types
    dataclass(kw_only=True)(cls)


class Sources(dict[str, "Source"]):
    """The files of vlds that sketches need, by the names of their modules."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[type, tuple[Source, ast.ClassDef]] = {}
        """Where each sketch is declared."""
        self.bare: list[type] = []
        """Sketches without fields."""

    def __missing__(self, module: str) -> Source:
        file = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        package = file.with_suffix("") / "__init__.py"
        text = (file if file.is_file() else package).read_text(encoding="utf-8")
        self[module] = source = Source(text, self)
        return source


@dataclass
class Source:
    """One file, and the sketches of its dataclasses."""

    text: str
    sources: Sources
    made: dict[str, type] = field(default_factory=dict)

    @cached_property
    def body(self) -> list[ast.stmt]:
        """The statements that matter."""
        kept: list[str] = []
        for statement in STATEMENT.split(PROSE.sub("", self.text)):
            follows = kept and kept[-1].startswith("@dataclass") and statement.startswith("class ")
            if follows or NEEDED.match(statement):
                kept.append(METHOD.sub(r"\1        ...\n", statement))
        return ast.parse("".join(kept)).body

    @cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Name -> the module that it comes from, and its name there."""
        return {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in self.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    @cached_property
    def declared(self) -> dict[str, ast.stmt]:
        """Name -> the class, or the statement that gives it its value."""
        found: dict[str, ast.stmt] = {}
        for node in self.body:
            targets = [getattr(node, "target", None), *getattr(node, "targets", [])]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in [node.name] if isinstance(node, ast.ClassDef) else names:
                found.setdefault(name, node)
        return found

    def make_classes(self) -> None:
        """Sketch all dataclasses of the file, still without fields."""
        for node in self.body:
            if isinstance(node, ast.ClassDef):
                self.named(node.name)

    def named(self, name: str) -> Any:
        """What a name in a type means: a sketch, an alias, a type of Python; Any for the rest."""
        if name in self.made:
            return self.made[name]
        node = self.declared.get(name)
        if isinstance(node, ast.ClassDef):
            self.made[name] = cls = self._made(node)
            self.sources.origins[cls] = self, node
            self.sources.bare.append(cls)
            return cls
        if node is not None:
            return self.value(node.value)  # type: ignore[attr-defined]
        module, there = self.imported.get(name, ("builtins", name))
        if module.startswith(LIGHT):
            return getattr(importlib.import_module(module), there, Any)
        return self.sources[module].named(there) if module.startswith("vlds.") else Any

    def value(self, node: ast.expr) -> Any:
        """The value of a type's expression, which may be a text."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        names = {n.id: self.named(n.id) for n in ast.walk(node) if isinstance(n, ast.Name)}
        with suppress(AttributeError, TypeError):  # torch.dtype: no field of a recipe has it
            return eval(compile(ast.Expression(node), "<type>", "eval"), names)
        return Any

    def _made(self, node: ast.ClassDef) -> type:
        """The sketch of a class, with the names of its body: they tell which methods are left."""
        bases: list[type] = []
        for base in node.bases:
            # `Choice` marks the bases of what recipes choose.
            if ast.unparse(base) == "Choice":
                bases.append(SketchedChoice)
            elif isinstance(found := self.value(base), type) and issubclass(found, Sketched):
                bases.append(found)
        body: dict[str, Any] = {"__module__": __name__, "__doc__": ast.get_docstring(node)}
        for entry in node.body:
            if isinstance(entry, ast.FunctionDef):
                is_abstract = "abstractmethod" in map(ast.unparse, entry.decorator_list)
                body[entry.name] = abstractmethod(lambda self: None) if is_abstract else None
            elif isinstance(entry, ast.Assign):
                body |= {ast.unparse(target): None for target in entry.targets}
        return ABCMeta(node.name, tuple(bases or [Sketched]), body)
