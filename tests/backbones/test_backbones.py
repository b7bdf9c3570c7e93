"""Loading, the joint encoder beside Hugging Face's own, roles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.toys.models import backbone, hf_config
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods.host import pattern_of

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])


@FAMILIES
def test_dropout_is_everywhere_or_nowhere(family: type[Backbone], tmp_path: Path) -> None:
    for rate in (0.0, 0.5):
        source = backbone(family, tmp_path, dropout=rate)
        model = source.load(60, torch.float32).model.train()
        rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        config = model.config.to_dict()
        names = [n for n in config if n.endswith("dropout") or n == "dropout_rate"]
        rates += [config[n] for n in names if n != "classifier_dropout"]
        assert set(rates) == {rate}


def test_gated_feed_forward_layers_have_roles_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({**hf_config(T5), "feed_forward_proj": "gated-gelu"}), encoding="utf-8"
    )
    source = T5(config=str(file))
    model = source.load(260, torch.float32).model
    patterns = [pattern_of(path) for path in source.target_modules.paths["ffn_in"]]
    found = [
        p for p, _ in model.named_modules() if any(pattern.fullmatch(p) for pattern in patterns)
    ]
    assert len(found) == 8


def test_unknown_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give exactly one of them"):
        T5()
    with pytest.raises(ValueError, match="give exactly one of them"):
        T5(path="t5-base", config="x.json")
    with pytest.raises(ValueError, match=r"no such file: .*nowhere\.json"):
        T5(config=str(tmp_path / "nowhere.json")).load(60, torch.float32)
    with pytest.raises(ValueError, match="is the config of a bart model, not of T5"):
        T5(config=saved_config(Bart, tmp_path)).load(60, torch.float32)
    with pytest.raises(ValueError, match="needs the tokenizer's folder or file"):
        T5(config=saved_config(T5, tmp_path)).load_tokenizer()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="path: cannot read the model's config"):
        T5(path=str(empty)).load(60, torch.float32)
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere; check"):
        T5(path=str(tmp_path / "nowhere")).load(60, torch.float32)


def saved_config(family: type[Backbone], folder: Path) -> str:
    """A config.json."""
    file = folder / f"{family.__name__}.json"
    file.write_text(json.dumps(hf_config(family)), encoding="utf-8")
    return str(file)


# Choosing the attention function of a whole model.


class OldT5(T5.model_class):
    """T5 as in transformers below 5.20, where its stacks keep the function they were made with."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        self.config._attn_implementation_internal = attn_implementation


def test_a_library_that_leaves_layers_as_they_were_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = backbone(T5, tmp_path)
    monkeypatch.setattr(T5, "model_class", OldT5)
    with pytest.raises(ValueError, match="all layers of OldT5 use another attention function; ins"):
        source.load(60, torch.float32)
