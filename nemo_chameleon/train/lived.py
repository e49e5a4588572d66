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
        if (record := identity.get(PLAN)) is not None:
            return Plan.of_record(record, source), drawn
        counts = {name: int(count) for name, count in state["samples"].items()}
        weights = dict(identity["weights"])
        mixture = Mixture.static(weights)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} does not say what its run has drawn: {error!r}") from error
    if sum(counts.values()) != drawn:
        raise UserError(
            f"{source} says that {drawn:,} samples were drawn, but counts {sum(counts.values()):,}"
        )
    return Plan((Stage(mixture, drawn, blended=Blended(counts, weights, total)),)), drawn
