"""Where examples lie in their tokens, and in each example its prompts and answers."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from nemo_chameleon.utils.arrays import Ints


class Layout:
    """Examples one after another, each of alternating prompts and answers.

    Subclasses provide `cuts` and `firsts`.
    """

    @cached_property
    def cuts(self) -> Ints:
        """(sequences + 1,) where each sequence starts and the last one stops, in tokens."""
        raise NotImplementedError

    @cached_property
    def firsts(self) -> Ints:
        """(n + 1,) the first sequence of each example, and the number of sequences."""
        raise NotImplementedError

    @cached_property
    def starts(self) -> Ints:
        """(n + 1,) where each example starts and the last one stops, in tokens of the index."""
        return self.cuts[self.firsts]

    @cached_property
    def lengths(self) -> Ints:
        """(n,) the number of tokens of each example."""
        return np.diff(self.starts)

    @cached_property
    def prompts(self) -> Ints:
        """(n,) the number of tokens before each example's first answer."""
        return self.cuts[self.firsts[:-1] + 1] - self.cuts[self.firsts[:-1]]

    @cached_property
    def last_answers(self) -> Ints:
        """(n,) the number of tokens of each example's last answer, with which it ends."""
        return self.cuts[self.firsts[1:]] - self.cuts[self.firsts[1:] - 1]

    def answers_before(self, positions: Ints) -> Ints:
        """Return the number of answer tokens before each position.

        Args:
            positions: (m,) positions in tokens of the index.

        Returns:
            (m,) the numbers of answer tokens from the beginning of the index.
        """
        starts, stops = self._answers
        before = np.concatenate([[0], np.cumsum(stops - starts)])
        last = np.searchsorted(starts, positions, side="right")
        into = np.minimum(positions, stops[last - 1]) - starts[last - 1]
        return np.where(last, before[last - 1] + into, 0)

    @cached_property
    def _answers(self) -> tuple[Ints, Ints]:
        # Every example has an even number of sequences, so every second sequence is an answer.
        return self.cuts[1:-1:2], self.cuts[2::2]

    def prompt_from(self, example: int, start: int) -> int:
        """Return the first token of an example, from `start` on, that belongs to no answer.

        Args:
            example: number of the example.
            start: the token to search from.

        Returns:
            The position of that token in the example.
        """
        at = int(self.starts[example]) + start
        sequence = int(np.searchsorted(self.cuts, at, side="right")) - 1
        if (sequence - self.firsts[example]) % 2:
            at = int(self.cuts[sequence + 1])
        return at - int(self.starts[example])


class OneExample(Layout):
    """An example alone."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Lay out an example.

        Args:
            sizes: the numbers of tokens of its alternating prompts and answers.
        """
        self._sizes = sizes

    @cached_property
    def cuts(self) -> Ints:
        """See `Layout`."""
        return np.cumsum([0, *self._sizes])

    @cached_property
    def firsts(self) -> Ints:
        """See `Layout`."""
        return np.array([0, len(self._sizes)])
