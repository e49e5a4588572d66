"""The weights that a run draws by; this is the only place that decides them.

`resolve_mixture` gives the weights of a run, and `unbounded_mixture` those before data.max_epochs,
data.pin and data.floor are applied.
"""

from collections.abc import Mapping

from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.tables import expected_losses
from nemo_chameleon.provider.preflight import Prepared, prepare, wanted_by
from nemo_chameleon.provider.proxy import compute_mixture
from nemo_chameleon.provider.stages import planned_run
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


def resolve_mixture(
    config: Config, domains: Mapping[str, Domain] | Prepared | None = None
) -> Mixture:
    """Return the mixture that data.mixture names, within the run's bounds; compute it if needed.

    For data.mixture=chameleon the mixture file is used if it exists. Otherwise the proxy is trained
    or loaded, and every rank must take part, within `distributed.processes.process_group`.

    Args:
        config: the whole configuration.
        domains: what `prepare` found out, or the opened domains by name; None calls `prepare`.

    Returns:
        The weights that the run draws by, the same on every rank.

    Raises:
        UserError: the mixture cannot be read or computed; the message says what to do.

    Example:
        >>> import nemo_chameleon as nc
        >>> config = nc.load_config("config.yaml", ["data.mixture=uniform"])
        >>> mixture = nc.resolve_mixture(config)
        >>> {name: round(weight, 3) for name, weight in mixture.weights.items()}
        {'code': 0.333, 'prose': 0.333, 'legal': 0.333}
    """
    return resolve_run(config, domains).mixture


def resolve_run(
    config: Config, domains: Mapping[str, Domain] | Prepared | None = None
) -> TrainingRun:
    """Return the base model's run with all that it draws by; compute its mixtures if needed.

    Where a mixture has to be computed, every rank must call it, within `process_group`.

    Args:
        config: the whole configuration.
        domains: what `prepare` found out, or the opened domains by name; None calls `prepare`.

    Returns:
        The run, which draws the same samples on every rank.

    Raises:
        UserError: as `resolve_mixture`, or the stages of the run cannot be drawn.
    """
    if domains is None:
        domains = prepare(config)
    if not isinstance(domains, Prepared):
        prepared = Prepared.of(config, domains)
    elif domains.config is not config or domains.wanted != wanted_by(config):
        prepared = Prepared.of(config, domains.domains)  # another mixture is wanted since
    else:
        prepared = domains
    mixtures = [unbounded_mixture(stage) for stage in prepared.stages or [prepared]]
    run = planned_run(config, prepared.domains, mixtures)
    for line in expected_losses(run.mixture):
        logger.info("%s", line)
    return run


def unbounded_mixture(prepared: Prepared) -> Mixture:
    """Return the weights as they were given or computed, before the bounds of a run.

    Where the mixture has to be computed, every rank must call it, within `process_group`.

    Args:
        prepared: what `prepare` or `prepare_mixture` found out.

    Returns:
        The mixture, the same on every rank.
    """
    stored = prepared.stored_since() if prepared.stored is None else prepared.stored
    if stored is None:
        return compute_mixture(prepared)
    if prepared.plan is not None:
        logger.info("weights from %s", prepared.config.chameleon.file)
    return stored
