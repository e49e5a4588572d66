"""The Chameleon method on arrays of numbers: numpy alone.

leverage.py      embeddings to affinity and leverage scores
weights.py       leverage scores to mixture weights
bounds.py        weights within caps, floors and fixed shares
embeddings.py    a domain's embedding, in shards of its windows
intervals.py     how far weights could be off
diagnostics.py   where the method is blind, in words
"""
