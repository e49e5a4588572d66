"""Data mixtures computed from the data itself, for Megatron and NeMo training.

Importing this package needs only numpy. `load_config` and `resolve_mixture` need more, for instance
torch and megatron-core, and are imported when they are used.
"""

from typing import TYPE_CHECKING, Any

from nemo_chameleon.method.leverage import (
    affinity_matrix,
    leverage_scores,
    scores_from_affinity,
)
from nemo_chameleon.method.weights import chameleon_weights, weights_from_scores
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.moved import keep_importable

if TYPE_CHECKING:
    from nemo_chameleon.config import load_config
    from nemo_chameleon.provider import resolve_mixture

    __version__: str

__all__ = [
    "Mixture",
    "UserError",
    "__version__",
    "affinity_matrix",
    "chameleon_weights",
    "leverage_scores",
    "load_config",
    "resolve_mixture",
    "scores_from_affinity",
    "weights_from_scores",
]

keep_importable()


def __getattr__(name: str) -> Any:
    if name == "load_config":
        from nemo_chameleon.config import load_config

        return load_config
    if name == "resolve_mixture":
        from nemo_chameleon.provider import resolve_mixture

        return resolve_mixture
    if name == "__version__":
        from importlib.metadata import version

        return version("nemo_chameleon")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
