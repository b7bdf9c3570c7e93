"""Builds a model from a recipe's choices: loads and freezes all parts, attaches heads and methods,
and notes which tensors come from which source, so that a run stores only the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from vlds.models.kinds.base import ModelKind
from vlds.models.loading.drawn_weights import Tape, draw_by_name
from vlds.models.loading.gate import bounded, check_finite
from vlds.models.methods.base import Method
from vlds.models.methods.host import Host
from vlds.models.model import Counts, Model
from vlds.models.task_heads import TaskHeads
from vlds.models.vision.base import GridEncoder, on_meta
from vlds.runtime.checks import leaves
from vlds.runtime.json_files import lacks_memory
from vlds.tasks.class_output import ClassOutput

LARGEST_SIZE = 2**31 - 1
"""The longest side that a method's weights may have: the product of two still fits into 64 bits."""


@dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """What `build_model` needs of a recipe."""

    kind: ModelKind
    methods: dict[str, Method] = field(default_factory=dict)
    outputs: Mapping[str, ClassOutput] = field(default_factory=dict)
    """Task -> what its head gives, for the tasks with a head."""
    activation_checkpointing: bool = False
    seed: int = 0
    """Draws each weight that no source fills, with the weight's name."""

    def __post_init__(self) -> None:
        # Parts that train beside the methods have groups of these names in the optimizer.
        reserved = {*self.kind.rate_fields, "heads"}
        for name, method in self.methods.items():
            if self.activation_checkpointing and not method.recomputable:
                raise ValueError(
                    f"methods.{name}: {type(method).__name__} does not go with "
                    "training.activation_checkpointing; switch one of them off"
                )
            if name in reserved or not names_module(name) or not name.isidentifier():
                raise ValueError(
                    f"methods: '{name}' cannot be a method's name; use letters, digits and _, and "
                    f"not the name of a part, such as {', '.join(sorted(reserved))}"
                )
            # Any number of a method may be a size, and torch overflows beyond 64 bits.
            for key, value in leaves(asdict(method)):
                if isinstance(value, int) and abs(value) > LARGEST_SIZE:
                    raise ValueError(
                        f"methods.{name}.{key}: got {value}; give at most {LARGEST_SIZE:,}"
                    )
        for name in self.outputs:
            if not names_module(name):
                raise ValueError(
                    f"tasks: '{name}' cannot be the name of a task with a head, which torch "
                    "would not take; choose a word without dots that is not a method of ModuleDict"
                )


def names_module(name: str) -> bool:
    """True if a ModuleDict takes a name: it has no dot, and no attribute of a ModuleDict, such as
    keys or half, is called so."""
    return bool(name) and "." not in name and not hasattr(nn.ModuleDict(), name)


def build_model(
    setup: ModelSetup, tasks: Sequence[str], dtype: torch.dtype, processor: Any
) -> Model:
    """A model in which only its methods' weights train. Weights that no source fills are drawn by
    `setup.seed` and their names.

    Inside `torch.device("meta")` it has shapes only, and `processor` may be None: then the sizes
    come from the model's config. Errors: ValueError if parts do not fit each other.
    """
    # The tape notes how each new weight is drawn, so that it can be drawn again by seed and name:
    # a weight is the same whatever else the recipe has.
    with bounded(), Tape() as tape:
        model = build_parts(setup, dtype, processor)
    sourced = {*model.sources.names, *model.sources.rows}
    if not on_meta():
        draw_by_name(model, tape, setup.seed, keep=sourced)
        setup.kind.draw_rows(model, setup.seed)
        check_finite(model, "model")
    # A second tape: heads and methods attach to weights that have their values by now, which some
    # methods (PiSSA) read.
    with bounded(), Tape() as tape:
        model.heads = build_heads(setup, model, tasks, dtype)
        trained = attach_methods(setup, model, tasks)
    if not on_meta():
        draw_by_name(model, tape, setup.seed, keep=sourced)
    model.trained_by = {
        name: trained[id(p)] for name, p in model.named_parameters() if id(p) in trained
    }
    model.use_methods()
    # Whatever attaching has set, `trained_by` alone says what trains.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in model.trained_by)
    model.drop_trained_sources()
    if setup.activation_checkpointing:
        setup.kind.enable_checkpointing(model)
    return model


