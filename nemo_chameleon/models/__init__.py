"""GPTs on megatron-core: the model, its optimizer and its checkpoints.

gpt.py          builds a GPT from the configuration
layers.py       the layers of a GPT, with the best kernels that are installed
optimizer.py    Megatron's optimizer and learning rate schedule
checkpoint.py   writes and reads the checkpoints of a run
llama.py        Llama's architecture and weights in megatron-core's terms
import_hf.py    converts a Hugging Face model into a checkpoint
pretrained.py   finds a checkpoint that exists already, and loads its weights
"""
