"""Text to Megatron datasets: JSONL in, .bin and .idx out."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tokenizers import Tokenizer

from nemo_chameleon.errors import UserError
from nemo_chameleon.tokenizer import END_OF_DOCUMENT

_BATCH = 256


def write_dataset(documents: Iterable[str], tokenizer: Tokenizer, prefix: str | Path) -> int:
    """Tokenise documents into a Megatron dataset, each ended by `<|endoftext|>`.

    The files appear under their names only when they are whole.

    Returns:
        The number of tokens.

    Raises:
        UserError: a tokenizer without `<|endoftext|>`, or no documents.
    """
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    if end is None:
        raise UserError(f"the tokenizer has no {END_OF_DOCUMENT} token to end documents with")
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
            raise UserError(f"{prefix}: no documents to write")
        builder.finalize(str(beside[".idx"]))
        # Never a new .bin under an old .idx: whoever reads in between finds no dataset.
        Path(f"{prefix}.idx").unlink(missing_ok=True)
        for ending in (".bin", ".idx"):
            beside[ending].replace(f"{prefix}{ending}")
    except OSError as error:
        raise UserError(f"cannot write {prefix}: {error}") from error
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
    return tokens


def read_jsonl(paths: Iterable[str | Path], key: str = "text") -> Iterator[str]:
    """Documents from JSONL files, one object a line.

    Raises:
        UserError: naming file and line.
    """
    for path in paths:
        try:
            with Path(path).open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _text(line, key, f"{path}, line {number}")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error


def _text(line: str, key: str, where: str) -> str:
    try:
        value = json.loads(line)[key]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: no JSON object with {key!r}") from error
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {key!r} is not valid Unicode: {error.reason}") from error
    return value


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
