"""From a configuration to the weights that a run uses: the only place that decides them."""

from collections.abc import Mapping
from pathlib import Path

from nemo_chameleon import datasets, parallel, proxy
from nemo_chameleon.config import check, check_proxy
from nemo_chameleon.domains import Domain, open_domains
from nemo_chameleon.errors import UserError
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.schema import MIXTURES, Config


def prepare(config: Config) -> dict[str, Domain]:
    """Check everything that can be known before training, the data's files included.

    Needs no process group: it can run before the ranks meet, or on a login node.

    Returns:
        The domains, opened.

    Raises:
        UserError: naming the culprit and the next step.
    """
    check(config, parallel.world_size())
    parallel.check_device(config)
    vocabulary = datasets.Vocabulary.of(config.data)
    domains = open_domains(config.data.domains, config.data.split, vocabulary.vocab_size)
    if config.train.eval_iters:
        datasets.check_validation(config.data, domains, config.model.seq_length)
    existing = existing_mixture(config, domains)
    if existing is None:
        check_proxy(config, parallel.world_size())
        parallel.check_device(config.proxy, "proxy.")
        if config.proxy.train.eval_iters:
            datasets.check_validation(config.data, domains, config.proxy.model.seq_length)
    return domains


def resolve_mixture(config: Config, domains: Mapping[str, Domain] | None = None) -> Mixture:
    """The mixture that `data.mixture` asks for; computes it where it has to.

    For data.mixture=chameleon the mixture file is used if it is there. If not, the proxy is
    trained, which every rank must take part in, within `parallel.processes`.

    Args:
        config: the whole configuration.
        domains: what `prepare` gave, if it was called.

    Raises:
        UserError: naming the culprit and the next step.
    """
    if domains is None:
        domains = prepare(config)
    opened = domains

    def find() -> str | None:
        mixture = existing_mixture(config, opened)
        return None if mixture is None else mixture.to_json()

    text = parallel.on_first_rank(find)
    if text is None:
        return proxy.compute_mixture(config, domains)
    if config.data.mixture == "chameleon":
        parallel.say(f"weights from {config.chameleon.file}")
    return Mixture.from_json(text)


def existing_mixture(config: Config, domains: Mapping[str, Domain]) -> Mixture | None:
    """The mixture that `data.mixture` asks for, or None where a proxy has to compute it first."""
    wanted = config.data.mixture
    if wanted == "uniform":
        return Mixture.uniform(domains)
    if wanted == "proportional":
        return Mixture.proportional({name: domain.tokens for name, domain in domains.items()})
    if wanted == "static":
        weights = {}
        for name, domain in config.data.domains.items():
            if domain.weight is None:
                raise UserError(f"data.mixture=static needs data.domains.{name}.weight")
            weights[name] = domain.weight
        return Mixture.static(weights)
    computed = wanted == "chameleon"
    path = Path(config.chameleon.file if computed else wanted)
    if computed and not path.is_file():
        return None
    mixture = Mixture.load(path)
    try:
        mixture.require_domains(domains)
        for name, facts in mixture.domains.items():
            if facts.get("fingerprint", domains[name].fingerprint) != domains[name].fingerprint:
                raise UserError(f"the data of domain {name!r} has changed since it was written")
        if computed:
            _require_settings(config, mixture)
    except UserError as error:
        remedy = "remove it to compute it anew, or set chameleon.file" if computed else ""
        raise UserError(f"{path}: {error}{'; ' + remedy if remedy else ''}") from error
    return mixture


def label(config: Config) -> str:
    """What the base run is called, and its folder under `output`."""
    wanted = config.data.mixture
    return wanted if wanted in MIXTURES else Path(wanted).stem


def _require_settings(config: Config, mixture: Mixture) -> None:
    settings = {
        "objective": config.chameleon.objective,
        **proxy.method(config),
        **{f"proxy {key}": value for key, value in proxy.size(config).items()},
    }
    recorded = {
        "objective": mixture.objective,
        **mixture.method,
        **{f"proxy {key}": value for key, value in mixture.proxy.items()},
    }
    for key, value in settings.items():
        if recorded.get(key, value) != value:
            raise UserError(f"it was made with {key}={recorded[key]}, the run asks for {value}")
