"""The plan of a run: the mixture of each stage, within the bounds of the stage.

What a run has drawn already stays as it was drawn; only the rest follows the configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.stages import configuration_of, in_streams, stage_samples
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.token_shares import sample_shares
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.parsing import normalised
from nemo_chameleon.mixture.plan import Plan, Stage
from nemo_chameleon.provider.runs import base_run, other_runs, within_bounds
from nemo_chameleon.train.lived import Lived, lived_plan
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.tables import listed

logger = package_logger(__package__)


@dataclass(frozen=True)
class Size:
    """The size of a run.

    Attributes:
        samples: number of samples.
        seq_length: tokens of a sample.
        batch: samples of a global batch.
        seed: seed of the order of the samples.
    """

    samples: int
    seq_length: int
    batch: int
    seed: int

    @classmethod
    def of(cls, config: Config) -> "Size":
        """Return the size of the configured base model's run.

        Args:
            config: the whole configuration.

        Returns:
            The size.
        """
        train = config.train
        batch, seed = train.global_batch_size, train.seed
        return cls(train.samples, config.model.seq_length, batch, seed)


def planned_run(
    config: Config, domains: Mapping[str, Domain], mixtures: Sequence[Mixture]
) -> TrainingRun:
    """Return the base model's run; once the ranks have met, every rank must call it.

    Args:
        config: the whole configuration.
        domains: the opened domains by name.
        mixtures: the mixture of each stage, before its bounds; one where there are no stages.

    Returns:
        The run. It draws in the order of Megatron's blend where data.order says so and the run has
        not followed another plan before.

    Raises:
        UserError: a stage has no samples, bounds that no weights keep, or a checkpoint that this
            run cannot continue from.
    """
    lived = on_first_rank(lambda: _lived(config, domains))
    if lived is None or _goes_on(config, domains, mixtures, lived.plan):
        plan = plan_of(config, domains, mixtures)
        return base_run(config, domains, plan if in_streams(config) else plan.mixture)
    plan = plan_of(config, domains, mixtures, lived=(lived.plan, lived.drawn))
    run = base_run(config, domains, plan)
    return replace(run, settled_at=lived.drawn, gone=lived.gone)


def _lived(config: Config, domains: Mapping[str, Domain]) -> Lived | None:
    """Return what the run has drawn by its newest checkpoint, if it may go on by another plan."""
    if config.data.on_mixture_change != "continue":
        return None
    if config.engine != "megatron":
        # The host says later which checkpoint it continues from.
        logger.info("engine=%s: what its run has drawn is not looked at yet", config.engine)
        return None
    run = base_run(config, domains, Mixture.uniform(domains))
    path = run.resumable()
    if path is not None:
        return lived_plan(run.state_at(path), str(path))
    if config.run is None and (others := other_runs(config)):
        raise UserError(
            f"data.on_mixture_change=continue: {run.directory} has no checkpoints, but "
            f"{listed(others)} in {config.output} has: set run={others[0]} to go on with that "
            f"run, or run={run.name} to begin a new one"
        )
    return None


def _goes_on(
    config: Config, domains: Mapping[str, Domain], mixtures: Sequence[Mixture], lived: Plan
) -> bool:
    """Return whether the run is one in Megatron's order that has not changed."""
    begun = lived.stages[0].blended
    if begun is None or len(lived.stages) > 1 or in_streams(config):
        return False
    try:
        weights = plan_of(config, domains, mixtures).mixture.weights
    except UserError:  # bounds that cannot be kept for the whole run
        return False
    # The order of the domains decides Megatron's order, too.
    return [*begun.weights.items()] == [(name, weights.get(name)) for name in domains]


