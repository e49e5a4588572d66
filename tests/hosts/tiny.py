"""The GPT that the hosts' scripts train, and a report of the data that they drew."""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch

_FUSIONS = (
    *("gradient_accumulation_fusion", "masked_softmax_fusion", "bias_dropout_fusion"),
    *("bias_activation_fusion", "persist_layer_norm", "apply_rope_fusion"),
    *("cross_entropy_loss_fusion",),
)
BATCH = 4
RANKS = int(os.environ.get("WORLD_SIZE", "1"))  # Lightning removes the variable at the end
_seen: list[Any] = []  # the samples that this process has read
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


def watch(last: int | None) -> None:
    """Note what is read of a planned training set.

    Args:
        last: the process dies when it reads for the iteration after this one; None for no death.
    """
    from nemo_chameleon.data.planned import PlannedDataset
    from running import KILLED

    read, limit = PlannedDataset.__getitems__, None if last is None else _of_rank(last)

    def noted(self: PlannedDataset, indices: Sequence[int]) -> list[dict[str, Any]]:
        if len(_seen) == limit:
            say_read(last or 0)
            os._exit(KILLED)
        samples = read(self, indices)
        _seen.extend([int(s["dataset_id"]), s["tokens"].tolist()] for s in samples)
        return samples

    PlannedDataset.__getitems__ = noted  # type: ignore[method-assign]


def say_read(iterations: int) -> None:
    """Print domain and tokens of each sample that this rank has read for so many iterations."""
    print("READ", json.dumps(_seen[: _of_rank(iterations)]), flush=True)


def _of_rank(iterations: int) -> int:
    return BATCH * iterations // RANKS
