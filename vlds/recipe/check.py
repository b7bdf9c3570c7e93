"""Checks keys and classes of a recipe before jsonargparse parses it, and translates the parser's
messages about values.

The parser's messages are about unions and import paths, and it imports whatever a saved recipe
names. Here a message names the key, shows the value and says the cure. For a wrong key it guesses
which one is meant: the right name in another place, or the name that other trainers have for it.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from inspect import isabstract
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from vlds.models.backbones.base import Backbone
from vlds.models.kinds.base import ModelKind
from vlds.models.methods.base import Method
from vlds.models.vision.base import VisionEncoder
from vlds.runtime.checks import closest, guess, limits_of
from vlds.tasks.base import Task
from vlds.tasks.class_output import Head

CHOICES = (ModelKind, Backbone, VisionEncoder, Method, Task, Head)
"""A field of one of these types, or a mapping of names to them, chooses a class."""
CLASS, ARGUMENTS = "class_path", "init_args"
"""Keys of a chosen class in a recipe's file."""


def subclasses(base: type) -> Iterator[type]:
    """All subclasses that are imported, at any depth."""
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from subclasses(child)


def concrete_classes(base: type) -> dict[str, type]:
    """The classes that can be chosen for `base`, by name."""
    return {cls.__name__: cls for cls in subclasses(base) if not isabstract(cls)}


def class_named(path: str, base: type) -> type | None:
    """The class of a `class_path`; None if it is not a class of `base`. Imports the module of a
    dotted path.

    Errors: ImportError.
    """
    module, _, name = path.rpartition(".")
    if not module:
        return concrete_classes(base).get(name)
    if not all(part.isidentifier() for part in module.split(".")):
        return None  # import_module raises other errors for relative and empty names
    cls = getattr(importlib.import_module(module), name, None)
    return cls if isinstance(cls, type) and issubclass(cls, base) else None


def class_if_there(path: str, base: type) -> type | None:
    """The class of a `class_path`; None if there is none, which `check_tree` reports."""
    with suppress(ImportError):
        return class_named(path, base)
    return None


def field_types(cls: type) -> dict[str, Any]:
    """Name -> type of the fields that a recipe can set, with their limits."""
    # Postponed annotations are texts; get_type_hints evaluates them, and would drop the limits.
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def dataclass_of(hint: Any) -> type | None:
    """The dataclass in a field's type: T of `T`, `T | None` or `dict[str, T]`."""
    if is_dataclass(hint) and isinstance(hint, type):
        return hint
    return next((cls for part in get_args(hint) if (cls := dataclass_of(part))), None)


def is_mapping_of_choices(hint: Any) -> bool:
    """True for `dict[str, T]`."""
    return get_origin(hint) is dict


def is_choice(cls: type) -> bool:
    """True if a recipe chooses a class in place of `cls`."""
    return issubclass(cls, CHOICES)


