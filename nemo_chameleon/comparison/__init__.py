"""Mixtures compared by the models that train on them, with the same seeds for every mixture.

paired.py    differences between runs of the same seed, with intervals over seeds
runs.py      the runs of a comparison, as many at once as fit
report.py    tables and verdicts in words
picture.py   the losses on the domains against those on sets that no mixture draws from
"""
