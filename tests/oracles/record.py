"""Record what two other libraries compute, for tests/methods/test_oracles.py.

Each needs an environment of its own (`adapters` wants an older transformers):

    pip install peft       && python tests/oracles/record.py peft
    pip install adapters   && python tests/oracles/record.py adapters

A file holds, under the library's own names, the weights of a tiny T5 with the method, all drawn
anew so that nothing is zero, and the logits.
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


if __name__ == "__main__":
    {"peft": record_peft, "adapters": record_adapters}[sys.argv[1]]()
