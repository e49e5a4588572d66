"""Shares of answer tokens to shares of samples, which are what Megatron's blend draws by.

Samples of one domain hold more answer tokens than another's. A mixture whose weights are shares of
answer tokens (data.unit=tokens) draws a domain the less, the more of them its samples hold.
"""

from collections.abc import Mapping

from nemo_chameleon.data.domain import Domain
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.utils.errors import UserError

# Each brings the counts nearer to those of the samples that are drawn; three are enough for a
# domain of many samples, and one of few can do no better than by a whole sample.
_ROUNDS = 8


def sample_shares(
    weights: Mapping[str, float],
    domains: Mapping[str, Domain],
    *,
    samples: int,
    seq_length: int,
    seed: int,
) -> dict[str, float]:
    """Shares of a run's samples that give these shares of its answer tokens.

    Args:
        weights: shares of answer tokens, by domain name.
        domains: by name.
        samples: that the run draws.
        seq_length: tokens of each.
        seed: of the run, which decides which samples a domain gives first.
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
    **bounds: Mapping[str, float],
) -> Mixture:
    """`Mixture.within_bounds` for weights that are shares of answer tokens.

    A share's cap depends on how many of them the run draws in all, and that on the shares: the
    number for which both agree is searched for.

    Raises:
        UserError: bounds that no weights can keep, or not enough data.
    """
    # There is as much as it takes, or this says what is missing.
    passes = {name: domain.pass_tokens(seq_length) for name, domain in domains.items()}
    mixture.within_bounds(passes, samples * seq_length, max_epochs)
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

    # With a low number no cap binds, and more is drawn; with all that there is, no more.
    low, high = 1, max(1, int(max_epochs * sum(sizes.values())))
    while high - low > 1:
        middle = (low + high) // 2
        try:
            enough = draws(capped(middle).weights) <= middle
        except UserError:  # fixed shares that so low a cap does not bear
            enough = True
        low, high = (low, middle) if enough else (middle, high)
    return capped(high)
