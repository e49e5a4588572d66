"""Finetuning data: JSONL of chats, of prompts with completions, or of text as domains.

templates.py    chats to texts, and where in them the assistant speaks
examples.py     a line of JSONL to a text and its answers
tokenize.py     examples to tokens
index.py        JSONL files to an index of tokens, made once
packing.py      pieces of examples to samples of one length
samples.py      the samples of an index
domain.py       a domain of examples
fitting.py      whether examples fit into samples
dataset.py      Megatron's dataset over the samples
boundaries.py   where the sequences of packed samples begin and end
finetuning.py   all of this as the kind of data that data.dataset=sft names
"""
