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
    drawn: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Convert shares of a run's answer tokens to shares of its samples.

    Args:
        weights: shares of answer tokens, by domain name.
        domains: the opened domains by name.
        samples: number of samples that are drawn by these weights.
        seq_length: tokens per sample.
        seed: the run's seed, which decides which samples of a domain come first.
        drawn: samples of each domain that are drawn before; None for none.

    Returns:
        Shares of samples by domain name, which sum to 1.
    """
    shares = dict(weights)
    for _ in range(_ROUNDS):
        held = {}
        for name, share in shares.items():
            count = max(1, round(share * samples))
            before = (drawn or {}).get(name, 0)
            ends = before + count, before
            tokens = (domains[name].loss_tokens(end, seq_length, seed) for end in ends)
            held[name] = (next(tokens) - next(tokens)) / count
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
    drawn: Mapping[str, int] | None = None,
    **bounds: Any,
) -> Mixture:
    """Apply `Mixture.within_bounds` to weights that are shares of answer tokens.

    The cap on a share depends on how many answer tokens the run draws in total, and that number
    depends on the shares. A bisection finds the number at which both agree.

    Args:
        mixture: a mixture whose weights are shares of answer tokens.
        domains: the opened domains by name.
        samples: number of samples that are drawn by these weights.
        seq_length: tokens per sample.
        seed: the run's seed, which decides which samples of a domain come first.
        max_epochs: the most passes over any one domain.
        drawn: samples of each domain that are drawn before; None for none.
        **bounds: other bounds that `Mixture.within_bounds` takes, by name.

    Returns:
        The mixture with the nearest weights that keep the bounds.

    Raises:
        UserError: no weights can keep the bounds, or there is not enough data.
    """
    # This raises if the domains have too few tokens for the run.
    passes = {name: domain.pass_tokens(seq_length) for name, domain in domains.items()}
    prefix = bounds.get("prefix", "")
    before = {name: count for name, count in (drawn or {}).items() if name in domains}
    filled = {name: count * seq_length for name, count in before.items()}
    budget = samples * seq_length
    mixture.within_bounds(passes, budget, max_epochs, drawn=filled, prefix=prefix)
    sizes = {
        name: domain.loss_tokens(domain.pass_tokens(seq_length) // seq_length, seq_length, seed)
        for name, domain in domains.items()
    }

    def tokens_until(name: str, count: int) -> int:
        return domains[name].loss_tokens(count, seq_length, seed)

    spent = {name: tokens_until(name, count) for name, count in before.items()}

    def capped(budget: int) -> Mixture:
        return mixture.within_bounds(sizes, budget, max_epochs, drawn=spent, **bounds)

    def draws(weights: Mapping[str, float]) -> int:
        shares = sample_shares(
            weights, domains, samples=samples, seq_length=seq_length, seed=seed, drawn=before
        )
        return sum(
            tokens_until(name, before.get(name, 0) + round(share * samples)) - spent.get(name, 0)
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
