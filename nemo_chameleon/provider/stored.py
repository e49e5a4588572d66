"""Mixtures that need not be computed: uniform, proportional and static ones, and mixture files.

A mixture file is used only for the domains, the data and the settings that it was made with.
"""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from nemo_chameleon.config.keys import typed
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.validation import preset_of
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.mixture.mixture import UNRECORDED, Mixture, proxies_of
from nemo_chameleon.provider.plan import LEFT_OPEN, EmbeddingPlan
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


def stored_mixture(
    config: Config, domains: Mapping[str, Domain], plan: EmbeddingPlan | None
) -> Mixture | None:
    """Return the mixture that data.mixture names, if it need not be computed.

    Args:
        config: the whole configuration.
        domains: the opened domains, by name.
        plan: how the domains are embedded; None where data.mixture is not chameleon.

    Returns:
        The mixture before bounds; None where it has to be computed.

    Raises:
        UserError: a mixture file that cannot be read, or one for other domains, data or settings.
    """
    wanted = config.data.mixture
    if wanted == "uniform":
        return Mixture.uniform(domains)
    if wanted == "proportional":
        unit = config.data.unit
        return Mixture.proportional({name: d.tokens_in(unit) for name, d in domains.items()})
    if wanted == "static":
        weights = {}
        for name, domain in config.data.domains.items():
            if domain.weight is None:
                raise UserError(
                    f"data.mixture=static needs {typed(('data', 'domains', name, 'weight'))}"
                )
            weights[name] = domain.weight
        return Mixture.static(weights)
    computed = wanted == "chameleon"
    path = Path(config.chameleon.file if computed else wanted)
    if computed and not path.is_file():
        return None
    mixture = Mixture.load(path)
    remedy = "remove the file to compute the mixture again, or set chameleon.file to another path"
    try:
        try:
            mixture.require_domains(domains)
        except UserError as error:
            change = (
                f"; run `nemo-chameleon mixture add {quote(str(path))} NAME=PATH` or "
                f"`nemo-chameleon mixture remove {quote(str(path))} NAME`, which train no proxy"
            )
            raise UserError(f"{error}{change if computed else ''}") from error
        _require_data(mixture, domains)
        if computed:
            _require_settings(config, mixture, plan)
    except UserError as error:
        raise UserError(f"{path}: {error}{'; ' + remedy if computed else ''}") from error
    return mixture


def saved_mixture(
    config: Config, domains: Mapping[str, Domain], plan: EmbeddingPlan | None, file: Path
) -> Mixture:
    """Return the computed mixture that a run saved, with weights within that run's bounds.

    Args:
        config: the whole configuration, with data.mixture=chameleon.
        domains: the opened domains, by name.
        plan: how the domains are embedded.
        file: the mixture file in the run's folder.

    Returns:
        The mixture.

    Raises:
        UserError: it is not the mixture that the configuration asks for.
    """
    mixture = Mixture.load(file)
    try:
        if mixture.name != "chameleon":
            raise UserError(f"it is a {mixture.name!r} mixture, which was not computed")
        _require_data(mixture, domains)
        _require_settings(config, mixture, plan, bounded=True)
    except UserError as error:
        raise UserError(
            f"{config.chameleon.file} is gone, and {file} cannot replace it: {error}"
        ) from error
    return mixture


def _require_data(mixture: Mixture, domains: Mapping[str, Domain]) -> None:
    mixture.require_domains(domains)
    for name, facts in mixture.domains.items():
        if facts.get("fingerprint", domains[name].fingerprint) != domains[name].fingerprint:
            raise UserError(
                f"the data of domain {name!r} has changed since the mixture was computed"
            )


def _require_settings(
    config: Config, mixture: Mixture, plan: EmbeddingPlan | None, bounded: bool = False
) -> None:
    assert plan is not None, "a computed mixture has a plan"
    if "bound" in mixture.method and not bounded:
        raise UserError(
            "its weights were changed by the data.max_epochs, data.pin or data.floor of a run: use "
            "the file that was computed"
        )
    if mixture.name != "chameleon":
        raise UserError(
            f"it is a {mixture.name!r} mixture, which was not computed: use it as "
            f"{typed(('data', 'mixture'), config.chameleon.file)}"
        )
    file = config.chameleon.file
    scoring = {"objective": plan.objective, **preset_of(config.chameleon).settings()}
    recorded = {"objective": mixture.objective, **UNRECORDED, **mixture.method}
    for key, value in {**scoring, **plan.method}.items():
        if (made_with := recorded.get(key)) == value:
            continue
        # The mixture in a run's folder stays what it is: the run has drawn samples by it.
        option = f"--{key.replace('_', '-')} {value}" if key in scoring and not bounded else ""
        command = f"`nemo-chameleon mixture rescore {quote(file)} {option}`"
        if key in LEFT_OPEN and getattr(config.chameleon, key) is None:
            change = "" if bounded else f", or remove {file} to compute it again with {value}"
            logger.warning(
                "the mixture was computed with chameleon.%s=%s and is used as it is; set the key "
                "to confirm that%s",
                key,
                made_with,
                f", or run {command} to change it" if option else change,
            )
            continue
        again = f"; {command} changes that" if option else ""
        raise UserError(f"it was made with {key}={made_with}, but the run asks for {value}{again}")
    _require_proxies(config, mixture, plan)


def _require_proxies(config: Config, mixture: Mixture, plan: EmbeddingPlan) -> None:
    """Refuse a mixture that comes from other proxies than the configuration asks for."""
    now = dict(zip(plan.earlier_settings, plan.settings, strict=True))
    recorded = [str(proxy.get("settings")) for proxy in proxies_of(mixture.proxy)]
    made = [now.get(settings, settings) for settings in recorded]
    if sorted(made) == sorted(plan.settings):
        return
    count = f"set proxy.count={len(made)}" if plan.settings[0] in made else ""
    if len(made) == 1 and count:
        raise UserError(
            f"it comes from one proxy, but proxy.count={len(plan.settings)}: {count} to use it"
        )
    if len(made) > 1:
        other = f", or {count}" if count and len(made) != len(plan.settings) else ""
        raise UserError(
            "it comes from several proxies: use it as "
            f"{typed(('data', 'mixture'), config.chameleon.file)}{other}"
        )
    raise UserError(
        "it was made through another proxy: proxy.*, a seed, data.split or the tokenizer has "
        "changed"
    )
