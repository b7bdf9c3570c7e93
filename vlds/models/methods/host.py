"""Where a method is attached: the layers that play its roles, and how its modules get there.

Extending a module keeps the object, its parameters and their names. Only its class changes, to a
subclass that runs the extensions around the module's own forward pass, so a quantised layer still
computes as one. No hooks: deepcopy, pickle, ZeRO-3 and a debugger see ordinary modules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vlds.models.methods.context import BatchContext, BatchLoss, Revision, StepRule
from vlds.runtime.checks import MadeForBatch
from vlds.schema import Role, TargetModules

ADDED = ("extensions", "input_extensions", "key_value_extensions")
"""Names of the children that hold methods' modules."""


class AddedTensor(NamedTuple):
    """A tensor that a method has added to a model."""

    name: str
    """Its path in the model."""
    layer: str
    """Path of the module that it extends; empty for the model itself."""
    place: str
    """Name in `ADDED` of the child that holds it."""
    leaf: str
    """Its path in the method's module."""


def added_tensors(model: nn.Module, method: str) -> list[AddedTensor]:
    """The tensors that a method, by its name in the recipe, has added to a model; without tensors
    of the model that the method's modules use too."""
    # ?? and `is_own`: the outermost module of this kind decides. One method's side network may hold
    # `input_extensions.rung`, and another method may be called "rung", or the same one.
    pattern = re.compile(rf"(?:(.+?)\.)??({'|'.join(ADDED)})\.{method}\.(.+)")
    # keep_vars gives the parameters themselves, so that one tensor of two names has one id.
    state = model.state_dict(keep_vars=True)
    # A side network may hold the backbone's own token table: methods have not added that.
    own = {id(tensor) for name, tensor in state.items() if is_own(name)}
    matches = (pattern.fullmatch(name) for name, tensor in state.items() if id(tensor) not in own)
    return [AddedTensor(m[0], m[1] or "", m[2], m[3]) for m in matches if m and is_own(m[1] or "")]


def is_own(name: str) -> bool:
    """True if a tensor or module is the model's own, False if a method has added it."""
    return not set(ADDED).intersection(name.split("."))


class LinearExtension(nn.Module):
    """A module that a method adds behind a linear layer, a norm or another module."""

    behind_zeros: Collection[str] = ()
    """Tensors of the module behind a matrix that begins as zeros: they have no gradient at
    first."""
    multipliers: Collection[str] = ()
    """Tensors of the module that multiply what passes, and would take it away as zeros."""

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The layer's new output, from its input and what it gave so far."""
        raise NotImplementedError


class InputExtension(nn.Module):
    """A module that a method adds before another module."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's new input."""
        raise NotImplementedError


class NoteInput(InputExtension):
    """Keeps the input of a module for another that runs later."""

    def __init__(self) -> None:
        super().__init__()
        # Shared with the reader, which takes the tensor away: kept, it would hold its graph.
        self.noted = MadeForBatch()

    def forward(self, inputs: Tensor) -> Tensor:
        self.noted.value = inputs
        return inputs


class NoteOutput(LinearExtension):
    """Keeps the states that a whole layer gives for a module that runs later."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = MadeForBatch()

    def forward(self, inputs: Tensor, outputs: Any) -> Any:
        # Some layers of transformers 5 give a tuple, whose first element is the states.
        self.noted.value = outputs[0] if isinstance(outputs, tuple) else outputs
        return outputs


class ModelExtension(nn.Module):
    """A module that a method adds to a whole backbone. It runs before each pass of the encoder."""

    runs_layers: ClassVar[bool] = False
    """True if it runs layers of the model, and so comes after what those layers need."""
    gives_prompts: bool = False
    """True if something stands before the text in the input, which only a model that gets its
    input from vlds can take."""

    def forward(self) -> Tensor | None:
        """(b, p, d) what stands before the text in the encoder's input, or None."""
        raise NotImplementedError


def run_beside(model: nn.Module) -> Tensor | None:
    """Run what methods have put beside a model: (b, p, d) what precedes the text, if anything."""
    extensions = list(getattr(model, "extensions", {}).values())
    # Sorting is stable: apart from that, methods run in the order in which the recipe names them.
    extensions.sort(key=lambda extension: extension.runs_layers)
    outputs = [extension() for extension in extensions]
    prompts = [prompt for prompt in outputs if prompt is not None]
    return torch.cat(prompts, dim=1) if prompts else None


