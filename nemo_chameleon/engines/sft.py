"""Finetuning in a host: packed samples in the names that NeMo's and Bridge's own steps read."""

from typing import Any

import torch

from nemo_chameleon.data import blend
from nemo_chameleon.data.sft.boundaries import sequence_boundaries
from nemo_chameleon.data.sft.dataset import SFTDataset
from nemo_chameleon.engines.host import Draw
from nemo_chameleon.utils.errors import UserError


class PackedSFTDataset(SFTDataset):
    """An SFTDataset whose samples say where their sequences end.

    `cu_seqlens`, (seq_length + 2,), is filled up with -1, of which the first one's place is
    `cu_seqlens_argmin`; `max_seqlen` is the longest one's length. The host's micro-batches have to
    be of one sample.
    """

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """As SFTDataset, and these three."""
        sample = super().__getitem__(idx)
        ends = sequence_boundaries(sample["position_ids"])
        padded = torch.full((self.config.sequence_length + 2,), -1, dtype=torch.int32)
        padded[: len(ends)] = ends
        sample["cu_seqlens"] = padded
        sample["cu_seqlens_argmin"] = torch.tensor(len(ends))
        sample["max_seqlen"] = ends.diff().max()
        return sample


def dataset_config(draw: Draw, seq_length: int, seed: int, micro_batch_size: int) -> Any:
    """What Megatron's builder makes a `PackedSFTDataset` of.

    Raises:
        UserError: more than one packed sample a micro-batch.
    """
    if micro_batch_size != 1:
        raise UserError(
            f"micro_batch_size={micro_batch_size}: a host takes packed samples one at a time; set 1"
        )
    assert draw.config is not None and draw.domains is not None, "draw.packed says so"
    domains = draw.domains.values()
    return blend.dataset_config(draw.config.data, domains, seq_length, seed, draw.blend)[1]
