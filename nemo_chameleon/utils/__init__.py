"""What every package uses: errors, files, logging, tables.

errors.py       the one error that a user can cause
files.py        files written atomically, and digests
console.py      how commands and recipes behave as programs
logging.py      one logger for each package
ranks.py        which of the job's processes this one is
preemption.py   a run that is asked to stop
seeding.py      random generators that follow from names
tables.py       tables in plain text
arrays.py       names of array types
"""
