"""From a configuration to the weights that a run draws by: the only place that decides them."""

from collections.abc import Mapping

from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.provider.preflight import Prepared, prepare
from nemo_chameleon.provider.proxy import compute_mixture
from nemo_chameleon.provider.runs import within_bounds
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


def resolve_mixture(
    config: Config, domains: Mapping[str, Domain] | Prepared | None = None
) -> Mixture:
    """Return the mixture that `data.mixture` asks for, within its bounds; compute it if need be.

    For data.mixture=chameleon the mixture file is used if it is there. If not, the proxy is
    trained; every rank must take part in that, within `distributed.processes.process_group`.

    Args:
        config: the whole configuration.
        domains: what `prepare` gave, or opened domains by name; None prepares here.

    Raises:
        UserError: naming the culprit and the next step.
    """
    if domains is None:
        domains = prepare(config)
    prepared = domains if isinstance(domains, Prepared) else Prepared.of(config, domains)
    return within_bounds(config, prepared.domains, unbounded_mixture(prepared))


def unbounded_mixture(prepared: Prepared) -> Mixture:
    """Do what `resolve_mixture` does, but return the weights as they were given or computed."""
    if prepared.stored is None:
        return compute_mixture(prepared)
    if prepared.plan is not None:
        logger.info("weights from %s", prepared.config.chameleon.file)
    return prepared.stored
