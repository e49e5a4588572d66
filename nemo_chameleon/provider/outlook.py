"""A run on paper: what it will draw, and what its start costs, before it costs anything."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.stages import configuration_of
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import RECORDED, Plan, Stage
from nemo_chameleon.provider.costs import RANKS_OF_NODE, epoch_samples, indices_of, start_of
from nemo_chameleon.provider.preflight import STANDS_FOR, foresee, mixtures_of
from nemo_chameleon.provider.stages import plan_of
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.provenance import package_version

VERSION = 1
"""The version of the keys that `outlook` returns; a change of their meaning changes it."""


def outlook(config: Config, ranks: int) -> dict[str, Any]:
    """Describe a run, on one process and without training anything.

    Args:
        config: the whole configuration.
        ranks: number of ranks whose start is calculated.

    Returns:
        The description, such as JSON can hold; docs/plans.md explains its keys.

    Raises:
        UserError: the data, a mixture or a stage cannot be used; the message says what to do.
    """
    prepared, run = foresee(config)
    mixtures = mixtures_of(prepared)
    streams = run.plan is not None
    plan = run.plan or plan_of(config, prepared.domains, mixtures)
    length, kind = config.model.seq_length, run.kind
    sizes: dict[str, Any] = {"seq_length": length, "streams": streams}
    indices = indices_of(plan, prepared.domains, kind, **sizes)
    start = start_of(indices, prepared.domains, plan.samples, ranks, streams=streams)
    stages = _stages(config, plan, mixtures, length, streams)
    return {
        "version": VERSION,
        "made_by": package_version(),
        "run": str(run.directory),
        "order": "streams" if streams else "megatron",
        "samples": plan.samples,
        "seq_length": length,
        "tokens": plan.samples * length,
        "global_batch_size": config.train.global_batch_size,
        "iterations": config.train.train_iters,
        "seed": config.train.seed,
        "computed": not any(STANDS_FOR in mixture.method for mixture in mixtures),
        "stages": stages,
        "domains": _domains(run, plan, stages),
        "indices": asdict(indices),
        "start": {"ranks": ranks, "ranks_per_node": RANKS_OF_NODE, **asdict(start)},
    }


def _stages(
    config: Config, plan: Plan, mixtures: Sequence[Mixture], length: int, streams: bool
) -> list[dict[str, Any]]:
    before, asked = _asked(config, plan, mixtures)
    found = []
    for at, (stage, first) in enumerate(zip(plan.stages, plan.starts, strict=False)):
        begun = f"begun before: {stage.mixture.method.get('of', stage.mixture.name)}"
        name, names = (begun, []) if at < before else asked[at - before]
        found.append(
            {
                "mixture": name,
                "computed": STANDS_FOR not in stage.mixture.method,
                "first": first,
                "end": first + stage.samples,
                "samples": stage.samples,
                "tokens": stage.samples * length,
                "bound": stage.order.bound if streams and not stage.blended else None,
                "max_epochs": stage.mixture.method.get("max_epochs"),
                "held": _held(stage),
                "exhausted": [name for name in names if name not in stage.weights],
                "domains": {
                    name: {"share": share, "samples": stage.drawn.get(name, 0)}
                    for name, share in stage.weights.items()
                },
            }
        )
    return found


def _asked(
    config: Config, plan: Plan, mixtures: Sequence[Mixture]
) -> tuple[int, list[tuple[str, list[str]]]]:
    """Return how many stages a run has drawn before, and what the others were asked to be.

    The latter are the last ones of the configuration: their mixtures as they were typed, and the
    domains of each, before its bounds.
    """
    before = sum(stage.mixture.name == RECORDED or bool(stage.blended) for stage in plan.stages)
    typed = [configuration_of(config, at).data.mixture for at in range(len(mixtures))]
    asked = [(name, [*mixture.weights]) for name, mixture in zip(typed, mixtures, strict=True)]
    return before, asked[len(asked) - (len(plan.stages) - before) :]


def _held(stage: Stage) -> dict[str, list[str]]:
    """Return the domains whose weights are at a bound, by the bound."""
    method = stage.mixture.method
    pins, floors = method.get("pin", {}), method.get("floor", {})
    held: dict[str, list[str]] = {"pin": [], "floor": [], "max_epochs": []}
    for name in method.get("bound", []):
        low = name in floors and stage.mixture.weights[name] <= floors[name] * (1 + 1e-9)
        held["pin" if name in pins else "floor" if low else "max_epochs"].append(name)
    return held


def _domains(
    run: TrainingRun, plan: Plan, stages: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    length, counts = run.settings.model.seq_length, plan.counts(plan.samples)
    full: dict[str, int] = {}
    for number, stage in enumerate(stages, 1):
        full |= dict.fromkeys(stage["held"]["max_epochs"], number)
    found = {}
    for name in dict.fromkeys([*run.domains, *plan.names]):
        samples, domain = counts.get(name, 0), run.domains.get(name)
        found[name] = {
            "samples": samples,
            "tokens": samples * length,
            "share": samples / plan.samples,
            "full_after_stage": full.get(name),
            **(_none() if domain is None else _epochs(run, plan, domain, samples)),
        }
    return found


def _none() -> dict[str, Any]:
    """Return what is not known of a domain that the run has drawn from and that is gone."""
    return dict.fromkeys(("available_tokens", "epoch_samples", "epochs", "repeats_from"))


def _epochs(run: TrainingRun, plan: Plan, domain: Domain, samples: int) -> dict[str, Any]:
    length = run.settings.model.seq_length
    per_epoch = epoch_samples(domain, run.kind, length)
    sample = plan.sample_of(domain.name, per_epoch) if samples > per_epoch else None
    repeats = None
    if sample is not None:
        stage = bisect_right(plan.starts, sample)
        repeats = {"sample": sample, "share": sample / plan.samples, "stage": stage}
    return {
        "available_tokens": domain.tokens,
        "epoch_samples": per_epoch,
        "epochs": samples * length / domain.pass_tokens(length),
        "repeats_from": repeats,
    }
