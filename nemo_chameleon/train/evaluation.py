"""Validation loss and perplexity of every domain.

Each validation sample counts once in any layout: the last micro-batches are filled up with samples
whose loss is masked.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from torch.utils.data import default_collate

from nemo_chameleon.config.schema import RunConfig
from nemo_chameleon.train.step import Batch, DomainLoss, forward_step, needs_data, schedule


def evaluate(
    run: RunConfig, model: torch.nn.Module, datasets: Mapping[str, Any], packed: bool = False
) -> dict[str, dict[str, float]]:
    """Compute the validation loss and perplexity of every domain; every rank must call it.

    Args:
        run: the run's settings, with batch sizes and with how much of a validation set is used.
        model: this rank's part of the model, with or without wrappers.
        datasets: validation sets by name; each sample counts once, in any layout.
        packed: whether a sample holds several sequences.

    Returns:
        For each set, by name, its "loss" in nats per token and its "perplexity", which is the
        exponential of the loss. They are the same on every rank.
    """
    if not datasets:
        return {}
    names = list(datasets)
    meter = DomainLoss(names)
    samples_at_once = run.train.micro_batch_size * parallel_state.get_data_parallel_world_size()
    model.eval()
    with torch.no_grad():
        for position, dataset in enumerate(datasets.values()):
            wanted = min(len(dataset), run.train.eval_iters * run.train.global_batch_size)
            batches = _micro_batches(dataset, wanted, position, run)
            schedule(
                run,
                model,
                packed,
                forward_step_func=partial(forward_step, meter, packed),
                data_iterator=batches if needs_data(packed) else None,
                num_microbatches=-(-wanted // samples_at_once),
                forward_only=True,
            )
    model.train()
    losses, _, _ = meter.reduce()
    return {
        name: {"loss": loss, "perplexity": float(np.exp(loss))} for name, loss in losses.items()
    }


def _micro_batches(dataset: Any, samples: int, position: int, run: RunConfig) -> Iterator[Batch]:
    """Yield this data parallel rank's share of the first samples, filled up with masked ones."""
    rank = parallel_state.get_data_parallel_rank()
    ranks = parallel_state.get_data_parallel_world_size()
    size = run.train.micro_batch_size
    for start in range(0, samples, size * ranks):
        items = []
        for index in range(start + rank * size, start + (rank + 1) * size):
            item = dict(dataset[min(index, samples - 1)])
            if index >= samples:
                item["loss_mask"] = torch.zeros_like(item["loss_mask"])
            items.append({**item, "dataset_id": position})
        yield default_collate(items)
