"""What a configuration or a run draws, wherever its plan is found, and how two of them differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_chameleon.config.loading import load_config
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import Plan, Stage
from nemo_chameleon.mixture.plan_tables import diff_plans
from nemo_chameleon.models import tracker
from nemo_chameleon.provider.preflight import STANDS_FOR, foresee, mixtures_of
from nemo_chameleon.provider.stages import plan_of
from nemo_chameleon.train.lived import PLAN, lived_plan
from nemo_chameleon.utils.errors import UserError

_SETTINGS = {
    "model.seq_length": "tokens per sample",
    "train.global_batch_size": "samples per iteration",
    "train.seed": "seed of the order of the samples",
}


@dataclass(frozen=True)
class Drawn:
    """What a run draws.

    Attributes:
        plan: the stages of the whole run; of Megatron's order, its only stage.
        order: "streams" or "megatron".
        settings: what else decides the samples, by key.
        computed: whether all weights are known; else uniform ones stand for the others.
        where: where it was found, and how far the run has come.
    """

    plan: Plan
    order: str
    settings: Mapping[str, Any]
    computed: bool
    where: str


def drawn_by(place: str, overrides: Sequence[str] = ()) -> Drawn:
    """Find out what a run draws.

    Args:
        place: a YAML file of a configuration; or the folder of a run, of which the newest
            checkpoint counts; or the folder of a checkpoint.
        overrides: settings that replace those of a configuration.

    Returns:
        What it draws over the whole run.

    Raises:
        UserError: there is no such file or folder, or it has no plan that can be read.
    """
    if Path(place).is_dir():
        return _of_run(Path(place))
    if "=" in place and not Path(place).exists():
        raise UserError(
            f"{place} is a setting: name two plans first, each a YAML file or a run's folder"
        )
    config = load_config(place, overrides)
    prepared, run = foresee(config)
    mixtures = mixtures_of(prepared)
    plan = run.plan or plan_of(config, prepared.domains, mixtures)
    train = config.train
    values = (config.model.seq_length, train.global_batch_size, train.seed)
    return Drawn(
        plan,
        "megatron" if run.plan is None else "streams",
        dict(zip(_SETTINGS, values, strict=True)),
        not any(STANDS_FOR in mixture.method for mixture in mixtures),
        place,
    )


def _of_run(folder: Path) -> Drawn:
    path = folder if (folder / tracker.STATE).is_file() else tracker.newest(folder)
    if path is None:
        raise UserError(
            f"{folder} has no checkpoint of a run: name the folder of a run, such as "
            "runs/mine/plan, or of one of its checkpoints"
        )
    state = tracker.read_state(path)
    lived = lived_plan(state, str(path))
    plan, drawn = lived.plan, lived.drawn
    identity = state["identity"]
    order = "streams" if PLAN in identity else "megatron"
    if order == "megatron":
        if identity.get("data.unit") == "tokens":
            raise UserError(
                f"{path} has shares of tokens, and not of samples: compare the configuration of "
                "its run instead"
            )
        blended = plan.stages[0].blended
        assert blended is not None, "a checkpoint without a plan is of a run in Megatron's order"
        plan = Plan((Stage(Mixture.static(blended.weights), blended.samples),))
    settings = {key: identity.get(key) for key in _SETTINGS}
    return Drawn(plan, order, settings, True, f"{path}, after {drawn:,} samples")


def compare_plans(before: Drawn, after: Drawn) -> str:
    """Say what two runs draw differently.

    Args:
        before: what one run draws.
        after: what another one draws.

    Returns:
        Lines of text with a table.
    """
    lines = []
    for name, one in (("before", before), ("after", after)):
        stages = len(one.plan.stages)
        order = "Megatron's order" if one.order == "megatron" else "streams"
        lines.append(
            f"{name}: {one.where}: {one.plan.samples:,} samples in {stages} "
            f"stage{'s' * (stages != 1)}, {order}"
        )
        if not one.computed:
            lines.append(
                "  NOT COMPUTED: weights of data.mixture=chameleon are not computed yet, and "
                "uniform ones stand in their place here"
            )
    for key, meaning in _SETTINGS.items():
        was, now = before.settings[key], after.settings[key]
        if was != now:
            lines.append(f"{key}={now} in place of {was} ({meaning})")
    if before.order != after.order:
        lines.append("The samples of a domain come in another order.")
    return "\n".join([*lines, diff_plans(before.plan, after.plan)])
