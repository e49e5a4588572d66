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
from nemo_chameleon.models import tracker
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
        The value of `run` or, without one, that of data.mixture or the name of its file without the
        ending; "plan" where there are several stages.

    Raises:
        UserError: the name cannot be that of the run's folder, or has another use.
    """
    wanted, remedy = f"run={config.run}", "set run to another name"
    name, taken = config.run, _taken(config)
    if name is None and len(config.data.stages) > 1:
        name, taken = PLANNED, []
    if name is None:
        mixture = configuration_of(config, 0).data.mixture
        wanted, remedy = f"data.mixture={mixture}", "rename the file, or set run to another name"
        named = mixture in MIXTURES
        name = mixture if named else Path(mixture).stem
        taken = [] if named else [*taken, *MIXTURES, PLANNED]
    if (fault := fault_of_name(name)) is not None:
        raise UserError(
            f"{wanted}: the run's folder would be named {name!r}, which {fault}; {remedy}"
        )
    if name in taken:
        raise UserError(
            f"{wanted}: the run's folder would be {config.output}/{name}, which has another use; "
            f"{remedy}"
        )
    return name


def other_runs(config: Config) -> list[str]:
    """Return the base model's runs that have checkpoints under `output`, except the configured one.

    Args:
        config: the whole configuration.

    Returns:
        Their names, in alphabetical order.
    """
    apart = [*_taken(config), run_name(config)]
    folders = sorted(path for path in Path(config.output).glob("*") if path.name not in apart)
    return [path.name for path in folders if tracker.saved(path)]


def _taken(config: Config) -> list[str]:
    """Return the folders under `output` that are not the base model's runs."""
    proxies = [_proxy_name(number + 1) for number in range(config.proxy.count)]
    return [*proxies, COMPARED, Path(config.data.cache).name]


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
