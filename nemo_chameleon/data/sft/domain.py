"""A finetuning domain: JSONL with loss on its answers, packed into samples of one length.

Opening a domain tokenises its files, or finds them in the cache of `index.py`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.domain import (
    Domain,
    Window,
    require_distinct,
    require_held_out,
    split_shares,
)
from nemo_chameleon.data.parts import shown
from nemo_chameleon.data.sft.index import SKIPPED, Index, build, find_example_files
from nemo_chameleon.data.sft.packing import Packs, chunks
from nemo_chameleon.data.sft.reports import (
    describe_after,
    describe_left_out,
    describe_malformed,
    describe_splits,
    describe_unread,
)
from nemo_chameleon.data.sft.samples import Packing, packs_of
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.seeding import generator

logger = package_logger(__package__)


@dataclass(frozen=True, eq=False)
class SFTDomain:
    """The training split of one domain, which is the beginning of its examples.

    Attributes:
        name: the domain's name in the configuration.
        path: a JSONL file, or a folder of them; or a list of these.
        documents: number of examples in the training split.
        tokens: number of tokens in the examples that are trained on.
        fingerprint: digest of the lines and of their tokens; it does not depend on where the files
            are stored.
        index: the index of all its examples.
        validation_documents: number of examples in the validation split, which follows.
        trained: (n,) the examples of the training split that are trained on.
        answer_tokens: number of answer tokens in the examples that are trained on.
        packing: how examples become samples.
        answers_alone: whether embeddings are means over the answer tokens, or else over all tokens.
    """

    name: str
    path: str | list[str]
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
    def sources(self) -> dict[str, str]:
        """See `Domain`; a file is identified by where it lies."""
        return {place: place for place in self.index.sources}

    @property
    def datasets(self) -> dict[str, float]:
        """See `Domain`; all files have one index."""
        return {self.index.prefix: self.tokens}

    def evaluated(self, seq_length: int, *, whole: bool) -> list[str]:
        """See `Domain`."""
        del seq_length, whole
        return [self.index.prefix]

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
        """Return the samples of the training split.

        Args:
            seq_length: tokens per sample.

        Returns:
            The samples of one pass.
        """
        return packs_of(self.index, range(self.documents), seq_length, self.packing)[0]

    def pass_tokens(self, seq_length: int) -> int:
        """See `Domain`; tokens that fill a sample count too."""
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
        """Draw the `index`-th random window: a piece of an example, each as likely as the others.

        Args:
            index: number of the window.
            length: maximum number of tokens in the window.
            seed: seed of the windows.
            cross_documents: must be False, because examples do not continue into each other.

        Returns:
            A window of 1 to `length` tokens.

        Raises:
            UserError: `cross_documents` is True.
        """
        if cross_documents:
            raise UserError(
                f"domain {self.name!r}: windows of examples cannot continue into the next example: "
                "pass cross_documents=False"
            )
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
    """Return (m, 3) pieces of the examples that are trained on, where some token counts."""
    index = domain.index
    pieces = chunks(index.lengths[domain.trained], length)
    pieces[:, 0] = domain.trained[pieces[:, 0]]
    if not domain.answers_alone:
        return pieces
    first, before = index.starts[pieces[:, 0]], index.answers_before
    return pieces[before(first + pieces[:, 2]) > before(first + pieces[:, 1])]


def open_sft_domain(
    name: str,
    path: str | Sequence[str],
    data: DataConfig,
    reader: ExampleTokenizer,
    *,
    seq_length: int,
    split: str = "1,0,0",
    answers_alone: bool = True,
    key: str = "data.domains",
) -> SFTDomain:
    """Tokenise a domain's JSONL, or find it in the cache, and describe its training split.

    Args:
        name: the domain's name.
        path: a JSONL file, or a folder of them; a glob of files or folders; or a list of these.
        data: the data configuration: the cache, and what happens to malformed and long examples.
        reader: the tokenizer of examples.
        seq_length: tokens per sample; examples that do not fit are not trained on.
        split: Megatron's split string, which divides the examples in their order.
        answers_alone: whether embeddings are means over the answer tokens, or else over all tokens.
        key: the key of the configuration that lists the dataset; errors name it.

    Returns:
        The domain.

    Raises:
        UserError: there is no such file, lines are not examples, or there is no example to train
            on.
    """
    where = f"{key}.{name}.path"
    sources = find_example_files(path, where)
    where = f"{where}={shown(path)}"
    index = build(sources, reader, Path(data.cache) / "sft", where)
    if wrong := describe_malformed(index.facts, index.folder / SKIPPED):
        count = sum(index.facts["malformed"].values())
        wrong = f"{count:,} of {index.facts['lines']:,} lines are not examples: {wrong}"
        if data.on_malformed == "refuse":
            raise UserError(f"{where}: {wrong}; set data.on_malformed=skip to leave them out")
        logger.warning("%s: %s; they are left out", where, wrong)
    if left_out := describe_left_out(index.facts):
        logger.warning("%s: %s", where, left_out)
    if splits := describe_splits(index.facts):
        logger.warning("%s: %s", where, splits)
    if after := describe_after(index.facts):
        logger.info("%s: %s", where, after)
    if unread := describe_unread(index.facts):
        logger.info("%s: %s", where, unread)
    shares = split_shares(split)
    # This rounds as Megatron's builder does.
    examples = round(shares[0] * index.facts["examples"])
    validation_end = round((shares[0] + shares[1]) * index.facts["examples"])
    if not examples:
        raise UserError(
            f"{where}: nothing to train on: data.split={split!r} leaves training none of "
            f"{index.facts['examples']} example(s); give it a larger share"
        )
    packing = Packing(data.packing, data.on_too_long)
    _, found = packs_of(index, range(examples), seq_length, packing)
    trained = np.setdiff1d(np.arange(examples), found["left out"], assume_unique=True)
    answers = index.answers_before(index.starts)
    return SFTDomain(
        name,
        str(sources[0].path) if len(sources) == 1 else [str(one.path) for one in sources],
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
    """Open every configured domain.

    Args:
        data: the data configuration.
        seq_length: tokens per sample of the base model.
        answers_alone: whether embeddings are means over the answer tokens, or else over all tokens.

    Returns:
        The domains by name, in the configuration's order.

    Raises:
        UserError: `open_sft_domain` refuses a domain, or two domains are the same data.
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
    """Open the sets of data.validation, which are evaluated on and never drawn from.

    Args:
        data: the data configuration.
        domains: the opened domains by name.
        seq_length: tokens per sample.

    Returns:
        The validation sets by name, in the configuration's order.

    Raises:
        UserError: `open_sft_domain` refuses a set, or a set is the same data as a domain.
    """
    if not data.validation:
        return {}  # this saves making a tokenizer, which takes a while
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
