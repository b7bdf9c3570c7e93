"""A case recorded from the original VL-Adapter code, or from Ladder Side-Tuning's: its flags as our
methods, its tensors as our batches.

Nothing here looks at a case's name: the method comes from the recorded command line flags, sizes
from the recorded config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlds.backbones import T5, Backbone, Bart
from vlds.convert.reference import named_tensors, read_tensors, spellings
from vlds.methods import (
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Full,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PromptTuning,
    bottleneck,
)
from vlds.methods.host import Host, bias_parameters
from vlds.models.build import ModelConfig, build_model
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.models.vl_model import VLModel
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch
from vlds.vision import StoredFeatures

FOLDER = Path(os.environ.get("VLDS_GOLDENS", Path(__file__).resolve().parents[1] / "golden"))
ACTIVITY_WEIGHT = 1e-3
"""Factor of the term that --track_z adds to the loss."""


@dataclass
class NamedSlice:
    """One parameter of the original code, as the part of ours that it is."""

    key: str
    parameter: torch.nn.Parameter
    index: int | None
    """Number of the slice; None: the whole parameter."""

    @property
    def task(self) -> int | None:
        """Number of the task that alone uses it; None: all do."""
        return self.index if self.index is not None and len(self.parameter) > 1 else None

    def of(self, tensor: Tensor) -> Tensor:
        """The slice of a tensor shaped like the parameter."""
        return tensor if self.index is None else tensor[self.index]


class RecordedCase:
    """One `<case>.json` + `<case>.safetensors`."""

    def __init__(self, path: Path) -> None:
        self.record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))
        weights = [key for key in tensors if key.startswith("weights/")]
        self.weights = {key.removeprefix("weights/"): tensors.pop(key) for key in weights}
        self.tensors = tensors
        self.tasks: list[str] = self.record["config"]["tasks"]

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor; floating ones in float64."""
        tensor = self.tensors[name]
        return tensor.double() if tensor.is_floating_point() else tensor

    def methods(self) -> tuple[dict[str, Method], bool]:
        """What the flags ask for, as `methods_of` says."""
        return methods_of(parse_flags(self.record["flags"]), self.record["config"], self.weights)

    def build(self, folder: Path) -> VLModel:
        """Our model with the recorded weights, in float64, evaluation mode."""
        size = self.record["config"]
        config = folder / "config.json"
        config.write_text(json.dumps(hf_config(size)), encoding="utf-8")
        methods, train_norms = self.methods()
        grid = round(size["grid_in"] ** 0.5)
        model_config = ModelConfig(
            backbone=backbone_of(size, str(config)),
            vision=StoredFeatures(dim=size["feat_dim"], grid=grid),
            visual_embedding=VisualEmbeddingConfig(
                grid=round(size["n_boxes"] ** 0.5),
                num_images=size["n_images"],
                norm_biases=has_tensor("feat_embedding.1.bias", self.weights),
            ),
            methods=methods,
            train_norms=train_norms,
        )
        tokenizer = ["token"] * size["vocab"]  # only its length is looked at
        model = build_model(model_config, self.tasks, torch.float64, tokenizer)
        wanted = dict(model.unique_state())
        state = read_tensors(self.weights, named_tensors(model, methods, self.tasks))
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(state[name])
        return model.eval()

    def batch(self, task: str) -> Batch:
        """A task's recorded inputs and targets."""
        input_ids = self.tensor(f"{task}/input_ids")
        features, boxes = self.tensor(f"{task}/vis_feats"), self.tensor(f"{task}/boxes")
        num = len(input_ids)
        if features.dim() == 3:
            features, boxes = features[:, None], boxes[:, None]
        num_images = features.shape[1]
        scores = self.tensors.get(f"{task}/scores", torch.ones(num))
        return Batch(
            ids=[str(n) for n in range(num)],
            task_index=torch.full((num,), self.tasks.index(task)),
            input_ids=input_ids,
            attention_mask=input_ids != self.record["config"]["pad"],
            labels=self.tensor(f"{task}/target_ids"),
            weights=scores,
            valid=torch.ones(num, dtype=torch.bool),
            image_index=torch.arange(num * num_images).view(num, num_images),
            features=features.flatten(0, 1),
            boxes=boxes.flatten(0, 1),
        )

    def coefficients(self, task: str) -> Tensor:
        """The original's loss of one task as a factor of each example's summed token nll."""
        lengths = (self.tensor(f"{task}/target_ids") != IGNORED_LABEL).sum(1).clamp(min=1).double()
        if task == "caption":
            return torch.ones_like(lengths) / lengths.sum()
        weights = self.tensors.get(f"{task}/scores", torch.ones(len(lengths))).double()
        return weights / lengths / len(lengths)

    def loss(self, model: VLModel, task: str) -> Tensor:
        """The original's loss of one task; with --track_z, bottlenecks that are active cost."""
        with bottleneck_activations() as active:
            loss = model(self.batch(task), self.coefficients(task)).loss
        if "track_z" not in parse_flags(self.record["flags"]):
            return loss
        return loss + ACTIVITY_WEIGHT * torch.stack([z.square().mean() for z in active]).mean()

    def trainable(self, model: VLModel) -> list[NamedSlice]:
        """What trains, under the original's names."""
        first_name = {alias: first for first, alias in self.record["aliases"]}
        names = named_tensors(model, self.methods()[0], self.tasks)
        slices = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                for index, (first, *_) in names[name].keys.items():
                    key = next((s for s in spellings(first) if s in self.weights), first)
                    slices.append(NamedSlice(first_name.get(key, key), parameter, index))
        return slices


