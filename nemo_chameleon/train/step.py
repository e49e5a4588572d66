"""The forward step that training and validation share, and loss by domain."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from nemo_chameleon.config.schema import RunConfig
from nemo_chameleon.data.sft.boundaries import sequence_boundaries
from nemo_chameleon.distributed.device import current_device

Batch = dict[str, torch.Tensor]


class DomainLoss:
    """Sums of loss, tokens and samples by domain, over micro-batches and then over ranks."""

    def __init__(self, names: list[str]) -> None:
        """Start from nothing, for domains in the order of their `dataset_id`."""
        self.names = names
        self._sums = torch.zeros(len(names), 3, dtype=torch.float64, device=current_device())

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


def schedule(run: RunConfig, model: torch.nn.Module, packed: bool, **settings: Any) -> Any:
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


def packed_sequences(position_ids: torch.Tensor) -> PackedSeqParams:
    """Where the sequences of packed samples (b, s) end: wherever positions start anew."""
    ends = sequence_boundaries(position_ids)
    longest = int(ends.diff().max())
    ends = ends.to(current_device(), non_blocking=True)
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
    ends = packed_sequences(batch["position_ids"]) if packed else None
    batch = {name: value.to(current_device(), non_blocking=True) for name, value in batch.items()}
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
