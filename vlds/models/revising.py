"""Lets the methods of a model change what trains: after a step, and to fit what a run has saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from vlds.methods.revision import Trained
from vlds.models.model import Model


def revision_due(model: Model, step: int, num_steps: int) -> bool:
    """True if some method changes what trains after a step."""
    return any(step in revision.steps(num_steps) for revision in model.revisions.values())


def revise(
    model: Model, step: int, num_steps: int, state: Mapping[str, Trained]
) -> dict[str, Trained | None]:
    """Let the methods whose turn it is act; the state of all that trains then. Both states are by
    name; None: a weight that begins to train as it is."""
    parameters = dict(model.named_parameters())
    revised: dict[nn.Parameter, Trained | None] = {parameters[n]: t for n, t in state.items()}
    for method, revision in model.revisions.items():
        if step not in revision.steps(num_steps):
            continue
        own = {parameters[n]: state[n] for n in state if model.trained_by[n] == method}
        new = revision.revise(step, num_steps, own)
        revised = {p: tensors for p, tensors in revised.items() if p not in own} | dict(new)
        let_train(model, method, new)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: tensors for parameter, tensors in revised.items()}


def fit_saved(model: Model, shapes: Mapping[str, torch.Size]) -> None:
    """Give methods' modules the shapes that a state or artifact holds, by name."""
    for method, revision in model.revisions.items():
        saved = {p: shapes[name] for name, p in model.named_parameters() if name in shapes}
        let_train(model, method, revision.fit(saved))


def let_train(model: Model, method: str, parameters: Collection[nn.Parameter]) -> None:
    """Note that a method trains these parameters and no others."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    wanted = [names[parameter] for parameter in parameters]
    others = {name: by for name, by in model.trained_by.items() if by != method}
    stopped = model.trained_by.keys() - others.keys() - set(wanted)
    assert not stopped & set(names.values()), (
        f"run states would lose {stopped}, which stop to train"
    )
    for parameter in parameters:
        parameter.requires_grad_()
    model.trained_by = others | dict.fromkeys(wanted, method)
    model.drop_trained_sources()
