"""Logits, losses, encoder states, gradients and answers equal those that the original code gave."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toys.recorded.case import RecordedCase
from vlds.models.kinds.joint import JointModel
from vlds.models.methods.host import side_path
from vlds.schema import IGNORED_LABEL


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference."""
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def test_visual_embeds_and_encoder_states(case: RecordedCase, model: JointModel) -> None:
    compared = 0
    for task in case.tasks:
        if f"{task}/visual_embeds" in case.tensors:
            batch = case.batch(task)
            with torch.no_grad():
                visual, _ = model.visual_tokens(batch)
                states, mask = model.encode(batch)
            assert distance(visual, case.tensor(f"{task}/visual_embeds")) < 1e-9
            read = case.tensor(f"{task}/encoder_last_hidden_state")
            if (side := side_path(model.backbone)) is not None:
                assert distance(side.read.value[0], read) < 1e-9
                read = case.tensor(f"{task}/side_encoder_last_hidden_state")
            assert distance(states, read) < 1e-9
            assert mask.shape == states.shape[:2]
            compared += 1
    assert compared


def test_logits_and_losses(case: RecordedCase, model: JointModel) -> None:
    for task in case.tasks:
        batch = case.batch(task)
        with torch.no_grad():
            logits, nll = model.logits(batch), model.token_nll(batch)
            output = model(batch, case.coefficients(task))
            loss = case.loss(model, task)
        real = batch.labels != IGNORED_LABEL
        assert distance(logits, case.tensor(f"{task}/logits")) < 1e-9
        assert distance(nll[real], case.tensor(f"{task}/token_nll")[real]) < 1e-9
        assert abs(loss.item() - case.record["tasks"][task]["loss"]) < 1e-9
        assert distance(output.token_nll_sum, nll.sum(1)) < 1e-12


def test_trainable_weights(case: RecordedCase, model: JointModel) -> None:
    names = [named.key for named in case.trainable(model)]
    assert sorted(names) == sorted(case.record["trainable_names"])
    counts = model.count_parameters()
    assert counts.trainable == case.record["trainable_params"]
    assert counts.total == case.record["total_params"]


def test_gradients(case: RecordedCase, model: JointModel) -> None:
    for task in case.tasks:
        model.zero_grad()
        case.loss(model, task).backward()
        recorded = case.record["tasks"][task]
        for named in case.trainable(model):
            norm, dot = recorded["grad_norm"][named.key], recorded["grad_dot_cos"][named.key]
            whole = named.parameter.grad
            if norm is None:  # of another task's weights, of gates of layers without a rung
                is_idle = whole is None or not named.of(whole).any()
                assert is_idle, f"{named.key} has a gradient in a {task} batch"
                continue
            assert whole is not None, f"{named.key} has no gradient in a {task} batch"
            gradient = named.of(whole).flatten()
            cosine = torch.arange(len(gradient), dtype=gradient.dtype).cos()
            assert abs(gradient.norm().item() - norm) < 1e-7, named.key
            assert abs((gradient * cosine).sum().item() - dot) < 1e-7, named.key


def test_generated_ids(case: RecordedCase, model: JointModel) -> None:
    compared = 0
    for task in case.tasks:
        if "generate_kwargs" not in case.record["tasks"][task]:
            continue
        batch, theirs = case.batch(task), case.tensor(f"{task}/generated")
        with torch.no_grad():
            ours = model.written(batch, *model.encode(batch), case.decoding(task)).ids
        width = max(ours.shape[1], theirs.shape[1])
        pad = case.record["config"]["pad"]
        padded = [
            torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=pad)
            for ids in (ours, theirs)
        ]
        assert padded[0].tolist() == padded[1].tolist(), task
        compared += 1
    assert compared


def test_choice_of_two_words(case: RecordedCase, model: JointModel) -> None:
    true, false = case.record["nlvr_true_id"], case.record["nlvr_false_id"]
    compared = 0
    for task in case.tasks:
        if (theirs := case.record["tasks"][task].get("test_pred_ans_id")) is None:
            continue
        with torch.no_grad():
            logits = model.vocabulary_logits(model.first_states(case.batch(task)))
        assert (logits[:, true] > logits[:, false]).long().tolist() == theirs
        compared += 1
    assert compared
