"""Processes, and how models are laid out over them.

processes.py         how the job's processes meet and part
layout.py            Megatron's parallel state for one model
collectives.py       what one rank finds out for all
device.py            where a process computes, and what its device cannot do
shared_storage.py    whether the nodes share a run's folders
megatron_on_cpu.py   megatron-core without CUDA, for the tests and the demo
"""
