"""A host's own datasets, where a run follows a plan: how they read samples, and those still built.

The training set of a plan has this package's indices. Its samples must still be what the host's own
would be: the same masks and positions, and the same tokens without loss.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

from megatron.core.datasets.gpt_dataset import GPTDataset

from nemo_chameleon.engines.plans import HostPlan

# What decides how a host's datasets read a sample, beside their indices.
_READING = (
    *("reset_position_ids", "reset_attention_mask", "eod_mask_loss", "create_attention_mask"),
    *("mmap_bin_files", "object_storage_cache_path"),
)


class _Tokens:
    """A vocabulary of this package with the tokens that a host's tokenizer masks."""

    def __init__(self, own: Any, theirs: Any) -> None:
        self.vocab_size, self.unique_identifiers = own.vocab_size, own.unique_identifiers
        self.eod = theirs.eod
        # Megatron's datasets take any failure here for a tokenizer without padding.
        with contextlib.suppress(Exception):
            self.pad = theirs.pad


def reading_as(theirs: Any, base: type = GPTDataset) -> type:
    """Return a class of datasets that read their samples as a host's own do.

    Args:
        theirs: the host's configuration of its GPT datasets, or its arguments; what it has of
            their settings is used.
        base: the host's class of datasets.

    Returns:
        A class like `base` for this package's indices. Its name is the same, because Megatron finds
        an index by it.
    """

    def adapted(config: Any) -> Any:
        config = copy.copy(config)
        for key in _READING:
            if hasattr(theirs, key):
                setattr(config, key, getattr(theirs, key))
        if getattr(theirs, "tokenizer", None) is not None:
            config.tokenizer = _Tokens(config.tokenizer, theirs.tokenizer)
        return config

    parent: Any = base

    class HostDataset(parent):
        def __init__(self, *given: Any) -> None:
            *others, config = given
            super().__init__(*others, adapted(config))

        @staticmethod
        def build_low_level_dataset(dataset_path: str, config: Any) -> Any:
            return parent.build_low_level_dataset(dataset_path, adapted(config))

    HostDataset.__name__ = base.__name__
    return HostDataset


def with_plan(
    plan: HostPlan | None, kind: type, config: Any, build: Callable[[Any], Sequence[Any]]
) -> Sequence[Any]:
    """Build a host's datasets, with the training set of a plan in place of its own.

    Args:
        plan: the plan; None where the host builds everything.
        kind: the class of the training set's datasets.
        config: the host's configuration of its datasets.
        build: builds the host's training, validation and test set by a configuration.

    Returns:
        The training, validation and test set.
    """
    if plan is None:
        return build(config)
    training, rest = plan.training_set(kind), without_training(config)
    return (training, None, None) if rest is None else (training, *build(rest)[1:])


def without_training(config: Any) -> Any | None:
    """Return a host's configuration of datasets under which it builds no training set.

    Args:
        config: the configuration; it is not changed.

    Returns:
        The other configuration; None where nothing is left to build.
    """
    config = copy.copy(config)
    if config.blend_per_split:
        config.blend_per_split = [None, *config.blend_per_split[1:]]
        return config if any(config.blend_per_split) else None
    config.split_matrix = [None, *config.split_matrix[1:]]
    return config if any(config.split_matrix) else None
