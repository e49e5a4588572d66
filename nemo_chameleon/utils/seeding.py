"""Random generators that follow from names and numbers alone, the same on every machine."""

import hashlib

import numpy as np


def key_of(*parts: object) -> bytes:
    """Return 16 bytes that follow from the texts of `parts`."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16]


def generator(*parts: object, index: int = 0) -> np.random.Generator:
    """Return a generator for `parts`, at the beginning of its `index`-th stream.

    Args:
        parts: what the stream is for, for instance a seed and a domain's name.
        index: number of the stream; streams do not overlap.
    """
    key = np.frombuffer(key_of(*parts), np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
