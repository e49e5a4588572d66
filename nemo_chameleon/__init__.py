"""Data mixtures computed from the data itself, for Megatron and NeMo training.

The mathematics and the mixture file need numpy alone and are imported here; what needs torch and
megatron-core is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from nemo_chameleon.errors import UserError
from nemo_chameleon.leverage import (
    affinity_matrix,
    leverage_scores,
    scores_from_affinity,
)
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.weights import chameleon_weights, weights_from_scores

if TYPE_CHECKING:
    from nemo_chameleon.config import load_config
    from nemo_chameleon.provider import resolve_mixture

__all__ = [
    "Mixture",
    "UserError",
    "affinity_matrix",
    "chameleon_weights",
    "leverage_scores",
    "load_config",
    "resolve_mixture",
    "scores_from_affinity",
    "weights_from_scores",
]


def __getattr__(name: str) -> Any:
    if name == "load_config":
        from nemo_chameleon.config import load_config

        return load_config
    if name == "resolve_mixture":
        from nemo_chameleon.provider import resolve_mixture

        return resolve_mixture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
