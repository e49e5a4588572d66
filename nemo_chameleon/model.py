"""A megatron-core GPT from the configuration, with what is installed.

Transformer Engine's layers where it can be imported. Elsewhere megatron-core's own layers with
PyTorch's attention kernels, and with apex's fused layer norm where NVIDIA's apex is there.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.fusions.fused_layer_norm import HAVE_FUSED_LAYER_NORM
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    HAVE_TE,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)

from nemo_chameleon import parallel
from nemo_chameleon.schema import ModelConfig, Run


def build(run: Run, vocab_size: int, *, for_training: bool = True) -> torch.nn.Module:
    """This rank's part of the model, on its device; call within `parallel.layout`.

    Args:
        run: model, layout and precision.
        vocab_size: of the tokenizer; padded as the configuration says.
        for_training: wrap in Megatron's data parallelism, which holds gradient buffers.
    """
    config = transformer_config(run)
    model: torch.nn.Module = GPTModel(
        config,
        layers(config),
        vocab_size=padded_vocab_size(vocab_size, run),
        max_sequence_length=run.model.seq_length,
        position_embedding_type=run.model.position_embedding_type,
        rotary_base=run.model.rotary_base,
        share_embeddings_and_output_weights=run.model.share_embeddings_and_output_weights,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    ).to(parallel.device())
    if config.bf16:
        model = Float16Module(config, model)
    if not for_training:
        return model.eval()
    # The loss is the mean over a batch's tokens, however they lie over micro-batches and ranks.
    config.calculate_per_token_loss = True
    data_parallel = DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.bf16,
        overlap_grad_reduce=torch.cuda.is_available(),
        use_distributed_optimizer=run.optimizer.use_distributed_optimizer,
    )
    model = DistributedDataParallel(config, data_parallel, model)
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = model.no_sync
    return model


def of_identity(identity: Mapping[str, Any]) -> ModelConfig | None:
    """The model that a checkpoint's state.json says it is of, if it does."""
    names = {item.name for item in fields(ModelConfig)} - {"use_cpu_initialization"}
    shape = {key.removeprefix("model."): value for key, value in identity.items()}
    if names - shape.keys():
        return None
    return ModelConfig(**{name: shape[name] for name in names})


def shape(model: ModelConfig) -> dict[str, Any]:
    """All that two models with the same weights have in common, spelt out."""
    free = {"init_method_std", "use_cpu_initialization", "make_vocab_size_divisible_by"}
    if model.position_embedding_type == "rope":
        free.add("seq_length")
    given = {key: value for key, value in asdict(model).items() if key not in free}
    given["num_query_groups"] = model.num_query_groups or model.num_attention_heads
    given["ffn_hidden_size"] = model.ffn_hidden_size or 4 * model.hidden_size
    return given


def unwrap(model: Any) -> Any:
    """The GPT inside data parallel and precision wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model


def padded_vocab_size(vocab_size: int, run: Run) -> int:
    """Rounded up so that it divides over the tensor parallel ranks.

    Unlike Megatron-LM's rule the result is the same for every usual tensor parallel size, so the
    same seed gives the same model at any of them.
    """
    multiple = math.lcm(
        run.model.make_vocab_size_divisible_by, run.parallel.tensor_model_parallel_size
    )
    return -(-vocab_size // multiple) * multiple


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    """Weights of the whole model; norms, biases and the vocabulary's padding left out."""
    ffn = model.ffn_hidden_size or 4 * model.hidden_size
    groups = model.num_query_groups or model.num_attention_heads
    key_value = 2 * model.hidden_size * groups // model.num_attention_heads
    attention = model.hidden_size * (2 * model.hidden_size + key_value)
    mlp = model.hidden_size * ffn * (3 if model.gated_linear_unit else 2)
    tables = 1 if model.share_embeddings_and_output_weights else 2
    positions = model.seq_length if model.position_embedding_type == "learned_absolute" else 0
    return model.num_layers * (attention + mlp) + model.hidden_size * (
        tables * vocab_size + positions
    )


def transformer_config(run: Run) -> TransformerConfig:
    """megatron-core's own configuration of the model."""
    return TransformerConfig(**transformer_settings(run))


def transformer_settings(run: Run) -> dict[str, Any]:
    """What `TransformerConfig`, and what hosts derive from it, are made of."""
    model, layout = run.model, run.parallel
    dtype = parallel.precision(run.train.precision)
    cuda = torch.cuda.is_available()
    activation = F.silu if model.gated_linear_unit else F.gelu
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_hidden_size or 4 * model.hidden_size,
        "normalization": model.normalization,
        "gated_linear_unit": model.gated_linear_unit,
        "activation_func": activation,
        "add_bias_linear": model.add_bias_linear,
        "init_method_std": model.init_method_std,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        "sequence_parallel": layout.sequence_parallel,
        "use_cpu_initialization": model.use_cpu_initialization or not cuda,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bias_activation_fusion": cuda and (model.gated_linear_unit or model.add_bias_linear),
        "bias_dropout_fusion": cuda,
        "masked_softmax_fusion": False,
    }


def host_settings(run: Run, vocab_size: int) -> dict[str, Any]:
    """What a host's configuration of a GPT, a `TransformerConfig` and more, is made of."""
    model = run.model
    return {
        **transformer_settings(run),
        "seq_length": model.seq_length,
        "position_embedding_type": model.position_embedding_type,
        "rotary_base": model.rotary_base,
        "share_embeddings_and_output_weights": model.share_embeddings_and_output_weights,
        # Padded here, so that it is this package's rule that holds.
        "vocab_size": padded_vocab_size(vocab_size, run),
        "make_vocab_size_divisible_by": 1,
        "transformer_layer_spec": layers,
        "gradient_accumulation_fusion": False,
        "cross_entropy_loss_fusion": False,
    }


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
            parts = zip(*(t.split(lengths) for t in (query, key, value)), strict=True)
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
        return norm


def layers(config: TransformerConfig, **stage: int) -> Any:
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
