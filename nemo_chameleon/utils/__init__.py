"""Tools that every other package uses: errors, files, logging and tables.

errors.py       the exception for mistakes that a user can correct
yaml_text.py    reads YAML as people type it
json_objects.py objects without a key that stands twice
files.py        atomic file writes, and digests
console.py      how commands and recipes behave as programs
logging.py      one logger per package
ranks.py        the rank of this process
preemption.py   the signals that ask a run to stop
parent.py       the end of torchrun ends its processes and their helpers
workers.py      processes that work for one command
seeding.py      random generators that are seeded from names
names.py        names that become names of folders
limits.py       limits of time and memory
tables.py       tables in plain text
picture.py      pictures as SVG files
moved.py        names where old checkpoints look for them
provenance.py   time and versions, for the record
arrays.py       names of array types
"""
