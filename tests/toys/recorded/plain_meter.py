"""METER's model and its losses in plain torch, by the names of the original code, as an independent
reference; and cases of its tasks in the form of the recorded ones.

Written from the paper (https://arxiv.org/abs/2111.02387) and the notes on the recorded cases. All
in float64, without dropout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

Weights = Mapping[str, Tensor]
TEXT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 20, "type_vocab_size": 1,
    "layer_norm_eps": 1e-5, "pad_token_id": 1, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
VISION = {"width": 64, "heads": 1, "blocks_used": 1, "patch": 4, "layer_norm_eps": 1e-5}
WIDTH, HEADS, LAYERS, SIDE = 16, 2, 2, 8


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, seen: Tensor | None) -> Tensor:
    """(b, s, d) each; `seen`: (b, keys) 1 for keys that count."""
    parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    scores = parts[0] @ parts[1].mT / parts[0].shape[-1] ** 0.5
    if seen is not None:
        scores = scores + (1 - seen[:, None, None].double()) * -10000.0
    return (scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2)


def bert_attention(
    w: Weights, name: str, x: Tensor, y: Tensor, heads: int, seen: Tensor, eps: float
) -> Tensor:
    """Queries from x, keys and values from y; with output layer, sum and norm."""
    q = linear(w, f"{name}.self.query", x)
    k, v = (linear(w, f"{name}.self.{part}", y) for part in ("key", "value"))
    out = linear(w, f"{name}.output.dense", attended(q, k, v, heads, seen))
    return norm(w, f"{name}.output.LayerNorm", out + x, eps)


def bert_block(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    inner = F.gelu(linear(w, f"{name}.intermediate.dense", x))
    return norm(w, f"{name}.output.LayerNorm", linear(w, f"{name}.output.dense", inner) + x, eps)


def text_states(w: Weights, ids: Tensor, mask: Tensor) -> Tensor:
    """RoBERTa's."""
    name, eps, pad = "text_transformer", TEXT["layer_norm_eps"], TEXT["pad_token_id"]
    real = (ids != pad).long()
    places = real.cumsum(1) * real + pad
    table = f"{name}.embeddings"
    x = w[f"{table}.word_embeddings.weight"][ids]
    x = x + w[f"{table}.position_embeddings.weight"][places]
    x = norm(w, f"{table}.LayerNorm", x + w[f"{table}.token_type_embeddings.weight"][0], eps)
    for layer in range(TEXT["num_hidden_layers"]):
        block = f"{name}.encoder.layer.{layer}"
        heads = TEXT["num_attention_heads"]
        x = bert_attention(w, f"{block}.attention", x, x, heads, mask, eps)
        x = bert_block(w, block, x, eps)
    return x


def image_states(w: Weights, pixels: Tensor) -> Tensor:
    """CLIP's, all tokens, after its last norm."""
    name, eps, width = "vit_model.visual", VISION["layer_norm_eps"], int(VISION["width"])
    patches = F.conv2d(pixels, w[f"{name}.conv1.weight"], stride=int(VISION["patch"]))
    first = w[f"{name}.class_embedding"].expand(len(pixels), 1, width)
    x = torch.cat([first, patches.flatten(2).mT], 1) + w[f"{name}.positional_embedding"]
    x = norm(w, f"{name}.ln_pre", x, eps)
    for layer in range(int(VISION["blocks_used"])):
        block = f"{name}.transformer.resblocks.{layer}"
        weight, bias = w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"]
        q, k, v = (norm(w, f"{block}.ln_1", x, eps) @ weight.T + bias).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.out_proj", attended(q, k, v, int(VISION["heads"]), None))
        inner = linear(w, f"{block}.mlp.c_fc", norm(w, f"{block}.ln_2", x, eps))
        x = x + linear(w, f"{block}.mlp.c_proj", inner * (1.702 * inner).sigmoid())
    return norm(w, f"{name}.ln_post", x, eps)


def pair(w: Weights, ids: Tensor, mask: Tensor, pixels: Tensor, image_type: int = 1) -> Tensor:
    """(b, 2 d) the pooled pair of each text and picture."""
    return streams(w, text_states(w, ids, mask), mask, image_states(w, pixels), image_type)[2]


