"""The blended-dataset provider: from a configuration to the weights that a run draws by.

preflight.py     all that can be known before training, found out once
plan.py          what embeds the domains
stored.py        the mixture that need not be computed
runs.py          the base model's run and the proxy's
proxy.py         the mixture computed: proxy, embeddings, weights
new_domains.py   domains embedded for a mixture that exists
resolve.py       the weights, within the run's bounds
"""

from nemo_chameleon.provider.preflight import Prepared, inspect, prepare, prepare_mixture
from nemo_chameleon.provider.resolve import resolve_mixture, unbounded_mixture
from nemo_chameleon.provider.runs import base_run

__all__ = [
    "Prepared",
    "base_run",
    "inspect",
    "prepare",
    "prepare_mixture",
    "resolve_mixture",
    "unbounded_mixture",
]