@contextmanager
def bottleneck_activations() -> Iterator[list[Tensor]]:
    """What lies between the halves of each bottleneck, in the order they run."""
    active: list[Tensor] = []

    def gelu(states: Tensor, approximate: str) -> Tensor:
        active.append(torch.nn.functional.gelu(states, approximate=approximate))
        return active[-1]

    with mock.patch.object(bottleneck, "F", SimpleNamespace(gelu=gelu)):
        yield active


def mixed(first: Batch, second: Batch, pad: int) -> Batch:
    """One batch with the examples of two, in alternation, padded to the longer of both."""
    length = max(first.input_ids.shape[1], second.input_ids.shape[1])
    target = max(first.labels.shape[1], second.labels.shape[1])
    images = max(first.image_index.shape[1], second.image_index.shape[1])

    def widen(batch: Batch, offset: int) -> Batch:
        return replace(
            batch,
            input_ids=fill(batch.input_ids, length, pad),
            attention_mask=fill(batch.attention_mask, length, False),
            labels=fill(batch.labels, target, IGNORED_LABEL),
            image_index=fill(batch.image_index + offset, images, NO_IMAGE),
        )

    one, two = widen(first, 0), widen(second, len(first.features))
    order = torch.arange(len(one) + len(two)).view(2, -1).T.flatten()
    names = ["task_index", "input_ids", "attention_mask", "labels", "weights", "valid"]
    names.append("image_index")
    joined = {n: torch.cat([getattr(one, n), getattr(two, n)])[order] for n in names}
    ids = [[*one.ids, *two.ids][n] for n in order.tolist()]
    return Batch(
        ids=ids,
        features=torch.cat([one.features, two.features]),
        boxes=torch.cat([one.boxes, two.boxes]),
        **joined,
    )


def fill(tensor: Tensor, width: int, value: Any) -> Tensor:
    """Pad the second dimension on the right."""
    wide = tensor.new_full((len(tensor), width), value)
    wide[:, : tensor.shape[1]] = tensor
    return wide


def parse_flags(text: str) -> dict[str, str]:
    """Command line flags -> values; "True" for those without."""
    words = text.split()
    flags: dict[str, str] = {}
    while words:
        flag = words.pop(0).removeprefix("--")
        has_value = bool(words) and not words[0].startswith("--")
        flags[flag] = words.pop(0) if has_value else "True"
    return flags


