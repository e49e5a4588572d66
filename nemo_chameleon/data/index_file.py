"""The format of an .idx file: where each sequence of a Megatron dataset begins, and how long it is.

After a header come the number of tokens of each sequence (int32), the byte at which each begins
(int64), and the sequences at which documents begin (int64), closed by the number of sequences.
"""

import os
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nemo_chameleon.utils.arrays import Ints
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
_CHECKED = 1 << 14  # entries that are checked at once, few enough for a core's cache


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


@dataclass(frozen=True)
class IndexFile:
    """What an .idx file says about a dataset; the arrays are memory-mapped.

    Attributes:
        path: the file.
        where: the key of the configuration and its value; errors begin with it.
        header: the bytes of the header.
        dtype: the type of the tokens.
        lengths: (sequences,) the number of tokens of each sequence.
        pointers: (sequences,) the byte of the .bin at which each sequence begins.
        documents: (documents + 1,) the sequences at which documents begin, closed by the number of
            sequences. A document may have no sequence: Megatron-LM writes an empty text so.
    """

    path: Path
    where: str
    header: bytes
    dtype: type[np.number[Any]]
    lengths: Ints
    pointers: Ints
    documents: Ints

    @classmethod
    def open(cls, path: Path, where: str) -> "IndexFile":
        """Read the header of an .idx file, and check the file's size.

        Args:
            path: the file.
            where: the key of the configuration and its value; errors begin with it.

        Returns:
            The file's contents, of which `require_sound` checks the rest.

        Raises:
            UserError: the file is truncated, it is not the index of a Megatron dataset, or the
                dataset has no documents or tokens that are not integers.
        """
        size = path.stat().st_size
        with path.open("rb") as stream:
            header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise UserError(f"{where}: {path.name} is truncated to {size} bytes: copy it again")
        magic, version, code, sequences, documents = _HEADER.unpack(header)
        if magic != _MAGIC or version != 1:
            raise UserError(
                f"{where}: {path.name} is not the index of a Megatron dataset: copy it again, or "
                "make the dataset from its text with nemo-chameleon prepare"
            )
        if size == _FAIRSEQ_HEADER.size + sequences * (4 + 8):
            raise UserError(
                f"{where}: {path.name} is an index of fairseq, which has no table of documents, as "
                "Megatron's has: make the dataset from its text with nemo-chameleon prepare"
            )
        expected = _HEADER.size + sequences * (4 + 8) + documents * 8
        if size < expected:
            raise UserError(
                f"{where}: {path.name} is truncated, {size} bytes of {expected}: copy it again"
            )
        dtype = _TYPES.get(code)
        if dtype is None:
            raise UserError(
                f"{where}: {path.name} has an unknown token type, code {code}: copy it again"
            )
        if not np.issubdtype(dtype, np.integer):
            raise UserError(
                f"{where}: {path.name} says that tokens are of type {dtype.__name__}, but token "
                "ids are integers: make the dataset from its text with nemo-chameleon prepare"
            )
        if not documents:
            raise UserError(
                f"{where}: {path.name} is damaged, because it has no documents: copy it again"
            )
        # What follows is modes of sequences, in a multimodal dataset; Megatron ignores it too.
        mapped = np.memmap(str(path), mode="r")
        table = _HEADER.size + sequences * (4 + 8)
        return cls(
            path,
            where,
            header,
            dtype,
            np.frombuffer(mapped, np.int32, sequences, _HEADER.size),
            np.frombuffer(mapped, np.int64, sequences, _HEADER.size + sequences * 4),
            np.frombuffer(mapped, np.int64, documents, table),
        )

    def require_sound(self, size: int) -> None:
        """Check every entry: each sequence begins where the one before it ends.

        Zero is a legal length. The time that this takes grows with the number of sequences: it is
        about 6 seconds for 10^9 of them, if storage gives their 20 GB as fast.

        Args:
            size: of the .bin, in bytes, which must be what the sequences take: Megatron's
                merge_datasets.py joins whole files, and later tokens would move.

        Raises:
            UserError: an entry is damaged, or the .bin has another size; the error names the first
                one.
        """
        end, itemsize = 0, np.int64(np.dtype(self.dtype).itemsize)
        for start in range(0, len(self.lengths), _CHECKED):
            lengths = self.lengths[start : start + _CHECKED]
            begins = self.pointers[start : start + _CHECKED]
            ends = lengths * itemsize
            ends += begins
            if (
                int(lengths.min()) < 0
                or int(begins[0]) != end
                or not np.array_equal(ends[:-1], begins[1:])
            ):
                self._require_sequences(start, end)
            end = int(ends[-1])
        self._require_documents()
        data = self.path.with_suffix(".bin")
        if size < end:
            raise UserError(
                f"{self.where}: the .bin has {size} bytes, but the .idx describes {end}: copy both "
                "files again"
            )
        if size > end:
            raise UserError(
                f"{self.where}: the .bin has {size} bytes, but the .idx describes only {end}, so "
                "the two may be of different datasets: copy both files again, or if the .idx is "
                f"right, cut the rest off with truncate --size={end} {shlex.quote(str(data))}"
            )

    def _require_sequences(self, start: int, end: int) -> None:
        """Refuse the first damaged sequence of those from `start`, which must begin at `end`."""
        itemsize = np.dtype(self.dtype).itemsize
        for number in range(start, min(start + _CHECKED, len(self.lengths))):
            length, begin = int(self.lengths[number]), int(self.pointers[number])
            if begin != end:
                self._refuse(
                    f"sequence {number:,} begins at byte {begin:,} of the .bin, but those before "
                    f"it end at byte {end:,}"
                )
            if length < 0:
                self._refuse(f"sequence {number:,} has {length:,} tokens")
            end += length * itemsize

    def _require_documents(self) -> None:
        before, sequences = 0, len(self.lengths)
        for start in range(0, len(self.documents), _CHECKED):
            begins = self.documents[start : start + _CHECKED]
            # No differences: those of damaged numbers may not fit into 64 bits.
            falls = np.flatnonzero(begins < np.concatenate(([before], begins[:-1])))
            if len(falls):
                number = start + int(falls[0])
                self._refuse(
                    f"document {number:,} begins at sequence {int(self.documents[number]):,}, "
                    "before the document in front of it"
                )
            before = int(begins[-1])
        if before != sequences:
            self._refuse(
                f"its documents end at sequence {before:,}, but it has {sequences:,} sequences"
            )

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"{self.where}: {self.path.name} is damaged: {what}; copy both files of the dataset "
            "again, or make it from its text with nemo-chameleon prepare"
        )
