"""A domain of Megatron's indexed datasets: its size, its fingerprint and random windows of it.

Opening a domain reads the memory-mapped .idx and 64 blocks of the .bin, so it takes as long for a
megabyte as for a terabyte.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from nemo_chameleon.config.data import DataConfig, DomainConfig
from nemo_chameleon.data.domain import (
    Domain,
    Window,
    require_distinct,
    require_held_out,
    split_shares,
)
from nemo_chameleon.data.index_file import read_header
from nemo_chameleon.data.stamp import require_tokenizer
from nemo_chameleon.utils import seeding
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import BLOCK_BYTES, BLOCKS, read_blocks


@dataclass(frozen=True)
class IndexedDomain:
    """The training split of one indexed dataset.

    Attributes:
        name: the domain's name in the configuration.
        path: prefix of the .bin and .idx files.
        documents: number of documents in the training split, which is the beginning of the file.
        tokens: number of tokens in the training split.
        validation_tokens: number of tokens in the validation split, which follows.
        fingerprint: digest of the .idx header and of 64 evenly spaced 4 KiB blocks of the .bin; it
            does not depend on where the files are stored.
    """

    name: str
    path: str
    documents: int
    tokens: int
    validation_tokens: int
    fingerprint: str
    _token_bytes: int = field(repr=False)

    @classmethod
    def open(
        cls,
        name: str,
        path: str,
        *,
        split: str = "1,0,0",
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        key: str = "data.domains",
    ) -> "IndexedDomain":
        """Check a dataset's files and describe its training split.

        Args:
            name: the domain's name.
            path: prefix of the .bin and .idx files.
            split: Megatron's split string, which divides the documents in their order.
            vocab_size: if given, every token id in the blocks that are read must be below it.
            tokenizer: if given, and the dataset has a stamp, its vocabulary must be the stamp's.
            key: the key of the configuration that lists the dataset; errors name it.

        Returns:
            The domain.

        Raises:
            UserError: a file is missing, truncated or in another format, there is no document to
                train on, a token id is outside the vocabulary, or another tokenizer wrote the
                dataset.
        """
        where = f"{key}.{name}.path={path}"
        for ending in (".bin", ".idx"):
            if not Path(path + ending).is_file():
                hint = (
                    "; write the path without .bin or .idx"
                    if path.endswith((".bin", ".idx"))
                    else ""
                )
                raise UserError(f"{where}: there is no file {path}{ending}{hint}")
        header, sequences, dtype = read_header(Path(path + ".idx"), where)
        require_tokenizer(path, sequences, tokenizer, where)
        size = Path(path + ".bin").stat().st_size
        if not sequences or not size:
            raise UserError(
                f"{where}: the dataset is empty: {sequences} document(s) in {size} bytes"
            )
        try:
            dataset = IndexedDataset(path)
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"{where}: Megatron cannot read the dataset, which may be damaged: {error}"
            ) from error
        pointers = dataset.index.sequence_pointers
        lengths = dataset.index.sequence_lengths
        itemsize = np.dtype(dtype).itemsize
        expected = int(pointers[-1]) + int(lengths[-1]) * itemsize
        if size < expected:
            raise UserError(
                f"{where}: the .bin has {size} bytes, but the .idx describes {expected}: copy both "
                "files again"
            )
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
        if not tokens:
            raise UserError(
                f"{where}: nothing to train on: under data.split={split!r} the training part of "
                f"{sequences} document(s) has no tokens; give training a larger share"
            )
        digest = hashlib.sha256(header)
        spread = np.linspace(0, max(0, expected - BLOCK_BYTES), BLOCKS)
        offsets = (int(offset) // itemsize * itemsize for offset in spread)
        for block in read_blocks(Path(path + ".bin"), offsets):
            digest.update(block)
            ids = np.frombuffer(block[: len(block) // itemsize * itemsize], dtype=dtype)
            if vocab_size is not None and ids.size and int(ids.max()) >= vocab_size:
                raise UserError(
                    f"{where}: the dataset has token id {int(ids.max())}, but the vocabulary has "
                    f"{vocab_size} tokens: set data.tokenizer, or data.vocab_size, to those that "
                    "the dataset was made with"
                )
        return cls(
            name,
            path,
            documents,
            tokens,
            tokens_before(validation_end) - tokens,
            digest.hexdigest()[:32],
            itemsize,
        )

    def facts(self) -> dict[str, Any]:
        """See `Domain`."""
        return {
            "path": self.path,
            "tokens": self.tokens,
            "documents": self.documents,
            "fingerprint": self.fingerprint,
        }

    @property
    def prefix(self) -> str:
        """See `Domain`."""
        return self.path

    @property
    def embeddable_tokens(self) -> int:
        """See `Domain`: all tokens count."""
        return self.tokens

    def tokens_in(self, unit: str) -> int:
        """See `Domain`: all tokens carry loss."""
        del unit
        return self.tokens

    def pass_tokens(self, seq_length: int) -> int:
        """See `Domain`: samples continue from one document to the next, so nothing is filled."""
        del seq_length
        return self.tokens

    def loss_tokens(self, samples: int, seq_length: int, seed: int) -> int:
        """See `Domain`: all tokens carry loss."""
        del seed
        return samples * seq_length

    def window(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        """See `Domain`; all tokens of a window count."""
        # A document is drawn in proportion to its tokens, then a start such that the whole window
        # is inside the document. A document shorter than `length` is taken whole. With
        # `cross_documents` the start is any token, and the window continues into the documents
        # that follow, as a training sample does, and from the last one into the first.
        generator = seeding.generator(seed, self.name, index=index)
        if cross_documents:
            first = int(generator.integers(self.tokens))
            tokens = self._tokens_from(first, length)
            if len(tokens) < length and first:
                rest = min(length - len(tokens), first)
                tokens = np.concatenate([tokens, self._tokens_from(0, rest)])
        else:
            token = int(generator.integers(self.tokens))
            pointers = self._dataset.index.sequence_pointers
            document = int(np.searchsorted(pointers, token * self._token_bytes, side="right")) - 1
            size = int(self._dataset.index.sequence_lengths[document])
            start = int(generator.integers(max(1, size - length + 1)))
            tokens = self._dataset.get(document, start, min(length, size)).astype(np.int64)
        return Window(tokens, np.ones(len(tokens), dtype=np.bool_))

    @cached_property
    def _dataset(self) -> IndexedDataset:
        return IndexedDataset(self.prefix)

    def _tokens_from(self, token: int, length: int) -> Ints:
        """Return up to `length` tokens that start at a token of the split, across documents."""
        pointers = self._dataset.index.sequence_pointers
        byte = token * self._token_bytes
        document = int(np.searchsorted(pointers, byte, side="right")) - 1
        start, parts = (byte - int(pointers[document])) // self._token_bytes, []
        while length and document < self.documents:
            size = int(self._dataset.index.sequence_lengths[document]) - start
            if size:
                parts.append(self._dataset.get(document, start, min(length, size)))
                length -= len(parts[-1])
            document, start = document + 1, 0
        return np.concatenate(parts).astype(np.int64)


def open_indexed(
    domains: Mapping[str, DomainConfig],
    split: str,
    vocab_size: int | None = None,
    tokenizer: str | None = None,
) -> dict[str, IndexedDomain]:
    """Open every configured domain.

    Args:
        domains: the configured domains by name.
        split: Megatron's split string.
        vocab_size: if given, every token id in the blocks that are read must be below it.
        tokenizer: if given, no other tokenizer may have written a dataset that has a stamp.

    Returns:
        The domains by name, in the configuration's order.

    Raises:
        UserError: `IndexedDomain.open` refuses a domain, or two domains are the same data.
    """
    return require_distinct(
        {
            name: IndexedDomain.open(
                name, domain.path, split=split, vocab_size=vocab_size, tokenizer=tokenizer
            )
            for name, domain in domains.items()
        }
    )


def open_indexed_validation(
    data: DataConfig, domains: Mapping[str, Domain], vocab_size: int | None = None
) -> dict[str, IndexedDomain]:
    """Open the sets of data.validation, which are evaluated on and never drawn from.

    Args:
        data: the data configuration.
        domains: the opened domains by name.
        vocab_size: if given, every token id in the blocks that are read must be below it.

    Returns:
        The validation sets by name, in the configuration's order.

    Raises:
        UserError: `IndexedDomain.open` refuses a set, or a set is the same data as a domain.
    """
    return require_held_out(
        {
            name: IndexedDomain.open(
                name,
                dataset.path,
                vocab_size=vocab_size,
                tokenizer=data.tokenizer,
                key="data.validation",
            )
            for name, dataset in data.validation.items()
        },
        domains,
    )
