"""Data: named domains, the readers of their files, and Megatron's datasets over them.

domain.py        the protocol of a domain, whatever format its files have
indexed.py       a domain of Megatron's indexed datasets (.bin and .idx)
agreement.py     opens domains once on each node and compares the nodes' data
kind.py          what differs between pretraining and finetuning data
kinds.py         the kind that data.dataset names
pretraining.py   the kind for data.dataset=gpt; sft/ has the kind for data.dataset=sft
blend.py         Megatron's datasets for a mixture
token_shares.py  converts shares of answer tokens to shares of samples
readers.py       reads lines of JSONL
tokenize.py      tokenises documents into Megatron datasets
tokenizer.py     loads and trains Hugging Face tokenizers
vocabulary.py    the parts of a tokenizer that Megatron's datasets need
"""
