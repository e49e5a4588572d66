"""Training on megatron-core: of the proxy, and by default of the base model.

run.py          a run: model, data, files, and the checkpoint that it may continue from
trainer.py      the training loop
step.py         the forward step, and the loss by domain
evaluation.py   validation loss by domain
scalars.py      where a run's scalars for TensorBoard are written
report.py       a table that compares finished runs
"""
