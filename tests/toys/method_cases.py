"""Small instances of each method, and what the contract tests expect of them.

A method class that is imported, here or by vlds.models.methods, is tested: by its cases in `CASES`,
or by one instance with the class's defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import tests.examples.output_scale
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods import (
    IA3,
    LST,
    VLPET,
    Adapter,
    APoLLo,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Full,
    Hyperformer,
    HyperPELT,
    LoRA,
    LowRankAdapter,
    Method,
    Mixture,
    Peft,
    PrefixTuning,
    PromptTuning,
    Shrinking,
    SimAdapter,
    SimNL,
    TipAdapter,
)
from vlds.models.methods.hyperformer import KINDS
from vlds.models.methods.mixture import of_ffn
from vlds.models.methods.prompt_tuning import LearnedEmbeddings
from vlds.schema import Role


class Toy:
    """Sizes of the contract tests' backbone and recipe, for the formulas below."""

    width, hidden, layers, tasks = 16, 24, 2, 3
    """Width of the states and of the feed-forward layers, layers of each stack, tasks."""
    narrow, places = width // 4, layers * (2 + 3)
    """Width and number of the bottlenecks, with `reduction: 4`."""
    down, up = narrow * width + narrow, width * narrow + width
    """Weights of a bottleneck's halves."""
    attentions = 3 * layers
    """Self-attention in both stacks, and cross-attention."""


@dataclass(frozen=True)
class Case:
    """A small instance of a method, and what the contract tests expect of it."""

    method: Method
    num_trained: int | None = None
    """Weights that it trains; None: not checked."""
    decayed: str | None = None
    """Tensors that it adds and weight decay acts on, by their names inside the method's module;
    None: not checked."""
    undecayed: str = ""
    """The other tensors that it adds."""
    starts_frozen: bool = False
    """True if the model computes at first what it computes without the method."""
    merged: tuple[type[Method], ...] = ()
    """Classes of the methods that are left after merging."""
    refused: dict[str, str] = field(default_factory=dict)
    """`merge` or a library, with a backbone's name before it if only that one refuses, or a kind of
    model -> pattern of the reason."""
    families: tuple[str, ...] = ("T5", "Bart")
    """Backbones that can have it."""


def by_kinds(reason: str) -> dict[str, str]:
    """`refused`, by the kinds of model that Hugging Face's own forward pass runs."""
    return dict.fromkeys(("Causal", "ImageTextToText"), reason)


def adapters() -> dict[str, Case]:
    """Every sharing, norms, the identity at first, fewer places."""

    def case(size: int, num_places: int = Toy.places, **fields: Any) -> Case:
        method = Adapter(reduction=4, **fields)
        undecayed = "down_bias up_bias"
        if method.layer_norm_before:
            undecayed += " pre_norm.weight pre_norm.bias post_norm.weight post_norm.bias"
        starts_frozen = method.init == "identity"
        refused = {} if method.attention else {"reference": "the original code has attention: "}
        if method.parallel:
            refused["adapters"] = "no layout of vlds holds adapters beside feed-forward layers"
        num, decayed = num_places * size, "down_weight up_weight"
        return Case(method, num, decayed, undecayed, starts_frozen, refused=refused)

    down, up, n, norm_size = Toy.down, Toy.up, Toy.tasks, 4 * Toy.width
    norms = {"layer_norm_before": True, "layer_norm_after": True}
    alone = {"attention": False, "cross_attention": False}
    return {
        "": case(down + up),
        "per task": case(n * (down + up), sharing="multiple"),
        "shared down": case(down + n * up, sharing="half_shared_down"),
        "shared up": case(n * down + up, sharing="half_shared_up"),
        "norms": case(down + up + norm_size, **norms),
        "shared up, norms": case(n * down + up + norm_size, sharing="half_shared_up", **norms),
        "identity": case(n * (down + up), sharing="multiple", init="identity"),
        "no cross-attention": case(down + up, Toy.places - Toy.layers, cross_attention=False),
        "feed-forward alone": case(down + up, 2 * Toy.layers, activation="gelu", **alone),
        "beside": case(down + up, 2 * Toy.layers, parallel=True, **alone),
    }