HABITS: dict[str, tuple[str, ...]] = {
    # Names of Hugging Face's Trainer and PEFT, of Lightning, DeepSpeed and common scripts.
    "lr": ("learning_rate",),
    "batch_size batch train_batch_size": ("global_batch_size", "micro_batch_size"),
    "per_device_train_batch_size micro_batch train_micro_batch_size_per_gpu": ("micro_batch_size",),
    "gradient_accumulation_steps accumulate_grad_batches": ("micro_batch_size",),
    "per_device_eval_batch_size": ("eval_batch_size",),
    "num_train_epochs num_epochs max_epochs n_epochs": ("epochs",),
    "max_steps num_steps max_iters iterations": ("steps",),
    "output_dir out out_dir save_dir run": ("output",),
    "model_name_or_path model_name pretrained_model_name_or_path model": ("path",),
    "lora_r r": ("methods.rank",),
    "lora_alpha": ("methods.alpha",),
    "lora_dropout": ("methods.dropout",),
    "target_modules": ("methods.roles",),
    "warmup warmup_steps": ("warmup_ratio",),
    "schedule scheduler lr_scheduler lr_scheduler_type": ("decay",),
    "max_grad_norm gradient_clip_val grad_clip": ("clip_norm",),
    "adam_epsilon": ("eps",),
    "adam_beta1 adam_beta2": ("betas",),
    "bf16 fp16 dtype torch_dtype mixed_precision": ("precision",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "logging_steps": ("log_every",),
    "save_steps": ("save_every",),
    "save_total_limit": ("keep_states",),
    "eval_steps eval_every eval_strategy": ("evaluate_every",),
    "metric_for_best_model load_best_model_at_end": ("best",),
    "dataloader_num_workers workers": ("num_workers",),
    "random_seed": ("seed",),
    "train_file train_data train_dir dataset dataset_name data_path": ("train",),
    "validation_file validation val valid eval_data": ("evaluate",),
    "report_to": ("wandb_project", "tensorboard"),
    "max_length max_seq_length": ("max_prompt_tokens", "max_target_tokens"),
    "beam beams beam_size": ("num_beams",),
    "img_size resolution": ("image_size",),
    "gpus devices num_gpus nproc_per_node num_processes": ("--ranks",),
    "resume_from_checkpoint": ("--resume",),
    "base": ("--config",),
}
"""Names, separated by blanks -> what does the same here: the last part of a key, perhaps with its
section, or an option."""
MEANT = {habit: keys for habits, keys in HABITS.items() for habit in habits.split()}
MOST_MEANT = 3


def hint_at(name: str, here: str, known: list[str], tree: Any, options: type) -> str:
    """'did you mean ...? ' about an unknown key `name` of the place `here`, which has the `known`
    ones, in the tree of the dataclass `options`; '' if nothing is like it."""
    keys = list(dict.fromkeys(dotted_keys(tree, options)))
    # Other trainers' options have dashes: --batch-size.
    plain = name.lower().replace("-", "_")
    wanted = MEANT.get(plain, (plain,))
    found = [word for word in wanted if word.startswith("--")]
    for word in wanted:
        section, _, name_there = word.rpartition(".")
        found += [k for k in keys if last(k) == name_there and k.startswith(section) and k != here]
    # A key of the same place is likelier than one elsewhere.
    beside = [key for key in found if key.rpartition(".")[0] == here]
    if not beside and (close := closest(name, known)) is not None and plain not in MEANT:
        beside = [f"{here}.{close}".strip(".")] if not found else []
    if not found and not beside:
        ends = list(dict.fromkeys(map(last, keys)))
        # A name in another place must be more similar than one in the same place.
        near = difflib.get_close_matches(plain, ends, 1, 0.8)
        found = [key for key in keys if last(key) in near]
    if shown := (beside or sorted(found, key=lambda key: key.count(".")))[:MOST_MEANT]:
        return f"did you mean {' or '.join(map(repr, shown))}? "
    # No class of the recipe has it; perhaps one that could be chosen.
    section, _, field = wanted[0].rpartition(".")
    owners = [
        name
        for base in ((Method,) if section else CHOICES)
        for name, cls in concrete_classes(base).items()
        if field in field_types(cls)
    ]
    return f"{field} is a key of {', '.join(sorted(owners)[:MOST_MEANT])}; " if owners else ""


def last(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def dotted_keys(tree: Any, cls: type, key: str = "") -> Iterator[str]:
    """All keys that a recipe's tree may set, with the classes that it chooses: as they are written
    on the command line, without init_args."""
    given = tree if isinstance(tree, Mapping) else {}
    for name, hint in field_types(cls).items():
        whole, value, inner = f"{key}.{name}".strip("."), given.get(name), dataclass_of(hint)
        yield whole
        if inner is None:
            continue
        if is_mapping_of_choices(hint):
            for entry, chosen in value.items() if isinstance(value, Mapping) else ():
                yield from chosen_keys(chosen, inner, f"{whole}.{entry}")
        elif is_choice(inner):
            yield from chosen_keys(value, inner, whole)
        # An optional section that is not there has no keys yet.
        elif value is not None or type(None) not in getattr(hint, "__args__", ()):
            yield from dotted_keys(value, inner, whole)


def chosen_keys(value: Any, base: type, key: str) -> Iterator[str]:
    """The keys of a value that chooses a class."""
    path: Any = value
    arguments: Any = None
    if isinstance(value, Mapping):
        path, arguments = value.get(CLASS), value.get(ARGUMENTS)
    if isinstance(path, str) and (cls := class_if_there(path, base)) is not None:
        yield from dotted_keys(arguments, cls, key)


@dataclass(frozen=True)
class KeyPath:
    """The position of a value in a recipe."""

    cls: type
    """The dataclass that the value describes, or whose field it is."""
    choice: str = ""
    """Dotted key of the innermost chosen class around the value; "" if there is none."""
    key: str = ""
    """Dotted key from that class on."""
    saved: bool = False
    """True if a run wrote the recipe: then only the form that runs write is valid."""
    values: bool = False
    """Look at the types of values too."""
    root: Any = None
    """The whole tree."""
    options: type = object
    """The dataclass that the whole tree describes."""

    @property
    def whole_key(self) -> str:
        """Dotted key from the top of the recipe."""
        return f"{self.choice}.{self.key}".strip(".")

    def field(self, name: str, cls: type) -> KeyPath:
        """A field of this place's dataclass."""
        return replace(self, cls=cls, key=f"{self.key}.{name}".strip("."))


def check_tree(
    tree: Any, options: type, *, saved: bool = False, complete: bool = False, values: bool = False
) -> None:
    """Check what files or the command line set in the dataclass `options`. `saved`: a run wrote the
    recipe, perhaps someone else's; `complete`: fields without a default must be set; `values`: the
    parser has refused a value.

    Errors: ValueError that names the key, the value and the cure.
    """
    # Lazy: the first fault is enough, and those behind it may follow from it.
    place = KeyPath(options, saved=saved, values=values, root=tree, options=options)
    for message in faults(tree, place, complete):
        raise ValueError(message)


def faults(value: Any, place: KeyPath, complete: bool) -> Iterator[str]:
    """What is wrong inside the fields of a dataclass."""
    if not isinstance(value, Mapping):
        where = f"{place.whole_key}: " if place.whole_key else ""
        example = next(iter(field_types(place.cls)))
        form = "as saved recipes have" if place.saved else f"like {{{example}: ...}}"
        yield f"{where}got {value!r:.100}; give a mapping of keys, {form}"
        return
    types = field_types(place.cls)
    required = [
        field.name
        for field in fields(place.cls)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]
    for name, entry in value.items():
        key = f"{place.whole_key}.{name}".strip(".")
        if name not in types:
            if not isinstance(name, str):
                yield (
                    f"{key}: {in_yaml(name)} stands where a key belongs; keys are text, and the "
                    "comma of a number is a point in YAML: 0.001"
                )
            # The parser splits dotted keys.
            if place.saved or "." not in str(name):
                prefix = f"{place.key}." if place.key else ""
                where = f"{place.choice}: " if place.choice else ""
                here = f"{place.choice}.{place.key}".strip(".")
                hint = hint_at(str(name), here, list(types), place.root, place.options)
                if place.choice:  # whose key the message begins with
                    hint = hint.replace(f"'{place.choice}.", "'")
                top = "the recipe" if place.cls.__name__ == "Recipe" else place.cls.__name__
                yield (
                    f"{where}unknown key '{prefix}{name}'; {hint}{place.key or top} has: "
                    f"{', '.join(types)}"
                )
            continue
        cls = dataclass_of(types[name])
        if entry is None:
            if type(None) not in get_args(types[name]):
                either = "" if name in required else ", or leave the key out"
                yield f"{key}: got null; give a value{either}"
        elif cls is not None:
            yield from field_faults(entry, types[name], place.field(name, cls), complete)
        else:
            yield from key_faults(entry, key)
            if place.values:
                yield from value_faults(entry, types[name], key)
    # A dotted key, like tasks.vqa.weight, sets a part of its section.
    present = {str(name).partition(".")[0] for name in value}
    missing = [name for name in required if name not in present]
    if complete and missing:
        names = ", ".join(f"{place.whole_key}.{name}".strip(".") for name in missing)
        are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        where = f"add {them} to the recipe, or --config FILE that has {them}"
        yield f"{names} {are} required; " + (
            where if place.cls.__name__ == "Recipe" else f"set {them}"
        )


def field_faults(value: Any, hint: Any, place: KeyPath, complete: bool) -> Iterator[str]:
    """What is wrong in one field that holds dataclasses."""
    if not is_mapping_of_choices(hint):
        inside = choice_faults if is_choice(place.cls) else faults
        yield from inside(value, place, complete)
    elif isinstance(value, Mapping):
        key = place.whole_key
        if CLASS in value or ARGUMENTS in value:
            first = next(iter(concrete_classes(place.cls)))
            yield f"{key}: an entry has a name; write {key}: {{NAME: {{{CLASS}: {first}, ...}}}}"
        for name, entry in value.items():
            if not isinstance(name, str):
                yield f"{key}: got the name {in_yaml(name)}; {in_quotes(name)}"
            near = guess(str(name), [str(other) for other in value if other != name])
            yield from choice_faults(entry, place.field(str(name), place.cls), complete, near)
    elif place.saved:
        yield from faults(value, place, complete)


def choice_faults(value: Any, place: KeyPath, complete: bool, near: str = "") -> Iterator[str]:
    """What is wrong with a value that chooses a class: its name, or class_path and init_args.
    `near`: a hint at a similar entry, such as "did you mean ...? "."""
    key = place.whole_key
    names = sorted(concrete_classes(place.cls))
    if isinstance(value, str) and not place.saved:
        value = {CLASS: value}
    if not isinstance(value, Mapping) or CLASS not in value:
        if place.saved:
            yield f"{key}: a saved recipe has {CLASS} and {ARGUMENTS}"
        elif value is None or isinstance(value, Mapping):
            others = f", or {', '.join(names[1:])}" if names[1:] else ""
            yield f"{key}: {CLASS} is missing; {near}write {CLASS}: {names[0]}{others}"
        return
    if misplaced := sorted(map(str, value.keys() - {CLASS, ARGUMENTS})):
        yield (
            f"{key}: '{misplaced[0]}' is next to {CLASS}; write {{{CLASS}: {value[CLASS]}, "
            f"{ARGUMENTS}: {{{misplaced[0]}: ...}}}}"
        )
    try:
        cls = class_named(str(value[CLASS]), place.cls)
    except ImportError as error:
        yield f"{key}: {value[CLASS]}: {error}"
        return
    if cls is None or isabstract(cls):
        choice = f"{guess(str(value[CLASS]), names)}choose from: {', '.join(names)}"
        yield f"{key}: '{value[CLASS]}' is not a {place.cls.__name__}; {choice}"
    elif not isinstance(arguments := value.get(ARGUMENTS) or {}, Mapping):
        yield f"{key}: {ARGUMENTS}: got {arguments!r:.100}; give a mapping of keys"
    else:
        inner = replace(place, cls=cls, choice=place.whole_key, key="")
        yield from faults(arguments, inner, complete)


def key_faults(value: Any, key: str) -> Iterator[str]:
    """What is wrong with the names in mappings inside a value: all are texts."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if not isinstance(name, str):
                yield f"{key}: got the name {in_yaml(name)}; {in_quotes(name)}"
            yield from key_faults(entry, f"{key}.{name}")


def value_faults(value: Any, hint: Any, key: str) -> Iterator[str]:
    """What is wrong with the type of a value; of a list or mapping, with the type of an entry."""
    # A text of the command line may stand for a number or a list; the parser tries both.
    readings = [value, read_text(value)] if isinstance(value, str) else [value]
    if any(fits(reading, hint) for reading in readings):
        return
    # The value as a whole does not fit. Where an entry is to blame, its own message comes first.
    for branch in branches_of(hint):
        (entry_type, *_), reading = (get_args(branch) or (None,)), readings[-1]
        if get_origin(branch) in (list, tuple) and isinstance(reading, list):
            for entry in reading:
                yield from value_faults(entry, entry_type, key)
        elif get_origin(branch) is dict and isinstance(reading, Mapping):
            for name, entry in reading.items():
                yield from value_faults(entry, get_args(branch)[1], f"{key}.{name}")
    wants_text = str in branches_of(hint)
    got = in_yaml(value) if not isinstance(value, str) else repr(value)
    quoted = wants_text and not isinstance(value, (list, Mapping))
    yield f"{key}: got {got:.100}; {in_quotes(value) if quoted else f'give {wanted(hint)}'}"


def read_text(text: str) -> Any:
    """What the parser reads a text of the command line as."""
    # YAML 1.1 reads 1e-3 as a text, because it wants a point; the parser takes it for a number.
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):
        return text


def branches_of(hint: Any) -> list[Any]:
    """The types of a union, or the one type, without limits."""
    is_union = get_origin(hint) in (Union, UnionType)
    parts = get_args(hint) if is_union else (hint,)
    return [part.__origin__ if hasattr(part, "__metadata__") else part for part in parts]


def fits(value: Any, hint: Any) -> bool:
    """True if the parser takes a value for a type."""
    for branch in branches_of(hint):
        origin, inner = get_origin(branch), get_args(branch)
        if origin is Literal:
            fit = value in inner
        elif origin in (list, tuple):
            fit = isinstance(value, list) and all(fits(entry, inner[0]) for entry in value)
        elif origin is dict:
            fit = isinstance(value, Mapping) and all(fits(v, inner[1]) for v in value.values())
        elif branch in (int, float):
            kinds = (int, float) if branch is float else (int,)
            fit = isinstance(value, kinds) and not isinstance(value, bool)
        else:
            # From Python 3.11 on, Any is a class too.
            fit = branch is Any or not isinstance(branch, type) or isinstance(value, branch)
        if fit:
            return True
    return False


def wanted(hint: Any) -> str:
    """What to give for a type, in words."""
    words = []
    for branch in branches_of(hint):
        origin = get_origin(branch)
        if origin is Literal:
            words.append("one of " + ", ".join(map(str, get_args(branch))))
        else:
            words.append(CURES.get((origin or branch).__name__, str(branch)))
        if branch in (int, float) and (limits := limits_of(hint)) is not None:
            words[-1] += f" ({str(limits).removeprefix('a number ')})"
    return " or ".join(words)


def in_yaml(value: Any) -> str:
    """A value as a recipe writes it."""
    # On one line, however long: it goes into a message.
    if isinstance(value, (list, Mapping)):
        return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return "null" if value is None else str(value).lower() if value in (True, False) else str(value)


def in_quotes(value: Any) -> str:
    """The cure for a value that should be text."""
    if isinstance(value, bool):
        words, word = ("yes, on or true", "yes") if value else ("no, off or false", "no")
        return (
            f'that is how YAML reads a bare {words}; give text: write it in quotes, like "{word}"'
        )
    return f'give text: write it in quotes, like "{in_yaml(value)}"'


PARSER_KEY = re.compile(r'Parser key "([\w.]+)": ')
PARSER_CLASS = re.compile(r"Problem with given class_path '[\w.]+\.(\w+)': ")
PARSER_VALUE = re.compile(
    r"(?:Expected an? |Does not validate .*?: \[)(.*?)(?:\.|\] .*) (?:Got|Given) value: ?(.*)"
)
CURES = {
    "tuple": "a list, like [a, b]",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, like [a, b]",
    "dict": "entries with a name each, like {name: ...}",
    "NoneType": "null",
}


def explain(message: str) -> str:
    """Translate a message of jsonargparse about a value; others stay as they are."""
    # From the outside in: 'Parser key "tasks": ... Problem with given class_path ...: Parser key
    # "weight": ...' -> tasks, VQA, weight.
    text = " ".join(message.split())
    names = []
    while match := PARSER_KEY.match(text) or PARSER_CLASS.search(text):
        names.append(match[1])
        text = text[match.end() :]
        if match.start() > 0:  # a branch of a union: the parser lists the other branches after it
            text = text.partition(" - Expected")[0]
    # KEY, or KEY: CLASS.FIELD
    place = names[0] + "".join(f": {'.'.join(names[1:])}" if names[1:] else "") if names else ""
    text = text.partition(" - Parser key")[0]  # which says the same again
    if match := PARSER_VALUE.search(text):
        # What to give, from the parser's names of types.
        classes = re.findall(r"<class '(?:[\w.]+\.)?(\w+)'>|\b(list|dict)\[", match[1])
        names = [CURES.get(name, name) for name in map("".join, classes)]
        if words := re.findall(r"Literal\[(.*?)\]", match[1]):
            cure = "one of " + ", ".join([*words, *names]).replace("'", "")
        else:
            cure = " or ".join(names) or match[1]
        text = f"got {match[2]!r}; give {cure}"
    return f"{place}: {text}" if place else text
