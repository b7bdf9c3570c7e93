"""SimAdapter (Hou et al. 2021, https://arxiv.org/abs/2105.11905): attention over frozen adapters of
several runs. With x what a layer gives and o_n what the n-th run's adapter makes of it,

    a = softmax_n( (W_q x + b_q) . (W_k o_n + b_k) ),    out = sum_n a_n W_v o_n,

in the alphabetical order of the runs' names, without a division by sqrt(d). With `with_self`, x is
a candidate too, under the name `self`. Only W_q, W_k, W_v and biases train; W_v begins as the
identity (1e-6 elsewhere). The loss has two terms more:

    orthogonality * sum over layers of || I - W_v ||^2
    guide * sum over layers of -log( mean over tokens of a_t ),    t = the example's own run.

As the original code, with two differences: the guide there takes a softmax of the probabilities,
and so never reaches 0; it averages over a batch with its padding, here over an example's real
tokens. Our adapters stand before the residual connection, which therefore comes on top of out, as
it does behind any adapter.

`read_method` and `read_adapter` read the artifacts of other runs; HyperPELT reads by them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vlds.models.loading.model_files import reading
from vlds.models.methods.adapter import Adapter, AdapterModule
from vlds.models.methods.base import Library, Method
from vlds.models.methods.context import BatchLoss, Predicted
from vlds.models.methods.host import Host, LinearExtension, weight_options
from vlds.runtime.artifact_files import find_artifact, tell_model
from vlds.runtime.checks import MadeForBatch, Natural, NotNegative, SourcePath, check_numbers
from vlds.runtime.json_files import damage, recorded_hash
from vlds.runtime.yaml_file import read_yaml

OFF_DIAGONAL = 1e-6
"""W_v's first entries off the diagonal."""
SELF = "self"
"""Name of the candidate that is no adapter's: what the layer gives."""
WEIGHTS, RECIPE = "weights.safetensors", "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class SimAdapter(Method):
    """Attention over the adapters of other runs."""

    reasons: ClassVar[Mapping[Library, str]] = {
        "adapters": "adapters' own fusion divides its scores by sqrt(d) and has other values"
    }

    runs: dict[str, SourcePath] = field(default_factory=dict)
    """Name -> run with adapters. A run whose name is that of a task guides the task's examples; of
    a run with adapters for each task, the name says which."""
    guide: NotNegative = 0.1
    """Weight of the guide."""
    guide_decay_steps: Natural = 0
    """Steps after which the guide's weight has fallen to 0, linearly; 0: it stays."""
    with_self: bool = False
    """One candidate more, what the layer gives without an adapter, so that tokens that no run helps
    can stay as they are. Its name is `self`; it guides no task."""
    orthogonality: NotNegative = 0.01
    """Weight of the distance of W_v from the identity."""
    adapters: dict[str, Method] = field(default_factory=dict)
    """Name -> settings of its adapters, in the recipe of an artifact, which holds their weights and
    needs the runs no longer."""

    def __post_init__(self) -> None:
        if self.part != "backbone":
            raise ValueError(f"part: got {self.part}; the runs' adapters are in the backbone")
        for name, method in self.adapters.items():
            if not isinstance(method, Adapter):
                raise ValueError(f"adapters.{name}: got {type(method).__name__}; give Adapter")
        if self.runs and self.adapters:
            raise ValueError(
                f"adapters: got {', '.join(self.adapters)}, and runs, whose adapters are fused; "
                "adapters is for the recipes of artifacts: leave it out"
            )
        runs = self.runs or self.adapters
        if len(runs) + self.with_self < 2:
            raise ValueError(
                f"runs: got {self.runs}; name two or more, such as {{vqa: runs/vqa, gqa: runs/gqa}}"
                ", or one with with_self: true"
            )
        if self.with_self and SELF in runs:
            raise ValueError(
                f"runs: {SELF} is the name of the layer's own output (with_self: true); give the "
                "run another name"
            )

    @property
    def candidates(self) -> list[str]:
        """Names of what is fused, in the order of the attention's columns."""
        # Sorted with `self` among the runs, and the same in an artifact as in its run.
        return sorted([*(self.runs or self.adapters), *([SELF] if self.with_self else [])])

    def read(self) -> dict[str, RunAdapter]:
        """The runs' adapters.

        Errors: ValueError if a run has none.
        """
        if self.adapters:
            adapters = sorted(self.adapters.items())
            return {name: RunAdapter(m, {}) for name, m in adapters if isinstance(m, Adapter)}
        return {name: read_adapter(Path(self.runs[name]), name) for name in sorted(self.runs)}

    def check_steps(self, num_steps: int) -> None:
        """Errors: ValueError for a run whose frozen adapters would be random."""
        if not self.runs:
            raise ValueError(
                f"runs: got none, and the adapters {', '.join(self.adapters)} would be random, "
                "since the recipe of an artifact has their settings alone; name the runs"
            )

    def in_artifact(self) -> SimAdapter:
        """With the settings of the runs' adapters in place of the runs."""
        adapters: dict[str, Method] = {name: run.method for name, run in self.read().items()}
        return replace(self, runs={}, adapters=adapters)

    def source_hashes(self) -> Mapping[str, str]:
        return {f"runs.{name}": weights_hash(Path(run)) for name, run in self.runs.items()}

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put attention over the runs' adapters at every place of theirs.

        Errors: ValueError if the runs' adapters stand at unlike places, or do not fit the model.
        """
        runs = self.read()
        if beside := [name for name, run in runs.items() if run.method.parallel]:
            raise ValueError(
                f"runs: the adapters of {beside[0]} stand beside feed-forward layers, and fusion "
                "reads what stands behind layers; name a run with parallel: false"
            )
        # Run -> path of a layer -> the layer. Fusion needs a candidate of every run at every layer.
        places = {
            name: {place.path: place.linear for place in run.method.places(host)}
            for name, run in runs.items()
        }
        first = next(iter(places))
        for name, layers in places.items():
            if layers.keys() != places[first].keys():
                odd = sorted(layers.keys() ^ places[first].keys())[0]
                raise ValueError(
                    f"runs: {first} and {name} have adapters at unlike places (only one has them "
                    f"at {odd}); give them the same attention and cross_attention"
                )
        modules = []
        for path, linear in places[first].items():
            modules.append(FusionModule(path, linear, self.candidates, runs, host))
            host.extend_linear(linear, modules[-1])
        if self.guide and not host.says_tokens:
            raise ValueError(
                f"guide: got {self.guide}, and {type(host.model).__name__} does not say which of "
                "its tokens are real; set guide: 0"
            )
        if self.guide or self.orthogonality:
            host.batch_losses.append(FusionLoss(self, modules, host))
            # The guide tells examples apart, so rows of several must not be computed as one.
            host.context.reads_examples |= self.guide > 0
        return [p for module in modules for p in module.fusion.parameters()]


class FusionModule(LinearExtension):
    """The adapters of all runs behind one layer, and the attention over what they give."""

    def __init__(
        self,
        path: str,
        linear: nn.Linear,
        names: Sequence[str],
        runs: Mapping[str, RunAdapter],
        host: Host,
    ) -> None:
        """`names`: of the candidates; all but `self` are those of runs."""
        super().__init__()
        self.names = list(names)
        # Models of one stack may call it decoder too.
        has_two = "cross_attn_out" in host.targets.paths
        self.context, self.in_decoder = host.context, has_two and "decoder" in path.split(".")
        self.candidates = nn.ModuleDict()
        """Each run's adapter, whose weights do not train."""
        for name, run in runs.items():
            # Inside this module, not behind the layer: it runs the adapters itself.
            module = AdapterModule(run.method, linear, replace(host, tasks=["all"]))
            self.candidates[name] = module
            if not run.tensors:  # in the recipe of an artifact, which holds the weights
                continue
            # The part that methods tune may be the backbone or lie inside it, where paths are
            # shorter than those of the run.
            layers = (layer for layer in run.tensors if f".{layer}".endswith(f".{path}"))
            state, stored = module.state_dict(), next((run.tensors[n] for n in layers), {})
            ours, theirs = ({n: tuple(t.shape) for n, t in o.items()} for o in (state, stored))
            if ours != theirs:
                raise ValueError(
                    f"runs: an adapter behind {path} has {theirs or 'no tensors'}, and the model "
                    f"needs {ours}; take runs of the same backbone"
                )
            if not linear.weight.is_meta:
                module.load_state_dict(stored)
        self.fusion = Fusion(linear.out_features, weight_options(linear))
        self.noted = MadeForBatch()
        """Log of the attention (b, l, n) and the distance of W_v, in training."""

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d)."""
        # Each reads what the layer gives, none what another one has made of it.
        candidates = [
            self.candidates[name](inputs, outputs) if name in self.candidates else outputs
            for name in self.names
        ]
        states: Tensor
        states, log_attention = self.fusion(outputs, torch.stack(candidates, -2))
        if self.context.training:
            self.noted.value = log_attention, self.fusion.distance()
        return states


class Fusion(nn.Module):
    """Attention of states over candidates. Shapes: b rows, l tokens, n candidates, d width."""

    def __init__(self, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.q, self.k = (nn.Linear(width, width, **options) for _ in range(2))
        self.v = nn.Linear(width, width, bias=False, **options)
        with torch.no_grad():
            self.v.weight.fill_(OFF_DIAGONAL).fill_diagonal_(1.0)

    def forward(self, states: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """(b, l, d) and (b, l, n, d) -> (b, l, d) and the log of the attention (b, l, n): without
        a division by sqrt(d), attention itself is soon 0, which the guide could not leave."""
        scores = (self.q(states)[..., None, :] * self.k(candidates)).sum(-1)
        log_attention = scores.log_softmax(-1)
        return (log_attention.exp()[..., None] * self.v(candidates)).sum(-2), log_attention

    def distance(self) -> Tensor:
        """|| I - W_v ||^2."""
        weight = self.v.weight
        eye = torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
        return (eye - weight).square().sum()


class FusionLoss(BatchLoss):
    """The guide, and the distance of W_v from the identity."""

    def __init__(self, config: SimAdapter, modules: Sequence[FusionModule], host: Host) -> None:
        self.config, self.modules, self.context = config, modules, host.context
        columns = {name: column for column, name in enumerate(config.candidates)}
        if config.with_self:  # a task of that name is guided nowhere
            del columns[SELF]
        guides = [columns.get(task, -1) for task in host.tasks]
        # On the CPU even where a model is built on the meta device, as `vlds plan` does.
        self.guides = torch.tensor(guides, device="cpu")
        """(tasks,) column of the run that guides a task; -1: none."""

    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        is_label = passes[0].is_label
        # Taken, so that the graph of this pass is not held until the next one.
        noted = [module.noted.take() for module in self.modules]
        distance = torch.stack([distance for _, distance in noted]).sum()
        added = (self.config.orthogonality * distance).expand(len(is_label))
        decay = self.config.guide_decay_steps
        left = max(0.0, 1 - self.context.step / decay) if decay else 1.0
        if (weight := self.config.guide * left) > 0:
            # Behind the batch's rows there may be one that keeps ranks in step.
            num = len(is_label)
            guides = self.guides.to(is_label.device, non_blocking=True)
            guides = self.context.routing.of_rows(guides)[:num]
            for module, (log_attention, _) in zip(self.modules, noted, strict=True):
                real = is_label if module.in_decoder else self.context.token_mask
                assert real is not None, "the model says which of its tokens are real"
                if log_attention.ndim == 2:  # all tokens in one line
                    log_attention = log_attention.unflatten(0, (len(real), -1))
                shares = log_mean(log_attention[:num], real[:num])
                added = added + weight * guide_loss(shares, guides)
        # In the unit of an example's summed nll, which the run divides by its labels.
        return added * is_label.sum(1)


def log_mean(log_attention: Tensor, real: Tensor) -> Tensor:
    """(b, l, n) -> (b, n): log of the mean of attention over an example's real tokens (b, l)."""
    # log(sum / count), all in logs: a share of 1e-30 keeps its gradient.
    padding, lowest = ~real.bool()[..., None], torch.finfo(log_attention.dtype).min
    total = log_attention.masked_fill(padding, lowest).logsumexp(1)
    return total - real.sum(1, keepdim=True).clamp(min=1).log()