def compacters() -> dict[str, Case]:
    """Every rule, whole and thin blocks, several sharings. n is 2, so a rule has 8 weights."""

    def case(num: int, **fields: Any) -> Case:
        method = Compacter(reduction=4, **fields)
        decayed = "down_rule up_rule down_blocks up_blocks"
        if method.block_rank:  # one rule for all halves, under its first name
            decayed = "down_rule down_left down_right up_left up_right"
        return Case(method, num, decayed, "down_bias up_bias", merged=(Adapter,))

    rules, whole = 2 * 8, Toy.width * Toy.narrow + Toy.narrow + Toy.width
    down, up = Toy.width + Toy.narrow + Toy.narrow, Toy.narrow + Toy.width + Toy.width
    per_task = Toy.places * (rules + Toy.tasks * whole)
    few_places = (Toy.places - Toy.layers) * (rules + whole)
    thin: dict[str, Any] = {"rule": "everywhere", "block_rank": 1}
    shared_up = 8 + Toy.places * (Toy.tasks * down + up)
    return {
        "": case(Toy.places * (rules + whole)),
        "no cross-attention": case(few_places, cross_attention=False),
        "per task": case(per_task, sharing="multiple", rule="over_tasks"),
        "thin": case(8 + Toy.places * (down + up), **thin),
        "thin, shared up": case(shared_up, sharing="half_shared_up", **thin),
    }


def low_rank_adapters() -> dict[str, Case]:
    factors, up_bias = 2 * (Toy.width + Toy.narrow) * (1 + Toy.tasks), Toy.width * Toy.tasks
    weights = Toy.places * (factors + Toy.narrow + up_bias)
    method = LowRankAdapter(reduction=4, rank=2, sharing="half_shared_down")
    decayed = "down_left down_right up_left up_right"
    return {"": Case(method, weights, decayed, "down_bias up_bias", merged=(Adapter,))}


def hyperformers() -> dict[str, Case]:
    task, hidden, projected = 6, 5, 4
    method = Hyperformer(reduction=4, task_dim=task, hidden_dim=hidden, projected_dim=projected)
    # A generator has a factor for each number of e, and a constant.
    generator = (projected + 1) * (Toy.down + Toy.up)
    behind = (hidden + 1) * projected + 2 * projected
    stack = Toy.layers * task + (2 * task + 1) * hidden + behind
    stack_of_kinds = (Toy.layers + len(KINDS)) * task + (3 * task + 1) * hidden + behind
    each = Case(
        method,
        Toy.tasks * task + 2 * stack + (2 + 3) * generator,
        "task_embeddings.weight layer_embeddings.weight hidden.weight project.weight "
        "down_weight.weight up_weight.weight",
        "hidden.bias project.bias norm.weight norm.bias down_weight.bias up_weight.bias "
        "down_bias.weight down_bias.bias up_bias.weight up_bias.bias",
        merged=(Adapter,),
    )
    kinds_trained = Toy.tasks * task + 2 * stack_of_kinds + 2 * generator
    kinds = replace(
        each,
        method=replace(method, kind_embeddings=True),
        num_trained=kinds_trained,
        decayed=f"{each.decayed} kind_embeddings.weight",
    )
    norms = replace(
        kinds,
        method=replace(method, kind_embeddings=True, layer_norm_before=True, layer_norm_after=True),
        num_trained=kinds_trained + 2 * (projected + 1) * 4 * Toy.width,
        decayed=f"{kinds.decayed} before_weight.weight norm_weight.weight",
        undecayed=f"{kinds.undecayed} before_weight.bias before_bias.weight before_bias.bias "
        "norm_weight.bias norm_bias.weight norm_bias.bias",
        merged=(),
        refused={
            "merge": "which no Adapter takes over",
            **dict.fromkeys(("peft", "adapters"), "has no Hyperformer with layer_norm_before and"),
        },
    )
    return {"": each, "kinds": kinds, "kinds, norms": norms}


