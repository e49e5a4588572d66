"""The Chameleon method on arrays of numbers; it needs only numpy.

leverage.py      embeddings to affinity and leverage scores
weights.py       leverage scores to mixture weights
bounds.py        weights within caps, floors and fixed shares
embeddings.py    a domain's embedding, in shards of its windows
intervals.py     95 % intervals of weights
diagnostics.py   warnings about weights that say little about the data
"""
