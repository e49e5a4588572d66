"""Llama's architecture, as transformers describes and stores it, in megatron-core's terms.

Mistral's models and many others have this architecture too: RMSNorm, SwiGLU, rotary positions and
grouped heads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from nemo_chameleon.config.schema import ModelConfig
from nemo_chameleon.utils.errors import UserError

_TYPES = ("llama", "mistral")


def model_of_llama(settings: Any, folder: Path) -> ModelConfig:
    """Return the model configuration that a Hugging Face configuration describes.

    Args:
        settings: the configuration, as transformers gives it.
        folder: the model's folder; errors name it.

    Returns:
        The model configuration.

    Raises:
        UserError: this package's models cannot represent the model; the error names the entry of
            the configuration.
    """

    def refuse(entry: str, value: Any, instead: str) -> NoReturn:
        raise UserError(
            f"{folder}/config.json has {entry}={value}, but {instead}. Set proxy.hf={folder} to "
            "embed with the model as it is, or convert it with AutoBridge of Megatron-Bridge"
        )

    if settings.model_type not in _TYPES:
        refuse("model_type", settings.model_type, f"import-hf converts {' and '.join(_TYPES)} only")
    if getattr(settings, "quantization_config", None) is not None:
        refuse("quantization_config", "...", "import-hf converts weights that are not quantised")
    if settings.hidden_act != "silu":
        refuse("hidden_act", settings.hidden_act, "a gated model of this package has silu")
    attention_bias = bool(getattr(settings, "attention_bias", False))
    if attention_bias != bool(getattr(settings, "mlp_bias", False)):
        entry = "attention_bias" if attention_bias else "mlp_bias"
        refuse(
            entry,
            True,
            "models of this package have biases in both the attention and the MLP, or in neither",
        )
    longest, window = settings.max_position_embeddings, getattr(settings, "sliding_window", None)
    if window is not None and window < longest:
        refuse(
            "sliding_window",
            window,
            "models of this package attend to all earlier tokens; if no sample is longer, "
            f"lower max_position_embeddings from {longest} to {window} in that file",
        )
    return ModelConfig(
        num_layers=settings.num_hidden_layers,
        hidden_size=settings.hidden_size,
        num_attention_heads=settings.num_attention_heads,
        num_query_groups=settings.num_key_value_heads,
        kv_channels=_head_width(settings),
        ffn_hidden_size=settings.intermediate_size,
        seq_length=longest,
        position_embedding_type="rope",
        rotary_base=_rotary_base(settings, refuse),
        normalization="RMSNorm",
        norm_epsilon=settings.rms_norm_eps,
        gated_linear_unit=True,
        add_bias_linear=attention_bias,
        share_embeddings_and_output_weights=settings.tie_word_embeddings,
        init_method_std=settings.initializer_range,
    )


def _head_width(settings: Any) -> int | None:
    """Return the width of a head, or None if it follows from the hidden size and the heads."""
    width: int | None = getattr(settings, "head_dim", None)
    usual, rest = divmod(settings.hidden_size, settings.num_attention_heads)
    return None if rest == 0 and width in (None, usual) else width


def _rotary_base(settings: Any, refuse: Any) -> int:
    """Return the base of the rotary positions; refuse positions that are scaled."""
    entry = "rope_parameters"
    rope = getattr(settings, entry, None)
    if rope is None:  # transformers before version 5
        entry = "rope_scaling"
        scaling = getattr(settings, entry, None) or {}
        rope = {**scaling, "rope_theta": settings.rope_theta}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        refuse(f"{entry}.rope_type", kind, "models of this package do not scale rotary positions")
    share = rope.get("partial_rotary_factor", getattr(settings, "partial_rotary_factor", None))
    if share not in (None, 1):
        refuse("partial_rotary_factor", share, "rotary positions of this package cover whole heads")
    base = rope["rope_theta"]
    if base != int(base):
        refuse(f"{entry}.rope_theta", base, "model.rotary_base must be an integer")
    return int(base)


def llama_to_megatron(
    weights: dict[str, torch.Tensor], model: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Convert the weights of a Llama to those of a megatron-core GPT with local layers.

    Args:
        weights: the weights by transformers' names. Each is removed when it is converted, so that
            there are never two copies of the whole model.
        model: the model configuration.

    Yields:
        The weights by megatron-core's names, in their own type.
    """
    parts = ("weight", "bias") if model.add_bias_linear else ("weight",)
    yield "embedding.word_embeddings.weight", weights.pop("model.embed_tokens.weight")
    for number in range(model.num_layers):
        theirs, ours = f"model.layers.{number}.", f"decoder.layers.{number}."
        for name, norm in (
            ("input_layernorm", "input_layernorm"),
            ("post_attention_layernorm", "pre_mlp_layernorm"),
        ):
            yield f"{ours}{norm}.weight", weights.pop(f"{theirs}{name}.weight")
        for part in parts:
            q, k, v = (weights.pop(f"{theirs}self_attn.{x}_proj.{part}") for x in "qkv")
            # Megatron stores the heads of each group together: its queries, its key, its value.
            by_group = [x.reshape(model.query_groups, -1, *x.shape[1:]) for x in (q, k, v)]
            yield f"{ours}self_attention.linear_qkv.{part}", torch.cat(by_group, 1).flatten(0, 1)
            gate_and_up = [weights.pop(f"{theirs}mlp.{x}_proj.{part}") for x in ("gate", "up")]
            yield f"{ours}mlp.linear_fc1.{part}", torch.cat(gate_and_up)
            for name, linear in (
                ("self_attn.o_proj", "self_attention.linear_proj"),
                ("mlp.down_proj", "mlp.linear_fc2"),
            ):
                yield f"{ours}{linear}.{part}", weights.pop(f"{theirs}{name}.{part}")
    yield "decoder.final_layernorm.weight", weights.pop("model.norm.weight")
    if not model.share_embeddings_and_output_weights:
        yield "output_layer.weight", weights.pop("lm_head.weight")
