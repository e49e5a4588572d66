"""Loss by domain, in training and in validation: the forward step both share."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
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

    def reduce(self) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
        """Mean loss per token, samples, and tokens with loss, by domain, on every rank.

        Starts over.

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
        samples = {name: round(count) for name, (_, _, count) in by_name.items()}
        return losses, samples, {name: round(tokens) for name, (_, tokens, _) in by_name.items()}


def needs_data(packed: bool) -> bool:
    """Whether this rank's pipeline stage reads tokens, labels or where sequences end."""
    ends = parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()
    return packed or bool(ends)


def schedule(run: Run, model: torch.nn.Module, packed: bool, **settings: Any) -> Any:
    """Megatron's schedule for a number of micro-batches.

    Args:
        run: their size.
        model: this rank's part.
        packed: whether a sample is several sequences; all of a micro-batch's are then one long
            sample to the model.
        settings: of the schedule.
    """
    length, size = run.model.seq_length, run.train.micro_batch_size
    return get_forward_backward_func()(
        model=model,
        seq_length=length * size if packed else length,
        micro_batch_size=1 if packed else size,
        **settings,
    )


def ends_of(position_ids: torch.Tensor) -> torch.Tensor:
    """Where sequences start, and where the last one ends (sequences + 1,)."""
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()


def sequences(position_ids: torch.Tensor) -> PackedSeqParams:
    """Where the sequences of packed samples (b, s) end: wherever positions start anew."""
    ends = ends_of(position_ids)
    longest = int(ends.diff().max())
    ends = ends.to(parallel.device(), non_blocking=True)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


Loss = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]


def forward_step(
    meter: DomainLoss, packed: bool, batches: Iterator[Batch] | None, model: torch.nn.Module
) -> tuple[torch.Tensor, Loss]:
    """Megatron's forward step for a micro-batch: its loss summed over tokens, and their number."""
    batch: Batch = next(batches) if batches is not None else {}
    # On the CPU still, where to look at them is to wait for nothing.
    ends = sequences(batch["position_ids"]) if packed else None
    batch = {name: value.to(parallel.device(), non_blocking=True) for name, value in batch.items()}
    inputs = {name: batch.get(name) for name in ("tokens", "position_ids", "labels")}
    if packed:
        inputs = {name: value.reshape(1, -1) for name, value in batch.items() if name in inputs}
    output = model(
        inputs["tokens"],
        inputs["position_ids"],
        None,
        labels=inputs["labels"],
        packed_seq_params=ends,
    )

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        mask = batch["loss_mask"]
        losses = losses.float().reshape(mask.shape)
        meter.add(batch["dataset_id"], losses, mask)
        total, tokens = (losses * mask).sum(), mask.sum()
        return total, tokens.int(), {"loss": torch.stack([total.detach(), tokens])}

    return output, loss


def evaluate(
    run: Run, model: torch.nn.Module, datasets: Mapping[str, Any], packed: bool = False
) -> dict[str, dict[str, float]]:
    """Validation loss and perplexity of every domain; every rank must call it.

    Args:
        run: batch sizes, and how much of a validation set is used.
        model: this rank's part, wrapped or not.
        datasets: by domain; each sample counts once, whatever the layout.
        packed: as `schedule` has it.

    Returns:
        {domain: {"loss": nats per token, "perplexity": its exponential}}.
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
