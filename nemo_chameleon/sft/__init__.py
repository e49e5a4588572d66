"""Supervised finetuning: JSONL of chats, pairs or text as domains that blend like any other.

examples.py    a line to a text and its answers
index.py       JSONL to tokens, once
packing.py     examples to samples of one length
domain.py      a domain of examples
dataset.py     Megatron's dataset over them
shares.py      shares of answer tokens to shares of samples
"""
