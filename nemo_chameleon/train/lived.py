"""What a run has drawn so far, as the state of a checkpoint says.

A checkpoint of a run that follows a plan carries the plan as it was lived: what was drawn in each
stage, and what was to come. A run in the order of Megatron's blend can go on by a plan too; each
domain then goes on in the order that it has in the blend.
"""

from collections.abc import Mapping
from typing import Any

from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import Blended, Plan, Stage
from nemo_chameleon.utils.errors import UserError

_BLENDED = 3.0  # Megatron's blend has been seen 1.85 samples from a share
PLAN = "plan"
"""The key of the plan in a checkpoint's identity."""


def lived_plan(state: Mapping[str, Any], source: str) -> tuple[Plan, int]:
    """Return the plan of the run that wrote a checkpoint, and the samples that it had drawn.

    Args:
        state: the contents of state.json.
        source: the checkpoint, for errors.

    Returns:
        The plan, and the number of samples.

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
    names = {*counts, *expected} if identity.get("data.unit") != "tokens" else set()
    for name in sorted(names):
        if abs(counts.get(name, 0) - expected.get(name, 0.0)) > slack:
            raise UserError(
                f"{source} has {counts.get(name, 0):,} samples of {name!r}, where its weights give "
                f"{expected.get(name, 0.0):,.0f}: they were changed with data.on_mixture_change="
                "accept, so which samples it has drawn is not known; only accept goes on from it"
            )
    return plan, drawn
