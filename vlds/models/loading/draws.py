"""Weights drawn by name: the initial values of a tensor are a function of (seed, its name).

A constructor draws from torch's global generator, so its values depend on everything drawn before
it, on the number type, and on how ZeRO-3 loads a model. So a model is built on a `Tape`. Once its
tensors have names, each random one is drawn again by the operations that made it: alone, in float32
on the CPU, under generators seeded by (seed, name). The code that draws need not know of this. It
works for Hugging Face's and timm's classes and for a user's method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from itertools import chain

import torch
from torch import nn

from vlds.models.loading.partitioned_loading import whole
from vlds.models.loading.tape import Tape


@torch.no_grad()
def draw_by_name(model: nn.Module, tape: Tape, seed: int, keep: Container[str]) -> None:
    """Draw the tensors of a model that are random on the tape, but for those named in `keep`.

    A random operation belongs to the first tensor, in the order of the model, that depends on it;
    others that depend on it too (copies) see the same numbers.
    """
    named = chain(model.named_parameters(), model.named_buffers())
    tensors = {name: tensor for name, tensor in named if name not in keep}
    places = {name: place for name, t in tensors.items() if (place := tape.place_of(t)) is not None}
    steps = {name: tape.behind(place) for name, place in places.items()}
    seeds: dict[int, int] = {}
    for name, numbers in steps.items():
        new = [n for n in numbers if tape.steps[n].draws and n not in seeds]
        seeds |= {n: seed_of(seed, name, count) for count, n in enumerate(new)}
    with torch.random.fork_rng(devices=[]):
        for name, place in places.items():
            values = tape.replay(steps[name], place, seeds)
            with whole(tensors[name]):
                tensors[name].copy_(values)


@torch.no_grad()
def draw_rows(model: nn.Module, rows: Mapping[str, int], std: float, seed: int) -> None:
    """Draw the rows of tables from row `rows[name]` on from N(0, std^2): each by its own number,
    so that the rows of a longer table begin alike."""
    for name, start in rows.items():
        table = model.get_parameter(name)
        with whole(table):
            for number in range(start, len(table)):
                generator = torch.Generator().manual_seed(seed_of(seed, f"{name}[{number}]"))
                values = torch.empty(table.shape[1:]).normal_(std=std, generator=generator)
                table[number].copy_(values)


def seed_of(seed: int, name: str, count: int = 0) -> int:
    """The seed of a tensor's draw number `count`, the same in every process."""
    digest = hashlib.blake2b(f"{seed}/{name}/{count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