def hyper_pelts() -> dict[str, Case]:
    """All; without pictures; what Hyperformer is."""
    small: dict[str, Any] = {
        "reduction": 4, "task_dim": 6, "hidden_dim": 5, "projected_dim": 4,
    }  # fmt: skip
    refused = {
        "merge": "visual: got true, so that each picture makes its own weights",
        "ImageTextToText": "visual: got true, and .* reads .*; set visual: false",
    }
    plain: dict[str, Any] = {"prefix_length": 0, "visual": False, "parallel": False}
    alone = HyperPELT(**small, prefix_length=3, visual=False)
    behind = HyperPELT(**small, **plain, attention=True, cross_attention=True)
    return {
        "": Case(HyperPELT(**small, prefix_length=3), refused=refused),
        "tasks alone": Case(alone, merged=(Adapter, PrefixTuning)),
        "adapters alone": Case(behind, merged=(Adapter,)),
    }


def loras() -> dict[str, Case]:
    """Beside query and value of all attentions, and of a few."""
    weights = Toy.attentions * 2 * 4 * 2 * Toy.width
    several = {"merge": "sharing: .*; one layer cannot hold the updates of several tasks"}
    on_t5 = {"T5 reference": "the original code has no LoRA on T5"}
    elsewhere = {"Bart reference": "has LoRA at attn_q, attn_v, .* nowhere else"}
    # Folding is compared in float32; the default alpha's updates are too large for that here.
    bare = LoRA(rank=4, alpha=8.0, train_biases=False)
    per_task = replace(bare, sharing="multiple")
    half = LoRA(rank=2, sharing="half_shared_up")
    alone = by_kinds("no layer of .* plays the role 'cross_attn_v'")
    few = LoRA(rank=2, alpha=3.0, roles=["cross_attn_v"], train_biases=False)
    frozen: dict[str, Any] = {"decayed": "a b", "starts_frozen": True}
    return {
        "bare": Case(bare, weights, refused=on_t5, **frozen),
        "per task": Case(per_task, Toy.tasks * weights, refused=on_t5 | several, **frozen),
        "": Case(LoRA(rank=2, alpha=3.0), refused=on_t5),
        "half": Case(half, refused=on_t5 | several),
        "few": Case(few, refused=on_t5 | elsewhere | alone),
    }


def factors() -> dict[str, Case]:
    weights = Toy.layers * (3 * 2 * Toy.width + 2 * Toy.hidden)
    several = {"merge": "sharing: .*; one layer cannot hold the factors of several tasks"}
    one = Case(IA3(), weights, "", "factors", starts_frozen=True)
    per_task = replace(one, method=IA3(sharing="multiple"), num_trained=weights * Toy.tasks)
    return {"": one, "per task": replace(per_task, refused=several)}


def bit_fits() -> dict[str, Case]:
    new = BitFit(add_biases=True)
    everywhere = replace(new, add_norm_and_head_biases=True)
    none = by_kinds(".* have no bias .*set add_biases to true")
    missing = "add_biases: the linear layers of .* have none in their own class"
    added: dict[str, Any] = {"decayed": "", "undecayed": "bias", "starts_frozen": True}
    return {
        "": Case(BitFit(), decayed="", starts_frozen=True, families=("Bart",), refused=none),
        "new": Case(new, refused={"T5 merge": missing}, **added),
        "everywhere": Case(everywhere, refused={"merge": missing}, **added),
    }


