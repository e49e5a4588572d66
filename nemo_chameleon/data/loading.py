"""How Megatron's datasets are opened once their indices are in data.cache.

By default Megatron looks for every file, reads every header and maps every index of every dataset,
on every rank. From a folder that has just been verified it can be told to take them as given.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from megatron.core.datasets import gpt_dataset
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset
from megatron.core.datasets.utils import Split
from numpy.lib.format import open_memmap

from nemo_chameleon.data.index_file import IndexFile
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.utils import manifest

_OPENED_AT_ONCE = 16  # on storage that is shared, opening is waiting
_INDICES = ("document_index", "sample_index", "shuffle_index")


class SequenceCounts(dict[str, tuple[int, int]]):
    """The numbers of sequences and of documents' bounds of datasets, by prefix.

    Megatron does not read the header of a dataset that has them. It then takes the type of the
    tokens from the vocabulary, so datasets of another type are not in it.
    """

    def __missing__(self, prefix: str) -> None:
        """Return None: Megatron reads the header itself."""

    def __repr__(self) -> str:
        """Return how many there are: Megatron formats its configuration for every dataset."""
        return f"SequenceCounts(<{len(self)} datasets>)"


class GPTDataset(gpt_dataset.GPTDataset):
    """Megatron's dataset, when it is loaded with `loading_settings`.

    Megatron's builder then does not say which documents the split has, from which a length follows.
    The class has the name of Megatron's, which is a part of the names of its indices.
    """

    def __init__(
        self,
        indexed_dataset: IndexedDataset,
        dataset_path: str,
        indexed_indices: Any,
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        if indexed_indices is None:
            part = config.split_matrix[index_split.value]
            # This rounds as Megatron's builder does.
            bounds = [round(share * float(len(indexed_dataset))) for share in part]
            indexed_indices = slice(*bounds)
        super().__init__(
            indexed_dataset, dataset_path, indexed_indices, num_samples, index_split, config
        )

    def __getitem__(self, idx: int | None) -> Any:
        """Return a sample; the first one maps the indices.

        Megatron would open each of them three times for that, and unpickle what is no array.

        Args:
            idx: number of the sample, or None for one without loss.

        Returns:
            The tensors of the sample by name.
        """
        for name in _INDICES:
            if getattr(self, name) is None:
                setattr(self, name, open_memmap(getattr(self, f"path_to_{name}"), "r"))
        return super().__getitem__(idx)


def loading_settings(
    kind: type, config: GPTDatasetConfig, cache: str, prefixes: Sequence[str]
) -> dict[str, Any]:
    """Return the settings with which Megatron loads datasets from whole indices at the least cost.

    Every rank must call it. The first rank reads the sequence counts from the .idx files.

    Args:
        kind: the class of Megatron's datasets.
        config: a configuration of them, of which only the vocabulary counts.
        cache: Megatron's path_to_cache. It has whole indices if it has a manifest.
        prefixes: all datasets that will be loaded.

    Returns:
        What `set_loading` takes: attributes of the configuration by name. It is empty if the
        indices are still to be built, or if this version of megatron-core has no such settings.
    """
    known = {field.name for field in fields(config)}
    if not issubclass(kind, gpt_dataset.GPTDataset) or "fast_cache_load" not in known:
        return {}

    def find() -> SequenceCounts | None:
        # The manifest is the last file that a folder gets.
        if not (Path(cache) / manifest.NAME).exists():
            return None
        if "sequences_per_dataset" not in known:
            return SequenceCounts()
        return _sequence_counts(prefixes, DType.dtype_from_code(config.token_dtype_code))

    counts = on_first_rank(find)
    if counts is None:
        return {}
    settings = {
        "fast_cache_load": True,
        "defer_npy_index_mmap": True,
        "sequences_per_dataset": counts,
    }
    return {name: value for name, value in settings.items() if name in known}


def set_loading(kind: type, config: GPTDatasetConfig, settings: Mapping[str, Any]) -> type:
    """Change a configuration so that Megatron loads datasets with the settings.

    Args:
        kind: the class of Megatron's datasets.
        config: their configuration. Megatron refuses these settings for new ones that have a blend.
        settings: what `loading_settings` returned.

    Returns:
        The class of datasets to build with the configuration.
    """
    for name, value in settings.items():
        setattr(config, name, value)
    return GPTDataset if settings else kind


def map_order(blended: Any) -> Any:
    """Map the order of the datasets, which is deferred as their own indices are, into memory.

    Args:
        blended: a BlendedDataset, or None on a rank where it is not built.

    Returns:
        The same dataset.
    """
    if blended is not None and blended.dataset_index is None:
        blended.dataset_index = open_memmap(blended.path_to_dataset_index, "r")
        blended.dataset_sample_index = open_memmap(blended.path_to_dataset_sample_index, "r")
    return blended


def _sequence_counts(prefixes: Sequence[str], token_type: type) -> SequenceCounts:
    def header(prefix: str) -> IndexFile:
        return IndexFile.open(Path(f"{prefix}.idx"), prefix)

    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        headers = zip(prefixes, pool.map(header, prefixes), strict=True)
        return SequenceCounts(
            (prefix, (len(index.lengths), len(index.documents)))
            for prefix, index in headers
            if index.dtype is token_type
        )
