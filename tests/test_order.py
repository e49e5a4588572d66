"""The order of domains and the plan of a run: shares at every prefix, and parts computed alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.order import TARGET, DomainOrder
from nemo_chameleon.mixture.plan import Blended, Plan, PlannedOrder, Stage

# Powers of ten make weights of very different sizes, which are the hard ones.
HARD = (0.14193, 0.03497, 0.00213, 0.00424, 0.48047, 0.00521, 0.02218, 0.01438, 0.28798, 0.00651)
WEIGHTS = st.lists(st.floats(-6, 0).map(lambda power: 10**power), min_size=1, max_size=40)


def deviation(weights: np.ndarray, domains: np.ndarray) -> float:
    """Return how far the count of any domain is from its share at any prefix."""
    prefixes = np.arange(1, len(domains) + 1)
    shares = weights / weights.sum()
    return max(
        float(np.abs(np.cumsum(domains == at) - prefixes * share).max())
        for at, share in enumerate(shares)
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(WEIGHTS)
def test_every_prefix_has_the_shares_within_the_bound(weights: list[float]) -> None:
    """No prefix is further from the shares than the bound, which is at most 1.25 samples."""
    order = DomainOrder(weights)
    assert order.bound <= TARGET
    assert deviation(np.array(weights), order.at(np.arange(0, 3000))[0]) <= order.bound + 1e-9


@pytest.mark.parametrize("domains", [1, 2, 22, 1000, 32_766])
def test_any_part_is_the_same_part_of_the_whole(domains: int) -> None:
    """A part that begins far from the start continues the counts and is one with its neighbours."""
    order = DomainOrder(np.random.default_rng(domains).dirichlet(np.full(domains, 0.5)) + 1e-9)
    first = 10**10
    names, numbers = order.at(np.arange(first, first + 20_000))
    parts = [order.at(np.arange(at, at + 1234)) for at in range(first, first + 20_000, 1234)]
    assert np.array_equal(np.concatenate([part[0] for part in parts])[:20_000], names)
    assert np.array_equal(np.concatenate([part[1] for part in parts])[:20_000], numbers)
    before, after = order.counts(first), order.counts(first + 20_000)
    assert before.sum() == first
    assert np.array_equal(after - before, np.bincount(names, minlength=domains))
    for at in np.unique(names):
        expected = np.arange(before[at], after[at])
        assert np.array_equal(numbers[names == at], expected)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(WEIGHTS, st.integers(0, 2**36))
def test_where_a_sample_of_a_domain_comes(weights: list[float], first: int) -> None:
    """The place of a domain's n-th sample is where the order has it, near and far."""
    order = DomainOrder(weights)
    domains, numbers = order.at(np.arange(first, first + 300))
    for place in range(0, 300, 7):
        assert order.sample_of(int(domains[place]), int(numbers[place])) == first + place


def test_the_order_is_this_one() -> None:
    """The order of a few weights is fixed: a change of it would change every run's samples."""
    domains, numbers = DomainOrder([0.5, 0.3, 0.2]).at(np.arange(0, 10))
    assert domains.tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 0, 1]
    assert numbers.tolist() == [0, 0, 1, 0, 2, 1, 3, 1, 4, 2]


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf]])
def test_weights_that_nothing_can_be_drawn_by_are_refused(weights: list[float]) -> None:
    """No weight, and weights that are not positive and finite, are errors."""
    with pytest.raises(ValueError, match="weights must be"):
        DomainOrder(weights)


def plan_of(*stages: tuple[dict[str, float], int]) -> Plan:
    """Return a plan of weights that need not sum to 1."""
    return Plan(tuple(Stage(Mixture.static(weights), samples) for weights, samples in stages))


STAGES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 1), min_size=1),
        st.integers(1, 700),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(STAGES, st.integers(1, 400))
def test_no_number_of_a_domain_is_left_out_or_repeated(
    stages: list[tuple[dict[str, float], int]], block: int
) -> None:
    """Over all stages each domain's samples are 0, 1, 2, ..., whatever blocks are computed."""
    plan, names = plan_of(*stages), "hgfedcba"
    order = PlannedOrder(plan, names)
    starts = range(0, plan.samples, block)
    parts = [order.at(np.arange(at, min(at + block, plan.samples))) for at in starts]
    domains, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
    for at in range(len(names)):
        of_one = numbers[domains == at]
        assert of_one.tolist() == list(range(len(of_one)))
    drawn = {name: int(np.count_nonzero(domains == names.index(name))) for name in plan.names}
    assert plan.counts(plan.samples) == drawn
    for (weights, _), (start, stop) in zip(stages, itertools.pairwise(plan.starts), strict=True):
        assert {names[at] for at in domains[start:stop]} <= set(weights)


def test_a_stage_in_megatrons_order_counts_and_is_not_drawn_again() -> None:
    """Samples drawn in Megatron's order are counted, and have no place in the order."""
    over = Stage(
        Mixture.uniform(["a", "b"]), 10, blended=Blended({"a": 6, "b": 4}, {"a": 0.5, "b": 0.5}, 14)
    )
    plan = Plan((over, Stage(Mixture.uniform(["b", "c"]), 4)))
    order = PlannedOrder(plan, ["a", "b", "c"])
    domains, numbers = order.at(np.arange(10, 14))
    assert plan.counts(14) == {"a": 6, "b": 6, "c": 2}
    assert numbers[domains == 1].tolist() == [4, 5]
    assert order.at(np.arange(8, 12))[0].tolist()[:2] == [-1, -1]
    assert order.at(np.arange(8, 12))[1].tolist()[2:] == numbers[:2].tolist()


def test_the_order_of_the_weights_does_not_count() -> None:
    """A plan draws the same, in whatever order a mixture's file or a configuration has domains."""
    names = ["d", "a", "c", "b"]
    plans = [plan_of((dict.fromkeys(order, 1.0), 40)) for order in (names, sorted(names))]
    one, other = (PlannedOrder(plan, names).at(np.arange(0, 40)) for plan in plans)
    assert np.array_equal(one[0], other[0])
    assert plans[0].record() == plans[1].record()
    assert Plan.of_record(plans[0].record(), "test").record() == plans[0].record()


def test_where_a_sample_of_a_domain_comes_in_a_plan() -> None:
    """A domain's samples are counted over all stages; one that is not drawn has no place."""
    plan = plan_of(({"a": 1, "b": 3}, 40), ({"b": 1}, 30), ({"a": 1, "b": 1}, 20))
    domains, numbers = PlannedOrder(plan, ["a", "b"]).at(np.arange(0, 90))
    for place, (at, number) in enumerate(zip(domains.tolist(), numbers.tolist(), strict=True)):
        assert plan.sample_of("ab"[at], number) == place
    assert plan.sample_of("a", 20) is None


def test_weights_that_few_trees_suit() -> None:
    """Weights for which most trees have a higher bound get one of the others."""
    order = DomainOrder(HARD)
    assert order.bound <= TARGET
    assert deviation(np.array(HARD), order.at(np.arange(0, 50_000))[0]) <= order.bound
