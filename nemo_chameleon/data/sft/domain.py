"""A finetuning domain: JSONL with loss on its answers, packed into samples of one length."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_chameleon.config.schema import DataConfig
from nemo_chameleon.data.domain import (
    Domain,
    Window,
    require_distinct,
    require_held_out,
    split_shares,
)
from nemo_chameleon.data.sft.index import Index, build, malformed
from nemo_chameleon.data.sft.packing import Packs, chunks
from nemo_chameleon.data.sft.samples import Packing, packs_of
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.seeding import generator

logger = package_logger(__package__)


@dataclass(frozen=True, eq=False)
class SFTDomain:
    """One domain's training split: the first of its examples.

    Attributes:
        name: what the user calls it.
        path: a JSONL file, or a folder of them.
        documents: examples in the training split.
        tokens: tokens of those that are trained on.
        fingerprint: of the lines and of how they were tokenised, the same wherever they lie.
        index: of its examples.
        validation_documents: examples of the validation split, which follow.
        trained: which examples of the training split fit into its samples (n,).
        answer_tokens: tokens of these that are answers.
        packing: how examples become samples.
        answers_alone: whether embeddings are means over the answers, or over all tokens.
    """

    name: str
    path: str
    documents: int
    tokens: int
    fingerprint: str
    index: Index = field(repr=False)
    validation_documents: int
    trained: Ints = field(repr=False)
    answer_tokens: int
    packing: Packing
    answers_alone: bool

    @property
    def prefix(self) -> str:
        """See `Domain`."""
        return self.index.prefix

    def facts(self) -> dict[str, Any]:
        """See `Domain`."""
        return {
            "path": self.path,
            "tokens": self.tokens,
            "documents": self.documents,
            "fingerprint": self.fingerprint,
            "answer_tokens": self.answer_tokens,
        }

    def packs(self, seq_length: int) -> Packs:
        """The training split's samples."""
        return packs_of(self.index, range(self.documents), seq_length, self.packing)[0]

    def pass_tokens(self, seq_length: int) -> int:
        """See `Domain`; with what fills samples up."""
        return len(self.packs(seq_length)) * seq_length

    @property
    def embeddable_tokens(self) -> int:
        """See `Domain`."""
        return self.answer_tokens if self.answers_alone else self.tokens

    def tokens_in(self, unit: str) -> int:
        """See `Domain`."""
        return self.answer_tokens if unit == "tokens" else self.tokens

    def loss_tokens(self, samples: int, seq_length: int, seed: int) -> int:
        """See `Domain`."""
        return self.packs(seq_length).loss_tokens(samples, seed)

    def window(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        """See `Domain`; windows are pieces of examples, and each is as likely as any other.

        Raises:
            ValueError: `cross_documents`, for examples do not continue into each other.
        """
        if cross_documents:
            raise ValueError(f"{self.name!r}: windows of examples cannot cross documents")
        pieces = _windows(self, length)
        drawn = int(generator(seed, self.name, index=index).integers(len(pieces)))
        example, start, stop = pieces[drawn]
        tokens = self.index.tokens(example, start, stop)
        counted = np.ones(len(tokens), dtype=np.bool_)
        if self.answers_alone:
            counted = self.index.is_answer(example, start, stop)
        return Window(tokens, counted)


@functools.lru_cache
def _windows(domain: SFTDomain, length: int) -> Ints:
    """Pieces of the examples that are trained on, those in which something counts (m, 3)."""
    index = domain.index
    pieces = chunks(index.lengths[domain.trained], length)
    pieces[:, 0] = domain.trained[pieces[:, 0]]
    if not domain.answers_alone:
        return pieces
    first, before = index.starts[pieces[:, 0]], index.answers_before
    return pieces[before(first + pieces[:, 2]) > before(first + pieces[:, 1])]


def open_sft_domain(
    name: str,
    path: str,
    data: DataConfig,
    reader: ExampleTokenizer,
    *,
    seq_length: int,
    split: str = "1,0,0",
    answers_alone: bool = True,
    key: str = "data.domains",
) -> SFTDomain:
    """Tokenise a domain's JSONL, or find that it has been, and describe its training split.

    Args:
        name: the domain's name, for errors.
        path: a JSONL file, or a folder of them.
        data: what is refused, and the cache.
        reader: of the lines.
        seq_length: tokens of a sample: what does not fit into one is not trained on.
        split: Megatron's split string: shares of the examples, in their order.
        answers_alone: as `SFTDomain` has it.
        key: of the configuration that names it, for errors.

    Raises:
        UserError: no such file, lines that are no examples, or none to train on.
    """
    where = f"{key}.{name}.path={path}"
    index = build(path, reader, Path(data.cache) / "sft", where)
    if wrong := malformed(index):
        if data.on_malformed == "refuse":
            raise UserError(f"{where}: {wrong}; data.on_malformed=skip leaves them out")
        logger.warning("%s: %s; left out", where, wrong)
    shares = split_shares(split)
    # Rounded as Megatron's builder rounds.
    examples = round(shares[0] * index.facts["examples"])
    validation_end = round((shares[0] + shares[1]) * index.facts["examples"])
    if not examples:
        raise UserError(
            f"{where}: nothing to train on, {index.facts['examples']} example(s) under "
            f"data.split={split!r}"
        )
    packing = Packing(data.packing, data.on_too_long)
    _, found = packs_of(index, range(examples), seq_length, packing)
    trained = np.setdiff1d(np.arange(examples), found["left out"], assume_unique=True)
    answers = index.answers_before(index.starts)
    return SFTDomain(
        name,
        path,
        examples,
        int(index.lengths[trained].sum()),
        index.facts["fingerprint"],
        index=index,
        validation_documents=validation_end - examples,
        trained=trained,
        answer_tokens=int((answers[1:] - answers[:-1])[trained].sum()),
        packing=packing,
        answers_alone=answers_alone,
    )


def open_sft_domains(
    data: DataConfig, seq_length: int, *, answers_alone: bool = True
) -> dict[str, SFTDomain]:
    """Every configured domain, in the configuration's order.

    Raises:
        UserError: as `open_sft_domain`, or two names for the same data.
    """
    reader = ExampleTokenizer(data)
    return require_distinct(
        {
            name: open_sft_domain(
                name,
                domain.path,
                data,
                reader,
                seq_length=seq_length,
                split=data.split,
                answers_alone=answers_alone,
            )
            for name, domain in data.domains.items()
        }
    )


def open_sft_validation(
    data: DataConfig, domains: Mapping[str, Domain], seq_length: int
) -> dict[str, SFTDomain]:
    """Every dataset that is evaluated on and not drawn from, in the configuration's order.

    Raises:
        UserError: as `open_sft_domain`, or one that is a domain's own data.
    """
    if not data.validation:
        return {}  # a reader takes a while to make
    reader = ExampleTokenizer(data)
    return require_held_out(
        {
            name: open_sft_domain(
                name, dataset.path, data, reader, seq_length=seq_length, key="data.validation"
            )
            for name, dataset in data.validation.items()
        },
        domains,
    )
