"""Converts shares of answer tokens to shares of samples, which Megatron's blend draws by.

Samples of some domains have more answer tokens than samples of others. A mixture whose weights are
shares of answer tokens (data.unit=tokens) draws fewer samples of a domain, the more answer tokens
its samples have.
"""

from collections.abc import Mapping
from typing import Any

from nemo_chameleon.data.domain import Domain
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.utils.errors import UserError

# Each round brings the counts nearer to those of the samples that are drawn. Three rounds are
# enough for a domain of many samples; a domain of few can come no nearer than one whole sample.
_ROUNDS = 8


def sample_shares(
    weights: Mapping[str, float],
    domains: Mapping[str, Domain],
    *,
    samples: int,
    seq_length: int,
    seed: int,
) -> dict[str, float]:
    """Convert shares of a run's answer tokens to shares of its samples.

    Args:
        weights: shares of answer tokens, by domain name.
        domains: the opened domains by name.
        samples: number of samples that the run draws.
        seq_length: tokens per sample.
        seed: the run's seed, which decides which samples of a domain come first.

    Returns:
        Shares of samples by domain name, which sum to 1.
    """
    shares = dict(weights)
    for _ in range(_ROUNDS):
        held = {}
        for name, share in shares.items():
            count = max(1, round(share * samples))
            held[name] = domains[name].loss_tokens(count, seq_length, seed) / count
        raw = {name: weight / held[name] for name, weight in weights.items()}
        total = sum(raw.values())
        shares = {name: value / total for name, value in raw.items()}
    return shares


def within_token_bounds(
    mixture: Mixture,
    domains: Mapping[str, Domain],
    *,
    samples: int,
    seq_length: int,
    seed: int,
    max_epochs: float,
    **bounds: Any,
) -> Mixture:
    """Apply `Mixture.within_bounds` to weights that are shares of answer tokens.

    The cap on a share depends on how many answer tokens the run draws in total, and that number
    depends on the shares. A bisection finds the number at which both agree.

    Args:
        mixture: a mixture whose weights are shares of answer tokens.
        domains: the opened domains by name.
        samples: number of samples that the run draws.
        seq_length: tokens per sample.
        seed: the run's seed, which decides which samples of a domain come first.
        max_epochs: the most passes over any one domain.
        **bounds: other bounds that `Mixture.within_bounds` takes, by name.

    Returns:
        The mixture with the nearest weights that keep the bounds.

    Raises:
        UserError: no weights can keep the bounds, or there is not enough data.
    """
    # This raises if the domains have too few tokens for the run.
    passes = {name: domain.pass_tokens(seq_length) for name, domain in domains.items()}
    prefix = bounds.get("prefix", "")
    mixture.within_bounds(passes, samples * seq_length, max_epochs, prefix=prefix)
    sizes = {
        name: domain.loss_tokens(domain.pass_tokens(seq_length) // seq_length, seq_length, seed)
        for name, domain in domains.items()
    }

    def capped(drawn: int) -> Mixture:
        return mixture.within_bounds(sizes, drawn, max_epochs, **bounds)

    def draws(weights: Mapping[str, float]) -> int:
        shares = sample_shares(weights, domains, samples=samples, seq_length=seq_length, seed=seed)
        return sum(
            domains[name].loss_tokens(round(share * samples), seq_length, seed)
            for name, share in shares.items()
        )

    # At a low number no cap binds, and the run draws more. It cannot draw more than all the answer
    # tokens that `max_epochs` passes have.
    low, high = 1, max(1, int(max_epochs * sum(sizes.values())))
    while high - low > 1:
        middle = (low + high) // 2
        try:
            enough = draws(capped(middle).weights) <= middle
        except UserError:  # fixed shares above so low a cap
            enough = True
        low, high = (low, middle) if enough else (middle, high)
    return capped(high)
