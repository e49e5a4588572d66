"""Megatron's dataset over tokenised examples: packed samples with loss on their answers."""

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
    """Megatron's configuration of a dataset, and how examples become samples."""

    packing: bool = True
    on_too_long: str = "refuse"


class SFTDataset(MegatronDataset):
    """Samples of a part of a domain's examples, over as many passes as are asked for.

    A sample is some examples one after another. Positions start anew with each, which is what tells
    attention where one ends: see `evaluation.sequences`. What is left over is filled with tokens
    that carry no loss.
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
                f"{Path(dataset.facts['files'][0]).name}: no example for {index_split.name} under "
                f"split={config.split!r}, of {len(dataset.lengths)} in all: give it a larger share"
            )
        self._order: tuple[int, Ints] | None = None

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Index) -> int:
        """Examples, which are what a split is of."""
        return len(low_level_dataset.lengths)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: SFTDatasetConfig) -> Index:
        """The index that has this prefix."""
        del config
        return Index.load(Path(dataset_path).parent)

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*MegatronDataset._key_config_attributes(), "packing", "on_too_long"]

    def __len__(self) -> int:
        """As many samples as were asked for, or those of one pass."""
        return len(self.packs) if self.num_samples is None else self.num_samples

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """Tokens, labels, loss_mask and position_ids, each (seq_length,)."""
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
    """Pieces of examples one after another, each without a label from the next (n,)."""
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
