"""Few-shot classification computes what the codes of SimNL and DualAdapter computed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.recorded.related import RelatedCase, check_gradient, recorded
from vlds.models.heads.texts import ClassTexts, TextHead, unit
from vlds.models.methods.context import ClassesPredicted, Predicted
from vlds.models.methods.simnl import SimNL, SimNLLoss, SimNLModule, consistency, reranking
from vlds.models.methods.tip_adapter import HeadPlace

NAMES = {
    "positive.res_template": "template",
    "positive.res_cupl": "described",
    "positive.res_keys": "key",
    "negative.res_negative": "negative_text",
    "negative.res_keys2": "negative_key",
}


class Reader:
    """Our classifier on the features of a recorded case."""

    def __init__(self, case: RelatedCase) -> None:
        self.case = case
        original = case["variant"] == "SimNL"
        self.config = SimNL(
            alpha=case["alpha"],
            beta=case["beta"],
            share=case["lam"],
            temperature=1.0 if original else 0.1,
            weighted_negatives=original,
            neighbours=case["knn"],
            consistency=case["consistency_weight"],
            negative_rate=case["negative_lr_factor"],
        )
        sizes = (case["classes"], case["shots"], case["dim"])
        self.module = SimNLModule(self.config, *sizes, dtype=torch.float64)
        self.module.set_keys(case["in/cache_keys"].unflatten(0, sizes[:2]))
        self.texts = ClassTexts(
            case["in/text_template"].T,
            case["in/text_cupl"].T,
            unit(case["in/text_negative"].T),
            torch.tensor(100.0, dtype=torch.float64),
        )

    def logits(self, features: Tensor, beta: float, alpha: float, share: float) -> Tensor:
        """With other factors than those of training, on features as they are."""
        config = replace(self.config, alpha=alpha, beta=beta, share=share)
        changed = SimNLModule(config, *self.module.keys.shape, dtype=torch.float64)
        changed.load_state_dict(self.module.state_dict())
        with torch.no_grad():
            return changed(features, self.texts)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100 * (logits.argmax(1) == labels).double().mean().item()


@recorded("simnl")
def test_steps(path: Path) -> None:
    """Logits, losses, gradients and weights of every step of training; then what it picks."""
    case = RelatedCase(path)
    reader = Reader(case)
    module, texts, config = reader.module, reader.texts, reader.config
    names = tuple(f"class {number}" for number in range(case["classes"]))
    head = TextHead(classes=names).build(case["dim"])
    loss = SimNLLoss(config, module, HeadPlace("cls", head, 0, {}))
    rates = {name: rule.rate for name, rule in module.optimizer_rules.items()}
    groups = [
        {"params": [getattr(module, name)], "lr": case["lr"] * r} for name, r in rates.items()
    ]
    adamw = torch.optim.AdamW(groups, eps=case["eps"], weight_decay=case["weight_decay"])
    epochs: list[dict[str, Tensor]] = []
    num_steps = case["epochs"] * case["batches"]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, num_steps)
    for number, step in enumerate(case["steps"]):
        batch = number % case["batches"]
        features = unit(case[f"in/batch{batch}/features"])
        labels = case[f"in/batch{batch}/labels"].long()
        parts = module.logits(features, texts)
        for name, values in parts._asdict().items():
            factor = config.alpha if name.endswith("cache") else 1.0  # recorded without it
            assert (values - factor * case[f"step{number}/{name}"]).abs().max() < 1e-9, name
        final = module(features, texts)
        assert (final - case[f"step{number}/final_logits"]).abs().max() < 1e-9
        entropy = F.cross_entropy(final, labels)
        prototypes = module.prototypes(texts)
        reranked = reranking(features, prototypes.mixed(), labels, config.neighbours).mean()
        assert abs(entropy.item() - step["cross_entropy"]) < 1e-9
        assert abs(reranked.item() - step["reranking"]) < 1e-9
        assert abs(consistency(prototypes, texts).item() - step["consistency"]) < 1e-9
        targets = F.one_hot(labels, case["classes"])
        predicted = ClassesPredicted(final, torch.arange(len(labels)), targets, is_binary=False)
        none = torch.arange(0)
        passed = Predicted(final, labels[:, None], (none, none), [predicted])
        assert abs(predicted.losses().mean().item() - step["cross_entropy"]) < 1e-9
        total = entropy + loss.of_examples([passed]).mean()
        assert abs(total.item() - step["loss"]) < 1e-9
        adamw.zero_grad()
        total.backward()
        for theirs, ours in NAMES.items():
            gradient = getattr(module, ours).grad
            check_gradient(gradient, step["grads"][theirs], theirs)
            assert (gradient - case[f"step{number}/grad/{theirs}"]).abs().max() < 1e-9, theirs
        rated = sorted({group["lr"] for group in adamw.param_groups})
        assert max(abs(a - b) for a, b in zip(rated, step["lr"], strict=True)) < 1e-12
        adamw.step()
        scheduler.step()
        for theirs, ours in NAMES.items():
            after = case[f"step{number}/after/{theirs}"]
            assert (getattr(module, ours) - after).abs().max() < 1e-7, theirs
        if (number + 1) % case["batches"] == 0:
            epochs.append(deepcopy(module.state_dict()))
    check_choice(case, reader, epochs)


def check_choice(case: RelatedCase, reader: Reader, epochs: list[dict[str, Tensor]]) -> None:
    """Compare the epoch and the factors that are best on the validation data, and the test scores
    with these."""
    module = reader.module
    factors = (case["beta"], case["alpha"], case["lam"])
    values = reader.logits(case["in/val_features"], *factors)
    assert (values - case["val/final_logits_last_epoch"]).abs().max() < 1e-7
    labels, accuracies = case["in/val_labels"].long(), []
    for state in epochs:
        module.load_state_dict(state)
        accuracies.append(accuracy(reader.logits(case["in/val_features"], *factors), labels))
    assert accuracies == pytest.approx(case["val_accuracy_per_epoch"], abs=1e-9)
    best = accuracies.index(max(accuracies))
    assert best == case["best_epoch"]
    module.load_state_dict(epochs[best])
    found = searched(case, reader)
    best_factors = [case["best"][f"best_{name}"] for name in ("beta", "alpha", "lam")]
    assert list(found) == pytest.approx(best_factors, abs=1e-9)
    logits = reader.logits(case["in/test_features"], *found)
    assert (logits - case["test/final_logits"]).abs().max() < 1e-7
    assert abs(accuracy(logits, case["in/test_labels"].long()) - case["test_accuracy"]) < 1e-9


def searched(case: RelatedCase, reader: Reader) -> tuple[float, float, float]:
    """The first of the best factors (beta, alpha, share) on the validation data."""
    grid = case["grid"]
    labels, found = case["in/val_labels"].long(), []
    for factors in product(grid["beta"], grid["alpha"], grid["lam"]):
        found.append((accuracy(reader.logits(case["in/val_features"], *factors), labels), factors))
    for (ours, _), theirs in zip(found, grid["accuracy_beta_alpha_lam"], strict=True):
        assert abs(ours - theirs) < 1e-9
    best = max(value for value, _ in found)
    return next(factors for value, factors in found if value == best)