def with_networks(kind: type[LearnedEmbeddings], network: str, num_outputs: int) -> dict[str, Case]:
    """Prompts or prefixes for all tasks, per task, and without a network. `network`: its name in
    the method's module; `num_outputs`: numbers that stand for one embedding."""
    hidden, length = 6, 3
    method = kind(length=length, hidden_dim=hidden)
    num = length * Toy.width + hidden * (Toy.width + 1) + num_outputs * (hidden + 1)
    one = Case(
        method,
        num,
        f"{network}.table {network}.hidden_weight {network}.output_weight",
        f"{network}.hidden_bias {network}.output_bias",
        merged=(kind,),
    )
    bare = Case(
        replace(method, hidden_dim=None), length * num_outputs, f"{network}.table", merged=(kind,)
    )
    if "reference" in kind.libraries:
        bare.refused["reference"] = r"makes prompts with a network \(hidden_dim\)"
    per_task = replace(method, sharing="multiple")
    return {
        "": one,
        "per task": replace(one, method=per_task, num_trained=Toy.tasks * num),
        "bare": bare,
    }


def prompts() -> dict[str, Case]:
    refused = {
        "Bart peft": "peft's prompts have positions, and on BART move the text's",
        "ImageTextToText": ".* takes no prompts, .*; choose a method that extends layers",
    }
    cases = with_networks(PromptTuning, "network", Toy.width)
    return {w: replace(case, refused=case.refused | refused) for w, case in cases.items()}


def decoder_prompts() -> dict[str, Case]:
    refused = by_kinds("no layer of .* plays the role 'decoder_positions'")
    cases = with_networks(DecoderPromptTuning, "decoder_network", Toy.width)
    return {
        word: replace(case, families=("Bart",), refused=case.refused | refused)
        for word, case in cases.items()
    }


def prefixes() -> dict[str, Case]:
    """With and without a network, the latter without cross-attention."""
    pair = 2 * Toy.width
    cases = with_networks(PrefixTuning, "network", Toy.attentions * pair)
    bare = PrefixTuning(length=3, hidden_dim=None, cross_attention=False)
    num = bare.length * 2 * Toy.layers * pair
    return cases | {"bare": replace(cases["bare"], method=bare, num_trained=num)}


def mixtures() -> dict[str, Case]:
    adapter = Adapter(reduction=4, sharing="half_shared_up")
    beside = Mixture(of=replace(of_ffn(), reduction=4, parallel=True), experts=2)
    lora = LoRA(rank=2, dropout=0.0, sharing="multiple", train_biases=False)
    return {
        "": Case(
            Mixture(of=adapter, experts=3),
            Toy.places * (3 * Toy.down + Toy.up),
            "down_weight up_weight",
            "down_bias up_bias",
            merged=(Adapter,),
        ),
        "beside": Case(beside, 2 * Toy.layers * (2 * Toy.down + Toy.up), merged=(Adapter,)),
        "LoRA": Case(Mixture(of=lora, experts=2), merged=(LoRA,), starts_frozen=True),
    }


def shrinkings() -> dict[str, Case]:
    lora = LoRA(rank=4, alpha=8.0, dropout=0.0, train_biases=False)
    ranks = Toy.attentions * 2 * 4 * 2 * Toy.width
    return {
        "": Case(
            Shrinking(of=Adapter(reduction=4)),
            Toy.places * (Toy.down + Toy.up),
            "down_weight up_weight",
            "down_bias up_bias",
            merged=(Adapter,),
        ),
        "LoRA": Case(Shrinking(of=lora), ranks, "a b", starts_frozen=True),
    }


def sim_adapters() -> dict[str, Case]:
    """Two runs, as an artifact has them."""
    runs: dict[str, Method] = {
        "gqa": Adapter(reduction=4),
        "vqa": Adapter(reduction=8, activation="relu"),
    }
    return {"": Case(SimAdapter(adapters=runs), Toy.places * (3 * Toy.width**2 + 2 * Toy.width))}


def ladders() -> dict[str, Case]:
    """All layers; some alone."""
    refused = by_kinds(".* has no encoder and decoder .*; choose the kind JointSeq2Seq")
    refused["Bart reference"] = "the original code has LST beside T5 alone"
    some = LST(reduction=2, encoder_layers=[1], decoder_layers=[0])
    return {
        "": Case(LST(reduction=2), refused=refused),
        "some layers": Case(some, refused=refused),
    }


