"""From a configuration to the weights that a run uses: the only place that decides them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_chameleon import checkpoint, datasets, parallel, proxy, training
from nemo_chameleon.checks import (
    check,
    check_mixture,
    check_model,
    check_proxy,
    check_windows,
    preset_of,
)
from nemo_chameleon.domains import Domain
from nemo_chameleon.errors import UserError
from nemo_chameleon.job import Job
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.schema import MIXTURES, SFT, Config
from nemo_chameleon.sft.shares import capped_in_answers
from nemo_chameleon.sources import MegatronSource


def prepare(config: Config) -> dict[str, Domain]:
    """Check everything that can be known before training, the data's files included.

    Every rank must call it if they have met, and is told what the first one finds.

    Returns:
        The domains, opened.

    Raises:
        UserError: naming the culprit and the next step.
    """
    check(config, parallel.world_size())
    parallel.check_device(config)
    domains = _opened(config)

    def look() -> None:
        mixture = existing_mixture(config, domains)
        job = _checked_job(config, domains, mixture)
        if mixture is None:
            job.pretrained()
            _prepare_proxy(config, domains)
            _refuse_a_run_without_its_mixture(job)
        elif job.resumable() is None:
            job.pretrained()

    parallel.on_first_rank(look)
    return domains


def prepare_mixture(config: Config) -> dict[str, Domain]:
    """The part of `prepare` that is not about the base model's run."""
    check_mixture(config)
    domains = _opened(config)

    def look() -> None:
        if existing_mixture(config, domains) is None:
            _prepare_proxy(config, domains)

    parallel.on_first_rank(look)
    return domains


def inspect(config: Config, processes: int, proxy_processes: int) -> dict[str, Domain]:
    """What `prepare` can say of jobs on other machines, before they are submitted.

    Args:
        config: the whole configuration.
        processes: that train the base model.
        proxy_processes: that train the proxy.

    Returns:
        The domains, opened.

    Raises:
        UserError: naming the culprit and the next step.
    """
    check(config, processes)
    domains = _opened(config)
    mixture = existing_mixture(config, domains)
    _checked_job(config, domains, mixture).pretrained()
    if mixture is None:
        _check_proxy(config, domains, proxy_processes)
    return domains


def _checked_job(config: Config, domains: Mapping[str, Domain], mixture: Mixture | None) -> Job:
    datasets.check(config.data, domains, config, "")
    # Bounds that uniform weights cannot keep, no weights can.
    return base_job(config, domains, bounded(config, domains, mixture or Mixture.uniform(domains)))


def _opened(config: Config) -> dict[str, Domain]:
    answers_alone = config.chameleon.tokens == "answers"
    length = config.model.seq_length
    return datasets.open_domains(config.data, length, answers_alone=answers_alone)


def _prepare_proxy(config: Config, domains: Mapping[str, Domain]) -> None:
    _check_proxy(config, domains, parallel.world_size())
    parallel.check_device(config.proxy, "proxy.")
    if proxy.trains(config):
        proxy.job_of(config, domains).resumable()


def _check_proxy(config: Config, domains: Mapping[str, Domain], processes: int) -> None:
    """What does not depend on the machine that it will run on."""
    if proxy.trains(config):
        check_proxy(config, processes)
        job = proxy.job_of(config, domains)
        datasets.check(job.config.data, job.domains, config.proxy, "proxy.")
    else:
        source = proxy.existing(config)
        if isinstance(source, MegatronSource):
            check_model(source.run, processes, "proxy.")
        check_windows(config.chameleon, source.num_layers, source.seq_length)


def _refuse_a_run_without_its_mixture(job: Job) -> None:
    folder, file = job.directory, job.config.chameleon.file
    if checkpoint.newest(folder) is not None:
        copy = folder / "mixture.json"
        whole = copy.is_file() and "bound" not in Mixture.load(copy).method
        remedy = f"put it back from {copy}, " if whole else ""
        raise UserError(
            f"{folder} holds a run whose mixture, {file}, is gone: {remedy}remove "
            "the run, or set another output"
        )


