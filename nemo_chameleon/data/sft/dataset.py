"""Megatron's dataset of finetuning samples: one or more examples with loss on their answers.

Megatron's builder builds it as it builds a GPTDataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from numpy.typing import NDArray

from nemo_chameleon.data.sft.index import Index
from nemo_chameleon.data.sft.samples import Packing, packs_of
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError


@dataclass
class SFTDatasetConfig(GPTDatasetConfig):
    """Megatron's configuration of a dataset, with settings of how examples become samples.

    Attributes:
        packing: whether a sample may have several examples.
        on_too_long: what happens to an example that does not fit: refuse, skip or truncate.
    """

    packing: bool = True
    on_too_long: str = "refuse"


class SFTDataset(MegatronDataset):
    """Samples of one split of a domain's examples, over as many passes as are asked for.

    A sample is one or more examples one after another. Positions restart at 0 with each example and
    so mark where it begins for attention: see `sequence_boundaries`. The rest of a sample is filled
    with tokens that carry no loss.
    """

    def __init__(
        self,
        dataset: Index,
        dataset_path: str,
        indices: NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: SFTDatasetConfig,
    ) -> None:
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        part = range(int(indices[0]), int(indices[-1]) + 1) if len(indices) else range(0)
        packing = Packing(config.packing, config.on_too_long)
        self.index = dataset
        self.packs, _ = packs_of(dataset, part, config.sequence_length, packing)
        if num_samples != 0 and not len(self.packs):
            raise UserError(
                f"{Path(dataset.facts['files'][0]).name}: there is no example for "
                f"{index_split.name} under split={config.split!r}, of {len(dataset.lengths)} in "
                "total: give it a larger share"
            )
        self._order: tuple[int, Ints] | None = None

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Index) -> int:
        """Return the number of examples, which Megatron's split divides.

        Args:
            low_level_dataset: the index.

        Returns:
            The number of examples.
        """
        return len(low_level_dataset.lengths)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: SFTDatasetConfig) -> Index:
        """Load an index.

        Args:
            dataset_path: prefix of the index's .bin and .idx files.
            config: Megatron's configuration, which is not used.

        Returns:
            The index.
        """
        del config
        return Index.load(Path(dataset_path).parent)

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*MegatronDataset._key_config_attributes(), "packing", "on_too_long"]

    def __len__(self) -> int:
        """Return the number of samples that were asked for, or else of one pass."""
        return len(self.packs) if self.num_samples is None else self.num_samples

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """Return a sample.

        Args:
            idx: number of the sample; every pass takes the samples in another order.

        Returns:
            tokens, labels, loss_mask and position_ids, each (seq_length,).
        """
        epoch, place = divmod(int(idx), len(self.packs))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.packs.order(epoch, self.config.random_seed))
        sample = sample_of(self.index, self.packs.of(self._order[1][place]))
        length, size = self.config.sequence_length, len(sample["tokens"])
        filled = {}
        for name, values in sample.items():
            rest = np.arange(length - size) if name == "position_ids" else np.zeros(length - size)
            filled[name] = torch.from_numpy(np.concatenate([values, rest.astype(values.dtype)]))
        return filled


def sample_of(index: Index, pieces: Ints) -> Mapping[str, NDArray[Any]]:
    """Concatenate pieces of examples; no piece has a label from the next one.

    Args:
        index: the index of the examples.
        pieces: (k, 3) example, and where in its tokens the piece starts and stops.

    Returns:
        tokens, labels, loss_mask and position_ids, each (n,).
    """
    parts: dict[str, list[NDArray[Any]]] = {
        "tokens": [],
        "labels": [],
        "loss_mask": [],
        "position_ids": [],
    }
    for example, start, stop in pieces.tolist():
        tokens = index.tokens(example, start, stop)
        parts["tokens"].append(tokens[:-1])
        parts["labels"].append(tokens[1:])
        answers = index.is_answer(example, start, stop)
        parts["loss_mask"].append(answers[1:].astype(np.float32))
        parts["position_ids"].append(np.arange(len(tokens) - 1))
    return {name: np.concatenate(values) for name, values in parts.items()}
