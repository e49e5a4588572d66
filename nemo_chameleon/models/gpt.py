"""A megatron-core GPT from the configuration."""

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
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from nemo_chameleon.config.schema import ModelConfig, RunConfig
from nemo_chameleon.distributed.device import current_device, dtype_of
from nemo_chameleon.models.layers import layer_spec


def build_gpt(run: RunConfig, vocab_size: int, *, for_training: bool = True) -> torch.nn.Module:
    """This rank's part of the model, on its device; call within `model_parallel`.

    Args:
        run: model, layout and precision.
        vocab_size: of the tokenizer; padded as the configuration says.
        for_training: wrap in Megatron's data parallelism, which holds gradient buffers.
    """
    config = transformer_config(run)
    model: torch.nn.Module = GPTModel(
        config,
        layer_spec(config),
        vocab_size=padded_vocab_size(vocab_size, run),
        max_sequence_length=run.model.seq_length,
        position_embedding_type=run.model.position_embedding_type,
        rotary_base=run.model.rotary_base,
        share_embeddings_and_output_weights=run.model.share_embeddings_and_output_weights,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    ).to(current_device())
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


def model_of_identity(identity: Mapping[str, Any]) -> ModelConfig | None:
    """The model that a checkpoint's state.json says it is of, if it does."""
    names = {item.name for item in fields(ModelConfig)} - {"use_cpu_initialization"}
    shape = {key.removeprefix("model."): value for key, value in identity.items()}
    if names - shape.keys():
        return None
    return ModelConfig(**{name: shape[name] for name in names})


def weights_shape(model: ModelConfig) -> dict[str, Any]:
    """All that two models with the same weights have in common, spelt out."""
    free = {"init_method_std", "use_cpu_initialization", "make_vocab_size_divisible_by"}
    if model.position_embedding_type == "rope":
        free.add("seq_length")
    given = {key: value for key, value in asdict(model).items() if key not in free}
    given["num_query_groups"] = model.query_groups
    given["ffn_hidden_size"] = model.ffn_width
    return given


def unwrap(model: Any) -> Any:
    """The GPT inside data parallel and precision wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model


def padded_vocab_size(vocab_size: int, run: RunConfig) -> int:
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
    key_value = 2 * model.hidden_size * model.query_groups // model.num_attention_heads
    attention = model.hidden_size * (2 * model.hidden_size + key_value)
    mlp = model.hidden_size * model.ffn_width * (3 if model.gated_linear_unit else 2)
    tables = 1 if model.share_embeddings_and_output_weights else 2
    positions = model.seq_length if model.position_embedding_type == "learned_absolute" else 0
    return model.num_layers * (attention + mlp) + model.hidden_size * (
        tables * vocab_size + positions
    )


def transformer_config(run: RunConfig) -> TransformerConfig:
    """megatron-core's own configuration of the model."""
    return TransformerConfig(**transformer_settings(run))


def transformer_settings(run: RunConfig) -> dict[str, Any]:
    """What `TransformerConfig`, and what hosts derive from it, are made of."""
    model, layout = run.model, run.parallel
    dtype = dtype_of(run.train.precision)
    cuda = torch.cuda.is_available()
    activation = F.silu if model.gated_linear_unit else F.gelu
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_width,
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


def host_settings(run: RunConfig, vocab_size: int) -> dict[str, Any]:
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
        "transformer_layer_spec": layer_spec,
        "gradient_accumulation_fusion": False,
        "cross_entropy_loss_fusion": False,
    }
