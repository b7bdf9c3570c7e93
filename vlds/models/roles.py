"""What is known of a model's weights by rule: the roles of layers, where methods attach, and how
the optimizer treats each weight that trains.

In a model whose class vlds does not know, a linear layer has a role if its path has a layer's
number before the last segment. Names of the modules between that number and the layer, or of their
classes, tell attention from feed-forward layers; the last segment tells the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from vlds.models.methods.host import is_own, pattern_of
from vlds.models.model import Model
from vlds.runtime.checks import guess
from vlds.schema import UNDECAYED, OptimizerRule, OptimizerRules, Role, TargetModules

ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
CROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
# As Hugging Face's classes call them: q_proj in Llama, query in BERT, q in T5, c_attn in GPT-2.
ATTENTION_LEAVES: Mapping[str, Sequence[str]] = {
    "attn_q": ("q_proj", "query", "q", "wq"),
    "attn_k": ("k_proj", "key", "k", "wk"),
    "attn_v": ("v_proj", "value", "v", "wv"),
    "attn_qkv": ("qkv", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "attn_out": (
        "o_proj", "out_proj", "proj", "dense", "projection", "projection_layer", "o", "c_proj",
    ),
}  # fmt: skip
FEED_FORWARD_LEAVES: Mapping[str, Sequence[str]] = {
    "ffn_in": (
        "gate_proj", "up_proj", "gate_up_proj", "fc1", "linear_fc1", "wi", "w1", "w3", "c_fc",
        "fc_in", "dense_h_to_4h",
    ),
    "ffn_out": (
        "down_proj", "fc2", "linear_fc2", "wo", "w2", "c_proj", "fc_out", "dense_4h_to_h",
    ),
}  # fmt: skip
ROLES: tuple[Role, ...] = (
    "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_out",
    "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_out", "ffn_in", "ffn_out", "norm",
)  # fmt: skip
"""The roles that the rule knows."""


def find_roles(part: nn.Module, linear_init_std: float | None = None) -> TargetModules:
    """Where methods attach in a part of a model, before any is attached. A method that asks for a
    role that the part lacks gets an error that names the layers without a role."""
    by_role: dict[str, list[str]] = {}
    for path, role in roles_of(part):
        if role is not None:
            by_role.setdefault(role, []).append(path)
    # Shared modules under all their paths: a pattern must catch none that plays another role.
    every = [path for path, _ in part.named_modules(remove_duplicate=False)]
    paths = {role: tuple(patterns(members, every)) for role, members in by_role.items()}
    return TargetModules(paths, linear_init_std, cures(paths, unclaimed(part)))


def unclaimed(part: nn.Module) -> list[str]:
    """The linear layers in numbered layers that have no role: their paths, `*` for numbers."""
    return list(dict.fromkeys(starred(path) for path, role in roles_of(part) if role is None))


def roles_of(part: nn.Module) -> Iterator[tuple[str, str | None]]:
    """Path and role of each norm and of each linear layer in a numbered layer."""
    modules = dict(part.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if not is_own(path):
            continue
        if isinstance(module, nn.Linear):
            segments = path.split(".")
            number = next((i for i, name in enumerate(segments[:-1]) if name.isdigit()), None)
            if number is not None:
                yield path, role_of_linear(modules, segments, number)
        # By the class's name: many models define their own norms, such as LlamaRMSNorm.
        elif path and not any(module.children()) and "norm" in type(module).__name__.lower():
            yield path, "norm"


def role_of_linear(
    modules: Mapping[str, nn.Module], segments: Sequence[str], number: int
) -> str | None:
    """The role of a linear layer whose path has these segments, the layer's number at `number`;
    None if the rule does not name it."""
    # Gemma 4 wraps its linear layers: self_attn.q_proj.linear.
    if segments[-1] == "linear" and number < len(segments) - 2:
        segments = segments[:-1]
    # encoder.layers.3.self_attn.q_proj: self_attn and its class stand between number and leaf.
    leaf, ends = segments[-1], range(number + 1, len(segments) - 1)
    classes = [type(modules[".".join(segments[: end + 1])]).__name__ for end in ends]
    around = [*(segments[end] for end in ends), *classes]
    in_attention = any(map(ATTENTION.search, around))
    if not in_attention and leaf == "dense":
        # BERT calls both layers of a feed-forward block so; the module around it tells which.
        sides = {"intermediate": "ffn_in", "output": "ffn_out"}
        return next((sides[name] for name in around if name in sides), None)
    if not in_attention and leaf.startswith("wi_"):  # T5's gated layers: wi_0, wi_1
        return "ffn_in"
    leaves_of = ATTENTION_LEAVES if in_attention else FEED_FORWARD_LEAVES
    role = next((role for role, leaves in leaves_of.items() if leaf in leaves), None)
    if role is None or not in_attention or not any(map(CROSS.search, around)):
        return role
    # A joint layer of queries, keys and values cannot read two sequences.
    return None if role == "attn_qkv" else f"cross_{role}"


def patterns(members: Sequence[str], every: Sequence[str]) -> Iterator[str]:
    """Path patterns of the modules that play a role: `*` for numbers, unless that would catch a
    module that does not play it."""
    known = set(members)
    grouped: dict[str, list[str]] = {}
    for path in members:
        grouped.setdefault(starred(path), []).append(path)
    for pattern, paths in grouped.items():
        caught = filter(pattern_of(pattern).fullmatch, every)
        yield from [pattern] if known.issuperset(caught) else paths


def starred(path: str) -> str:
    """A path with `*` for each number."""
    return ".".join("*" if name.isdigit() else name for name in path.split("."))


def check_named(part: nn.Module, named: Mapping[str, Sequence[str]], field: str) -> None:
    """Check the paths of layers that a recipe names in a field: role -> path patterns.

    Errors: ValueError for a role without a path, and for a path that no module has.
    """
    modules = dict(part.named_modules(remove_duplicate=False))
    leaves = dict.fromkeys(
        starred(p) for p, module in modules.items() if not any(module.children())
    )
    for role, paths in named.items():
        if not paths:
            raise ValueError(f"{field}.{role}: names no layer; give a path, or leave the role out")
        # Each path is matched against all modules, and a recipe could name millions.
        if len(paths) > len(modules):
            raise ValueError(
                f"{field}.{role}: names {len(paths):,} layers, and {type(part).__name__} has "
                f"{len(modules):,} modules; give each path once, with * for numbers"
            )
        for path in paths:
            if odd := [word for word in path.split(".") if "*" in word and word != "*"]:
                # Several in a word would also take long to match.
                raise ValueError(
                    f"{field}.{role}: got {path!r:.100}; let * stand alone between dots, and not "
                    f"in {odd[0]!r:.50}"
                )
            if not any(map(pattern_of(path).fullmatch, modules)):
                raise ValueError(
                    f"{field}.{role}: '{path}' matches no layer of {type(part).__name__}; "
                    f"{guess(path, leaves)}give a layer's path inside that part, with * for numbers"
                )


def cures(paths: Mapping[str, object], nameless: Sequence[str]) -> dict[str, str]:
    """Role that a part lacks -> what the error message adds."""
    texts: dict[str, str] = {}
    for role in ROLES:
        if role in paths:
            continue
        if "attn_qkv" in paths and role in ("attn_q", "attn_k", "attn_v"):
            texts[role] = "Queries, keys and values come from one layer: choose attn_qkv"
        elif role.startswith("cross") and not any(map(CROSS.search, [*paths, *nameless])):
            texts[role] = (
                "The model has no cross-attention: leave the role out, or choose a method that "
                "needs none"
            )
        elif nameless:
            texts[role] = (
                f"The rule for unknown models names no role of {', '.join(nameless)}; choose a "
                "method that needs none of them, or another model"
            )
        else:
            texts[role] = (
                "Methods extend linear layers, and not what computes in their place (experts in "
                "one tensor, Conv1D); choose another method, or another model"
            )
    return texts


NORM_WEIGHT = OptimizerRule(decays=False, vl_adapter_decays=True)
"""The original code looks for `LayerNorm.weight`, and its norms are called layer_norm."""


class TaskSlices(NamedTuple):
    """What a parameter holds of the tasks, one after the other."""

    first: int
    """Number of the first task."""
    size: int
    """Elements of each task."""


def optimizer_rules(model: Model) -> dict[str, OptimizerRule]:
    """Name of each parameter that trains -> its rule.

    The nearest declaration holds: of the module that owns the parameter, or of one around it. If
    there is none, the kind of the owner decides. The names that a recipe gives to methods play no
    role. Errors: ValueError if a method's own module declares no rule.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    declared: dict[str, OptimizerRules] = {
        path: getattr(module, "optimizer_rules", {}) for path, module in modules.items()
    }
    for part in model.parts.values():
        # Where both say something, the part's rule wins over its module's.
        declared[part.path] = {**declared[part.path], **part.optimizer_rules}
    rules: dict[str, OptimizerRule] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, tensor = name.rpartition(".")
            rule, segments = None, name.split(".")
            for depth in reversed(range(len(segments))):  # the nearest module first
                inside = ".".join(segments[depth:])
                for pattern, its_rule in declared[".".join(segments[:depth])].items():
                    if rule is None and pattern_of(pattern).fullmatch(inside):
                        rule = its_rule
            rules[name] = rule_of_class(name, modules[owner], tensor) if rule is None else rule
    return rules