def methods_of(
    flags: dict[str, str], size: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[dict[str, Method], bool]:
    """The methods that the flags ask for, and whether the backbone's norms train."""
    on = {flag for flag, value in flags.items() if value not in ("False", "0")}
    methods: dict[str, Method] = {}
    if "unfreeze_language_model" in on:
        methods["full"] = Full()
    if "use_adapter" in on:
        methods["adapter"] = Adapter(**bottleneck_of(flags, on))
    if "use_compacter" in on:
        methods["compacter"] = compacter_of(flags, on)
    if "use_lradapter" in on:
        rank = int(flags.get("low_rank_rank", "1"))
        methods["low_rank"] = LowRankAdapter(rank=rank, **bottleneck_of(flags, on))
    if "use_hyperformer" in on:
        methods["hyperformer"] = hyperformer_of(flags, on, weights)
    if "use_lora" in on:
        # VL-Adapter's code has no LoRA on T5, Ladder Side-Tuning's has.
        known = has_tensor("lora_As", weights)
        methods["lora"] = lora_of(flags, on, size["backbone"]) if known else BiasesAlone()
    if "use_bitfit" in on:
        methods["bitfit"] = BitFit(
            add_biases=True, add_norm_and_head_biases=True, train_position_biases=False
        )
    if "unfreeze_lm_head" in on:
        methods["tokens"] = TokensAlone()
    if "encoder_prompt_len" in on:
        methods["prompts"] = PromptTuning(
            sharing="single" if "use_single_prompt" in on else "multiple",
            length=int(flags["encoder_prompt_len"]),
            hidden_dim=int(flags["mid_dim"]),
        )
    if "decoder_prompt_len" in on:
        methods["decoder_prompts"] = DecoderPromptTuning(
            sharing="single" if "use_single_prompt" in on else "multiple",
            length=int(flags["decoder_prompt_len"]),
            hidden_dim=int(flags["mid_dim"]),
        )
    # On T5 the flag finds no norm, since the original's T5 has its own class of them.
    train_norms = "unfreeze_layer_norms" in on and size["backbone"] == "bart"
    return methods, train_norms


def bottleneck_of(flags: dict[str, str], on: set[str]) -> dict[str, Any]:
    """The fields that all bottlenecks have."""
    shared = [half for half in ("up", "down") if f"share_{half}_sampler" in on]
    sharing = f"half_shared_{shared[0]}" if shared else "multiple"
    if any(flag.startswith("use_single_") for flag in on) or len(shared) == 2:
        sharing = "single"
    return {
        "sharing": sharing,
        "reduction": int(flags.get("reduction_factor", "16")),
        "layer_norm_before": "add_layer_norm_before_adapter" in on,
        "layer_norm_after": "add_layer_norm_after_adapter" in on,
        "cross_attention": flags.get("add_adapter_cross_attn") != "False",
    }


def compacter_of(flags: dict[str, str], on: set[str]) -> Compacter:
    """A Compacter from its flags; a common rule and whole blocks are the original's defaults."""
    rule = "over_tasks" if "shared_phm_rule_over_tasks" in on else "own"
    factorized = flags.get("factorized_phm", "True") != "False"
    return Compacter(
        phm_dim=int(flags.get("hypercomplex_division", "4")),
        rule="everywhere" if flags.get("shared_phm_rule", "True") != "False" else rule,
        block_rank=int(flags.get("phm_rank", "1")) if factorized else None,
        **bottleneck_of(flags, on),
    )


def hyperformer_of(flags: dict[str, str], on: set[str], weights: dict[str, Tensor]) -> Hyperformer:
    """A Hyperformer from its flags, and from the weights, since not all widths are flags."""
    hidden = next(w for key, w in weights.items() if "embeding_generator.0.weight" in key)
    task = next(w for key, w in weights.items() if "task_to_embeddings" in key)
    return Hyperformer(
        reduction=int(flags.get("reduction_factor", "16")),
        task_dim=len(task),
        hidden_dim=len(hidden),
        projected_dim=int(flags.get("projected_task_embedding_dim", "64")),
        kind_embeddings="efficient_unique_hyper_net" in on,
        cross_attention=flags.get("add_adapter_cross_attn") != "False",
    )


def has_tensor(part: str, weights: dict[str, Tensor]) -> bool:
    """Whether the name of a recorded weight contains these words."""
    return any(part in name for name in weights)


def lora_of(flags: dict[str, str], on: set[str], backbone: str) -> LoRA:
    """A LoRA from its flags; on T5 it trains no biases."""
    return LoRA(
        sharing="single" if "use_single_lora" in on else "multiple",
        rank=int(flags["lora_dim"]),
        alpha=float(flags.get("lora_alpha", "32")),
        train_biases=backbone == "bart",
    )


class BiasesAlone(Method):
    """What the original's LoRA is on T5."""

    def attach(self, host: Host) -> list[torch.nn.Parameter]:
        """The relative position biases."""
        return bias_parameters(host.model)


class TokensAlone(Method):
    """The original's --unfreeze_lm_head: the token table, which the output layer shares."""

    def attach(self, host: Host) -> list[torch.nn.Parameter]:
        """The one table."""
        return [host.model.get_input_embeddings().weight]


def backbone_of(size: dict[str, Any], config: str) -> Backbone:
    """Our backbone; its last 40 rows or so are the visual tokens."""
    family = {"bart": Bart, "t5": T5}[size["backbone"]]
    return family(config=config, extra_tokens=0, visual_tokens=size["added_tokens"], dropout=0.0)


def hf_config(size: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face's config of a recorded size."""
    ids = {
        "pad_token_id": size["pad"],
        "eos_token_id": size["eos"],
        "decoder_start_token_id": size["decoder_start"],
    }
    if size["backbone"] == "t5":
        return {
            "model_type": "t5",
            "d_model": size["d_model"],
            "d_kv": size["d_kv"],
            "d_ff": size["d_ff"],
            "num_layers": size["layers"],
            "num_decoder_layers": size["decoder_layers"],
            "num_heads": size["heads"],
            "feed_forward_proj": size["feed_forward"],
            "relative_attention_num_buckets": size["relative_attention_num_buckets"],
            "layer_norm_epsilon": size["layer_norm_epsilon"],
            **ids,
        }
    return {
        "model_type": "bart",
        "d_model": size["d_model"],
        "encoder_layers": size["encoder_layers"],
        "decoder_layers": size["decoder_layers"],
        "encoder_attention_heads": size["heads"],
        "decoder_attention_heads": size["heads"],
        "encoder_ffn_dim": size["ffn"],
        "decoder_ffn_dim": size["ffn"],
        "max_position_embeddings": size["max_position_embeddings"],
        "activation_function": size["activation"],
        "scale_embedding": size["scale_embedding"],
        "bos_token_id": size["bos"],
        **ids,
    }
