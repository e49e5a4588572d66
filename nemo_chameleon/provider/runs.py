"""The training runs of a configuration, and the bounds on the base model's weights.

A proxy's run is a run like the base model's, with a small model and uniform weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_chameleon.config.data import MIXTURES
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.stages import configuration_of
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.token_shares import within_token_bounds
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import Plan
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.names import fault_of_name

COMPARED = "compare"
"""The folder under `output` of the runs of a comparison."""

PLANNED = "plan"
"""The folder under `output` of a run of several stages."""


def base_run(config: Config, domains: Mapping[str, Domain], drawn: Mixture | Plan) -> TrainingRun:
    """Return the base model's run; its folder under `output` is named after the mixture.

    Args:
        config: the whole configuration.
        domains: the opened domains, by name.
        drawn: the weights that the run draws by in Megatron's order; or its plan.

    Returns:
        The run.

    Raises:
        UserError: the name that a mixture file gives to the folder has another use.
    """
    name = run_name(config)
    if isinstance(drawn, Mixture):
        return TrainingRun(name, config, config, domains, drawn)
    return TrainingRun(name, config, config, domains, drawn.mixture, drawn)


def proxy_run(config: Config, domains: Mapping[str, Domain], number: int = 1) -> TrainingRun:
    """Return a proxy's run, which draws by uniform weights.

    Args:
        config: the whole configuration.
        domains: the opened domains, by name.
        number: which of proxy.count proxies it is, counted from 1; proxy.train.seed is the first
            one's seed, and each further one adds 1.

    Returns:
        The run, in the folder `proxy`, or `proxy-2` and so on, under `output`.
    """
    data, domains = kind_of(config.data).for_proxy(config.data, domains)
    config, train = replace(config, data=data), config.proxy.train
    settings = replace(config.proxy, train=replace(train, seed=train.seed + number - 1))
    return TrainingRun(_proxy_name(number), settings, config, domains, Mixture.uniform(domains))


def proxy_runs(config: Config, domains: Mapping[str, Domain]) -> list[TrainingRun]:
    """Return the runs of all proxies that a configuration trains.

    Args:
        config: the whole configuration.
        domains: the opened domains, by name.

    Returns:
        One run for each of proxy.count proxies.
    """
    return [proxy_run(config, domains, number + 1) for number in range(config.proxy.count)]


def _proxy_name(number: int) -> str:
    return "proxy" if number == 1 else f"proxy-{number}"


def run_name(config: Config) -> str:
    """Return the name of the base model's run.

    Args:
        config: the whole configuration.

    Returns:
        The value of data.mixture or, for a mixture file, its name without the ending; "plan" where
        there are several stages.

    Raises:
        UserError: the name that a mixture file gives to the run's folder has another use.
    """
    if len(config.data.stages) > 1:
        return PLANNED
    wanted = configuration_of(config, 0).data.mixture
    name = wanted if wanted in MIXTURES else Path(wanted).stem
    if (fault := fault_of_name(name)) is not None:
        raise UserError(
            f"data.mixture={wanted}: the run's folder would be named {name!r}, which {fault}; "
            "rename the file"
        )
    proxies = [_proxy_name(number + 1) for number in range(config.proxy.count)]
    others = (*MIXTURES, *proxies, COMPARED, PLANNED, Path(config.data.cache).name)
    if wanted not in MIXTURES and name in others:
        raise UserError(
            f"data.mixture={wanted}: the run's folder would be {config.output}/{name}, which has "
            "another use; rename the file"
        )
    return name


def within_bounds(
    config: Config,
    domains: Mapping[str, Domain],
    mixture: Mixture,
    samples: int | None = None,
    seq_length: int | None = None,
    drawn: Mapping[str, int] | None = None,
) -> Mixture:
    """Return a mixture within data.max_epochs, data.pin and data.floor for the base model's run.

    The bounds belong to the run; the mixture file keeps the weights as they were computed.

    Args:
        config: the whole configuration, with the bounds.
        domains: the opened domains, by name.
        mixture: the weights before the bounds.
        samples: samples that are drawn by the weights; None for those of the configured base
            model's run.
        seq_length: tokens of each sample; None for those of the configured base model.
        drawn: samples of each domain that are drawn before; None for none.

    Returns:
        The nearest mixture that keeps the bounds.

    Raises:
        UserError: no weights can keep the bounds; the message begins with the key.
    """
    data, length = config.data, seq_length or config.model.seq_length
    samples = config.train.samples if samples is None else samples
    before = drawn or {}
    bounds: dict[str, Any] = {"pin": data.pin, "floor": data.floor, "prefix": "data."}
    if kind_of(data).supervised and data.unit == "tokens" and data.max_epochs is not None:
        return within_token_bounds(
            mixture,
            domains,
            samples=samples,
            seq_length=length,
            seed=config.train.seed,
            max_epochs=data.max_epochs,
            drawn=before,
            **bounds,
        )
    tokens = {name: domain.pass_tokens(length) for name, domain in domains.items()}
    spent = {name: count * length for name, count in before.items()}
    return mixture.within_bounds(tokens, samples * length, data.max_epochs, drawn=spent, **bounds)
