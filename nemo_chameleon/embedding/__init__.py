"""Domain embeddings: mean hidden states of a domain's tokens after a middle layer of a GPT.

hooks.py         a layer's output, taken where it is computed
megatron.py      megatron-core GPTs, in any layout
huggingface.py   Hugging Face causal LMs
registry.py      the model that embeds, whatever it is
pooling.py       means over windows, in shards
sampler.py       which windows, and how many; each is embedded once
"""

from nemo_chameleon.embedding.pooling import embed, middle_layer

__all__ = ["embed", "middle_layer"]