class Extended(nn.Module):
    """Base of the classes of extended modules, beside each module's own class."""

    kind: ClassVar[type[nn.Module]]
    """Class that the module had before."""
    input_extensions: nn.ModuleDict
    extensions: nn.ModuleDict

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Any:
        """The extensions of the input, the module's own forward pass, the extensions of the output,
        each in the order of attaching. `others`, `named`: what a whole layer takes beside its
        input."""
        for extension in self.input_extensions.values():
            input = extension(input)
        outputs = super().forward(input, *others, **named)
        for extension in self.extensions.values():
            outputs = extension(input, outputs)
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so that pickle cannot find it by its name.
        return blank_extended, (self.kind,), self.__getstate__()  # type: ignore[no-untyped-call]


class ExtendedLinear(Extended, nn.Linear):
    """An extended linear layer; other kinds of linear layers have subclasses of this class."""

    kind = nn.Linear


# One class for each kind: a model with hundreds of extended layers has a few classes.
EXTENDED: dict[type[nn.Module], type[Extended]] = {nn.Linear: ExtendedLinear}
"""Class of modules -> the class that they have once they are extended."""


def extended_class(kind: type[nn.Module]) -> type[Extended]:
    """The class of extended modules that were of a class, whose forward pass they keep."""
    if kind not in EXTENDED:
        # The extended class comes first, so that its forward runs and calls the kind's by super().
        base = ExtendedLinear if issubclass(kind, nn.Linear) else Extended
        EXTENDED[kind] = type(f"Extended{kind.__name__}", (base, kind), {"kind": kind})
    return EXTENDED[kind]


def blank_extended(kind: type[nn.Module]) -> Extended:
    """An extended module without any state, for pickle and deepcopy to fill."""
    extended_kind = extended_class(kind)
    return extended_kind.__new__(extended_kind)


def extended(module: nn.Module) -> Extended:
    """The module, made one that takes extensions. It stays the same object."""
    if not isinstance(module, Extended):
        # A new class on the same object keeps its parameters, aliases, hooks and quantised state.
        module.__class__ = extended_class(type(module))
        assert isinstance(module, Extended)
        module.input_extensions, module.extensions = nn.ModuleDict(), nn.ModuleDict()
    return module


def extended_linears(model: nn.Module, name: str) -> Iterator[ExtendedLinear]:
    """The linear layers behind which a method, called `name`, has put a module."""
    for module in model.modules():
        if isinstance(module, ExtendedLinear) and name in module.extensions:
            yield module


def is_plain(weight: Tensor) -> bool:
    """True for weights of floats; False for what is packed, or computed from something else."""
    # By the exact class: bitsandbytes' packed weights are subclasses of Parameter.
    return type(weight) is nn.Parameter and weight.is_floating_point()


def states_type(model: nn.Module) -> torch.dtype:
    """Type of a model's states: that of its first unpacked weight."""
    return next((p.dtype for p in model.parameters() if is_plain(p)), torch.float32)


def foldable_weight(linear: ExtendedLinear) -> Tensor:
    """A layer's weight, for changes that change the layer's output as a plain product would.

    Errors: ValueError if the layer is quantised or computes something else.
    """
    # A subclass of nn.Linear with its own forward may do anything with its weight.
    if not is_plain(linear.weight) or linear.kind.forward is not nn.Linear.forward:
        raise ValueError(
            f"{linear.kind.__name__} does not compute a plain product with a matrix of floats, so "
            "nothing can be folded into it; fold into the backbone that is not quantised, or use "
            "`vlds convert hf`, which keeps the method beside the backbone"
        )
    return linear.weight


def take_first(linear: Extended, name: str) -> nn.Module:
    """Take out the first extension behind a layer, to fold it into the layer's weights.

    Errors: ValueError if another one stands before it.
    """
    first = next(iter(linear.extensions))
    if first != name:
        raise ValueError(
            f"{first} stands between {name} and the layer's weights; fold {first} first, which "
            "means: name it earlier in the recipe"
        )
    return linear.extensions.pop(name)


def take_out(model: nn.Module, name: str) -> None:
    """Take a method, by its name in the recipe, out of a model; weights that it has trained or
    changed stay as they are."""
    for module in list(model.modules()):
        for child in ADDED:
            if name in (added := getattr(module, child, {})):
                del added[name]
        if isinstance(module, Extended) and not (module.extensions or module.input_extensions):
            del module.extensions, module.input_extensions
            plain: Any = module  # the class that it had before
            plain.__class__ = type(module).kind
        for child in () if isinstance(module, Extended) else ADDED:
            if isinstance(left := getattr(module, child, None), nn.ModuleDict) and not left:
                delattr(module, child)


def zero_at_first(model: nn.Module) -> set[str]:
    """Names of the tensors that `behind_zeros` of modules lists."""
    return _listed(model, "behind_zeros")


