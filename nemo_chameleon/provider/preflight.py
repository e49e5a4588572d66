"""Checks before training: everything that can be known then is found out once.

`prepare` is for a run in this process, `prepare_mixture` for one whose base model a host trains,
`inspect` for jobs on other machines, and `foresee` for a look at a run on paper. What they find out
is passed on as `Prepared`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nemo_chameleon.config.data import MIXTURES
from nemo_chameleon.config.keys import typed
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.stages import configuration_of
from nemo_chameleon.config.validation import (
    check,
    check_drawn,
    check_mixture,
    check_model,
    check_proxy,
    check_windows,
)
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.device import require_device
from nemo_chameleon.distributed.processes import world_size
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.models import tracker
from nemo_chameleon.provider.places import require_folders, require_mixture_file
from nemo_chameleon.provider.plan import EmbeddingPlan, plan_embedding
from nemo_chameleon.provider.runs import base_run, proxy_run, proxy_runs
from nemo_chameleon.provider.stages import planned_run
from nemo_chameleon.provider.stored import stored_mixture
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.tables import listed

logger = package_logger(__package__)


STANDS_FOR = "in place of weights that are not computed yet"
"""The key in the method of a mixture that stands for another one."""


@dataclass(frozen=True)
class Prepared:
    """What the start of a run has found out; later steps use it and look nothing up again.

    Attributes:
        config: the whole configuration.
        wanted: data.mixture, or those of data.stages, as they were then.
        domains: the opened domains by name, in the configuration's order.
        plan: how the domains are embedded; None where data.mixture is not chameleon.
        stored: the mixture, before bounds; None where it has to be computed.
        stages: the same for each of data.stages; then `plan` and `stored` are those of a stage
            whose mixture has to be computed, or else of the first stage.
    """

    config: Config
    wanted: tuple[str, ...]
    domains: Mapping[str, Domain]
    plan: EmbeddingPlan | None
    stored: Mixture | None
    stages: tuple["Prepared", ...] = ()

    @classmethod
    def of(cls, config: Config, domains: Mapping[str, Domain]) -> "Prepared":
        """Plan the embedding and look for the mixture; once ranks have met, each must call it.

        Args:
            config: the whole configuration.
            domains: the opened domains, by name.

        Returns:
            What was found out; all ranks get what the first rank found.

        Raises:
            UserError: a proxy or a mixture file that cannot be used.
        """
        if config.data.stages:
            stages = _stages(config, domains)
            shown = next((stage for stage in stages if stage.stored is None), stages[0])
            return cls(config, wanted_by(config), domains, shown.plan, shown.stored, stages)
        plan = plan_embedding(config, domains) if config.data.mixture == "chameleon" else None
        return cls(config, wanted_by(config), domains, plan, _stored(config, domains, plan))

    def stored_since(self) -> Mixture | None:
        """Look for the mixture again, which another job may have computed since.

        Once the ranks have met, every rank must call it.

        Returns:
            The mixture, before bounds; None where it has to be computed.

        Raises:
            UserError: a mixture file that cannot be used.
        """
        own = next((stage for stage in self.stages if stage.plan is self.plan), self)
        return _stored(own.config, own.domains, own.plan)


def wanted_by(config: Config) -> tuple[str, ...]:
    """Return the values of data.mixture that a run draws by.

    Args:
        config: the whole configuration.

    Returns:
        One for each stage, or the only one.
    """
    stages = range(max(1, len(config.data.stages)))
    return tuple(configuration_of(config, at).data.mixture for at in stages)


def _stages(config: Config, domains: Mapping[str, Domain]) -> tuple[Prepared, ...]:
    """Find out about the mixture of each stage; those of one mixture are looked up once."""
    known: dict[str, Prepared] = {}
    stages = []
    for at in range(len(config.data.stages)):
        own = configuration_of(config, at)
        wanted = own.data.mixture
        try:
            if wanted not in known:
                known[wanted] = Prepared.of(own, _drawn_in_stage(wanted, domains))
        except UserError as error:
            raise UserError(f"data.stages[{at}]: {error}") from error
        stages.append(replace(known[wanted], config=own))
    return tuple(stages)


def _drawn_in_stage(wanted: str, domains: Mapping[str, Domain]) -> Mapping[str, Domain]:
    """Return the domains that a mixture file has weights for; all domains if it is not a file."""
    if wanted in MIXTURES:
        return domains
    named = on_first_rank(lambda: [*Mixture.load(wanted).weights])
    if strangers := [name for name in named if name not in domains]:
        raise UserError(
            f"{wanted} has weights for {listed(strangers)}, which data.domains lacks: add "
            f"{typed(('data', 'domains', strangers[0], 'path'))}, or remove it from the file"
        )
    return {name: domain for name, domain in domains.items() if name in named}


def _stored(
    config: Config, domains: Mapping[str, Domain], plan: EmbeddingPlan | None
) -> Mixture | None:
    """Return on every rank what the first rank finds."""

    def find() -> str | None:
        mixture = stored_mixture(config, domains, plan)
        return None if mixture is None else mixture.to_json()

    text = on_first_rank(find)
    return None if text is None else Mixture.from_json(text)


def prepare(config: Config) -> Prepared:
    """Check everything that can be known before training, the data's files included.

    Once the ranks have met, every rank must call it; each gets what the first rank finds.

    Args:
        config: the whole configuration.

    Returns:
        What was found out, for `resolve_mixture`.

    Raises:
        UserError: the run cannot start; the message names the culprit and the next step.
    """
    check(config, world_size())
    require_device(config)
    prepared = Prepared.of(config, _opened(config))
    _say_what_is_known(prepared)

    def look() -> None:
        run = _checked_base_run(prepared)
        require_folders(config, [run], trial=True)
        if prepared.stored is None:
            run.pretrained()
            _require_proxy(prepared)
            _refuse_a_run_without_its_mixture(run)
        elif run.resumable() is None:
            run.pretrained()

    on_first_rank(look)
    return prepared


def prepare_mixture(config: Config) -> Prepared:
    """Check what `prepare` checks, except the base model's run.

    Args:
        config: the whole configuration; settings of the base model are not used.

    Returns:
        What was found out, for `compute_mixture` and for hosts.

    Raises:
        UserError: the mixture cannot be read or computed; the message says what to do.
    """
    check_mixture(config)
    prepared = Prepared.of(config, _opened(config))
    _say_what_is_known(prepared)
    if prepared.stored is None:
        on_first_rank(lambda: _require_proxy(prepared))
    return prepared


def inspect(
    config: Config,
    processes: int,
    proxy_processes: int,
    domains: Mapping[str, Domain] | None = None,
) -> Prepared:
    """Check what `prepare` can check for jobs on other machines, before they are submitted.

    Args:
        config: the whole configuration.
        processes: number of processes that train the base model.
        proxy_processes: number of processes that train the proxy.
        domains: the domains by name, if they are open already.

    Returns:
        What was found out.

    Raises:
        UserError: a job could not run; the message names the culprit and the next step.
    """
    check(config, processes)
    prepared = Prepared.of(config, _opened(config) if domains is None else domains)
    run = _checked_base_run(prepared)
    run.pretrained()
    require_folders(config, [run], trial=False)
    if prepared.stored is None:
        require_mixture_file(config, trial=False)
        _check_proxy(prepared, proxy_processes)
        if prepared.plan is not None and prepared.plan.proxy is None:
            require_folders(config, proxy_runs(config, prepared.domains), trial=False)
    return prepared


def foresee(config: Config) -> tuple[Prepared, TrainingRun]:
    """Look up what a run will draw, on one process; nothing is trained or computed.

    Args:
        config: the whole configuration; what trains the model is not checked.

    Returns:
        What was found out, and the run. Where a mixture is not computed yet, uniform weights stand
        in its place, and their `method` has `STANDS_FOR`.

    Raises:
        UserError: the data, a mixture or a stage cannot be used; the message says what to do.
    """
    check_drawn(config)
    prepared = Prepared.of(config, _opened(config))
    return prepared, _checked_base_run(prepared)


def mixtures_of(prepared: Prepared) -> list[Mixture]:
    """Return the mixture of each stage before its bounds, uniform where it is not computed yet.

    Args:
        prepared: what was found out.

    Returns:
        A mixture for each of data.stages, or the only one.
    """
    return [
        stage.stored
        or replace(Mixture.uniform(stage.domains), method={"name": "uniform", STANDS_FOR: True})
        for stage in prepared.stages or [prepared]
    ]


def _say_what_is_known(prepared: Prepared) -> None:
    """Say in a finetuning run what computed weights have achieved in finetuning so far."""
    if prepared.plan is not None and kind_of(prepared.config.data).supervised:
        logger.info(
            "objective=%s decides the weights; in finetuning no weights have beaten uniform ones "
            "here so far, so data.mixture=uniform is the safe choice (docs/finetuning.md)",
            prepared.plan.objective if prepared.stored is None else prepared.stored.objective,
        )


def _opened(config: Config) -> dict[str, Domain]:
    answers_alone = config.chameleon.tokens == "answers"
    length = config.model.seq_length
    return kind_of(config.data).open_domains(config.data, length, answers_alone=answers_alone)


def _checked_base_run(prepared: Prepared) -> TrainingRun:
    config, domains = prepared.config, prepared.domains
    _require_samples(base_run(config, domains, Mixture.uniform(domains)), "model.")
    # Bounds that uniform weights cannot keep cannot be kept by any weights.
    return planned_run(config, domains, mixtures_of(prepared))


def _require_samples(run: TrainingRun, prefix: str) -> None:
    settings, evaluated = run.settings, bool(run.settings.train.eval_iters)
    length = settings.model.seq_length
    run.kind.require_samples(run.config.data, run.domains, length, prefix, evaluated)


def _require_proxy(prepared: Prepared) -> None:
    config = prepared.config
    require_mixture_file(config, trial=True)
    _check_proxy(prepared, world_size())
    require_device(config.proxy, "proxy.")
    if prepared.plan is not None and prepared.plan.proxy is None:
        proxies = proxy_runs(config, prepared.domains)
        require_folders(config, proxies, trial=True)
        for run in proxies:
            run.resumable()


def _check_proxy(prepared: Prepared, processes: int) -> None:
    """Refuse a proxy that could not run on any machine."""
    config, plan = prepared.config, prepared.plan
    assert plan is not None, "a mixture that is not stored has a plan"
    if plan.proxy is None:
        check_proxy(config, processes)
        _require_samples(proxy_run(config, prepared.domains), "proxy.model.")
        return
    if isinstance(plan.proxy, MegatronProxy):
        check_model(plan.proxy.checkpoint.run, processes, plan.proxy.checkpoint.prefix)
    check_windows(config.chameleon, plan.num_layers, plan.seq_length)


def _refuse_a_run_without_its_mixture(run: TrainingRun) -> None:
    folder, file = run.directory, run.config.chameleon.file
    if tracker.saved(folder):
        copy = folder / "mixture.json"
        whole = copy.is_file() and "bound" not in Mixture.load(copy).method
        remedy = f"copy {copy} to {file}, " if whole else ""
        raise UserError(
            f"{folder} has checkpoints, but their mixture file {file} is gone: {remedy}delete "
            f"{folder} with its checkpoints to start again, or set output to another folder"
        )
