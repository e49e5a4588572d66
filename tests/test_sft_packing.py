"""data/sft/packing.py: every piece is packed once, and little room is left."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_chameleon.data.sft.packing import Packs, chunks, pack


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(0, 3))
def test_every_piece_is_packed_once(sizes: list[int], seed: int) -> None:
    """The samples hold every piece once, and no sample has more than it has room for."""
    order, starts = pack(np.array(sizes), 40, seed)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    assert starts[0] == 0
    assert starts[-1] == len(sizes)
    for first, stop in pairwise(starts):
        assert 0 < sum(sizes[piece] for piece in order[first:stop]) <= 40


def test_little_room_is_left() -> None:
    """For the usual distribution of lengths the samples are 99 % full."""
    sizes = np.random.default_rng(0).lognormal(5, 1, 5000).astype(int).clip(1, 2048)
    _, starts = pack(sizes, 2048)
    assert sizes.sum() / (2048 * (len(starts) - 1)) > 0.99


def test_two_that_fill_a_sample_go_together() -> None:
    """A piece goes to the fullest sample that has room for it."""
    order, starts = pack(np.array([7, 3, 6, 4]), 10)
    together = {frozenset(order[a:b].tolist()) for a, b in pairwise(starts)}
    assert together == {frozenset({0, 1}), frozenset({2, 3})}


def test_chunks() -> None:
    """A text is cut into consecutive pieces that overlap by as many tokens as asked for."""
    assert chunks(np.array([3, 5]), 2).tolist() == [
        [0, 0, 2],
        [0, 2, 3],
        [1, 0, 2],
        [1, 2, 4],
        [1, 4, 5],
    ]
    assert chunks(np.array([5, 6]), 3, overlap=1).tolist() == [
        [0, 0, 3],
        [0, 2, 5],
        [1, 0, 3],
        [1, 2, 5],
        [1, 4, 6],
    ]
    assert chunks(np.array([2]), 3, overlap=1).tolist() == [[0, 0, 2]]


def test_passes_are_whole_and_differ() -> None:
    """Every pass takes every sample once, in an order that depends on the seed and on the pass."""
    packs = Packs(np.zeros((9, 3), int), np.arange(10), np.arange(9) ** 2)
    orders = {(epoch, seed): packs.order(epoch, seed) for epoch in (0, 1) for seed in (1, 2)}
    for order in orders.values():
        assert sorted(order.tolist()) == list(range(9))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    drawn = np.concatenate([orders[0, 1], orders[1, 1]])
    for samples in range(18):
        assert packs.loss_tokens(samples, 1) == (drawn[:samples] ** 2).sum()
