"""A finetuning domain: JSONL with loss on its answers, packed into samples of one length."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from nemo_chameleon import parallel
from nemo_chameleon.domains import (
    Domain,
    Window,
    distinct,
    held_out,
    split_shares,
    window_generator,
)
from nemo_chameleon.errors import UserError
from nemo_chameleon.files import digest, write_atomically
from nemo_chameleon.schema import DataConfig
from nemo_chameleon.sft.index import Index, Reader, build, malformed
from nemo_chameleon.sft.packing import Ints, Packs, chunks, pack

_SHOWN = 5  # examples that are too long, in a message


@dataclass(frozen=True)
class Packing:
    """How examples become samples.

    Attributes:
        together: several in a sample, or each alone.
        on_too_long: what is done about one that does not fit: refuse, skip or truncate.
    """

    together: bool = True
    on_too_long: str = "refuse"


@functools.cache
def packs_of(
    index: Index, part: range, seq_length: int, packing: Packing
) -> tuple[Packs, dict[str, Ints]]:
    """The samples of some examples: made once, then read from beside the index.

    A text without a prompt is cut into as many pieces as it takes, and loses nothing. Of an example
    that is too long otherwise the beginning is left out, if its last answer stays whole.

    Args:
        index: of the examples.
        part: which of them.
        seq_length: tokens a sample.
        packing: how.

    Returns:
        The samples; and which examples are "too long", "shortened" and "left out".
    """
    key = digest([[part.start, part.stop], seq_length, packing.together, packing.on_too_long])
    file = index.folder / f"packs-{key}.safetensors"
    if not file.is_file():
        try:
            write_atomically(file, save(_packed(index, part, seq_length, packing)))
        except OSError as error:
            raise UserError(f"cannot write {file}; set another data.cache: {error}") from error
    found = load_file(file)
    packs = Packs(*(found.pop(name) for name in ("pieces", "starts", "answers")))
    return packs, found


def _packed(index: Index, part: range, length: int, packing: Packing) -> dict[str, Ints]:
    examples = np.arange(part.start, part.stop, dtype=np.int64)
    lengths = index.lengths[examples]
    # A sample has a label for every token, so it takes one token more than it is long.
    fits = lengths <= length + 1
    whole = np.stack([examples, np.zeros_like(examples), lengths], axis=1)[fits]
    texts = examples[~fits & (index.prompts[examples] == 0)]
    pieces = chunks(index.lengths[texts], length + 1, overlap=1)
    pieces[:, 0] = texts[pieces[:, 0]]
    too_long = examples[~fits & (index.prompts[examples] > 0)]
    keeps_answer = index.last_answers[too_long] <= length
    truncates = packing.on_too_long == "truncate"
    shortened = too_long[keeps_answer] if truncates else too_long[:0]
    stops = index.lengths[shortened]
    # From a prompt on: of an answer that is cut nobody knows what it answers.
    begins = [
        index.prompt_from(int(i), int(stop) - (length + 1))
        for i, stop in zip(shortened, stops, strict=True)
    ]
    cut = np.stack([shortened, np.array(begins, dtype=np.int64), stops], axis=1)
    pieces = np.concatenate([whole, pieces, cut])
    firsts = index.starts[pieces[:, 0]]
    carrying = index.answers_before(firsts + pieces[:, 2]) - index.answers_before(
        firsts + pieces[:, 1] + 1
    )
    sizes = pieces[:, 2] - pieces[:, 1] - 1
    if packing.together:
        order, starts = pack(sizes, length)
    else:
        order = np.arange(len(pieces))
        starts = np.arange(len(pieces) + 1)
    answers = np.add.reduceat(carrying[order], starts[:-1]) if len(pieces) else carrying
    return {
        "pieces": pieces[order],
        "starts": starts,
        "answers": answers,
        "too long": too_long,
        "shortened": shortened,
        "left out": too_long[~keeps_answer] if truncates else too_long,
    }


@dataclass(frozen=True, eq=False)
class SFTDomain(Domain):
    """One domain's training split: the first of its examples.

    Attributes:
        index: of its examples.
        validation_documents: examples of the validation split, which follow.
        trained: which examples of the training split fit into its samples (n,).
        answer_tokens: tokens of these that are answers.
        packing: how examples become samples.
        answers_alone: whether embeddings are means over the answers, or over all tokens.
    """

    index: Index = field(repr=False, kw_only=True)
    validation_documents: int = field(kw_only=True)
    trained: Ints = field(repr=False, compare=False, kw_only=True)
    answer_tokens: int = field(kw_only=True)
    packing: Packing = field(kw_only=True)
    answers_alone: bool = field(kw_only=True)

    @property
    def prefix(self) -> str:
        """See `Domain`."""
        return self.index.prefix

    def facts(self) -> dict[str, Any]:
        """See `Domain`."""
        return {**super().facts(), "answer_tokens": self.answer_tokens}

    def packs(self, seq_length: int) -> Packs:
        """The training split's samples."""
        return packs_of(self.index, range(self.documents), seq_length, self.packing)[0]

    def pass_tokens(self, seq_length: int) -> int:
        """See `Domain`; with what fills samples up."""
        return len(self.packs(seq_length)) * seq_length

    @property
    def counted(self) -> int:
        """See `Domain`."""
        return self.answer_tokens if self.answers_alone else self.tokens

    def size(self, unit: str) -> int:
        """See `Domain`."""
        return self.answer_tokens if unit == "tokens" else self.tokens

    def answers_in(self, samples: int, seq_length: int, seed: int) -> int:
        """See `Domain`."""
        return self.packs(seq_length).answers_in(samples, seed)

    def sample(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        """See `Domain`; windows are pieces of examples, each as likely as any other."""
        pieces = _windows(self, length)
        example, start, stop = pieces[
            int(window_generator(seed, self.name, index).integers(len(pieces)))
        ]
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
    reader: Reader,
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
        parallel.say(f"note: {where}: {wrong}; left out")
    shares = split_shares(split)
    # Rounded as Megatron's builder rounds.
    examples = round(shares[0] * index.facts["examples"])
    validation_end = round((shares[0] + shares[1]) * index.facts["examples"])
    if not examples:
        raise UserError(
            f"{where}: nothing to train on, {index.facts['examples']} example(s) under "
            f"data.split={split!r}"
        )
    ends = index.starts[[examples, validation_end]]
    packing = Packing(data.packing, data.on_too_long)
    _, found = packs_of(index, range(examples), seq_length, packing)
    trained = np.setdiff1d(np.arange(examples), found["left out"], assume_unique=True)
    answers = index.answers_before(index.starts)
    return SFTDomain(
        name,
        path,
        examples,
        int(index.lengths[trained].sum()),
        int(ends[1] - ends[0]),
        index.facts["fingerprint"],
        0,
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
    reader = Reader(data)
    return distinct(
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
    reader = Reader(data)
    return held_out(
        {
            name: open_sft_domain(
                name, dataset.path, data, reader, seq_length=seq_length, key="data.validation"
            )
            for name, dataset in data.validation.items()
        },
        domains,
    )


def check_sft(
    data: DataConfig,
    domains: Mapping[str, SFTDomain],
    seq_length: int,
    prefix: str,
    evaluated: bool,
) -> None:
    """Make the samples of training and validation, and say what does not fit into one.

    Args:
        data: the configuration.
        domains: opened.
        seq_length: tokens of a sample.
        prefix: of `seq_length` in the configuration, for errors.
        evaluated: whether validation splits are used.

    Raises:
        UserError: examples that are too long, and that is refused; or nothing left to train or to
            evaluate on.
    """
    for name, domain in domains.items():
        part = range(domain.documents)
        _check_samples(f"data.domains.{name}", domain, part, seq_length, prefix)
    if not evaluated:
        return
    apart = open_sft_validation(data, domains, seq_length)
    for name, domain in apart.items():
        part = range(domain.documents)
        _check_samples(f"data.validation.{name}", domain, part, seq_length, prefix)
    for name, domain in domains.items():
        if name not in apart:
            part = range(domain.documents, domain.documents + domain.validation_documents)
            _check_samples(f"data.domains.{name}", domain, part, seq_length, prefix)


def _check_samples(
    where: str, domain: SFTDomain, part: range, seq_length: int, prefix: str
) -> None:
    if not len(part):
        raise UserError(
            f"{where}: no example to evaluate on under data.split: give validation a larger share, "
            f"or set data.validation.{domain.name}.path, or no evaluation (train.eval_iters=0)"
        )
    packs, found = packs_of(domain.index, part, seq_length, domain.packing)
    too_long, shortened, left_out = (found[k] for k in ("too long", "shortened", "left out"))
    if not len(too_long):
        return
    lines = "; ".join(domain.index.line(int(i)) for i in too_long[:_SHOWN])
    more = "; ..." if len(too_long) > _SHOWN else ""
    what = (
        f"{where}: {len(too_long):,} of {len(part):,} examples are longer than {prefix}"
        f"seq_length={seq_length} ({lines}{more})"
    )
    if domain.packing.on_too_long == "refuse":
        raise UserError(
            f"{what}; data.on_too_long=truncate leaves out their beginnings and keeps their last "
            "answers, skip leaves them out"
        )
    if not len(packs):
        raise UserError(f"{what}: not one is left")
    if len(shortened):
        pieces = packs.pieces[np.isin(packs.pieces[:, 0], shortened)]
        starts = domain.index.starts[pieces[:, 0]]
        before = domain.index.answers_before
        lost = int((before(starts + pieces[:, 1]) - before(starts)).sum())
        what += (
            f": {len(shortened):,} begin later, without {lost:,} tokens of answers before the last"
        )
    parallel.say(f"note: {what}: {len(left_out):,} are left out")


def shortened(domains: Mapping[str, Domain]) -> dict[str, Domain]:
    """The domains for a proxy, whose samples may be too short for examples that fit the model's."""
    return {
        name: replace(domain, packing=replace(domain.packing, on_too_long="truncate"))
        if isinstance(domain, SFTDomain)
        else domain
        for name, domain in domains.items()
    }