def resolve_mixture(config: Config, domains: Mapping[str, Domain] | None = None) -> Mixture:
    """The mixture that `data.mixture` asks for, within its bounds; computes it where it has to.

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
    return bounded(config, domains, unbounded_mixture(config, domains))


def train_proxy(config: Config, domains: Mapping[str, Domain]) -> None:
    """The part of `resolve_mixture` that may take the longest, if it has to be done."""
    if parallel.on_first_rank(lambda: existing_mixture(config, domains) is not None):
        parallel.say(f"{config.data.mixture}: the mixture is there, and no proxy is needed")
    elif not proxy.trains(config):
        parallel.say("no proxy to train: a model that exists embeds the domains")
    else:
        training.train(proxy.job_of(config, domains))


def unbounded_mixture(config: Config, domains: Mapping[str, Domain]) -> Mixture:
    """`resolve_mixture`, with the weights as they were given or computed."""

    def find() -> str | None:
        mixture = existing_mixture(config, domains)
        return None if mixture is None else mixture.to_json()

    text = parallel.on_first_rank(find)
    if text is None:
        return proxy.compute_mixture(config, domains)
    if config.data.mixture == "chameleon":
        parallel.say(f"weights from {config.chameleon.file}")
    return Mixture.from_json(text)


def bounded(
    config: Config,
    domains: Mapping[str, Domain],
    mixture: Mixture,
    samples: int | None = None,
    seq_length: int | None = None,
) -> Mixture:
    """A mixture within data.max_epochs, data.pin and data.floor for the base model's run.

    The mixture file keeps the weights as they were computed: the bounds are the run's.

    Args:
        config: with the bounds.
        domains: opened.
        mixture: what it is within them.
        samples: that the run draws; None for those of the configured base model's.
        seq_length: tokens of each; None for the configured base model's.
    """
    data, length = config.data, seq_length or config.model.seq_length
    drawn = config.train.samples if samples is None else samples
    bounds: dict[str, Any] = {"pin": data.pin, "floor": data.floor}
    if data.dataset == SFT and data.unit == "tokens" and data.max_epochs is not None:
        return capped_in_answers(
            mixture,
            domains,
            samples=drawn,
            seq_length=length,
            seed=config.train.seed,
            max_epochs=data.max_epochs,
            **bounds,
        )
    tokens = {name: domain.pass_tokens(length) for name, domain in domains.items()}
    return mixture.cap_epochs(tokens, drawn * length, data.max_epochs, **bounds)


def existing_mixture(config: Config, domains: Mapping[str, Domain]) -> Mixture | None:
    """The mixture that `data.mixture` asks for, or None where a proxy has to compute it first."""
    wanted = config.data.mixture
    if wanted == "uniform":
        return Mixture.uniform(domains)
    if wanted == "proportional":
        unit = config.data.unit
        return Mixture.proportional({name: domain.size(unit) for name, domain in domains.items()})
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
    remedy = "remove the file to compute it anew, or set chameleon.file"
    try:
        try:
            mixture.require_domains(domains)
        except UserError as error:
            change = "`nemo-chameleon mixture add | remove` changes it without training a proxy"
            raise UserError(f"{error}{'; ' + change if computed else ''}") from error
        _require_data(mixture, domains)
        if computed:
            _require_settings(config, mixture, domains)
    except UserError as error:
        raise UserError(f"{path}: {error}{'; ' + remedy if computed else ''}") from error
    return mixture


def saved_mixture(config: Config, domains: Mapping[str, Domain], file: Path) -> Mixture:
    """What a run saved of a computed mixture, within that run's bounds.

    Raises:
        UserError: it is not the one that the configuration asks for.
    """
    mixture = Mixture.load(file)
    try:
        if mixture.name != "chameleon":
            raise UserError(f"its weights are {mixture.name}, not computed")
        _require_data(mixture, domains)
        _require_settings(config, mixture, domains, bounded=True)
    except UserError as error:
        raise UserError(f"{config.chameleon.file} is gone, and {file}: {error}") from error
    return mixture


def base_job(config: Config, domains: Mapping[str, Domain], mixture: Mixture) -> Job:
    """The base model's training, in a folder under `output` that the mixture's name gives."""
    return Job(run_name(config), config, config, domains, mixture)


def run_name(config: Config) -> str:
    """What the base model's run is called, after its mixture.

    Raises:
        UserError: the name of a mixture file is taken.
    """
    wanted = config.data.mixture
    name = wanted if wanted in MIXTURES else Path(wanted).stem
    if wanted not in MIXTURES and name in (*MIXTURES, "proxy", Path(config.data.cache).name):
        raise UserError(
            f"data.mixture={wanted}: the run's folder would be {config.output}/{name}, which has "
            "another use; rename the file"
        )
    return name


def _require_data(mixture: Mixture, domains: Mapping[str, Domain]) -> None:
    mixture.require_domains(domains)
    for name, facts in mixture.domains.items():
        if facts.get("fingerprint", domains[name].fingerprint) != domains[name].fingerprint:
            raise UserError(f"the data of domain {name!r} has changed since it was written")


def _require_settings(
    config: Config, mixture: Mixture, domains: Mapping[str, Domain], bounded: bool = False
) -> None:
    if "bound" in mixture.method and not bounded:
        raise UserError("it holds a run's weights within bounds, not the weights as computed")
    scoring = {"objective": config.chameleon.objective, **preset_of(config.chameleon).settings()}
    recorded = {"objective": mixture.objective, **mixture.method}
    for key, value in {**scoring, **proxy.embedding_method(config)}.items():
        if recorded.get(key) != value:
            anew = "; `nemo-chameleon mixture rescore` weighs it anew from its embeddings"
            raise UserError(
                f"it was made with {key}={recorded.get(key)}, the run asks for {value}"
                f"{anew if key in scoring else ''}"
            )
    if "averaged" in mixture.proxy:
        raise UserError(f"it is of several proxies: use it as data.mixture={config.chameleon.file}")
    if mixture.proxy.get("settings") != proxy.settings_digest(config, domains):
        raise UserError(
            "it was made through another proxy: proxy.*, the seed, data.split or the tokenizer "
            "differ"
        )
