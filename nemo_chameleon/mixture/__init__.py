"""The Mixture and its file: weights by domain name, between what computes them and what draws.

mixture.py           weights by domain name, and how they were made
parsing.py           the text of the file, with every entry checked
compute.py           from embeddings to a Mixture
edit.py              changes to a computed mixture that need no training
embeddings_file.py   the file of embeddings beside a mixture file
formats.py           the formats of other tools
order.py             the order of domains, any part of which can be computed alone
plan.py              stages of mixtures, and the samples of each domain in them
plan_tables.py       plans in words and tables
plan_picture.py      the shares over a run, as a picture
tables.py            tables for people

Nothing here imports torch or megatron, or knows a key of the configuration.
"""

from nemo_chameleon.mixture.mixture import Mixture

__all__ = ["Mixture"]