def guide_loss(log_attention: Tensor, own: Tensor) -> Tensor:
    """(b, n) and the column of each example's run (b,), -1 for none -> (b,) -log of its share."""
    # Examples without a guide gather column 0, which `where` then drops, gradient included.
    log_shares = log_attention.gather(1, own.clamp(min=0)[:, None])[:, 0]
    return torch.where(own >= 0, -log_shares, 0.0)


@dataclass(frozen=True)
class RunAdapter:
    """The adapters of one run, or of one of its tasks."""

    method: Adapter
    """Their settings, with `sharing: single`, since the tensors are one task's."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Layer of the backbone -> name of a tensor in the module behind it -> tensor, with one slice
    where tensors are stacked."""


def read_adapter(run: Path, task: str) -> RunAdapter:
    """The adapters of a run; those of `task`, if the run has some for each task.

    Errors: ValueError if the run has no artifact, not exactly one Adapter on its backbone, or no
    such task.
    """
    run_method = read_method(
        run,
        Adapter,
        "name a run with one Adapter on its backbone (`vlds convert merge` makes Compacter, "
        "LowRankAdapter, Hyperformer and Mixture one)",
    )
    try:
        check_numbers(Adapter, run_method.settings)
        method = Adapter(**run_method.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{run}: its Adapter has settings that this vlds cannot use ({error}); take the "
            "version of vlds that wrote it"
        ) from None
    number = 0
    if method.sharing != "single":
        if task not in run_method.tasks:
            raise ValueError(
                f"{run}: its adapters are one for each task, and it has no task {task}; name one "
                f"of {', '.join(run_method.tasks)}"
            )
        number = run_method.tasks.index(task)
    # Norms are common to all tasks, and a shared half has a single slice.
    tensors = {
        layer: {
            name: tensor[number : number + 1] if "norm" not in name and len(tensor) > 1 else tensor
            for name, tensor in leaves.items()
        }
        for layer, leaves in run_method.tensors.items()
    }
    return RunAdapter(replace(method, sharing="single", learning_rate=None), tensors)


