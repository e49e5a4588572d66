"""Plans in words and tables of plain text."""

from nemo_chameleon.mixture.plan import Plan

_NAMED = 3  # so many differences are named, and the others counted


def difference(before: Plan, after: Plan) -> str | None:
    """Say how the samples of two plans differ.

    Args:
        before: a plan.
        after: another plan.

    Returns:
        The first differences, in words; None if both draw the same samples in the same order.
    """
    told = []
    if len(before.stages) != len(after.stages):
        told.append(f"{_stages(after)} in place of {_stages(before)}")
    ends = zip(before.starts[1:], after.starts[1:], strict=False)
    for number, (old, new) in enumerate(ends, 1):
        if old != new:
            told.append(f"stage {number} ends with sample {new:,} in place of {old:,}")
    for number, (was, now) in enumerate(zip(before.stages, after.stages, strict=False), 1):
        for name in sorted({*was.weights, *now.weights}):
            old_share, new_share = was.weights.get(name, 0.0), now.weights.get(name, 0.0)
            if old_share != new_share:
                told.append(
                    f"{name!r} has {new_share:.6g} of stage {number} in place of {old_share:.6g}"
                )
        if was.blended != now.blended:
            told.append(f"stage {number} is in another order")
    if not told:
        return None
    more = [f"{len(told) - _NAMED:,} more differences"] if len(told) > _NAMED else []
    return "; ".join(told[:_NAMED] + more)


def _stages(plan: Plan) -> str:
    return "1 stage" if len(plan.stages) == 1 else f"{len(plan.stages)} stages"
