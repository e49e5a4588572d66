"""A domain: a named Megatron dataset, what can be known about it cheaply, and random windows of it.

Everything here reads the memory-mapped .idx and a few blocks of the .bin: opening a domain costs
the same for a megabyte as for a terabyte.
"""

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset
from numpy.typing import NDArray

from nemo_chameleon.errors import UserError
from nemo_chameleon.schema import DataConfig, DomainConfig

_MAGIC = b"MMIDIDX\x00\x00"
_SPLIT = re.compile(r"\d+(\.\d+)?(,\d+(\.\d+)?){0,2}")
_HEADER = struct.Struct("<9sQBQQ")
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BYTES = 4096


class Window(NamedTuple):
    """Some tokens of a domain: ids (n,), and whether each counts to its embedding (n,)."""

    tokens: NDArray[np.int64]
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class Domain:
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
    ) -> "Domain":
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
        with Path(path + ".bin").open("rb") as stream:
            for offset in np.linspace(
                0, max(0, expected - _FINGERPRINT_BYTES), _FINGERPRINT_BLOCKS
            ):
                stream.seek(int(offset) // itemsize * itemsize)
                block = stream.read(_FINGERPRINT_BYTES)
                digest.update(block)
                ids = np.frombuffer(block[: len(block) // itemsize * itemsize], dtype=dtype)
                if vocab_size is not None and ids.size and int(ids.max()) >= vocab_size:
                    raise UserError(
                        f"{where}: it holds token {int(ids.max())}, but the vocabulary has "
                        f"{vocab_size}: tokenised with another tokenizer?"
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
        """What a mixture file says of a domain."""
        return {
            "path": self.path,
            "tokens": self.tokens,
            "documents": self.documents,
            "fingerprint": self.fingerprint,
        }

    @property
    def prefix(self) -> str:
        """Of the .bin and .idx files that Megatron reads."""
        return self.path

    def pass_tokens(self, seq_length: int) -> int:
        """Tokens that a run draws in one pass over it, in samples of so many."""
        del seq_length
        return self.tokens

    @property
    def counted(self) -> int:
        """Tokens that its embedding can be over."""
        return self.tokens

    def size(self, unit: str) -> int:
        """Tokens of it in the unit of shares: all, or those that carry loss. Here both are all."""
        del unit
        return self.tokens

    def answers_in(self, samples: int, seq_length: int, seed: int) -> int:
        """Tokens that carry loss in the first samples that a run of a seed draws: here, all."""
        del seed
        return samples * seq_length

    def sample(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        """The `index`-th random window of up to `length` tokens, and which of them count: all."""
        tokens = self.window(index, length, seed, cross_documents=cross_documents)
        return Window(tokens, np.ones(len(tokens), dtype=np.bool_))

    @cached_property
    def _dataset(self) -> IndexedDataset:
        return IndexedDataset(self.prefix)

    def window(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> NDArray[np.int64]:
        """The `index`-th random window: up to `length` tokens of one document.

        A document is drawn in proportion to its tokens, then a start in it such that the window
        lies inside; a document shorter than `length` is taken whole. With `cross_documents` the
        start is any token, and the window runs on into the documents that follow, as a training
        sample does. Which window it is depends on (seed, name, index) alone: not on other domains,
        and not on who else draws.

        Returns:
            (n,) token ids, 1 <= n <= length.
        """
        generator = window_generator(seed, self.name, index)
        if cross_documents:
            return self._run_of(int(generator.integers(max(1, self.tokens - length + 1))), length)
        token = int(generator.integers(self.tokens))
        pointers = self._dataset.index.sequence_pointers
        document = int(np.searchsorted(pointers, token * self._token_bytes, side="right")) - 1
        size = int(self._dataset.index.sequence_lengths[document])
        start = int(generator.integers(max(1, size - length + 1)))
        return self._dataset.get(document, start, min(length, size)).astype(np.int64)

    def _run_of(self, token: int, length: int) -> NDArray[np.int64]:
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


D = TypeVar("D", bound=Domain)


def window_generator(seed: int, name: str, index: int) -> np.random.Generator:
    """What a domain's `index`-th window is drawn with: a stream of its own."""
    key = hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16]
    return np.random.Generator(
        np.random.Philox(key=np.frombuffer(key, np.uint64), counter=[0, 0, 0, index])
    )


def open_domains(
    domains: Mapping[str, DomainConfig], split: str, vocab_size: int | None = None
) -> dict[str, Domain]:
    """Open every configured domain, in the configuration's order.

    Raises:
        UserError: as `Domain.open`, or two names for the same data.
    """
    return distinct(
        {
            name: Domain.open(name, domain.path, split=split, vocab_size=vocab_size)
            for name, domain in domains.items()
        }
    )


def open_validation(
    data: DataConfig, domains: Mapping[str, Domain], vocab_size: int | None = None
) -> dict[str, Domain]:
    """Open every dataset that is evaluated on and not drawn from, in the configuration's order.

    Raises:
        UserError: as `Domain.open`, or one that is a domain's own data.
    """
    return held_out(
        {
            name: Domain.open(name, dataset.path, vocab_size=vocab_size, key="data.validation")
            for name, dataset in data.validation.items()
        },
        domains,
    )


def distinct(domains: dict[str, D]) -> dict[str, D]:
    """The domains as they are.

    Raises:
        UserError: two names for the same data.
    """
    known: dict[str, str] = {}
    for name, domain in domains.items():
        other = known.setdefault(domain.fingerprint, name)
        if other != name:
            raise UserError(f"data.domains: {other!r} and {name!r} are the same data")
    return domains


def held_out(apart: dict[str, D], domains: Mapping[str, Domain]) -> dict[str, D]:
    """The sets to evaluate on, as they are.

    Raises:
        UserError: one that is a domain's own data.
    """
    for name, dataset in apart.items():
        for other, domain in domains.items():
            if domain.fingerprint == dataset.fingerprint:
                raise UserError(
                    f"data.validation.{name} is the data that domain {other!r} trains on"
                )
    return apart


def split_shares(split: str) -> list[float]:
    """Megatron's split string, "95,5,0" say, as three shares that sum to 1.

    Raises:
        UserError: not numbers, negative, or nothing left for training.
    """
    parts = [float(part) for part in split.split(",")] if _SPLIT.fullmatch(split) else [0.0]
    parts += [0.0] * (3 - len(parts))
    if not parts[0] > 0:
        raise UserError(f"data.split={split!r} is not like '95,5,0', with a share for training")
    return [part / sum(parts) for part in parts]


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
