"""Loss by domain, in training and in validation: the forward step both share."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch.utils.data import default_collate

from nemo_chameleon import parallel
from nemo_chameleon.schema import Run

Batch = dict[str, torch.Tensor]


class DomainLoss:
    """Sums of loss, tokens and samples by domain, over micro-batches and then over ranks."""

    def __init__(self, names: list[str]) -> None:
        """Start from nothing, for domains in the order of their `dataset_id`."""
        self.names = names
        self._sums = torch.zeros(len(names), 3, dtype=torch.float64, device=parallel.device())

    def add(self, domain: torch.Tensor, losses: torch.Tensor, mask: torch.Tensor) -> None:
        """Count a micro-batch: `domain` (b,), `losses` and `mask` (b, s)."""
        rows = torch.stack(
            [(losses * mask).sum(1), mask.sum(1), (mask.sum(1) > 0).to(mask.dtype)], dim=1
        )
        self._sums.index_add_(0, domain.to(torch.int64), rows.detach().to(torch.float64))

    def reduce(self) -> tuple[dict[str, float], dict[str, int]]:
        """Mean loss per token and number of samples by domain, on every rank; starts over.

        A domain without a token is left out of the losses.
        """
        # Each sample's loss stands on all tensor parallel ranks of the last pipeline stage; one
        # of them counts.
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            self._sums.zero_()
        dist.all_reduce(self._sums)
        sums = self._sums.tolist()
        self._sums.zero_()
        by_name = dict(zip(self.names, sums, strict=True))
        losses = {name: loss / tokens for name, (loss, tokens, _) in by_name.items() if tokens}
        return losses, {name: round(samples) for name, (_, _, samples) in by_name.items()}


def needs_data() -> bool:
    """Whether this rank's pipeline stage reads tokens or labels."""
    return bool(parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage())


def forward_step(
    meter: DomainLoss, batches: Iterator[Batch] | None, model: torch.nn.Module
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]]:
    """Megatron's forward step for one micro-batch; its loss is the mean over tokens."""
    batch: Batch = {}
    if batches is not None:
        batch = {
            name: value.to(parallel.device(), non_blocking=True)
            for name, value in next(batches).items()
        }
    output = model(batch.get("tokens"), batch.get("position_ids"), None, labels=batch.get("labels"))

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mask = batch["loss_mask"]
        losses = losses.float()
        meter.add(batch["dataset_id"], losses, mask)
        mean = (losses * mask).sum() / mask.sum().clamp(min=1.0)
        # The schedule divides what it gets by the number of micro-batches, in place.
        return mean, {"loss": mean.detach().clone()}

    return output, loss


def evaluate(
    run: Run, model: torch.nn.Module, datasets: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Validation loss and perplexity of every domain; every rank must call it.

    Args:
        run: batch sizes, and how much of a validation set is used.
        model: this rank's part, wrapped or not.
        datasets: by domain; each sample counts once, whatever the layout.

    Returns:
        {domain: {"loss": nats per token, "perplexity": its exponential}}.
    """
    if not datasets:
        return {}
    names = list(datasets)
    meter = DomainLoss(names)
    schedule = get_forward_backward_func()
    samples_at_once = run.train.micro_batch_size * parallel_state.get_data_parallel_world_size()
    model.eval()
    with torch.no_grad():
        for position, dataset in enumerate(datasets.values()):
            wanted = min(len(dataset), run.train.eval_iters * run.train.global_batch_size)
            batches = _micro_batches(dataset, wanted, position, run)
            schedule(
                forward_step_func=partial(forward_step, meter),
                data_iterator=batches if needs_data() else None,
                model=model,
                num_microbatches=-(-wanted // samples_at_once),
                seq_length=run.model.seq_length,
                micro_batch_size=run.train.micro_batch_size,
                forward_only=True,
            )
    model.train()
    losses, _ = meter.reduce()
    return {
        name: {"loss": loss, "perplexity": float(np.exp(loss))} for name, loss in losses.items()
    }


def _micro_batches(dataset: Any, samples: int, position: int, run: Run) -> Iterator[Batch]:
    """This data parallel rank's share of the first samples, filled up with masked ones."""
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
