"""The order in which a run draws from its domains, any part of which can be computed alone.

The domains are the leaves of a binary tree. At each node the lighter side takes its share of the
node's samples, evenly spaced: floor(n·share + 1/2) of the first n. To find the domain of a sample,
one follows its number down the tree. So nothing is stored or computed beforehand, and every process
that computes a part of the order finds the same one: the arithmetic is multiplication, addition and
rounding down as IEEE 754 has them.

A rounding is half a sample at most. A domain has its own and its share of those above it, and their
sum is known for a tree. It is low in Huffman's tree, unless a domain deep in the tree has a sibling
much lighter than itself. Nodes that are lighter than all others by some factor can therefore be set
aside until the others are merged. The factor is the one that gives the lowest sum.
"""

import heapq
import math
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.utils.arrays import Floats, Ints

TARGET = 1.25
"""The bound, in samples, with which the search for a tree ends."""

_FACTORS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 30.0, np.inf, 1.6, 1.75, 1.35, 1.9, 2.5, 5.0)
_CHUNK = (
    1 << 14
)  # samples that go down the tree together, so that they stay in the processor's cache


class DomainOrder:
    """An endless order of domains in which every prefix has each domain's share of it.

    Attributes:
        bound: how far the number of a domain's samples among the first n may be from its share of
            n, for any n below 2⁴⁰; in samples. It follows from the tree, and has been at most 1.25
            for all weights that were tried.
    """

    def __init__(self, weights: ArrayLike) -> None:
        """Build the tree.

        Args:
            weights: (k,), positive and finite; they need not sum to 1.

        Raises:
            ValueError: there is no weight, or one is not positive and finite.
        """
        w = np.asarray(weights, dtype=np.float64)
        if w.ndim != 1 or not len(w):
            raise ValueError(f"weights must be one number per domain, not of shape {w.shape}")
        if not np.all((w > 0) & np.isfinite(w)):
            raise ValueError("weights must be positive and finite")
        self.bound = np.inf
        for factor in _FACTORS:
            tree = _Tree(w.tolist(), factor)
            if (bound := tree.bound()) < self.bound:
                self._tree, self.bound = tree, bound
            if self.bound <= TARGET:
                break
        # A leaf is its own child, with nothing on the lighter side: samples stay there.
        leaves, totals = np.arange(len(w)), np.array(self._tree.totals)
        children = np.array(self._tree.children, dtype=np.int64).reshape(-1, 2)
        self._lighter: Ints = np.concatenate([leaves, children[:, 0]])
        self._heavier: Ints = np.concatenate([leaves, children[:, 1]])
        self._share: Floats = np.zeros(len(totals))
        self._share[len(w) :] = totals[children[:, 0]] / totals[len(w) :]

    def at(self, samples: Ints) -> tuple[Ints, Ints]:
        """Return which domains some samples are of, wherever they are in the order.

        Args:
            samples: (n,) numbers of samples, from 0.

        Returns:
            (n,) the positions of the domains in `weights`; and for each sample the number of
            samples of its domain that come before it.
        """
        chunks = [samples[at : at + _CHUNK] for at in range(0, len(samples), _CHUNK)]
        if len(chunks) == 1:
            return self._down(samples)
        parts = [self._down(chunk) for chunk in chunks] or [(samples, samples)]
        domains, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
        return domains, numbers

    def counts(self, samples: int) -> Ints:
        """Return how many of the first samples are of each domain.

        Args:
            samples: number of samples.

        Returns:
            (k,), with a sum of `samples`.
        """
        of_node = np.zeros(len(self._share))
        of_node[-1] = samples
        leaves = len(self._tree.totals) - len(self._tree.children)
        for node in range(len(of_node) - 1, leaves - 1, -1):  # children have lower numbers
            lighter = np.floor(of_node[node] * self._share[node] + 0.5)
            of_node[self._lighter[node]] = lighter
            of_node[self._heavier[node]] = of_node[node] - lighter
        return of_node[:leaves].astype(np.int64)

    def sample_of(self, domain: int, number: int) -> int:
        """Return where in the order a sample of a domain is.

        Args:
            domain: the position of the domain in `weights`.
            number: how many of the domain's samples come before it.

        Returns:
            The number of the sample in the order, from 0.
        """
        path, node = [], domain
        while node != len(self._share) - 1:
            parent = self._parents[node]
            path.append((self._lighter[parent] == node, float(self._share[parent])))
            node = parent

        def drawn(samples: int) -> float:
            left = float(samples)
            for lighter, share in reversed(path):
                of_lighter = math.floor(left * share + 0.5)
                left = of_lighter if lighter else left - of_lighter
            return left

        # The number of the first samples that are of the domain never falls.
        low, high = 0, 1
        while drawn(high) <= number:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if drawn(middle) > number else (middle, high)
        return low

    @cached_property
    def _parents(self) -> dict[int, int]:
        leaves = len(self._tree.totals) - len(self._tree.children)
        pairs = enumerate(self._tree.children, leaves)
        return {child: node for node, children in pairs for child in children}

    def _down(self, samples: Ints) -> tuple[Ints, Ints]:
        """Let samples go down the tree, and put aside those that have arrived at a leaf."""
        leaves = len(self._tree.totals) - len(self._tree.children)
        domains, numbers = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
        places: Ints | slice = slice(None)
        node = np.full(len(samples), len(self._share) - 1)
        number = samples.astype(np.float64)
        while True:
            arrived = node < leaves
            count = np.count_nonzero(arrived)
            if count == len(node):
                domains[places], numbers[places] = node, number
                return domains, numbers
            if 2 * count > len(node):
                here = np.arange(len(samples))[places]
                domains[here[arrived]], numbers[here[arrived]] = node[arrived], number[arrived]
                places, node, number = here[~arrived], node[~arrived], number[~arrived]
            share = self._share[node]
            before = np.floor(number * share + 0.5)
            lighter = np.floor((number + 1) * share + 0.5) > before
            number = np.where(lighter, before, number - before)
            node = np.where(lighter, self._lighter[node], self._heavier[node])


