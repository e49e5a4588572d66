"""Around a run: what is installed, and jobs in a queue.

doctor.py     what is installed, and what works with it
nemo_run.py   proxy, mixture and base model as an experiment of NeMo-Run
"""