def multipliers(model: nn.Module) -> set[str]:
    """Names of the tensors that `multipliers` of modules lists."""
    return _listed(model, "multipliers")


def _listed(model: nn.Module, attribute: str) -> set[str]:
    return {
        f"{path}.{tensor}"
        for path, module in model.named_modules()
        for tensor in getattr(module, attribute, ())
    }


def is_tied(model: nn.Module, layer: nn.Module) -> bool:
    """True if a layer's weight is also that of another module, as the output layer's may be that of
    the token table."""
    weight = layer._parameters.get("weight")
    return weight is not None and any(
        other is weight
        for module in model.modules()
        if module is not layer
        for other in module._parameters.values()
    )


CROSS_ATTENTION: tuple[Role, ...] = (
    "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_out",
)  # fmt: skip
"""Roles that encoders do not have."""
CURE = (
    "Choose another method, or name the role's path in the backbone's or encoder's target_modules"
)


@dataclass(frozen=True)
class Host:
    """A frozen model that a method is attached to."""

    name: str
    """The method's name in the recipe."""
    model: nn.Module
    targets: TargetModules
    tasks: Sequence[str]
    context: BatchContext
    """What modules know of the running batch."""
    takes_prompts: bool = True
    """False if nothing can stand before the text in the model."""
    says_tokens: bool = True
    """False if `context.token_mask` does not say which tokens are real."""
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    """Task -> its head, for tasks that have one."""
    shots: Mapping[str, int] = field(default_factory=dict)
    """Task -> pictures of each class that it trains on, for tasks that train on few."""
    outside: Sequence[nn.Parameter] = ()
    """Parameters of the part outside the model, such as an untied output layer."""
    stack: Literal["encoder", "decoder"] | None = None
    """The stack of an encoder-decoder whose layers are meant; None: all."""
    changed: list[nn.Parameter] = field(default_factory=list)
    """Frozen weights that attaching has changed, so that they differ from those of their file; the
    method adds to it."""
    step_rules: list[StepRule] = field(default_factory=list)
    """At most one: what the method does at every optimizer step; the method adds it."""
    batch_losses: list[BatchLoss] = field(default_factory=list)
    """At most one: what the method adds to each example's loss; the method adds it."""
    revisions: list[Revision] = field(default_factory=list)
    """At most one: how the method changes what trains after given steps; the method adds it."""

    def linears(self, *roles: str, optional: Collection[str] = ()) -> dict[str, nn.Linear]:
        """Path -> linear layer, of those that play the roles, role by role. `optional` roles may
        be missing from the model.

        Errors: ValueError if a role is unknown or matches no layer, or something that methods
        cannot extend.
        """
        linears = {}
        for role in dict.fromkeys(roles):
            if role in optional and role not in self.targets.paths:
                continue
            for path, module in self.modules_of(role).items():
                if not isinstance(module, nn.Linear):
                    raise ValueError(
                        f"{path} plays the role '{role}' and is a {type(module).__name__}; methods "
                        "extend nn.Linear and its subclasses only, so choose a model or a method "
                        "without it"
                    )
                if "forward" in vars(module):  # accelerate's hooks do so
                    raise ValueError(
                        f"{path} plays the role '{role}', and its forward was replaced on the "
                        "object itself, so that a method's modules would never run; attach methods "
                        "before whatever does that"
                    )
                linears[path] = module
        return linears

    def modules_of(self, role: str) -> dict[str, nn.Module]:
        """Path -> module that plays a role, in the host's stack.

        Errors: ValueError if a role is unknown or matches no layer.
        """
        modules = find_modules(self.model, self.targets, role)
        if self.stack is None:
            return modules
        # Paths of both families name the stack as a segment: `model.encoder.layers.0.fc1`.
        return {path: module for path, module in modules.items() if self.stack in path.split(".")}

    def note_input(self, module: nn.Module) -> MadeForBatch:
        """Let a module keep its input for one that runs behind it."""
        note = NoteInput()
        extended(module).input_extensions[self.name] = note
        return note.noted

    def extend_linear(self, linear: nn.Linear, extension: LinearExtension) -> None:
        """Put an extension behind a linear layer, under all the paths that the layer has."""
        self._put(extension, linear, extended(linear).extensions)

    def extend_input(self, linear: nn.Linear, extension: InputExtension) -> None:
        """Put an extension before a linear layer, under all the paths that the layer has."""
        self._put(extension, linear, extended(linear).input_extensions)

    def _put(self, extension: nn.Module, linear: nn.Linear, among: nn.ModuleDict) -> None:
        # A packed weight does not tell the type of the states, and `weight_options` gave float32.
        plain = is_plain(linear.weight)
        among[self.name] = extension if plain else extension.to(states_type(self.model))

    def extend_norm(self, norm: nn.Module, extension: LinearExtension) -> None:
        """Put an extension behind a norm of any class."""
        extended(norm).extensions[self.name] = extension

    def check_prompts(self) -> None:
        """Errors: ValueError if nothing can stand before the text in the model."""
        if not self.takes_prompts:
            raise ValueError(
                f"{type(self.model).__name__} takes no prompts, because Hugging Face's own forward "
                "pass runs it; choose a method that extends layers, such as LoRA"
            )

    def extend_model(self, extension: ModelExtension) -> None:
        """Put an extension beside the model.

        Errors: ValueError for prompts if the model takes none.
        """
        if extension.gives_prompts:
            self.check_prompts()
        extensions = module_dict(self.model, "extensions")
        # As in `_put`: beside packed layers, `weight_options` gave float32.
        extensions[self.name] = extension.to(states_type(self.model))

    def extend_attention(self, key_path: str, extension: nn.Module) -> None:
        """Let `extension`(keys, values) -> (keys, values), all (b, heads, s, d), act in the
        attention whose key projection is at a path."""
        # The attention is the parent of its projection: `layers.0.self_attn.k_proj`.
        attention = self.model.get_submodule(key_path.rpartition(".")[0])
        module_dict(attention, "key_value_extensions")[self.name] = extension