def plan_of(
    config: Config,
    domains: Mapping[str, Domain],
    mixtures: Sequence[Mixture],
    size: Size | None = None,
    lived: tuple[Plan, int] | None = None,
) -> Plan:
    """Return the plan of a run.

    Args:
        config: the whole configuration.
        domains: the opened domains by name.
        mixtures: the mixture of each stage, before its bounds; one where there are no stages.
        size: of the run; None for that of the configured base model's.
        lived: the plan that a run has followed so far, and how many samples it has drawn.

    Returns:
        The plan of the whole run.

    Raises:
        UserError: a stage has no samples, or bounds that no weights keep.
    """
    size = size or Size.of(config)
    begun = () if lived is None else lived[0].until(lived[1])
    drawn_until, going = 0, 0  # samples that are drawn, and the end of the stage that is going on
    if lived is not None:
        drawn_until = lived[1]
        going = next((e for e in lived[0].starts if e > drawn_until), 0)
    stages, end = list(begun), 0
    counts = stage_samples(config, size.samples, size.seq_length, size.batch)
    for at, (mixture, count) in enumerate(zip(mixtures, counts, strict=True)):
        end += count
        left = min(count, end - drawn_until)
        if left <= 0:
            continue
        own = configuration_of(config, at)
        asked = _asked(own, mixture)
        if stages and stages[-1].asked == asked and left < count and end == going:
            stages[-1] = replace(stages[-1], samples=stages[-1].samples + left)
            continue  # the stage goes on
        before = Plan(tuple(stages)) if stages else None
        drawn = {} if before is None else before.counts(before.samples)
        where = f"data.stages[{at}]: " if config.data.stages else ""
        try:
            stage = _stage(own, domains, mixture, replace(size, samples=left), drawn, where)
        except UserError as error:
            raise UserError(f"{where}{error}") from error
        stages.append(replace(stage, asked=asked))
    return Plan(tuple(stages))


def _stage(
    config: Config,
    domains: Mapping[str, Domain],
    mixture: Mixture,
    size: Size,
    drawn: Mapping[str, int],
    where: str,
) -> Stage:
    """Return a stage whose weights are within its bounds, given the samples drawn before."""
    data = config.data
    own = {name: domain for name, domain in domains.items() if name in mixture.weights}
    exhausted = _exhausted(config, own, size.seq_length, drawn)
    for name in exhausted:
        if name in data.pin or name in data.floor:
            raise UserError(
                f"data.pin and data.floor ask for samples of {name!r}, but its "
                f"data.max_epochs={data.max_epochs} are drawn in the stages before"
            )
    if exhausted:
        logger.warning(
            "%snothing is drawn from %s, whose data.max_epochs=%s are drawn before",
            *(where, ", ".join(exhausted), data.max_epochs),
        )
        own = {name: domain for name, domain in own.items() if name not in exhausted}
        if not own:
            raise UserError(f"data.max_epochs={data.max_epochs} is drawn of every domain before")
        weights = normalised({name: mixture.weights[name] for name in own})
        facts = {name: fact for name, fact in mixture.domains.items() if name in own}
        mixture = replace(mixture, weights=weights, domains=facts, uncertainty={})
    bounded = within_bounds(config, own, mixture, size.samples, size.seq_length, drawn)
    shares = None
    if data.unit == "tokens":
        shares = sample_shares(
            bounded.weights,
            own,
            samples=size.samples,
            seq_length=size.seq_length,
            seed=size.seed,
            drawn=drawn,
        )
    return Stage(bounded, size.samples, shares)


def _exhausted(
    config: Config, domains: Mapping[str, Domain], seq_length: int, drawn: Mapping[str, int]
) -> list[str]:
    """Return the domains of which the stages before have drawn all that the cap allows."""
    most = config.data.max_epochs
    if most is None:
        return []
    return [
        name
        for name, domain in domains.items()
        if drawn.get(name)
        and most * domain.pass_tokens(seq_length) < (drawn[name] + 1) * seq_length
    ]


def _asked(config: Config, mixture: Mixture) -> str:
    """Return a digest of what decides a stage's weights besides what was drawn before it."""
    data = config.data
    asked: dict[str, Any] = {
        "weights": sorted(mixture.weights.items()),
        "max_epochs": data.max_epochs,
        "pin": sorted(data.pin.items()),
        "floor": sorted(data.floor.items()),
        "unit": data.unit,
    }
    return digest(asked)
