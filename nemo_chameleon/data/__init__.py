"""Domains: named datasets, how they are read, and Megatron's datasets over them.

domain.py        what is asked of a domain, whatever its files are
indexed.py       a domain of Megatron's indexed datasets
agreement.py     domains opened once on each node, and compared
kind.py          what differs between pretraining and finetuning data
pretraining.py   the kind of data.dataset=gpt; sft/ has the other one
blend.py         Megatron's datasets for a mixture
token_shares.py  shares of tokens with loss to shares of samples
readers.py       lines of JSONL
tokenize.py      documents to Megatron datasets
tokenizer.py     Hugging Face tokenizers, read and trained
vocabulary.py    what Megatron's datasets ask of a tokenizer
"""