def vl_pets() -> dict[str, Case]:
    """Every gate, both bottlenecks."""
    adapter = VLPET(of=Adapter(reduction=4), gate_width=3, value_width=4, heads=2)
    methods = {
        "": replace(adapter, scale=0.3, start="zero"),
        "middle x": replace(adapter, gate="middle_x"),
        "middle y": replace(adapter, gate="middle_y"),
        "small": replace(adapter, gate="small"),
        "Compacter": replace(adapter, of=Compacter(reduction=4, phm_dim=2)),
    }
    refused = by_kinds("VLPET stands in .*; choose that kind, or another method")
    cases = {word: Case(method, refused=dict(refused)) for word, method in methods.items()}
    cases["Compacter"].refused["reference"] = "the original code has no gates around Compacter"
    return cases


def peft_methods() -> dict[str, Case]:
    """Beside query and value of all attentions; LN_TUNING: all norms of T5 alone."""
    layers, width = Toy.attentions * 2, Toy.width

    def case(num: int, type: str, starts_frozen: bool = True, **settings: Any) -> Case:
        roles: tuple[Role, ...] = ("attn_q", "attn_v", "cross_attn_q", "cross_attn_v")
        method = Peft(type=type, settings=settings, roles=roles)
        return Case(method, layers * num, starts_frozen=starts_frozen)

    small: dict[str, Any] = {"r": 2, "lora_alpha": 2}
    pissa = case(2 * 2 * width, "LORA", False, init_lora_weights="pissa", **small)
    pissa.refused["peft"] = "init_lora_weights: pissa changes the backbone's own weights"
    adalora = {"init_r": 4, "target_r": 2, "lora_alpha": 4}
    oft = {"oft_block_size": 4, "use_cayley_neumann": False}
    return {
        "": case(2 * 2 * width + width, "LORA", False, use_dora=True, **small),
        "rslora": case(4 * 2 * width, "LORA", r=4, lora_alpha=2, use_rslora=True),
        "pissa": pissa,
        "adalora": case(4 * 2 * width + 4, "ADALORA", **adalora),
        "loha": case(4 * 2 * width, "LOHA", r=2, alpha=2),
        "lokr": case(4 * 4 + 2 * 4, "LOKR", r=1, alpha=1, decompose_factor=4),
        "vera": case(4 + width, "VERA", r=4),
        "oft": case(4 * 6, "OFT", **oft),
        "norms": Case(Peft(type="LN_TUNING", roles=("norm",)), starts_frozen=True),
    }


def classifiers(kind: Callable[[], Method]) -> dict[str, Case]:
    """Methods of dual encoders, which no model that writes answers can have."""
    refused = by_kinds("it learns the classes of one task, .*; give .* of a DualEncoder a TextHead")
    return {"": Case(kind(), refused=refused, families=())}


CASES: dict[type[Method], dict[str, Case]] = {
    Adapter: adapters(),
    APoLLo: classifiers(APoLLo),
    BitFit: bit_fits(),
    Compacter: compacters(),
    DecoderPromptTuning: decoder_prompts(),
    Full: {"": Case(Full(), decayed="")},
    HyperPELT: hyper_pelts(),
    Hyperformer: hyperformers(),
    IA3: factors(),
    LST: ladders(),
    LoRA: loras(),
    LowRankAdapter: low_rank_adapters(),
    Mixture: mixtures(),
    Peft: peft_methods(),
    PrefixTuning: prefixes(),
    PromptTuning: prompts(),
    Shrinking: shrinkings(),
    SimAdapter: sim_adapters(),
    SimNL: classifiers(SimNL),
    TipAdapter: classifiers(TipAdapter),
    VLPET: vl_pets(),
}
"""Method -> word -> case. The word "" is the case that even short runs of the tests have."""
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
        for word, case in (CASES.get(method) or {"": Case(method())}).items()
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
