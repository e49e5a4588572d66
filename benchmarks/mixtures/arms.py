"""The weights and settings that the base models of a method train with."""

import numpy as np

from benchmarks.mixtures.results import Results
from benchmarks.mixtures.size import Size
from nemo_chameleon.utils.errors import UserError

_UNIFORM, _PERMUTED = "uniform:", "permuted"


def has_weights(method: str) -> bool:
    """Return whether a method's weights are computed by a task of their own."""
    return method != _PERMUTED and not method.startswith(_UNIFORM)


def require_method(name: str) -> None:
    """Check that there is a method of this name.

    Raises:
        UserError: there is none.
    """
    from benchmarks.mixtures.methods import method_called

    if has_weights(name):
        method_called(name)


def mixture_of(size: Size, method: str, seed: int) -> tuple[dict[str, float], list[str]]:
    """Return the weights by domain that a base model trains on, and overrides of its settings.

    Every seed of a method has the same weights: the mean of those that its proxies gave. Two kinds
    of methods have no weights of their own: `uniform:KEY=VALUE,...` trains on uniform weights with
    other settings, and `permuted` gives Chameleon's weights to the domains in a random order, which
    is another one for every seed and leaves no domain its own weight.

    Raises:
        UserError: the weights that are permuted are not computed yet.
    """
    if method.startswith(_UNIFORM):
        settings = method.removeprefix(_UNIFORM).split(",")
        return dict.fromkeys(size.domains, 1 / len(size.domains)), settings
    records = Results(size.name).of("weights", "chameleon" if method == _PERMUTED else method)
    if not records:
        raise UserError(f"{method} needs Chameleon's weights; add chameleon to --methods")
    mean = {
        name: float(np.mean([record["weights"][name] for record in records.values()]))
        for name in size.domains
    }
    if method == _PERMUTED:
        generator, own = np.random.default_rng(seed), np.arange(len(mean))
        while ((order := generator.permutation(len(mean))) == own).any():
            pass
        mean = {name: list(mean.values())[i] for name, i in zip(mean, order, strict=True)}
    return mean, []