def streams(
    w: Weights, text: Tensor, mask: Tensor, image: Tensor, image_type: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Co-attention's states of both sides, and their pooled pair."""
    types = w["token_type_embeddings.weight"]
    x = linear(w, "cross_modal_text_transform", text) + types[0]
    y = linear(w, "cross_modal_image_transform", image) + types[image_type]
    seen = torch.ones(y.shape[:2])
    for layer in range(LAYERS):
        sides = []
        for side, own, other, masks in (
            ("text", x, y, (mask, seen)), ("image", y, x, (seen, mask)),
        ):  # fmt: skip
            name = f"cross_modal_{side}_layers.{layer}"
            z = bert_attention(w, f"{name}.attention", own, own, HEADS, masks[0], 1e-12)
            z = bert_attention(w, f"{name}.crossattention", z, other, HEADS, masks[1], 1e-12)
            sides.append(bert_block(w, name, z, 1e-12))
        x, y = sides
    pooled = [
        linear(w, f"cross_modal_{side}_pooler.dense", states[:, 0]).tanh()
        for side, states in (("text", x), ("image", y))
    ]
    return x, y, torch.cat(pooled, -1)


def classifier(w: Weights, name: str, states: Tensor) -> Tensor:
    """Linear, norm, GELU, linear."""
    hidden = norm(w, f"{name}.1", linear(w, f"{name}.0", states), 1e-5)
    return linear(w, f"{name}.3", F.gelu(hidden))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = logits.gather(1, labels[:, None])[:, 0]
    return (logits.exp().sum(1).log() - chosen).mean()


def nlvr2_loss(w: Weights, inputs: Mapping[str, Tensor]) -> Tensor:
    """The sentence with the first picture, and with the second, of another type."""
    text = inputs["text_ids"], inputs["text_masks"]
    both = [pair(w, *text, inputs[f"image_{n}"], 1 + n) for n in range(2)]
    logits = classifier(w, "nlvr2_classifier", torch.cat(both, -1))
    return cross_entropy(logits, inputs["out/nlvr2_labels"])


def snli_loss(w: Weights, inputs: Mapping[str, Tensor]) -> Tensor:
    """The hypothesis with the picture."""
    states = pair(w, inputs["text_ids"], inputs["text_masks"], inputs["image_0"])
    return cross_entropy(classifier(w, "snli_classifier", states), inputs["out/snli_labels"])


def irtr_loss(w: Weights, inputs: Mapping[str, Tensor]) -> Tensor:
    """Each picture with its text and with false ones: the first shall have the best score."""
    texts = [(inputs["text_ids"], inputs["text_masks"])]
    while f"false_text_{len(texts) - 1}_ids" in inputs:
        name = f"false_text_{len(texts) - 1}"
        texts.append((inputs[f"{name}_ids"], inputs[f"{name}_masks"]))
    scores = [linear(w, "rank_output", pair(w, *text, inputs["image_0"]))[:, 0] for text in texts]
    return cross_entropy(torch.stack(scores, 1), torch.zeros(len(scores[0]), dtype=torch.long))


LOSSES: dict[str, Callable[[Weights, Mapping[str, Tensor]], Tensor]] = {
    "nlvr2_loss": nlvr2_loss,
    "snli_loss": snli_loss,
    "irtr_loss": irtr_loss,
}


def drawn_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random weights that float32 holds exactly; norms around 1."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(shape, generator=draw)
        + float("norm" in name.lower() and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def shapes(heads: Mapping[str, tuple[int, ...]], num_types: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights; `heads`: those of heads."""
    d, text, width = WIDTH, TEXT["hidden_size"], int(VISION["width"])
    found: dict[str, tuple[int, ...]] = {}

    def add_linear(name: str, rows: int, columns: int) -> None:
        found.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def add_norm(name: str, size: int) -> None:
        found.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def add_bert(name: str, size: int, inner: int, *attentions: str) -> None:
        for attention in attentions:
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                add_linear(f"{name}.{attention}.{part}", size, size)
            add_norm(f"{name}.{attention}.output.LayerNorm", size)
        add_linear(f"{name}.intermediate.dense", inner, size)
        add_linear(f"{name}.output.dense", size, inner)
        add_norm(f"{name}.output.LayerNorm", size)

    table = "text_transformer.embeddings"
    found[f"{table}.word_embeddings.weight"] = (TEXT["vocab_size"], text)
    found[f"{table}.position_embeddings.weight"] = (TEXT["max_position_embeddings"], text)
    found[f"{table}.token_type_embeddings.weight"] = (1, text)
    add_norm(f"{table}.LayerNorm", text)
    add_bert("text_transformer.encoder.layer.0", text, TEXT["intermediate_size"], "attention")
    name = "vit_model.visual"
    found[f"{name}.class_embedding"] = (width,)
    found[f"{name}.positional_embedding"] = (1 + (SIDE // int(VISION["patch"])) ** 2, width)
    found[f"{name}.conv1.weight"] = (width, 3, int(VISION["patch"]), int(VISION["patch"]))
    add_norm(f"{name}.ln_pre", width)
    add_norm(f"{name}.ln_post", width)
    block = f"{name}.transformer.resblocks.0"
    found[f"{block}.attn.in_proj_weight"] = (3 * width, width)
    found[f"{block}.attn.in_proj_bias"] = (3 * width,)
    add_linear(f"{block}.attn.out_proj", width, width)
    add_linear(f"{block}.mlp.c_fc", 4 * width, width)
    add_linear(f"{block}.mlp.c_proj", width, 4 * width)
    add_norm(f"{block}.ln_1", width)
    add_norm(f"{block}.ln_2", width)
    add_linear("cross_modal_text_transform", d, text)
    add_linear("cross_modal_image_transform", d, width)
    found["token_type_embeddings.weight"] = (num_types, d)
    for side in ("text", "image"):
        add_linear(f"cross_modal_{side}_pooler.dense", d, d)
        for layer in range(LAYERS):
            stream = f"cross_modal_{side}_layers.{layer}"
            add_bert(stream, d, 4 * d, "attention", "crossattention")
    return found | heads


def mlp_shapes(name: str, rows: int, columns: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Of a classifier."""
    weights = {"0.weight": (rows, columns), "1.weight": (rows,), "3.weight": (classes, rows)}
    biases = {"0.bias": (rows,), "1.bias": (rows,), "3.bias": (classes,)}
    return {f"{name}.{leaf}": shape for leaf, shape in (weights | biases).items()}


def texts(seed: int, rows: int = 4, length: int = 8) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, of unlike lengths."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, TEXT["vocab_size"], (rows, length), generator=draw)
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None] % 3).long()
    return ids.where(mask == 1, TEXT["pad_token_id"]), mask


def write_case(folder: Path, loss: str) -> Path:
    """A case of one of LOSSES in the form of the recorded ones: the loss and its gradients."""
    heads = {
        "nlvr2_loss": mlp_shapes("nlvr2_classifier", 2 * WIDTH, 4 * WIDTH, 2),
        "snli_loss": mlp_shapes("snli_classifier", 2 * WIDTH, 2 * WIDTH, 3),
        "irtr_loss": {
            "rank_output.weight": (1, 2 * WIDTH), "rank_output.bias": (1,),
            "itm_score.fc.weight": (2, 2 * WIDTH), "itm_score.fc.bias": (2,),
        },
    }[loss]  # fmt: skip
    stored = drawn_weights(shapes(heads, 3 if loss == "nlvr2_loss" else 2))
    draw = torch.Generator().manual_seed(1)
    inputs = dict(zip(("text_ids", "text_masks"), texts(2), strict=True))
    inputs |= {f"image_{n}": torch.randn(4, 3, SIDE, SIDE, generator=draw) for n in range(2)}
    if loss == "irtr_loss":
        for number in range(2):
            ids, mask = texts(3 + number)
            inputs |= {f"false_text_{number}_ids": ids, f"false_text_{number}_masks": mask}
    else:
        labels = [1, 0, 0, 1] if loss == "nlvr2_loss" else [2, 0, 1, 2]
        inputs[f"out/{loss.removesuffix('_loss')}_labels"] = torch.tensor(labels)
    exact = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    weights = {name: tensor.double().requires_grad_() for name, tensor in stored.items()}
    config = {
        "vocab_size": TEXT["vocab_size"], "hidden_size": WIDTH, "num_heads": HEADS,
        "num_top_layer": LAYERS, "image_size": SIDE,
    }  # fmt: skip
    record = {
        "kind": "meter_model", "config": config, "text_encoder": TEXT, "vision": VISION,
        **differentiated(weights, LOSSES[loss](weights, exact), loss),
    }  # fmt: skip
    path = folder / f"{loss}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    tensors = {f"weights/{name}": tensor for name, tensor in stored.items()} | inputs
    save_file(tensors, path.with_suffix(".safetensors"))
    return path


def differentiated(weights: Weights, loss: Tensor, name: str) -> dict[str, Any]:
    """Loss and gradients as records have them."""
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    pairs = zip(weights, found, strict=True)
    grads = {n: None if g is None else sums(g, "grad_norm", "grad_dot_cos") for n, g in pairs}
    return {"losses": {name: loss.item()}, "grads": grads}


def sums(values: Tensor, norm_name: str, dot_name: str) -> dict[str, float]:
    """The norm of some numbers, and their product with cosines."""
    cosine = torch.arange(values.numel(), dtype=torch.float64).cos()
    return {norm_name: values.norm().item(), dot_name: (values.flatten() * cosine).sum().item()}
