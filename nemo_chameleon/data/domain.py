"""A domain: what a run, a proxy and a mixture ask of a named dataset, whatever its files are."""

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
        counted: (n,) whether each token counts for the domain's embedding.
    """

    tokens: Ints
    counted: Bools


class Domain(Protocol):
    """The training split of one named dataset."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def path(self) -> str:
        """Where its data lies, as the configuration names it."""

    @property
    def prefix(self) -> str:
        """Prefix of the .bin and .idx files that Megatron reads."""

    @property
    def documents(self) -> int:
        """Documents, or examples, of the training split."""

    @property
    def tokens(self) -> int:
        """Tokens of the training split."""

    @property
    def embeddable_tokens(self) -> int:
        """Tokens of the training split that its embedding can be a mean over."""

    @property
    def fingerprint(self) -> str:
        """A digest of its data, the same wherever the data lies."""

    def facts(self) -> dict[str, Any]:
        """Return what a mixture file records of it."""

    def tokens_in(self, unit: str) -> int:
        """Return its tokens, for unit "samples", or those that carry loss, for unit "tokens"."""

    def pass_tokens(self, seq_length: int) -> int:
        """Return the tokens that a run draws in one pass over it, in samples of `seq_length`."""

    def loss_tokens(self, samples: int, seq_length: int, seed: int) -> int:
        """Return the tokens with loss in the first `samples` samples that a run of a seed draws."""

    def window(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        """Return the `index`-th random window, of 1 to `length` tokens.

        Which window it is depends on (seed, name, index) alone: not on other domains, and not on
        which rank draws it.

        Args:
            index: number of the window.
            length: tokens of the window, at most.
            seed: of the windows.
            cross_documents: whether the window may continue into the next document.
        """


D = TypeVar("D", bound=Domain)


def require_distinct(domains: dict[str, D]) -> dict[str, D]:
    """Return the domains as they are, if no two of them are the same data.

    Raises:
        UserError: naming two domains that are the same data.
    """
    known: dict[str, str] = {}
    for name, domain in domains.items():
        other = known.setdefault(domain.fingerprint, name)
        if other != name:
            raise UserError(f"data.domains: {other!r} and {name!r} are the same data")
    return domains


def require_held_out(held_out: dict[str, D], domains: Mapping[str, Domain]) -> dict[str, D]:
    """Return the sets to evaluate on as they are, if none is a domain's own data.

    Raises:
        UserError: naming the set and the domain that are the same data.
    """
    for name, dataset in held_out.items():
        for other, domain in domains.items():
            if domain.fingerprint == dataset.fingerprint:
                raise UserError(
                    f"data.validation.{name} is the data that domain {other!r} trains on"
                )
    return held_out


def split_shares(split: str) -> list[float]:
    """Return the shares of Megatron's split string, for instance "95,5,0".

    Returns:
        Shares of training, validation and test, which sum to 1.

    Raises:
        UserError: the text is not numbers, or leaves nothing for training.
    """
    parts = [float(part) for part in split.split(",")] if _SPLIT.fullmatch(split) else [0.0]
    parts += [0.0] * (3 - len(parts))
    if not parts[0] > 0:
        raise UserError(f"data.split={split!r} is not like '95,5,0', with a share for training")
    return [part / sum(parts) for part in parts]