class _Tree:
    """A binary tree over weights; a node's number is higher than those of its children."""

    def __init__(self, weights: list[float], factor: float) -> None:
        self.totals, self.children = list(weights), list[tuple[int, int]]()
        heap = [(weight, leaf) for leaf, weight in enumerate(weights)]
        heapq.heapify(heap)
        aside = []
        while len(heap) > 1:
            lightest = heapq.heappop(heap)
            if lightest[0] * factor < heap[0][0]:
                aside.append(lightest)
            else:
                heapq.heappush(heap, self._merge(lightest, heapq.heappop(heap)))
        # Those set aside are merged from the lightest on, and only then with all others.
        for node in [*aside[1:], heap[0]] if aside else []:
            aside[0] = self._merge(*sorted([aside[0], node]))

    def _merge(self, lighter: tuple[float, int], heavier: tuple[float, int]) -> tuple[float, int]:
        self.children.append((lighter[1], heavier[1]))
        self.totals.append(lighter[0] + heavier[0])
        return self.totals[-1], len(self.totals) - 1

    def bound(self) -> float:
        """Return 1/2 + 1/2 of the most that a leaf's shares of the nodes above it sum to."""
        leaves = len(self.totals) - len(self.children)
        above = [0.0] * len(self.totals)  # sums of 1 / total; nothing is rounded above the root
        for node in range(len(self.totals) - 1, leaves - 1, -1):
            own = 0.0 if node == len(self.totals) - 1 else 1 / self.totals[node]
            for child in self.children[node - leaves]:
                above[child] = above[node] + own
        most = max(weight * sum_ for weight, sum_ in zip(self.totals, above[:leaves], strict=False))
        return (1 + most) / 2 if leaves > 1 else 0.0