def find_modules(model: nn.Module, targets: TargetModules, role: str) -> dict[str, nn.Module]:
    """Path -> module, of those that play a role.

    Errors: ValueError that lists the known roles if none does.
    """
    patterns = [pattern_of(path) for path in targets.paths.get(role, ())]
    # Without removing duplicates, a shared module is found under all its paths.
    modules = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if any(pattern.fullmatch(path) for pattern in patterns)
    }
    if not modules:
        known = ", ".join(sorted(targets.paths)) or "none"
        raise ValueError(
            f"no layer of {type(model).__name__} plays the role '{role}'; its roles: {known}. "
            f"{targets.cures.get(role, CURE)}"
        )
    return modules


def pattern_of(path: str) -> re.Pattern[str]:
    """A path pattern as a regular expression; `*` stands for one segment."""
    # `*` matches no dot: encoder.layers.*.fc1 must not reach fc1 of modules further inside.
    return re.compile(re.escape(path).replace(r"\*", r"[^.]+"))


def bias_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The model's own biases: those of linear layers and norms, and T5's relative position
    biases."""
    # T5's are tables, called relative_attention_bias.weight. As in the original code, any name with
    # "bias" in it counts.
    return [p for name, p in model.named_parameters() if "bias" in name and is_own(name)]


def weight_options(layer: nn.Linear | nn.Embedding) -> dict[str, Any]:
    """Device and type for new weights beside a layer: those of the layer's weight.

    The type of a quantised weight says how it is packed. New weights are float32 there, until
    `Host.extend_linear` gives them the type of the model's states.
    """
    weight = layer.weight
    return {"device": weight.device, "dtype": weight.dtype if is_plain(weight) else torch.float32}


def module_dict(module: nn.Module, child: str) -> nn.ModuleDict:
    """A module's child that holds methods' modules; made if there is none yet."""
    if not hasattr(module, child):
        module.add_module(child, nn.ModuleDict())
    modules = module.get_submodule(child)
    assert isinstance(modules, nn.ModuleDict)
    return modules


class SidePath(ModelExtension):
    """A path beside an encoder-decoder, through which alone gradients run.

    The backbone reads the text without gradients, so that a step keeps none of its activations. The
    path has narrow stacks of the backbone's own class, which read the text, the pictures and what
    the backbone's layers give; its decoder's states, widened, give the logits in place of the
    backbone's.

    Uses: `Ladder`; a side network whose layers read nothing of the backbone; one that reads the
    last layer alone.
    """

    def __init__(self, stacks: nn.Module) -> None:
        """`stacks`: what `TargetModules.narrow` has made, with the backbone's token table and
        positions, so that its input is as wide as the backbone's."""
        super().__init__()
        self.stacks: Any = stacks
        # The model's pass of the encoder fills it, and that of the decoder reads it.
        self.read = MadeForBatch()
        """States (b, l, d) and mask (b, l) that the backbone has read of the text."""

    def forward(self) -> None:
        """Nothing stands before the text."""

    def leave(self, states: Tensor) -> Tensor:
        """States of the path's decoder -> states as wide as the backbone's."""
        raise NotImplementedError


def side_path(model: nn.Module) -> SidePath | None:
    """The path beside a model, if a method has put one there."""
    extensions = getattr(model, "extensions", {}).values()
    return next((e for e in extensions if isinstance(e, SidePath)), None)
