"""Training on megatron-core: the proxy's, and the default engine for the base model's.

run.py          what is trained on what, and what it may continue from
trainer.py      the loop that does it
step.py         the forward step, and loss by domain
evaluation.py   validation loss by domain
report.py       finished runs side by side
"""
