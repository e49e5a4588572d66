"""The Mixture and its file: the hinge between what computes weights and what draws by them.

mixture.py           weights by domain name, and where they came from
parsing.py           the text of the file, with every entry checked
compute.py           embeddings to a Mixture
edit.py              a computed mixture changed without training
embeddings_file.py   the embeddings that lie beside it
formats.py           the forms that other tools read
tables.py            mixtures as tables for people

Nothing here knows torch, megatron or a key of the configuration.
"""

from nemo_chameleon.mixture.mixture import Mixture

__all__ = ["Mixture"]
