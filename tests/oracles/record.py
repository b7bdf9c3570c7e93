"""Record what two other libraries compute, for tests/methods/test_own_methods.py, and what one of
them writes, for tests/convert/test_others.py.

Each needs an environment of its own (`adapters` wants an older transformers):

    pip install peft       && python tests/oracles/record.py peft
    pip install adapters   && python tests/oracles/record.py adapters
                              python tests/oracles/record.py adapter_folders
                              python tests/oracles/record.py load FOLDER ADAPTER_FOLDER

A file holds, under the library's own names, the weights of a tiny T5 with the method, all drawn
anew so that nothing is zero, and the logits. adapter_folders/ holds what `save_adapter` writes, and
beside it the backbones and the logits. `load` opens the adapter that `vlds convert adapters` has
written on the backbone of `vlds convert hf`, and prints its logits on fixed inputs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration

FOLDER = Path(__file__).parent
SIZES: dict[str, Any] = {
    "vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "dropout_rate": 0.0, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip


def backbone() -> Any:
    """A T5 with random weights."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**SIZES))


def record(name: str, model: Any) -> None:
    """Draw all weights, run the model, write everything."""
    generator = torch.Generator().manual_seed(1)
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        input_ids = torch.randint(2, 40, (3, 6), generator=generator)
        decoder_input_ids = torch.randint(2, 40, (3, 4), generator=generator)
        logits = model(input_ids=input_ids, decoder_input_ids=decoder_input_ids).logits
    kept = {f"weights/{key}": tensor.contiguous() for key, tensor in model.named_parameters()}
    kept |= {"input_ids": input_ids, "decoder_input_ids": decoder_input_ids, "logits": logits}
    save_file(kept, FOLDER / f"{name}.safetensors")
    print(name, len(kept), "tensors")


def record_peft() -> None:
    """LoRA and (IA)^3."""
    from peft import IA3Config, LoraConfig, get_peft_model

    lora = LoraConfig(r=4, lora_alpha=6, lora_dropout=0.0, target_modules=["q", "v"])
    record("peft_lora", get_peft_model(backbone(), lora))
    ia3 = IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    record("peft_ia3", get_peft_model(backbone(), ia3))


def record_adapters() -> None:
    """A bottleneck behind every sub-layer, and Compacter."""
    import adapters

    places = {"mh_adapter": True, "output_adapter": True, "cross_adapter": True}
    bottleneck = adapters.DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu_new", **places)
    shared = adapters.CompacterConfig(
        reduction_factor=4, non_linearity="gelu_new", phm_dim=2, cross_adapter=True
    )
    own = shared.replace(shared_phm_rule=False, factorized_phm_W=False)
    for name, config in {"adapter": bottleneck, "compacter": shared, "phm": own}.items():
        model = backbone()
        adapters.init(model)
        model.add_adapter("a", config=config)
        model.set_active_adapters("a")
        record(f"adapters_{name}", model)


def record_adapter_folders() -> None:
    """What the library saves for each kind of adapter, on both families."""
    import adapters
    from transformers import BartConfig, BartForConditionalGeneration

    bart = BartConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=32, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, dropout=0.0,
    )  # fmt: skip
    places = {"mh_adapter": True, "output_adapter": True, "cross_adapter": True}
    common = {"reduction_factor": 4, "non_linearity": "gelu_new"}
    shared = adapters.CompacterConfig(**common, phm_dim=2, cross_adapter=True)
    configs = {
        "bottleneck": adapters.DoubleSeqBnConfig(**common, **places),
        "norms": adapters.DoubleSeqBnConfig(**common, mh_adapter=True, output_adapter=True,
                                            ln_before=True, ln_after=True),
        "phm": shared.replace(shared_phm_rule=False, factorized_phm_W=False),
        "compacter": shared,
    }  # fmt: skip
    for family in ("t5", "bart"):
        model = backbone() if family == "t5" else BartForConditionalGeneration(bart)
        generator = torch.Generator().manual_seed(1)
        draw(model, generator)
        inputs = {
            "input_ids": torch.randint(3, 40, (3, 6), generator=generator),
            "decoder_input_ids": torch.randint(3, 40, (3, 4), generator=generator),
        }
        kept = {f"weights/{key}": t.detach().clone() for key, t in model.named_parameters()}
        kept |= inputs
        adapters.init(model)
        for name, config in configs.items():
            if family == "t5" and name == "compacter":
                continue  # the library does not save T5's shared rule
            model.add_adapter("theirs", config=config)
            draw(model, generator, "theirs")
            model.set_active_adapters("theirs")
            with torch.no_grad():
                kept[f"logits/{name}"] = model.eval()(**inputs).logits
            folder = FOLDER / "adapter_folders" / f"{family}_{name}"
            folder.parent.mkdir(exist_ok=True)
            model.save_adapter(str(folder), "theirs")
            for file in folder.glob("*head*"):
                file.unlink()
            model.delete_adapter("theirs")
        save_file(kept, FOLDER / "adapter_folders" / f"{family}.safetensors")
        print(family, len(kept), "tensors")


def draw(model: Any, generator: Any, part: str = "") -> None:
    """Draw all weights at random."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def load(folder: str, adapter: str) -> None:
    """Open a converted backbone and adapter; print the logits."""
    import adapters
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    adapters.init(model)
    name = model.load_adapter(adapter, set_active=True)
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "input_ids": torch.randint(3, 30, (3, 7), generator=generator),
        "decoder_input_ids": torch.randint(3, 30, (3, 4), generator=generator),
    }
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    print(name, logits.double().flatten().tolist())


if __name__ == "__main__":
    programs = {
        "peft": record_peft,
        "adapters": record_adapters,
        "adapter_folders": record_adapter_folders,
        "load": load,
    }
    programs[sys.argv[1]](*sys.argv[2:])
