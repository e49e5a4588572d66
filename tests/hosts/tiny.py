"""The GPT that the hosts' scripts train, and a report of the data that they drew."""

import json
from typing import Any

import torch

_FUSIONS = (
    *("gradient_accumulation_fusion", "masked_softmax_fusion", "bias_dropout_fusion"),
    *("bias_activation_fusion", "persist_layer_norm", "apply_rope_fusion"),
    *("cross_entropy_loss_fusion",),
)
BATCH = 4
GPT = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "ffn_hidden_size": 64,
    "seq_length": 32,
    "use_cpu_initialization": True,
    "params_dtype": torch.float32,
    "pipeline_dtype": torch.float32,
    "make_vocab_size_divisible_by": 1,
    **dict.fromkeys(_FUSIONS, False),
}


def say_drawn(dataset: Any, iterations: int) -> None:
    """Print how many samples of each part of a blended dataset were trained on."""
    index = dataset.dataset_index[: BATCH * iterations]
    print("DRAWN", json.dumps([int((index == i).sum()) for i in range(len(dataset.datasets))]))
