"""A domain of Megatron's indexed datasets: its size, its fingerprint and random windows of it."""

import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nemo_chameleon.config.data import DataConfig, DomainConfig
from nemo_chameleon.data.domain import (
    Domain,
    Window,
    require_distinct,
    require_held_out,
)
from nemo_chameleon.data.given import Given
from nemo_chameleon.data.indexed_part import IndexedPart
from nemo_chameleon.data.parts import find_parts, require_once, shown
from nemo_chameleon.mixture.datasets import require_countable
from nemo_chameleon.utils import seeding
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError

_OPENED_AT_ONCE = 16  # on storage that is shared, opening is waiting


@dataclass(frozen=True)
class IndexedDomain:
    """The training splits of one indexed dataset or several, which are the domain's parts.

    Megatron splits each dataset by its documents, so each part has a training split of its own.

    Attributes:
        name: the domain's name in the configuration.
        parts: the parts, in the order of the configuration.
        fingerprint: the digest of one part, or one of the digests of several in their order; it
            does not depend on where the files are stored.
    """

    name: str
    parts: tuple[IndexedPart, ...]
    fingerprint: str

    @classmethod
    def open(
        cls,
        name: str,
        path: str | Sequence[str],
        *,
        split: str = "1,0,0",
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        key: str = "data.domains",
    ) -> "IndexedDomain":
        """Check the files of a domain's datasets and describe their training splits.

        Args:
            name: the domain's name.
            path: prefix of the .bin and .idx files, a glob of prefixes, or a list of these.
            split: Megatron's split string, which divides the documents of each part.
            vocab_size: if given, every token id in the blocks that are read must be below it.
            tokenizer: if given, and the dataset has a stamp, its vocabulary must be the stamp's.
            key: the key of the configuration that lists the dataset; errors name it.

        Returns:
            The domain.

        Raises:
            UserError: a file is missing, damaged or in another format, two parts are the same data,
                there is no document to train on, a token id is negative or outside the vocabulary,
                or another tokenizer wrote a part.
        """
        where = f"{key}.{name}.path"
        paths = find_parts(path, where, tokenizer)
        opened = functools.partial(
            IndexedPart.open,
            split=split,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            whole=len(paths) == 1,
        )
        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            parts = tuple(pool.map(opened, [Given(part, where) for part in paths]))
        require_once([(part.identity, part.path) for part in parts], where)
        if not any(part.tokens for part in parts):
            sequences = sum(part.sequences for part in parts)
            raise UserError(
                f"{where}={shown(path)}: nothing to train on: under data.split={split!r} the "
                f"training part of {sequences} document(s) has no tokens; give training a larger "
                "share"
            )
        fingerprint = parts[0].fingerprint
        if len(parts) > 1:
            together = "\n".join(part.fingerprint for part in parts)
            fingerprint = hashlib.sha256(together.encode()).hexdigest()[:32]
        return cls(name, parts, fingerprint)

    @property
    def path(self) -> str | list[str]:
        """See `Domain`."""
        paths = [part.path for part in self.parts]
        return paths[0] if len(paths) == 1 else paths

    @cached_property
    def documents(self) -> int:
        """See `Domain`."""
        return sum(part.documents for part in self.parts)

    @cached_property
    def tokens(self) -> int:
        """See `Domain`."""
        return sum(part.tokens for part in self.parts)

    @property
    def validation_tokens(self) -> int:
        """The number of tokens in the validation splits of all parts."""
        return sum(part.validation_tokens for part in self.parts)

    @property
    def sources(self) -> dict[str, str]:
        """See `Domain`."""
        return {part.identity: part.path for part in self.parts}

    def facts(self) -> dict[str, Any]:
        """See `Domain`."""
        by_part = {"part_tokens": [part.tokens for part in self.parts]}
        return {
            "path": self.path,
            "tokens": self.tokens,
            "documents": self.documents,
            "fingerprint": self.fingerprint,
            **(by_part if len(self.parts) > 1 else {}),
        }

    @property
    def datasets(self) -> dict[str, float]:
        """See `Domain`; Megatron can build no dataset of a part that has nothing to train on."""
        return {part.path: part.tokens for part in self.parts if part.tokens}

    def evaluated(self, seq_length: int, *, whole: bool) -> list[str]:
        """See `Domain`; several parts are evaluated on where they fill a sample."""
        if len(self.parts) == 1:
            return [self.parts[0].path]
        sizes = [part.tokens if whole else part.validation_tokens for part in self.parts]
        parts = zip(self.parts, sizes, strict=True)
        return [part.path for part, tokens in parts if tokens > seq_length]

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
        # that follow, as a training sample does, and from the last one into the first. The parts
        # are one after the other.
        generator = seeding.generator(seed, self.name, index=index)
        token = int(generator.integers(self.tokens))
        if cross_documents:
            tokens = self._tokens_from(token, length)
            if len(tokens) < length and token:
                rest = min(length - len(tokens), token)
                tokens = np.concatenate([tokens, self._tokens_from(0, rest)])
        else:
            place = self._place(token)
            part = self.parts[place]
            document, size = part.document_at(token - self._starts[place])
            start = int(generator.integers(max(1, size - length + 1)))
            tokens = part.read(document, start, min(length, size))
        return Window(tokens, np.ones(len(tokens), dtype=np.bool_))

    @cached_property
    def _starts(self) -> list[int]:
        """(parts,) the position of each part's first token among the tokens of all parts."""
        return [0, *itertools.accumulate(part.tokens for part in self.parts[:-1])]

    def _place(self, token: int) -> int:
        """Return which part has a token."""
        return int(np.searchsorted(self._starts, token, side="right")) - 1

    def _tokens_from(self, token: int, length: int) -> Ints:
        """Return up to `length` tokens that start at a token, across documents and parts."""
        place, pieces = self._place(token), []
        start = token - self._starts[place]
        while length and place < len(self.parts):
            if self.parts[place].tokens:
                pieces.append(self.parts[place].tokens_from(start, length))
                length -= len(pieces[-1])
            place, start = place + 1, 0
        return np.concatenate(pieces)


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
        UserError: `IndexedDomain.open` refuses a domain, two domains share data, or there are more
            parts than Megatron can blend.
    """
    opened = {
        name: IndexedDomain.open(
            name, domain.path, split=split, vocab_size=vocab_size, tokenizer=tokenizer
        )
        for name, domain in domains.items()
    }
    require_countable(sum(len(domain.parts) for domain in opened.values()))
    return require_distinct(opened)


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
        UserError: `IndexedDomain.open` refuses a set, or a set shares data with a domain.
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
