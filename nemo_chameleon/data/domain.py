"""A domain: the protocol that runs, proxies and mixtures use, whatever format its files have.

The module also has the checks that all domains share: no two domains are the same data, no
validation set is a domain's own data, and Megatron's split string is valid.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from nemo_chameleon.utils.arrays import Bools, Ints
from nemo_chameleon.utils.errors import UserError

_SPLIT = re.compile(r"\d+(\.\d+)?(,\d+(\.\d+)?){0,2}")


class Window(NamedTuple):
    """A piece of a domain that is embedded.

    Attributes:
        tokens: (n,) token ids.
        counted: (n,) whether each token counts towards the domain's embedding.
    """

    tokens: Ints
    counted: Bools


class Domain(Protocol):
    """The training split of one named dataset."""

    @property
    def name(self) -> str:
        """The domain's name in the configuration."""

    @property
    def path(self) -> str | list[str]:
        """The path of its data, or those of its parts where it has several."""

    @property
    def sources(self) -> Mapping[str, str]:
        """The path of each of its parts, by what identifies the data of the part."""

    @property
    def datasets(self) -> Mapping[str, float]:
        """The training tokens of each dataset that Megatron reads, by prefix."""

    @property
    def documents(self) -> int:
        """The number of documents, or of examples, in the training split."""

    @property
    def tokens(self) -> int:
        """The number of tokens in the training split."""

    @property
    def embeddable_tokens(self) -> int:
        """The number of tokens in the training split that count towards its embedding."""

    @property
    def fingerprint(self) -> str:
        """A digest of its data, which does not depend on where the data are stored."""

    def facts(self) -> dict[str, Any]:
        """Return what a mixture file records about the domain.

        Returns:
            Values that JSON can hold, by name.
        """

    def evaluated(self, seq_length: int, *, whole: bool) -> list[str]:
        """Return the datasets that a run evaluates on.

        Args:
            seq_length: tokens per sample.
            whole: whether all of the data is for evaluation, as that of data.validation is, or the
                validation split alone.

        Returns:
            The prefixes of the datasets that fill at least one sample.
        """

    def tokens_in(self, unit: str) -> int:
        """Return the size of the training split in a unit of data.unit.

        Args:
            unit: "samples" counts all tokens, "tokens" counts those that carry loss.

        Returns:
            The number of tokens.
        """

    def pass_tokens(self, seq_length: int) -> int:
        """Return how many tokens a run draws in one pass over the training split.

        Args:
            seq_length: tokens per sample.

        Returns:
            The number of tokens, with any filling of the samples.
        """

    def loss_tokens(self, samples: int, seq_length: int, seed: int) -> int:
        """Return how many tokens carry loss in the first samples that a run draws.

        Args:
            samples: number of samples that the run draws from this domain.
            seq_length: tokens per sample.
            seed: the run's seed, which decides the order of the samples.

        Returns:
            The number of tokens with loss in these samples.
        """

    def window(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        """Draw the `index`-th random window.

        The window depends on (seed, name, index) alone: other domains, and the rank that draws it,
        do not change it.

        Args:
            index: number of the window.
            length: maximum number of tokens in the window.
            seed: seed of the windows.
            cross_documents: whether the window may continue into the next document.

        Returns:
            A window of 1 to `length` tokens.
        """


D = TypeVar("D", bound=Domain)


def require_distinct(domains: dict[str, D]) -> dict[str, D]:
    """Check that no two domains are the same data, or have a part in common.

    Args:
        domains: the domains by name.

    Returns:
        The same domains.

    Raises:
        UserError: two domains share data; the message names both.
    """
    known: dict[str, str] = {}
    of_part: dict[str, str] = {}
    for name, domain in domains.items():
        other = known.setdefault(domain.fingerprint, name)
        if other != name:
            raise UserError(
                f"data.domains: {other!r} and {name!r} are the same data: remove one of them"
            )
        for identity, path in domain.sources.items():
            if (other := of_part.setdefault(identity, name)) != name:
                raise UserError(
                    f"data.domains: {path} is in {other!r} and in {name!r}: remove it from one of "
                    "them"
                )
    return domains


def require_held_out(held_out: dict[str, D], domains: Mapping[str, Domain]) -> dict[str, D]:
    """Check that no validation set is the same data as a domain, or has a part of one.

    Args:
        held_out: the validation sets by name.
        domains: the domains by name.

    Returns:
        The same validation sets.

    Raises:
        UserError: a set shares data with a domain; the message names both.
    """
    of_part = {part: name for name, domain in domains.items() for part in domain.sources}
    for name, dataset in held_out.items():
        for other, domain in domains.items():
            if domain.fingerprint == dataset.fingerprint:
                raise UserError(
                    f"data.validation.{name} is the same data that domain {other!r} trains on: "
                    f"set data.validation.{name}.path to other data"
                )
        for identity, path in dataset.sources.items():
            if identity in of_part:
                raise UserError(
                    f"data.validation.{name}: domain {of_part[identity]!r} trains on {path}: "
                    f"remove it from data.validation.{name}.path"
                )
    return held_out


def split_shares(split: str) -> list[float]:
    """Parse Megatron's split string.

    Args:
        split: one to three numbers for training, validation and test, for instance "95,5,0".

    Returns:
        The shares of training, validation and test, which sum to 1.

    Raises:
        UserError: the text is not such a list of numbers, or leaves nothing for training.
    """
    parts = [float(part) for part in split.split(",")] if _SPLIT.fullmatch(split) else [0.0]
    parts += [0.0] * (3 - len(parts))
    if not parts[0] > 0:
        raise UserError(
            f"data.split={split!r} must be like '95,5,0', with a share above 0 for training"
        )
    return [part / sum(parts) for part in parts]
