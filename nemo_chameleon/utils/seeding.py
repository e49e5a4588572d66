"""Random generators that are seeded from names and numbers, the same on every machine."""

import hashlib

import numpy as np


def key_of(*parts: object) -> bytes:
    """Return 16 bytes that depend only on the texts of `parts`.

    Args:
        parts: for instance a seed and a domain's name.

    Returns:
        The first 16 bytes of a SHA-256.
    """
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16]


def generator(*parts: object, index: int = 0) -> np.random.Generator:
    """Return a random generator that is seeded from `parts`.

    Args:
        parts: what the numbers are for, for instance a seed and a domain's name.
        index: which stream of the generator to use; streams do not overlap.

    Returns:
        A Philox generator at the beginning of that stream.
    """
    key = np.frombuffer(key_of(*parts), np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
