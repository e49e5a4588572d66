"""Data: named domains, the readers of their files, and Megatron's datasets over them.

domain.py        the protocol of a domain, whatever format its files have
indexed.py       a domain of Megatron's indexed datasets (.bin and .idx)
agreement.py     opens domains once on each node and compares the nodes' data
kind.py          what differs between pretraining and finetuning data
kinds.py         the kind that data.dataset names
pretraining.py   the kind for data.dataset=gpt; sft/ has the kind for data.dataset=sft
blend.py         Megatron's datasets for a mixture
batch_sampler.py  divides global batches among the ranks
loading.py       how datasets are opened whose indices are whole
megatron_indices.py  Megatron's sample indices, verified before they are used
epochs.py        the epochs of a domain, an index each
streams.py       a domain's samples, epoch after epoch
planned.py       the training set of a run that follows a plan
cached.py        folders of data.cache that are whole or not there
token_shares.py  converts shares of answer tokens to shares of samples
parts.py         the datasets of a domain: a prefix, a list, or what a glob matches
splits.py        refuses the files of several splits as one domain
split_names.py   tells which split a name says
shards.py        finds what is missing of a numbered set of files
index_file.py    the format of an .idx file
stamp.py         which tokenizer wrote a dataset
prepare.py       tokenises files of any size into a Megatron dataset; readers/ reads them
tokenize.py      tokenises documents into a Megatron dataset
unfinished.py    a dataset that is being written
tokenizer.py     loads and trains Hugging Face tokenizers
tokenizer_files.py  the settings beside a tokenizer
vocabulary.py    the parts of a tokenizer that Megatron's datasets need
"""
