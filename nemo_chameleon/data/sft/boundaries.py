"""Where the sequences of packed samples begin and end: positions start anew with each sequence."""

import torch


def sequence_boundaries(position_ids: torch.Tensor) -> torch.Tensor:
    """Return where each sequence starts, and where the last one ends.

    Args:
        position_ids: (b, s) positions within each sequence, which start at 0.

    Returns:
        (sequences + 1,) offsets into the flattened positions: attention's `cu_seqlens`.
    """
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()