@dataclass(frozen=True)
class RunMethod:
    """A method of another run."""

    settings: Mapping[str, Any]
    """The method's fields, as plain values."""
    tasks: list[str]
    """The run's tasks, in the order of stacked weights."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Layer of the backbone, empty for what stands beside it -> name of a tensor in the method's
    module there -> tensor."""


def read_method(run: Path, kind: type[Method], cure: str) -> RunMethod:
    """The one method of a kind that a run has on its backbone.

    Errors: ValueError if the run has no artifact, or not exactly one such method, and ends in
    `cure`; or if a weight is not finite.
    """
    # Checked by the manifest's hashes before anything in it is read.
    folder = find_artifact(run)
    tell_model(run)
    if (wrong := damage(folder, (RECIPE, WEIGHTS))) is not None:
        raise ValueError(f"artifact {folder}: {wrong}; copy it again from where it was trained")
    recipe = read_yaml(folder / RECIPE)
    try:
        kinds = {name: str(entry["class_path"]) for name, entry in recipe["methods"].items()}
        settings = {name: dict(entry["init_args"]) for name, entry in recipe["methods"].items()}
        tasks = list(recipe["tasks"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"artifact {folder}: {RECIPE} is not a recipe of a run; {cure}") from None
    # Artifacts' recipes name every field, the default part too.
    on_backbone = {name for name, fields in settings.items() if fields.get("part") == "backbone"}
    names = [name for name in kinds if kinds[name] == kind.__name__ and name in on_backbone]
    if len(names) != 1:
        raise ValueError(f"{run}: its methods are {', '.join(kinds.values()) or 'none'}; {cure}")
    # `backbone.LAYER.extensions.NAME.LEAF`, or without a layer for what stands beside the model.
    pattern = re.compile(rf"backbone\.(?:(.+)\.)?extensions\.{re.escape(names[0])}\.(.+)")
    with (
        reading(f"artifact {folder}: {WEIGHTS} cannot be read"),
        safe_open(folder / WEIGHTS, framework="pt") as file,
    ):
        matches = list(filter(None, map(pattern.fullmatch, file.keys())))
        found = [(match, file.get_tensor(match[0])) for match in matches]
    tensors: dict[str, dict[str, Tensor]] = {}
    for match, tensor in found:
        if not tensor.isfinite().all():
            raise ValueError(f"{run}: {match[0]} is not finite; name another run")
        tensors.setdefault(match[1] or "", {})[match[2]] = tensor
    return RunMethod(settings[names[0]], tasks, tensors)


def weights_hash(run: Path) -> str:
    """SHA-256 of the weights of a run's artifact, as its manifest has it."""
    return recorded_hash(find_artifact(run), WEIGHTS)
