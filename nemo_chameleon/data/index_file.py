"""The format of an .idx file: where each sequence of a Megatron dataset begins, and how long it is.

After a header come the number of tokens of each sequence (int32), the byte at which each begins
(int64), and the sequences at which documents begin (int64), closed by the number of sequences.
"""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from nemo_chameleon.utils.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_FAIRSEQ_HEADER = struct.Struct("<9sQBQ")
_TYPES: dict[int, type[np.number[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
_MOST_OF_UINT16 = 65_500  # Megatron's limit, a little below the largest number of two bytes
_CHUNK = 1 << 20


def token_type(vocab_size: int) -> type[np.number[Any]]:
    """Return the type in which Megatron stores the tokens of a vocabulary.

    Args:
        vocab_size: the highest id of a token, plus one.

    Returns:
        uint16 where that is enough, or else int32.
    """
    return np.uint16 if vocab_size < _MOST_OF_UINT16 else np.int32


def write_index(idx: Path, dtype: type[np.number[Any]], lengths: Path) -> None:
    """Write the .idx of a dataset whose documents have one sequence each.

    The memory that this takes does not grow with the number of documents.

    Args:
        idx: the file to write.
        dtype: the type of the tokens.
        lengths: a file with the number of tokens of each document, as int32.

    Raises:
        OSError: a file cannot be read or written.
    """
    code = next(code for code, known in _TYPES.items() if known is dtype)
    itemsize = np.dtype(dtype).itemsize
    count = lengths.stat().st_size // 4
    with idx.open("wb") as stream:
        stream.write(_HEADER.pack(_MAGIC, 1, code, count, count + 1))
        for chunk in _chunks(lengths):
            stream.write(chunk.tobytes())
        end = 0
        for chunk in _chunks(lengths):
            ends = end + np.cumsum(chunk, dtype=np.int64) * itemsize
            stream.write((ends - chunk.astype(np.int64) * itemsize).tobytes())
            end = int(ends[-1])
        for start in range(0, count + 1, _CHUNK):
            stream.write(np.arange(start, min(start + _CHUNK, count + 1), dtype=np.int64).tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def _chunks(lengths: Path) -> Any:
    with lengths.open("rb") as stream:
        while (chunk := np.fromfile(stream, dtype=np.int32, count=_CHUNK)).size:
            yield chunk


def read_header(idx: Path, where: str) -> tuple[bytes, int, type[np.number[Any]]]:
    """Read the header of an .idx file, and check the file's size.

    Args:
        idx: the file.
        where: the key of the configuration and its value; errors begin with it.

    Returns:
        The bytes of the header, the number of sequences, and the type of the tokens.

    Raises:
        UserError: the file is truncated, or it is not the index of a Megatron dataset.
    """
    size = idx.stat().st_size
    with idx.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise UserError(f"{where}: {idx.name} is truncated to {size} bytes: copy it again")
    magic, version, code, sequences, documents = _HEADER.unpack(header)
    if magic != _MAGIC or version != 1:
        raise UserError(f"{where}: {idx.name} is not the index of a Megatron dataset")
    if size == _FAIRSEQ_HEADER.size + sequences * (4 + 8):
        raise UserError(
            f"{where}: {idx.name} is an index of fairseq, which has no table of documents, as "
            "Megatron's has: make the dataset from its text with nemo-chameleon prepare"
        )
    expected = _HEADER.size + sequences * (4 + 8) + documents * 8
    if size < expected:
        raise UserError(
            f"{where}: {idx.name} is truncated, {size} bytes of {expected}: copy it again"
        )
    if code not in _TYPES:
        raise UserError(f"{where}: {idx.name} has an unknown token type, code {code}")
    return header, int(sequences), _TYPES[code]
