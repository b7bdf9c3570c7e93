"""Tiny models: a T5, then a BART, that generate; saved causal models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys.causal import SIZES, kind_in, save_model
from tests.toys.models import backbone, build
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.kinds.causal import Causal
from vlds.models.kinds.joint import JointModel


@pytest.fixture(scope="module", params=[T5, Bart], ids=lambda family: family.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> JointModel:
    """A tiny model whose answers end early now and then."""
    family: type[Backbone] = request.param
    source = backbone(family, tmp_path_factory.mktemp("model"))
    built = build(source, dtype=torch.float64, seed=27).eval()
    end = built.backbone.config.eos_token_id
    with torch.no_grad():
        for parameter in built.backbone.parameters():
            parameter *= 1.7 if family is T5 else 4
        table = built.backbone.get_input_embeddings().weight
        table[end] = table[3:20].mean(0) * 2
    return built


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a saved causal model of each type."""
    folder = tmp_path_factory.mktemp("causal")
    for kind in SIZES:
        save_model(folder / kind, kind)
    return folder


@pytest.fixture
def llama(saved: Path) -> Causal:
    return kind_in(saved / "llama")


@pytest.fixture(params=SIZES)
def causal(request: pytest.FixtureRequest, saved: Path) -> Causal:
    return kind_in(saved / request.param)
