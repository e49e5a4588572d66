"""The layers of a GPT, of the best kernels that are installed.

Transformer Engine's layers where it can be imported; elsewhere megatron-core's own layers with
PyTorch's attention kernels, and with the fused layer norm of NVIDIA's apex where that is there.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.fusions.fused_layer_norm import HAVE_FUSED_LAYER_NORM
from megatron.core.models.gpt.gpt_layer_specs import (
    HAVE_TE,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)


class TorchAttention(MegatronModule):
    """Megatron's core attention on PyTorch's fused causal kernels; no mask is made.

    Of packed sequences each goes through the kernel on its own, and cannot see another.
    """

    def __init__(
        self, config: TransformerConfig, *_: Any, softmax_scale: float | None = None, **__: Any
    ) -> None:
        super().__init__(config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        packed_seq_params: PackedSeqParams | None = None,
        **__: Any,
    ) -> torch.Tensor:
        """(s, b, heads, width) queries, and keys and values with as many groups or fewer.

        With `packed_seq_params` they are (s, heads, width), of sequences one after another.
        """
        if packed_seq_params is not None:
            lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
            split = [torch.split(t, lengths) for t in (query, key, value)]
            parts = zip(*split, strict=True)
            return torch.cat([self._attend(*(t[:, None] for t in part)) for part in parts])
        return self._attend(query, key, value)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        s, b, heads, width = query.shape
        q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=key.shape[2] != heads
        )
        return out.permute(2, 0, 1, 3).reshape(s, b, heads * width)


class TorchNorm:
    """LayerNorm or RMSNorm that knows sequence parallelism, which Megatron's plain ones refuse."""

    def __new__(
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> "TorchNorm":
        """A torch.nn norm; under sequence parallelism its gradients are summed over the ranks."""
        kind = torch.nn.LayerNorm if config.normalization == "LayerNorm" else torch.nn.RMSNorm
        norm: Any = kind(hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return cast(TorchNorm, norm)


def layer_spec(config: TransformerConfig, **stage: int) -> Any:
    """The spec of the layers, of the best kernels that are there."""
    if torch.cuda.is_available() and HAVE_TE:
        return get_gpt_layer_with_transformer_engine_spec()
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    parts = layer.submodules
    parts.self_attention.submodules.core_attention = TorchAttention
    if torch.cuda.is_available() and HAVE_FUSED_LAYER_NORM and config.normalization == "LayerNorm":
        return layer
    parts.input_layernorm = parts.pre_mlp_layernorm = TorchNorm
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, **stage), layer_norm=TorchNorm
    )
