"""The layers of a GPT, with the best kernels that are installed.

They are Transformer Engine's layers if it can be imported. Otherwise they are megatron-core's own
layers with PyTorch's attention kernels, and with the fused layer norm of NVIDIA's apex if that is
installed.
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
    """Megatron's core attention on PyTorch's fused causal kernels, without a mask in memory.

    Each packed sequence goes through the kernel alone, so no sequence sees another.
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
        """Attend to earlier tokens of the same sequence.

        Args:
            query: (s, b, heads, width) queries; (s, heads, width) with `packed_seq_params`.
            key: keys in the shape of `query`, with query groups in place of heads.
            value: values in the shape of `key`.
            packed_seq_params: where sequences that follow each other in `s` begin and end.

        Returns:
            (s, b, heads · width) outputs; b is 1 with `packed_seq_params`.
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
    """LayerNorm or RMSNorm with sequence parallelism, which Megatron's plain norms refuse."""

    def __new__(
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> "TorchNorm":
        """Make a torch.nn norm with the mark that sequence parallelism needs.

        Args:
            config: megatron-core's configuration of the model.
            hidden_size: width of the layer.
            eps: added to the variance.

        Returns:
            A torch.nn.LayerNorm or torch.nn.RMSNorm. Under sequence parallelism, Megatron sums its
            gradients over the tensor parallel ranks.
        """
        kind = torch.nn.LayerNorm if config.normalization == "LayerNorm" else torch.nn.RMSNorm
        norm: Any = kind(hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return cast(TorchNorm, norm)


def layer_spec(config: TransformerConfig, **stage: int) -> Any:
    """Return the spec of the layers, with the best kernels that are installed.

    Args:
        config: megatron-core's configuration of the model.
        **stage: the pipeline stage, in the arguments of `get_num_layers_to_build`.

    Returns:
        A layer spec, or the submodules of a transformer block.
    """
    if torch.cuda.is_available() and HAVE_TE:
        return get_gpt_layer_with_transformer_engine_spec()
    if torch.cuda.is_available() and HAVE_FUSED_LAYER_NORM and config.normalization == "LayerNorm":
        return _local_layer(config)
    return torch_layer_spec(config, **stage)


def torch_layer_spec(config: TransformerConfig, **stage: int) -> TransformerBlockSubmodules:
    """Return the spec of layers that need no kernels but PyTorch's, on any device.

    Args:
        config: megatron-core's configuration of the model.
        **stage: the pipeline stage, in the arguments of `get_num_layers_to_build`.

    Returns:
        The submodules of a transformer block.
    """
    layer = _local_layer(config)
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = TorchNorm
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, **stage), layer_norm=TorchNorm
    )


def _local_layer(config: TransformerConfig) -> Any:
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    layer.submodules.self_attention.submodules.core_attention = TorchAttention
    return layer
