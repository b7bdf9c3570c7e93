"""Recorded cases with other options than the stored ones, as others may have recorded them.

They are made of stored ones: a model that is built by the stored options, and computes what the
other options ask for, says what the original code would give.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import get_polynomial_decay_schedule_with_warmup

from tests.toys.files import ROOT
from tests.toys.recorded.case import RecordedCase
from vlds.models.kinds.joint import JointModel
from vlds.models.methods.adapter import AdapterModule

GOLDEN = ROOT / "tests/golden"
Changed = Callable[[str], str | None]
"""Name of a recorded weight -> its name in the other case; None: the case has none."""


def biases_alone(folder: Path) -> None:
    """BART of which biases train, and the visual embedding: stored adapters that add nothing, and
    are left out."""
    case = RecordedCase(GOLDEN / "bart_single_adapter.json")
    model = case.build(folder)
    for module in model.modules():
        if isinstance(module, AdapterModule):
            nn.init.zeros_(module.up_weight)
            nn.init.zeros_(module.up_bias)
    for name, parameter in model.named_parameters():
        own_bias = "bias" in name and "extensions" not in name
        parameter.requires_grad_(own_bias or name.startswith("visual_embedding."))

    def changed(key: str) -> str | None:
        return None if "adapter" in key else key

    record_numbers(case, model, changed)
    case.record["flags"] = "--unfreeze_bias --use_tasks_prompts"
    save_case(case, changed, folder / "bart_biases")


def dropped_layers(folder: Path) -> None:
    """A ladder without side layers 0 of the encoder and 1 of the decoder: in the stored one these
    add nothing, and their gates let nothing in."""
    case = RecordedCase(GOLDEN / "ladder_side_tuning/t5_lst.json")
    model = case.build(folder)
    gates = {"encoder": 0, "decoder": 1}
    idle = {f"{stack}.side_gate_params.{number}" for stack, number in gates.items()}
    last = ("SelfAttention.o.weight", "EncDecAttention.o.weight", "DenseReluDense.wo.weight")
    for named in case.trainable(model):
        if any(named.key.startswith(f"{s}.side_block.{n}.") for s, n in gates.items()):
            if named.key.endswith(last):
                nn.init.zeros_(named.parameter)
        elif named.key in idle:
            nn.init.constant_(named.parameter, 1e3)  # sigmoid(1e3 / 0.1) = 1

    def changed(key: str) -> str | None:
        for stack, number in gates.items():
            for module in ("side_block", "side_downsamples"):
                if key.startswith(f"{stack}.{module}.{number}."):
                    # The first side layer that is there has the table of positions.
                    if number == 0 and "relative_attention_bias" in key:
                        return key.replace("side_block.0", "side_block.1")
                    return None
        return key

    record_numbers(case, model, changed, idle)
    side = case.record["config"]["side_config"]
    side |= {"encoder_side_layers": [1, 2], "decoder_side_layers": [0, 2]}
    case.record["flags"] += " --encoder_side_layers [1,2] --decoder_side_layers [0,2]"
    save_case(case, changed, folder / "t5_lst_dropped")


def record_numbers(
    case: RecordedCase, model: JointModel, changed: Changed, idle: Collection[str] = ()
) -> None:
    """Put the numbers of a model into a case; those of its parameters train that require gradients.
    `idle`: what trains without a gradient."""
    trained = {name: named for named in case.trainable(model) if (name := changed(named.key))}
    case.record["trainable_names"] = list(trained)
    for task in case.tasks:
        batch, numbers = case.batch(task), case.record["tasks"][task]
        with torch.no_grad():
            states, mask = model.encode(batch)
            if "generate_kwargs" in numbers:
                decoding = case.decoding(task)
                case.tensors[f"{task}/generated"] = model.written(batch, states, mask, decoding).ids
            if "test_pred_ans_id" in numbers:
                logits = model.vocabulary_logits(model.first_states(batch))
                true, false = case.record["nlvr_true_id"], case.record["nlvr_false_id"]
                numbers["test_pred_ans_id"] = (logits[:, true] > logits[:, false]).long().tolist()
            case.tensors[f"{task}/logits"] = model.logits(batch)
            case.tensors[f"{task}/token_nll"] = model.token_nll(batch)
            # The ladder's backbone, whose states are recorded too, reads no side layer.
            name = f"{task}/side_encoder_last_hidden_state"
            if name not in case.tensors:
                name = f"{task}/encoder_last_hidden_state"
            if name in case.tensors:
                case.tensors[name] = states
        model.zero_grad()
        loss = case.loss(model, task)
        loss.backward()
        numbers |= {"loss": loss.item(), "grad_norm": {}, "grad_dot_cos": {}}
        for key, named in trained.items():
            gradient = named.parameter.grad
            if key in idle or gradient is None:
                numbers["grad_norm"][key] = numbers["grad_dot_cos"][key] = None
                continue
            flat = named.of(gradient).flatten()
            cosine = torch.arange(len(flat), dtype=flat.dtype).cos()
            numbers["grad_norm"][key] = flat.norm().item()
            numbers["grad_dot_cos"][key] = (flat * cosine).sum().item()


def save_case(case: RecordedCase, changed: Changed, path: Path) -> None:
    """Write a case under its other names."""
    weights = {new: t for key, t in case.weights.items() if (new := changed(key))}
    aliases = [pair for pair in case.record["aliases"] if all(name in weights for name in pair)]
    counts = {key: weights[key].numel() for key in weights.keys() - {alias for _, alias in aliases}}
    case.record |= {
        "aliases": aliases,
        "trainable_params": sum(counts[key] for key in case.record["trainable_names"]),
        "total_params": sum(n for key, n in counts.items() if not key.endswith("logits_bias")),
    }
    tensors = {f"weights/{key}": tensor for key, tensor in weights.items()} | case.tensors
    path.with_suffix(".json").write_text(json.dumps(case.record), "utf-8")
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        path.with_suffix(".safetensors"),
    )


def fewer_costs(folder: Path) -> None:
    """A merge that was recorded without one of the costs."""
    change(
        folder,
        "related/own_mera_merge_3",
        lambda record: record["costs"].remove("weights_in_out"),
        lambda name: not name.startswith("weights_in_out/"),
    )


def rounded_numbers(folder: Path) -> None:
    """Cases whose floats differ in their last bit, as those of another order of operations do."""
    change(
        folder, "related/simnl_c5_k4_2epochs",
        shifted("val_accuracy_per_epoch", "best_beta", "best_alpha", "best_lam"),
    )  # fmt: skip
    change(folder, "pretraining/pretrain_strings", shifted("labels_after", "label"))
    change(folder, "bart_multiple_adapters", lambda record: None)
    change(folder, "bart_multiple_adapters.train6", shift_of_still_ones)


def shifted(*fields: str) -> Callable[[Any], None]:
    """Shifts all floats below these fields, wherever they are."""

    def shift(value: Any, inside: bool) -> Any:
        if isinstance(value, dict):
            return {key: shift(one, inside or key in fields) for key, one in value.items()}
        if isinstance(value, list):
            return [shift(one, inside) for one in value]
        return math.nextafter(value, 0.0) if inside and isinstance(value, float) else value

    return lambda record: record.update(shift(record, False))


def shift_of_still_ones(record: Any) -> None:
    """Shifts the norms of weights that stand still from step to step."""
    steps = [step["params_norm_and_dotcos"] for step in record["steps"]]
    still = [
        numbers for before, after in pairwise(steps)
        for name, numbers in after.items() if before[name] == numbers
    ]  # fmt: skip
    assert still
    for numbers in still:
        numbers[0] = math.nextafter(numbers[0], 0.0)


def other_schedules(folder: Path) -> None:
    """Rates with other multipliers, and a line that ends above 0, by transformers' schedule."""

    def rewrite(record: Any) -> None:
        cases = []
        for head, streams, power, end in ((20, 3, 1, 1e-4), (7, 2, 3, 0.0)):
            multipliers = [1.0, 1.0, float(head), float(head), float(streams), float(streams)]
            parameters = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3}]
            optimizer = torch.optim.SGD(parameters)
            scheduler = get_polynomial_decay_schedule_with_warmup(
                optimizer, num_warmup_steps=2, num_training_steps=12, lr_end=end, power=power
            )
            factors = []
            for _ in range(13):
                factors.append(optimizer.param_groups[0]["lr"] / 1e-3)
                optimizer.step()
                scheduler.step()
            cases.append(
                record["cases"][0]
                | {
                    "warmup_steps": 2,
                    "decay_power": power,
                    "end_lr": end,
                    "lr_mult_head": head,
                    "max_steps": 12,
                    "group_multipliers": multipliers,
                    "lr_over_base_by_step_and_group": [
                        [factor * one for one in multipliers] for factor in factors
                    ],
                }
            )
        record["cases"] = cases

    change(folder, "related/meter_schedule", rewrite)


def change(
    folder: Path,
    source: str,
    rewrite: Callable[[Any], None],
    keep: Callable[[str], bool] = lambda name: True,
) -> None:
    """Copy a stored case with another record, and with those of its tensors that are kept."""
    record = json.loads((GOLDEN / f"{source}.json").read_text("utf-8"))
    rewrite(record)
    target = folder / Path(source).name
    Path(f"{target}.json").write_text(json.dumps(record), "utf-8")
    if (tensors := GOLDEN / f"{source}.safetensors").exists():
        kept = {name: tensor for name, tensor in load_file(tensors).items() if keep(name)}
        save_file(kept, f"{target}.safetensors")
