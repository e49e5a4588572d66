"""method/bounds.py: caps, floors and fixed shares in numbers that a person can check."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_chameleon.method.bounds import bounded_weights

INF = np.inf


@pytest.mark.parametrize(
    ("weights", "lower", "upper", "expected"),
    [
        # No bound is reached.
        ([0.5, 0.3, 0.2], [0, 0, 0], [1, 1, 1], [0.5, 0.3, 0.2]),
        # The first is capped at 0.2, and its 0.3 goes to the others as 3 to 2.
        ([0.5, 0.3, 0.2], [0, 0, 0], [0.2, 1, 1], [0.2, 0.48, 0.32]),
        # The second would get 0.48, which is above its own cap, so the third takes the rest.
        ([0.5, 0.3, 0.2], [0, 0, 0], [0.2, 0.4, 1], [0.2, 0.4, 0.4]),
        # A floor takes from the others in proportion.
        ([0.6, 0.3, 0.1], [0, 0, 0.4], [1, 1, 1], [0.4, 0.2, 0.4]),
        # One share is fixed and another one is capped.
        ([0.5, 0.3, 0.2], [0, 0.1, 0], [0.3, 0.1, INF], [0.3, 0.1, 0.6]),
        # Caps that sum to exactly 1 leave no choice.
        ([0.5, 0.3, 0.2], [0, 0, 0], [0.2, 0.2, 0.6], [0.2, 0.2, 0.6]),
        # The weights differ by twenty orders of magnitude.
        ([0.5, 0.5, 1e-20], [0, 0, 0], [0.3, 0.3, 0.6], [0.3, 0.3, 0.4]),
        # The sums of floors and of caps miss 1 by a rounding error.
        ([0.2, 0.3, 0.5], [0.55, 0.34, 0.11], [1, 1, 1], [0.55, 0.34, 0.11]),
        ([0.2, 0.3, 0.5], [0, 0, 0], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1]),
        # Floors that sum to exactly 1 leave none either.
        ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1, 1, 1], [0.1, 0.1, 0.8]),
    ],
)
def test_by_hand(
    weights: list[float], lower: list[float], upper: list[float], expected: list[float]
) -> None:
    """Freed weight goes to the domains that are not at a bound, in proportion to their weights."""
    np.testing.assert_allclose(bounded_weights(weights, lower, upper), expected, atol=1e-15)


SHARE = st.floats(1e-6, 1.0)


@given(
    st.lists(
        st.tuples(SHARE, SHARE, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1.0, 1.5, INF])),
        min_size=2,
        max_size=40,
    )
)
def test_bounds_are_kept_and_free_weights_keep_their_ratios(
    domains: list[tuple[float, float, float, float]],
) -> None:
    """Weights within bounds sum to 1, keep every bound, and share one scale where they are free."""
    weights, feasible, below, above = np.array(domains).T
    feasible = feasible / feasible.sum()
    lower, upper = feasible * below, feasible * above
    got = bounded_weights(weights, lower, upper)
    assert got.sum() == pytest.approx(1, abs=1e-12)
    assert np.all(got >= lower - 1e-12)
    assert np.all(got <= upper + 1e-12)
    free = (got > lower + 1e-12) & (got < upper - 1e-12)
    scale = got[free] / weights[free]
    np.testing.assert_allclose(scale, scale[:1].repeat(free.sum()), rtol=1e-6)
    if free.any():  # without its bound a capped domain would get more, a lifted one less
        choice = upper > lower
        capped, lifted = choice & (got >= upper - 1e-12), choice & (got <= lower + 1e-12)
        assert np.all(scale[0] * weights[capped] >= got[capped] - 1e-9)
        assert np.all(scale[0] * weights[lifted] <= got[lifted] + 1e-9)


@pytest.mark.parametrize(
    ("lower", "upper"), [([0.6, 0.6], [1, 1]), ([0, 0], [0.4, 0.4]), ([0.5, 0], [0.4, 1])]
)
def test_impossible_bounds(lower: list[float], upper: list[float]) -> None:
    """Floors that sum to more than 1, caps that sum to less, and bounds that cross are refused."""
    with pytest.raises(ValueError, match="bound"):
        bounded_weights([0.5, 0.5], lower, upper)
