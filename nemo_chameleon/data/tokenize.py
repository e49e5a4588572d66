"""Tokenises documents into Megatron datasets: text in, .bin and .idx files out.

The files appear under their names only when they are complete.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tokenizers import Tokenizer

from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT
from nemo_chameleon.utils.errors import UserError

_BATCH = 256


def write_dataset(documents: Iterable[str], tokenizer: Tokenizer, prefix: str | Path) -> int:
    """Tokenise documents into a Megatron dataset, and end each with `<|endoftext|>`.

    Args:
        documents: the texts.
        tokenizer: the tokenizer.
        prefix: prefix of the .bin and .idx files; its folder is created.

    Returns:
        The number of tokens.

    Raises:
        UserError: the tokenizer has no `<|endoftext|>`, there are no documents, or the files cannot
            be written.
    """
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    if end is None:
        raise UserError(f"the tokenizer has no token {END_OF_DOCUMENT} to end documents with")
    prefix = Path(prefix)
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {prefix}: {error}") from error
    beside = {ending: prefix.with_name(f"{prefix.name}{ending}.tmp") for ending in (".bin", ".idx")}
    dtype = DType.optimal_dtype(tokenizer.get_vocab_size())
    tokens = 0
    try:
        builder = IndexedDatasetBuilder(str(beside[".bin"]), dtype=dtype)
        for batch in _batches(documents):
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                ids = np.array([*encoding.ids, end], dtype=dtype)
                builder.add_document(torch.from_numpy(ids.astype(np.int64)), [len(ids)])
                tokens += len(ids)
        if not tokens:
            raise UserError(f"there are no documents to write to {prefix}")
        builder.finalize(str(beside[".idx"]))
        # A reader between the two renames finds no dataset, never a new .bin with an old .idx.
        Path(f"{prefix}.idx").unlink(missing_ok=True)
        for ending in (".bin", ".idx"):
            beside[ending].replace(f"{prefix}{ending}")
    except OSError as error:
        raise UserError(f"cannot write {prefix}: {error}") from error
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
    return tokens


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
