"""Convert the weights of a GPT-2 from Hugging Face's names to megatron-core's."""

from typing import Any

import torch

PARTS = ("weight", "bias")


def megatron_state(lm: Any) -> dict[str, torch.Tensor]:
    """Return a GPT2LMHeadModel's weights as the state of a megatron-core GPT.

    The GPT has local layers and learned position embeddings.
    """
    gpt2, heads = lm.transformer, lm.config.n_head
    state = {
        "embedding.word_embeddings.weight": gpt2.wte.weight,
        "embedding.position_embeddings.weight": gpt2.wpe.weight,
    }
    for part in PARTS:
        state[f"decoder.final_layernorm.{part}"] = getattr(gpt2.ln_f, part)
        for number, block in enumerate(gpt2.h):
            layer = f"decoder.layers.{number}."
            state[f"{layer}input_layernorm.{part}"] = getattr(block.ln_1, part)
            state[f"{layer}pre_mlp_layernorm.{part}"] = getattr(block.ln_2, part)
            for name, linear in (
                ("self_attention.linear_qkv", block.attn.c_attn),
                ("self_attention.linear_proj", block.attn.c_proj),
                ("mlp.linear_fc1", block.mlp.c_fc),
                ("mlp.linear_fc2", block.mlp.c_proj),
            ):
                value = linear.weight.t() if part == "weight" else linear.bias
                if name.endswith("qkv"):  # Megatron orders query, key and value by head
                    by_head = value.reshape(3, heads, -1, *value.shape[1:]).transpose(0, 1)
                    value = by_head.reshape(value.shape)
                state[f"{layer}{name}.{part}"] = value
    return {name: value.detach().contiguous() for name, value in state.items()}
