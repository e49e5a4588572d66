"""Builds a megatron-core GPT from the configuration.

The module also has the sizes that follow from a model's configuration, and the settings that hosts
build the same GPT from.
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
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from nemo_chameleon.config.schema import ModelConfig, RunConfig
from nemo_chameleon.distributed.device import current_device, dtype_of
from nemo_chameleon.models.layers import layer_spec

_ADDED_LATER = ("kv_channels", "norm_epsilon")
"""Settings of a model that earlier versions did not have and did not record."""


def build_gpt(run: RunConfig, vocab_size: int, *, for_training: bool = True) -> torch.nn.Module:
    """Build this rank's part of the model on its device, within `model_parallel`.

    Args:
        run: the model, the layout and the precision.
        vocab_size: number of tokens of the tokenizer; the configuration says how it is padded.
        for_training: whether to wrap the model in Megatron's data parallelism, which allocates
            gradient buffers.

    Returns:
        The model with its wrappers.
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
    # The loss is the mean over a batch's tokens, however micro-batches and ranks divide them.
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


def model_record(model: ModelConfig) -> dict[str, Any]:
    """Return a model's settings as files record them and as digests of a model are made from.

    Settings that earlier versions did not have are left out at their defaults. The records and
    the digests of earlier versions therefore stay valid.

    Args:
        model: the model configuration.

    Returns:
        Settings by name; `ModelConfig(**settings)` is the model again.
    """
    default = ModelConfig()
    return {
        name: value
        for name, value in asdict(model).items()
        if name not in _ADDED_LATER or value != getattr(default, name)
    }


def completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity of a run with the settings of its model that `model_record` leaves out.

    Args:
        identity: facts about a run by key, those of its model with the prefix "model.".

    Returns:
        The identity, with all settings of the model.
    """
    default = ModelConfig()
    return {**{f"model.{name}": getattr(default, name) for name in _ADDED_LATER}, **identity}


def model_of_identity(identity: Mapping[str, Any]) -> ModelConfig | None:
    """Return the model configuration that a checkpoint's state.json records.

    Args:
        identity: the identity in state.json.

    Returns:
        The model configuration, or None if the identity lacks some of it.
    """
    names = {item.name for item in fields(ModelConfig)} - {"use_cpu_initialization"}
    shape = {key.removeprefix("model."): value for key, value in completed(identity).items()}
    if names - shape.keys():
        return None
    return ModelConfig(**{name: shape[name] for name in names})


def weights_shape(model: ModelConfig) -> dict[str, Any]:
    """Return the settings that two models must have in common to have the same weights.

    Args:
        model: the model configuration.

    Returns:
        Settings by name; those that default to a multiple of others have their values.
    """
    free = {"init_method_std", "use_cpu_initialization", "make_vocab_size_divisible_by"}
    if model.position_embedding_type == "rope":
        free.add("seq_length")
    given = {key: value for key, value in asdict(model).items() if key not in free}
    given["num_query_groups"] = model.query_groups
    given["kv_channels"] = model.head_width
    given["ffn_hidden_size"] = model.ffn_width
    return given


def unwrap(model: Any) -> Any:
    """Return the GPT inside Megatron's data-parallel and precision wrappers.

    Args:
        model: the model, with or without wrappers.

    Returns:
        The innermost module.
    """
    while hasattr(model, "module"):
        model = model.module
    return model


def padded_vocab_size(vocab_size: int, run: RunConfig) -> int:
    """Round a vocabulary's size up, so that the tensor parallel ranks can divide it.

    Unlike Megatron-LM's rule, this one gives the same result for every usual tensor parallel size,
    so the same seed gives the same model at any of them.

    Args:
        vocab_size: number of tokens of the tokenizer.
        run: the model and the layout.

    Returns:
        The number of rows of the embedding table.
    """
    multiple = math.lcm(
        run.model.make_vocab_size_divisible_by, run.parallel.tensor_model_parallel_size
    )
    return -(-vocab_size // multiple) * multiple


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    """Return the number of weights, without norms, biases and the vocabulary's padding.

    Args:
        model: the model configuration.
        vocab_size: number of tokens of the tokenizer.

    Returns:
        The number of weights of the whole model.
    """
    heads = 2 * model.num_attention_heads + 2 * model.query_groups
    attention = model.hidden_size * heads * model.head_width
    mlp = model.hidden_size * model.ffn_width * (3 if model.gated_linear_unit else 2)
    tables = 1 if model.share_embeddings_and_output_weights else 2
    positions = model.seq_length if model.position_embedding_type == "learned_absolute" else 0
    return model.num_layers * (attention + mlp) + model.hidden_size * (
        tables * vocab_size + positions
    )


def transformer_config(run: RunConfig) -> TransformerConfig:
    """Return megatron-core's own configuration of the model.

    Args:
        run: the model, the layout and the precision.

    Returns:
        The configuration.
    """
    return TransformerConfig(**transformer_settings(run))


def transformer_settings(run: RunConfig) -> dict[str, Any]:
    """Return the arguments of `TransformerConfig` and of the classes that hosts derive from it.

    Args:
        run: the model, the layout and the precision.

    Returns:
        Arguments by name.
    """
    model, layout = run.model, run.parallel
    dtype = dtype_of(run.train.precision)
    cuda = torch.cuda.is_available()
    activation = F.silu if model.gated_linear_unit else F.gelu
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "ffn_hidden_size": model.ffn_width,
        "normalization": model.normalization,
        "layernorm_epsilon": model.norm_epsilon,
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
    """Return the arguments of a host's configuration of the whole GPT.

    Args:
        run: the model, the layout and the precision.
        vocab_size: number of tokens of the tokenizer.

    Returns:
        The arguments of `transformer_settings`, and those of the embeddings and the output.
    """
    model = run.model
    return {
        **transformer_settings(run),
        "seq_length": model.seq_length,
        "position_embedding_type": model.position_embedding_type,
        "rotary_base": model.rotary_base,
        "share_embeddings_and_output_weights": model.share_embeddings_and_output_weights,
        # The size is padded here, so that this package's rule holds and not the host's.
        "vocab_size": padded_vocab_size(vocab_size, run),
        "make_vocab_size_divisible_by": 1,
        "transformer_layer_spec": layer_spec,
        "gradient_accumulation_fusion": False,
        "cross_entropy_loss_fusion": False,
    }
