"""Domain embeddings: the mean hidden state of a domain's tokens after a middle layer of a GPT.

hooks.py         forward hooks that record the outputs of layers
megatron.py      megatron-core GPTs, in any layout
huggingface.py   Hugging Face causal language models
registry.py      the proxy that a mixture file records, found again
reencoding.py    from the tokens of the domains to those of the model
windows.py       windows in the model's tokens
sums.py          sums over the tokens of a rank, and how much of them the heaviest give
pooling.py       means over windows, kept in shards
draws.py         finished draws, kept until the mixture file is written
sampler.py       which windows are embedded, and how many; each is embedded once
"""

from nemo_chameleon.embedding.pooling import embed, middle_layer

__all__ = ["embed", "middle_layer"]
