"""Examples to samples of one length: which pieces go together. numpy, nothing else.

Packs are made once, and every pass over the data takes them in an order of its own. Only examples
of one domain go together: a sample of two would belong to neither's share.
"""

import functools
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.seeding import generator

# Samples that are filled at once. More waste no less, and take longer to search.
_OPEN = 256


@dataclass(frozen=True, eq=False)
class Packs:
    """Samples, and what they are made of.

    Attributes:
        pieces: (m, 3): example, and where in its tokens the piece starts and stops; those of a
            sample follow each other.
        starts: (samples + 1,): where in `pieces` each sample starts.
        answers: (samples,): tokens that carry loss.
    """

    pieces: Ints
    starts: Ints
    answers: Ints

    def __len__(self) -> int:
        """Samples in one pass."""
        return len(self.starts) - 1

    def of(self, sample: int) -> Ints:
        """The pieces of a sample (n, 3)."""
        return self.pieces[self.starts[sample] : self.starts[sample + 1]]

    def order(self, epoch: int, seed: int) -> Ints:
        """The samples in the order that a pass takes them in (samples,)."""
        return generator("order of packs", seed, epoch).permutation(len(self))

    def loss_tokens(self, samples: int, seed: int) -> int:
        """Tokens that carry loss in the first samples of a run, over as many passes as it takes."""
        epochs, rest = divmod(samples, len(self))
        of_pass = _answers_of_pass(self, epochs, seed)
        return int(epochs * of_pass[-1] + of_pass[rest])


@functools.lru_cache
def _answers_of_pass(packs: Packs, epoch: int, seed: int) -> Ints:
    """Tokens that carry loss in the first 0, 1, ... samples of a pass (samples + 1,)."""
    answers = packs.answers[packs.order(epoch, seed)]
    return np.concatenate([[0], np.cumsum(answers)])


def chunks(lengths: Ints, size: int, overlap: int = 0) -> Ints:
    """Texts in consecutive pieces of `size` tokens at most.

    Args:
        lengths: (n,) tokens of each text.
        size: of a piece.
        overlap: tokens that a piece shares with the one before.

    Returns:
        (m, 3): text, start, stop; as many as it takes, in the texts' order.
    """
    stride = size - overlap
    count = np.maximum(-(-(lengths - overlap) // stride), 1)
    text = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(len(text)) - np.repeat(np.cumsum(count) - count, count)
    start = number * stride
    return np.stack([text, start, np.minimum(start + size, lengths[text])], axis=1)


def pack(sizes: Ints, capacity: int, seed: int = 0) -> tuple[Ints, Ints]:
    """Sort pieces into samples: each into the fullest that has room for it, in a random order.

    Args:
        sizes: (m,) of the pieces, none larger than `capacity`.
        capacity: of a sample.
        seed: of the order.

    Returns:
        The pieces (m,), those of a sample together; and where each sample starts (samples + 1,).
    """
    samples: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # room left and sample, the fullest first
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