def build_parts(setup: ModelSetup, dtype: torch.dtype, processor: Any) -> Model:
    """The model without heads and methods, frozen."""
    model = setup.kind.build(dtype, processor)
    model.requires_grad_(False)
    return model


def build_heads(
    setup: ModelSetup, model: Model, tasks: Sequence[str], dtype: torch.dtype
) -> TaskHeads:
    """The heads of the tasks.

    Errors: ValueError if a task's classes are unknown, or the model has no states for heads.
    """
    width = model.state_width
    for name, output in setup.outputs.items():
        if width is None:
            raise ValueError(
                f"tasks.{name}.head: {type(setup.kind).__name__} has no states for heads; leave it "
                "out, or define `state_width` as docs/add_a_model.md says"
            )
        if output.head.compares_texts and not model.embeds_texts:
            raise ValueError(
                f"tasks.{name}.head: {type(output.head).__name__} compares pictures with texts of "
                f"the classes, and {type(setup.kind).__name__} embeds neither; choose LinearHead "
                "or MLPHead, or a DualEncoder"
            )
        try:
            assert output.head.names
        except ValueError as error:
            raise ValueError(f"tasks.{name}.head.{error}") from None
    return TaskHeads(setup.outputs, tasks, width or 0).to(dtype)


def attach_methods(setup: ModelSetup, model: Model, tasks: Sequence[str]) -> dict[int, str]:
    """Attach all methods; id of each trainable parameter -> the part of the model that trains
    beside the methods, or else the method, that names it first.

    Errors: ValueError if the model has no such part, or nothing in it plays a method's roles.
    """
    trained: dict[int, str] = {}
    changed: set[int] = set()

    def claim(parameters: Iterable[nn.Parameter], name: str) -> None:
        for parameter in parameters:
            trained.setdefault(id(parameter), name)

    # The first claim holds: a norm that `train_norms` and Full both train is the norms'.
    claim(model.heads.parameters(), "heads")
    for name, parameters in setup.kind.trained_parts(model):
        claim(parameters, name)
    for name, method in setup.methods.items():
        if name in model.parts:
            raise ValueError(
                f"methods: '{name}' cannot be a method's name, because a part of the model has it; "
                "choose another one"
            )
        if (part := model.parts.get(method.part)) is None:
            raise ValueError(
                f"methods.{name}.part: got {method.part}, and the model has no such part; choose "
                f"from: {', '.join(model.parts)}"
            )
        module = model.get_submodule(part.path)
        try:
            host = Host(
                name,
                module,
                part.targets,
                tasks,
                model.context,
                takes_prompts=part.takes_prompts,
                says_tokens=part.says_tokens,
                outside=[model.get_parameter(name) for name in part.outside],
                heads=dict(model.heads.items()),
                shots={task: out.shots for task, out in setup.outputs.items() if out.shots},
            )
            others = {id(module.get_parameter(other)) for other in part.others}
            claim((p for p in method.attach(host) if id(p) not in others), name)
            changed.update(map(id, host.changed))
            # Unpacking checks that there is exactly one.
            if host.step_rules:
                (model.step_rules[name],) = host.step_rules
            if host.batch_losses:
                (model.batch_losses[name],) = host.batch_losses
            if host.revisions:
                (model.revisions[name],) = host.revisions
        except ValueError as error:
            raise ValueError(f"methods.{name}: {error}") from None
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            raise ValueError(
                f"methods.{name}: this machine has no memory for what it adds ({error}); give it "
                "smaller sizes"
            ) from error
        # An encoder with a method trains in training mode: its features need gradients now.
        if isinstance(module, GridEncoder):
            module.frozen = False
    model.changed = {name for name, p in model.named_parameters() if id(p) in changed}
    return trained


def build_shapes(setup: ModelSetup, tasks: Sequence[str], dtype: torch.dtype) -> Model:
    """The model on the meta device: its shapes at real size, offline, without its weights.

    A processor on this machine sets the vocabulary's size, as in a run; else the config does.
    """
    processor = setup.kind.local_processor()
    with torch.device("meta"):
        return build_model(setup, tasks, dtype, processor)


def describe(setup: ModelSetup, tasks: Sequence[str]) -> Counts:
    """Count a model's weights without making them."""
    return build_shapes(setup, tasks, torch.float32).count_parameters()
