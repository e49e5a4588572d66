"""Finetuning in a host: packed samples with the names that NeMo's and Bridge's own steps read.

NeMo records `PackedSFTDataset`, by the name of its module, with every checkpoint.
"""

from typing import Any

import torch

from nemo_chameleon.data import blend
from nemo_chameleon.data.sft.boundaries import sequence_boundaries
from nemo_chameleon.data.sft.dataset import SFTDataset
from nemo_chameleon.engines.host import Draw
from nemo_chameleon.utils.errors import UserError


class PackedSFTDataset(SFTDataset):
    """An SFTDataset whose samples say where their sequences begin and end.

    `cu_seqlens` (seq_length + 2,) holds the boundaries of the sequences and is filled up with -1.
    `cu_seqlens_argmin` is the position of the first -1, and `max_seqlen` the length of the longest
    sequence. The host's micro-batches must have one sample each.
    """

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """Return a sample of SFTDataset with the boundaries of its sequences.

        Args:
            idx: number of the sample.

        Returns:
            Tensors by name.
        """
        sample = super().__getitem__(idx)
        ends = sequence_boundaries(sample["position_ids"])
        padded = torch.full((self.config.sequence_length + 2,), -1, dtype=torch.int32)
        padded[: len(ends)] = ends
        sample["cu_seqlens"] = padded
        sample["cu_seqlens_argmin"] = torch.tensor(len(ends))
        sample["max_seqlen"] = ends.diff().max()
        return sample


def dataset_config(draw: Draw, seq_length: int, seed: int, micro_batch_size: int) -> Any:
    """Return the configuration that Megatron's builder makes a `PackedSFTDataset` from.

    Args:
        draw: the datasets and their weights, for finetuning.
        seq_length: tokens of a sample.
        seed: seed of the order of the samples.
        micro_batch_size: samples in a micro-batch.

    Returns:
        An SFTDatasetConfig.

    Raises:
        UserError: `micro_batch_size` is not 1.
    """
    if micro_batch_size != 1:
        raise UserError(
            f"micro_batch_size={micro_batch_size}: a host takes packed samples one at a time, so "
            "set it to 1"
        )
    assert draw.config is not None and draw.domains is not None, "draw.supervised says so"
    domains = draw.domains.values()
    return blend.dataset_config(draw.config.data, domains, seq_length, seed, draw.blend)[1]
