"""Finetuning data: domains of JSONL with chats, with prompts and completions, or with text.

templates.py    writes chats with a chat template and finds the assistant's turns
examples.py     parses a line of JSONL into a text and its answers
tokenize.py     tokenises examples and marks the answer tokens
index.py        stores tokenised JSONL files in a cache
packing.py      sorts pieces of examples into samples of one length
samples.py      stores the samples of an index beside it
domain.py       a domain of examples
fitting.py      checks before training that examples fit into samples
dataset.py      Megatron's dataset of samples
boundaries.py   finds where the sequences of packed samples begin and end
finetuning.py   all of this as the kind of data for data.dataset=sft
"""
