"""Finetuning data: domains of JSONL with chats, with prompts and completions, or with text.

templates.py    writes chats with a chat template and finds the assistant's turns
shapes.py       reads a line as turns, as a pair or as a text
turns.py        reads the messages of a chat
keys.py         tells the keys that say nothing to train on from all others
unknown.py      names keys that are not understood, and the way out
forms.py        says which keys of a line of an unknown form to rename
repeated.py     tells whether a text beside the turns only repeats them
written.py      checks that the chat template writes what the messages say
unread.py       finds the keys of messages that the chat template does not read
examples.py     parses a line of JSONL into a text and its answers
tokenize.py     tokenises examples and marks the answer tokens
reports.py      what an index says about lines that are not examples
index.py        stores tokenised JSONL files in a cache
layout.py       says where examples, prompts and answers lie in their tokens
packing.py      sorts pieces of examples into samples of one length
samples.py      stores the samples of an index beside it
domain.py       a domain of examples
fitting.py      checks before training that examples fit into samples
dataset.py      Megatron's dataset of samples
boundaries.py   finds where the sequences of packed samples begin and end
finetuning.py   all of this as the kind of data for data.dataset=sft
"""
