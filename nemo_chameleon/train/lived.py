"""What a run has drawn so far, as the state of a checkpoint says.

A checkpoint of a run that follows a plan carries the plan as it was lived: what was drawn in each
stage, and what was to come. A run in the order of Megatron's blend can go on by a plan too; each
domain then goes on in the order that it has in the blend.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import Blended, Plan, Stage
from nemo_chameleon.utils.errors import UserError

_BLENDED = 3.0  # Megatron's blend has been seen 1.85 samples from a share
GONE = "domains that are gone"
"""The key of their fingerprints in a checkpoint's identity."""
PLAN = "plan"
"""The key of the plan in a checkpoint's identity."""


@dataclass(frozen=True)
class Lived:
    """What a run has drawn at a checkpoint.

    Attributes:
        plan: the plan that it has followed.
        drawn: number of samples that it has drawn.
        gone: fingerprints of the domains that it had before, by name.
    """

    plan: Plan
    drawn: int
    gone: Mapping[str, str]


def lived_plan(state: Mapping[str, Any], source: str) -> Lived:
    """Return what the run that wrote a checkpoint had drawn.

    Args:
        state: the contents of state.json.
        source: the checkpoint, for errors.

    Returns:
        What it has drawn.

    Raises:
        UserError: the state has no plan that can be read.
    """
    identity = state["identity"]
    try:
        batch = identity["train.global_batch_size"]
        drawn, total = state["iteration"] * batch, identity["train.train_iters"] * batch
        counts = {name: int(count) for name, count in state["samples"].items()}
        if (record := identity.get(PLAN)) is not None:
            plan, slack = Plan.of_record(record, source), 0.0
            expected: Mapping[str, float] = plan.counts(drawn)
        else:
            weights, slack = dict(identity["weights"]), _BLENDED
            blended = Blended(counts, weights, total)
            plan = Plan((Stage(Mixture.static(weights), drawn, blended=blended),))
            expected = {name: weight * drawn for name, weight in weights.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} does not say what its run has drawn: {error!r}") from error
    names = {*counts, *expected}
    if record is None and identity.get("data.unit") == "tokens":
        names = set()  # the weights are not shares of samples
    for name in sorted(names):
        if abs(counts.get(name, 0) - expected.get(name, 0.0)) > slack:
            raise UserError(
                f"{source} has {counts.get(name, 0):,} samples of {name!r}, where its weights give "
                f"{expected.get(name, 0.0):,.0f}: they were changed with data.on_mixture_change="
                "accept, so which samples it has drawn is not known; only accept goes on from it"
            )
    gone = dict(identity.get(GONE, [])) | dict(identity.get("data.domains", []))
    return Lived(plan, drawn, gone)
