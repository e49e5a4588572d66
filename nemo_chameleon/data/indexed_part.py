"""One Megatron dataset, which is a part of a domain or all of it: what its files must be.

Opening it reads the memory-mapped .idx and some blocks of the .bin, so its time grows with the
number of documents, but not with their length.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from nemo_chameleon.data.domain import split_shares
from nemo_chameleon.data.given import Given
from nemo_chameleon.data.index_file import IndexFile
from nemo_chameleon.data.parts import require_files
from nemo_chameleon.data.stamp import require_tokenizer
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import BLOCK_BYTES, BLOCKS, read_blocks

_STEP = 9
"""Every ninth block, the last one included, identifies a part: 8 of 64 blocks."""
_KEPT_OPEN = 64
"""How many datasets stay open for windows; each one that is open takes a file descriptor."""


@dataclass(frozen=True)
class IndexedPart:
    """One indexed dataset and its training split.

    Attributes:
        path: prefix of the .bin and .idx files.
        sequences: number of sequences in the file, which Megatron's split divides.
        documents: number of them in the training split, which is the beginning of the file.
        tokens: number of tokens in the training split.
        validation_tokens: number of tokens in the validation split, which follows.
        identity: digest of the .idx header and of 8 evenly spaced 4 KiB blocks of the .bin. It does
            not depend on where the files are stored, or on how many parts the domain has.
        fingerprint: the same, of 64 blocks, for a dataset that is a whole domain.
        token_bytes: size of a token.
    """

    path: str
    sequences: int
    documents: int
    tokens: int
    validation_tokens: int
    identity: str
    fingerprint: str
    token_bytes: int

    @classmethod
    def open(
        cls,
        given: Given,
        *,
        split: str,
        vocab_size: int | None,
        tokenizer: str | None,
        whole: bool,
    ) -> "IndexedPart":
        """Check a dataset's files and describe its training split, which may be empty.

        Args:
            given: prefix of the .bin and .idx files; errors begin with it.
            split: Megatron's split string, which divides the documents in their order.
            vocab_size: if given, every token id in the blocks that are read must be below it.
            tokenizer: if given, and the dataset has a stamp, its vocabulary must be the stamp's.
            whole: whether the dataset is a whole domain, of which more blocks are read.

        Returns:
            The part.

        Raises:
            UserError: a file is missing, damaged or in another format, the dataset is empty, a
                token id is negative or outside the vocabulary, or another tokenizer wrote the
                dataset.
        """
        path, where = given.path, str(given)
        require_files(given, tokenizer)
        index = IndexFile.open(Path(path + ".idx"), where)
        sequences, size = len(index.lengths), Path(path + ".bin").stat().st_size
        require_tokenizer(path, sequences, tokenizer, where)
        if not sequences or not size:
            raise UserError(
                f"{where}: the dataset is empty: {sequences} document(s) in {size} bytes"
            )
        index.require_sound(size)
        pointers, lengths = index.pointers, index.lengths
        itemsize = np.dtype(index.dtype).itemsize
        shares = split_shares(split)
        # This rounds as Megatron's builder does. Otherwise a document could be in the training
        # split here and in the validation split there.
        documents = round(shares[0] * float(sequences))
        validation_end = round((shares[0] + shares[1]) * float(sequences))

        def tokens_before(document: int) -> int:
            if not document:
                return 0
            return int(pointers[document - 1]) // itemsize + int(lengths[document - 1])

        tokens = tokens_before(documents)
        identity, fingerprint = hashlib.sha256(index.header), hashlib.sha256(index.header)
        spread = np.linspace(0, max(0, size - BLOCK_BYTES), BLOCKS)
        numbers = range(0, BLOCKS, 1 if whole else _STEP)
        offsets = (int(spread[number]) // itemsize * itemsize for number in numbers)
        for number, block in zip(numbers, read_blocks(Path(path + ".bin"), offsets), strict=True):
            fingerprint.update(block)
            if not number % _STEP:
                identity.update(block)
            ids = np.frombuffer(block[: len(block) // itemsize * itemsize], dtype=index.dtype)
            if ids.size and int(ids.min()) < 0:
                raise UserError(
                    f"{where}: the .bin has token id {int(ids.min())}, but token ids are not "
                    "negative: copy both files again, or make the dataset from its text with "
                    "nemo-chameleon prepare"
                )
            if vocab_size is not None and ids.size and int(ids.max()) >= vocab_size:
                raise UserError(
                    f"{where}: the dataset has token id {int(ids.max())}, but the vocabulary has "
                    f"{vocab_size} tokens: set data.tokenizer, or data.vocab_size, to those that "
                    "the dataset was made with"
                )
        return cls(
            path,
            sequences,
            documents,
            tokens,
            tokens_before(validation_end) - tokens,
            identity.hexdigest()[:32],
            fingerprint.hexdigest()[:32],
            itemsize,
        )

    def document_at(self, token: int) -> tuple[int, int]:
        """Return the document that has a token, and the number of tokens of that document.

        Args:
            token: position of the token in the training split.

        Returns:
            The number of the document, and its size.
        """
        index = self._dataset.index
        byte = token * self.token_bytes
        document = int(np.searchsorted(index.sequence_pointers, byte, side="right")) - 1
        return document, int(index.sequence_lengths[document])

    def read(self, document: int, start: int, length: int) -> Ints:
        """Read a piece of a document.

        Args:
            document: number of the document.
            start: first token of the piece, counted from the beginning of the document.
            length: number of tokens.

        Returns:
            (length,) token ids.
        """
        # A copy, because a dataset that is closed takes its memory with it.
        return np.array(self._dataset.get(document, start, length), dtype=np.int64)

    def tokens_from(self, token: int, length: int) -> Ints:
        """Read tokens of the training split across documents.

        Args:
            token: position of the first token in the training split; it must be below `tokens`.
            length: number of tokens.

        Returns:
            Up to `length` token ids; fewer at the end of the split.
        """
        index = self._dataset.index
        document, size = self.document_at(token)
        start = token - int(index.sequence_pointers[document]) // self.token_bytes
        pieces = []
        while length and document < self.documents:
            size = int(index.sequence_lengths[document]) - start
            if size:
                pieces.append(self.read(document, start, min(length, size)))
                length -= len(pieces[-1])
            document, start = document + 1, 0
        return np.concatenate(pieces)

    @property
    def _dataset(self) -> IndexedDataset:
        return _opened(self.path, self.fingerprint)


@functools.lru_cache(_KEPT_OPEN)
def _opened(path: str, fingerprint: str) -> IndexedDataset:
    del fingerprint  # it is part of the key, so that rewritten files are opened again
    return IndexedDataset(path)
