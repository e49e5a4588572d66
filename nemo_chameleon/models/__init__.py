"""GPTs on megatron-core: the model, its optimizer, its checkpoints.

gpt.py          a GPT from the configuration
layers.py       its layers, of the best kernels that are installed
optimizer.py    Megatron's optimizer and its schedule
checkpoint.py   dist_checkpointing, written atomically
pretrained.py   a checkpoint that exists already
"""
