"""The blended-dataset provider: it turns a configuration into the weights that a run draws by.

preflight.py     checks before training; what they find out is passed on
places.py        where a run will write, tried before it begins
plan.py          the model and the windows that embed the domains
stored.py        mixtures that need not be computed
runs.py          the base model's run and the proxies' runs
trained.py       the proxies that are trained
drift.py         how far a proxy's weights still move when its training ends
proxy.py         the computed mixture: proxies, embeddings and weights
new_domains.py   new domains embedded for an existing mixture
stages.py        the plan of a run: the mixture of each stage within its bounds
outlook.py       a run on paper, before it costs anything
costs.py         what the start of a run costs, from measured rates
comparing.py     what two configurations or runs draw differently
building.py      the indices of a run, made before it
resolve.py       the weights of a run, within its bounds
"""

from nemo_chameleon.provider.preflight import Prepared, inspect, prepare, prepare_mixture
from nemo_chameleon.provider.resolve import resolve_mixture, resolve_run, unbounded_mixture
from nemo_chameleon.provider.runs import base_run

__all__ = [
    "Prepared",
    "base_run",
    "inspect",
    "prepare",
    "prepare_mixture",
    "resolve_mixture",
    "resolve_run",
    "unbounded_mixture",
]
