"""Help around a run: a check of the installation, and jobs for a queue.

doctor.py     what is installed here, and what works with it
nemo_run.py   proxy, mixture and base model as an experiment of NeMo-Run
"""
