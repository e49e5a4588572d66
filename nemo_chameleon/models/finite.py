"""Checks that the tensors of a model and its optimizer are finite, over all ranks."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.utils.errors import UserError


class NotFiniteError(UserError):
    """Raised where a model or its optimizer has a value that is infinite or not a number."""


def require_finite(parts: Any) -> None:
    """Check the tensors of a state, as it is saved or was loaded; every rank must call it.

    Args:
        parts: dictionaries and lists with tensors, or with Megatron's sharded tensors, as values.

    Raises:
        NotFiniteError: a tensor is not finite on some rank; every rank raises it.
    """
    # A sum is many times faster than a look at each value, and it is finite only if all values are.
    tensors = list(_tensors(parts))
    sums = [tensor.detach().sum().isfinite().to(current_device()) for tensor in tensors]
    wrong = torch.zeros((), device=current_device())
    if sums and not torch.stack(sums).all():  # unless finite values gave an infinite sum
        wrong += not all(bool(tensor.detach().isfinite().all()) for tensor in tensors)
    dist.all_reduce(wrong, op=dist.ReduceOp.MAX)
    if wrong.item():
        raise NotFiniteError("the weights or the state of the optimizer are not finite")


def _tensors(parts: Any) -> Iterable[torch.Tensor]:
    for value in nested_values(parts):
        if isinstance(value, ShardedTensor | ShardedTensorFactory):
            value = value.data
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            yield value
