"""The forward step that training and validation share, and the loss by domain.

A sample of pretraining data is one sequence. A packed sample of finetuning data holds several
sequences, and the packed samples of a micro-batch go through the model as one long sequence.
"""

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
        """Start with sums of zero.

        Args:
            names: names of the k domains, in the order of a sample's `dataset_id`.
        """
        self.names = names
        self._sums = torch.zeros(len(names), 3, dtype=torch.float64, device=current_device())

    def add(self, domain: torch.Tensor, losses: torch.Tensor, mask: torch.Tensor) -> None:
        """Add a micro-batch to this rank's sums.

        Args:
            domain: position of each sample's domain in `names` (b,).
            losses: loss of each token in nats (b, s).
            mask: 1 for tokens that carry loss, and 0 for others (b, s).
        """
        rows = torch.stack(
            [(losses * mask).sum(1), mask.sum(1), (mask.sum(1) > 0).to(mask.dtype)], dim=1
        )
        self._sums.index_add_(0, domain.to(torch.int64), rows.detach().to(torch.float64))

    def reduce(self) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
        """Sum over all ranks, and start again from zero; every rank must call it.

        Returns:
            By domain name, and the same on every rank: the mean loss in nats per token, without
            domains that had no token; the number of samples; and the number of tokens that carry
            loss.
        """
        # All tensor parallel ranks of the last pipeline stage have the same losses, and one of
        # these ranks counts them.
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
    """Return whether this rank's pipeline stage reads batches.

    Args:
        packed: whether a sample holds several sequences; then every stage needs their ends.

    Returns:
        True for the first stage, which reads tokens, for the last, which reads labels, and for all
        stages where samples are packed.
    """
    ends = parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()
    return packed or bool(ends)


def schedule(run: RunConfig, model: torch.nn.Module, packed: bool, **settings: Any) -> Any:
    """Run Megatron's schedule over a number of micro-batches; every rank must call it.

    Args:
        run: the run's settings, with the micro-batch size and the sequence length.
        model: this rank's part of the model.
        packed: whether a sample holds several sequences; the samples of a micro-batch then go
            through the model as one long sample.
        settings: further arguments of Megatron's schedule.

    Returns:
        What the forward step gave for each micro-batch on the last pipeline stage, as a list.
    """
    length, size = run.model.seq_length, run.train.micro_batch_size
    return get_forward_backward_func()(
        model=model,
        seq_length=length * size if packed else length,
        micro_batch_size=1 if packed else size,
        **settings,
    )


def packed_sequences(position_ids: torch.Tensor) -> PackedSeqParams:
    """Find the sequences in packed samples; a sequence begins where positions start again from 0.

    Args:
        position_ids: positions of the tokens in their sequences (b, s).

    Returns:
        Boundaries of the sequences and the longest length, for attention in Megatron.
    """
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
    """Run the model on one micro-batch; this is Megatron's `forward_step_func`.

    Args:
        meter: counts the losses by domain.
        packed: whether a sample holds several sequences.
        batches: iterator over micro-batches; None on a pipeline stage that reads none.
        model: this rank's part of the model.

    Returns:
        The output of this stage, and the loss function of the last stage. That function gives the
        loss summed over tokens, the number of tokens, and both as "loss" (2,) for the log.
    """
    batch: Batch = next(batches) if batches is not None else {}
    # The batch is still on the CPU, so that finding the sequences waits for no device.
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
