"""Sorts pieces of examples into samples of one length, with numpy alone.

Samples are packed once, and every pass over the data takes them in another order. All pieces of a
sample are from one domain, because a mixture's shares count whole samples.
"""

import functools
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.seeding import generator

# The number of samples that are filled at the same time. A larger number wastes no less space and
# takes longer to search.
_OPEN = 256


@dataclass(frozen=True, eq=False)
class Packs:
    """Samples and the pieces of examples that they consist of.

    Attributes:
        pieces: (m, 3) example, and where in its tokens the piece starts and stops; the pieces of a
            sample follow each other.
        starts: (samples + 1,) where in `pieces` each sample starts and the last one stops.
        answers: (samples,) the number of tokens with loss in each sample.
    """

    pieces: Ints
    starts: Ints
    answers: Ints

    def __len__(self) -> int:
        """Return the number of samples in one pass."""
        return len(self.starts) - 1

    def of(self, sample: int) -> Ints:
        """Return the pieces of a sample.

        Args:
            sample: number of the sample.

        Returns:
            (k, 3) its part of `pieces`.
        """
        return self.pieces[self.starts[sample] : self.starts[sample + 1]]

    def order(self, epoch: int, seed: int) -> Ints:
        """Return the order in which a pass takes the samples.

        Args:
            epoch: number of the pass, from 0.
            seed: the run's seed.

        Returns:
            (samples,) numbers of samples.
        """
        return generator("order of packs", seed, epoch).permutation(len(self))

    def loss_tokens(self, samples: int, seed: int) -> int:
        """Return how many tokens carry loss in the first samples that a run draws.

        Args:
            samples: number of samples that the run draws, in as many passes as that takes.
            seed: the run's seed.

        Returns:
            The number of tokens with loss.
        """
        epochs, rest = divmod(samples, len(self))
        of_pass = _answers_of_pass(self, epochs, seed)
        return int(epochs * of_pass[-1] + of_pass[rest])


@functools.lru_cache
def _answers_of_pass(packs: Packs, epoch: int, seed: int) -> Ints:
    """Return (samples + 1,) the tokens with loss in the first 0, 1, ... samples of a pass."""
    answers = packs.answers[packs.order(epoch, seed)]
    return np.concatenate([[0], np.cumsum(answers)])


def chunks(lengths: Ints, size: int, overlap: int = 0) -> Ints:
    """Cut texts into consecutive pieces of at most `size` tokens.

    Args:
        lengths: (n,) the number of tokens of each text.
        size: maximum number of tokens per piece.
        overlap: tokens that a piece shares with the piece before it.

    Returns:
        (m, 3) text, start and stop of each piece, in the order of the texts.
    """
    stride = size - overlap
    count = np.maximum(-(-(lengths - overlap) // stride), 1)
    text = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(len(text)) - np.repeat(np.cumsum(count) - count, count)
    start = number * stride
    return np.stack([text, start, np.minimum(start + size, lengths[text])], axis=1)


def pack(sizes: Ints, capacity: int, seed: int = 0) -> tuple[Ints, Ints]:
    """Sort pieces into samples: in a random order, each into the fullest sample with room for it.

    Args:
        sizes: (m,) tokens of each piece, at most `capacity`.
        capacity: tokens per sample.
        seed: seed of the order.

    Returns:
        (m,) numbers of pieces, in which the pieces of a sample follow each other; and
        (samples + 1,) where in them each sample starts and the last one stops.
    """
    samples: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, sample), the fullest sample first
    for piece in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        size = int(sizes[piece])
        at = bisect_left(rooms, (size, -1))
        if at < len(rooms):
            room, sample = rooms.pop(at)
            samples[sample].append(piece)
        else:
            room, sample = capacity, len(samples)
            samples.append([piece])
        if room > size:
            insort(rooms, (room - size, sample))
        if len(rooms) > _OPEN:
            del rooms[0]
    order = np.array([piece for sample in samples for piece in sample], dtype=np.int64)
    starts = np.cumsum([0, *(len(sample) for sample in samples)], dtype=np.int64)
    return order, starts