def task_slices(model: Model, num_tasks: int) -> dict[nn.Parameter, TaskSlices]:
    """What parameters hold of the tasks: those that are stacked over them, and those of heads."""
    slices: dict[nn.Parameter, TaskSlices] = {}
    rules = optimizer_rules(model)
    for task, head in model.heads.items():
        number = model.heads.numbers[task]
        for parameter in head.parameters():
            size = int(getattr(parameter, "ds_numel", parameter.numel()))
            slices[parameter] = TaskSlices(number, size)
    for name, parameter in model.named_parameters():
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)  # whole, under ZeRO-3
        # A first dimension of 1 is shared by all tasks.
        if name in rules and rules[name].per_task and shape[0] > 1:
            assert shape[0] == num_tasks, f"{name}: {tuple(shape)} for {num_tasks} tasks"
            slices[parameter] = TaskSlices(0, shape[1:].numel())
    return slices


def rule_of_class(name: str, module: nn.Module, tensor: str) -> OptimizerRule:
    """The rule of a library's module: norms and biases do not decay, other weights do.

    `tensor` is the parameter's name in the module's own class. Errors: ValueError if the module is
    a method's and not a layer of PyTorch or transformers, of which nothing is known.
    """
    kind = type(module)
    containers = (nn.ParameterList, nn.ParameterDict)
    is_layer = kind.__module__.startswith(("torch.nn.", "transformers."))
    # torch's containers hold parameters of any meaning.
    is_layer = is_layer and not isinstance(module, containers)
    if not (is_own(name) or is_layer):
        raise ValueError(
            f"{kind.__name__} declares no optimizer rule for '{tensor}' ({name}); name it in the "
            "class variable `optimizer_rules`, as docs/add_a_method.md shows"
        )
    if "bias" in tensor:  # bias_ih_l0 of an LSTM, in_proj_bias of attention
        return UNDECAYED
    is_norm = "Norm" in kind.__name__  # of torch, transformers or timm alike
    return NORM_WEIGHT if is_norm else OptimizerRule()
