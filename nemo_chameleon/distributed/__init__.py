"""The processes of a job, and how models are laid out over them.

processes.py         starts and ends the process group of the job
layout.py            Megatron's parallel state for one model
collectives.py       one rank computes for all ranks
device.py            the device of a process, and what it does not support
lease.py             one job at a time owns what a run writes
shared_storage.py    checks that all nodes share a run's folders
megatron_on_cpu.py   megatron-core without CUDA, for the tests and the demo
"""
