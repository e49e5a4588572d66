"""Finds where the sequences of packed samples begin and end.

Positions restart at 0 with each sequence, and so they mark the boundaries.
"""

import torch


def sequence_boundaries(position_ids: torch.Tensor) -> torch.Tensor:
    """Return the offset at which each sequence starts, and the end of the last one.

    Args:
        position_ids: (b, s) position of each token in its sequence; each sequence starts at 0.

    Returns:
        (sequences + 1,) int32 offsets into the flattened positions: attention's `cu_seqlens`.
    """
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()
