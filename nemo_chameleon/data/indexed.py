"""A domain of Megatron's indexed datasets: what is known about it cheaply, and random windows.

Everything here reads the memory-mapped .idx and a few blocks of the .bin: opening a domain costs
the same for a megabyte as for a terabyte.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from nemo_chameleon.config.schema import DataConfig, DomainConfig
from nemo_chameleon.data.domain import (
    Domain,
    Window,
    require_distinct,
    require_held_out,
    split_shares,
)
from nemo_chameleon.utils import seeding
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import BLOCK_BYTES, BLOCKS, read_blocks

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")


@dataclass(frozen=True)
class IndexedDomain:
    """One domain's training split.

    Attributes:
        name: what the user calls it.
        path: prefix of the .bin and .idx files.
        documents: documents in the training split: the first ones of the file.
        tokens: tokens in them.
        validation_tokens: tokens in the validation split, the documents that follow.
        fingerprint: of the whole file's header, size and 64 blocks spread over its contents; the
            same wherever the file lies.
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
        key: str = "data.domains",
    ) -> "IndexedDomain":
        """Check a dataset's files and describe its training split.

        Args:
            name: the domain's name, for errors.
            path: prefix of the .bin and .idx files.
            split: Megatron's split string: shares of the documents, in their order.
            vocab_size: if given, tokens that are read on the way must be less.
            key: of the configuration that names it, for errors.

        Raises:
            UserError: a file missing, truncated or of another kind, no document to train on, or a
                token outside the vocabulary.
        """
        where = f"{key}.{name}.path={path}"
        for ending in (".bin", ".idx"):
            if not Path(path + ending).is_file():
                hint = "; leave out the ending" if path.endswith((".bin", ".idx")) else ""
                raise UserError(f"{where}: there is no {path}{ending}{hint}")
        header, sequences, dtype = _read_header(Path(path + ".idx"), where)
        size = Path(path + ".bin").stat().st_size
        if not sequences or not size:
            raise UserError(f"{where}: empty, {sequences} document(s) in {size} bytes")
        try:
            dataset = IndexedDataset(path)
        except (AssertionError, ValueError) as error:
            raise UserError(f"{where}: Megatron cannot read it, is it damaged? {error}") from error
        pointers = dataset.index.sequence_pointers
        lengths = dataset.index.sequence_lengths
        itemsize = np.dtype(dtype).itemsize
        expected = int(pointers[-1]) + int(lengths[-1]) * itemsize
        if size < expected:
            raise UserError(f"{where}: the .bin has {size} bytes, the .idx tells of {expected}")
        shares = split_shares(split)
        # Rounded as Megatron's builder rounds, or the two would disagree on a document.
        documents = round(shares[0] * float(sequences))
        validation_end = round((shares[0] + shares[1]) * float(sequences))

        def tokens_before(document: int) -> int:
            if not document:
                return 0
            return int(pointers[document - 1]) // itemsize + int(lengths[document - 1])

        tokens = tokens_before(documents)
        if not tokens:
            raise UserError(
                f"{where}: nothing to train on, {sequences} document(s) under data.split={split!r}"
            )
        digest = hashlib.sha256(header)
        spread = np.linspace(0, max(0, expected - BLOCK_BYTES), BLOCKS)
        offsets = (int(offset) // itemsize * itemsize for offset in spread)
        for block in read_blocks(Path(path + ".bin"), offsets):
            digest.update(block)
            ids = np.frombuffer(block[: len(block) // itemsize * itemsize], dtype=dtype)
            if vocab_size is not None and ids.size and int(ids.max()) >= vocab_size:
                raise UserError(
                    f"{where}: it holds token {int(ids.max())}, but the vocabulary has "
                    f"{vocab_size}: was it tokenised with another tokenizer?"
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
        """See `Domain`: all of them."""
        return self.tokens

    def tokens_in(self, unit: str) -> int:
        """See `Domain`: all tokens carry loss."""
        del unit
        return self.tokens

    def pass_tokens(self, seq_length: int) -> int:
        """See `Domain`: samples run on from one document to the next, and waste none."""
        del seq_length
        return self.tokens

    def loss_tokens(self, samples: int, seq_length: int, seed: int) -> int:
        """See `Domain`: all tokens carry loss."""
        del seed
        return samples * seq_length

    def window(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        """See `Domain`; all tokens of a window count.

        A document is drawn in proportion to its tokens, then a start in it such that the window
        lies inside; a document shorter than `length` is taken whole. With `cross_documents` the
        start is any token, and the window continues into the documents that follow, as a training
        sample does.
        """
        generator = seeding.generator(seed, self.name, index=index)
        if cross_documents:
            first = int(generator.integers(max(1, self.tokens - length + 1)))
            tokens = self._tokens_from(first, length)
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
        """Up to `length` tokens from the training split's `token`-th on, whatever document."""
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
    domains: Mapping[str, DomainConfig], split: str, vocab_size: int | None = None
) -> dict[str, IndexedDomain]:
    """Open every configured domain, in the configuration's order.

    Raises:
        UserError: as `IndexedDomain.open`, or two names for the same data.
    """
    return require_distinct(
        {
            name: IndexedDomain.open(name, domain.path, split=split, vocab_size=vocab_size)
            for name, domain in domains.items()
        }
    )


def open_indexed_validation(
    data: DataConfig, domains: Mapping[str, Domain], vocab_size: int | None = None
) -> dict[str, IndexedDomain]:
    """Open every dataset that is evaluated on and not drawn from, in the configuration's order.

    Raises:
        UserError: as `IndexedDomain.open`, or one that is a domain's own data.
    """
    return require_held_out(
        {
            name: IndexedDomain.open(
                name, dataset.path, vocab_size=vocab_size, key="data.validation"
            )
            for name, dataset in data.validation.items()
        },
        domains,
    )


def _read_header(idx: Path, where: str) -> tuple[bytes, int, type[np.number]]:
    """The .idx file's header, its number of sequences and the tokens' type."""
    size = idx.stat().st_size
    with idx.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise UserError(f"{where}: {idx.name} is truncated, {size} bytes")
    magic, version, code, sequences, documents = _HEADER.unpack(header)
    if magic != _MAGIC or version != 1:
        raise UserError(f"{where}: {idx.name} is not a Megatron dataset index")
    expected = _HEADER.size + sequences * (4 + 8) + documents * 8
    if size < expected:
        raise UserError(f"{where}: {idx.name} is truncated, {size} bytes of {expected}")
    try:
        dtype = DType.dtype_from_code(code)
    except ValueError as error:
        raise UserError(f"{where}: {idx.name} has an unknown token type, code {code}") from error
    return header, int(sequences), dtype
