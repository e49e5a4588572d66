"""Compares what a checkpoint or a result was made with, and what a run has now.

An identity is a dictionary of settings and facts by key, such as a checkpoint's state.json holds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from nemo_chameleon.models.gpt import completed
from nemo_chameleon.utils.errors import UserError

START = "checkpoint.pretrained_checkpoint"
"""The key of the checkpoint that a run starts from, as it was typed."""
START_DIGEST = "digest of checkpoint.pretrained_checkpoint"
"""The key of its digests: a list, or in earlier versions the text of one, or None."""
_NAMED = 3  # so many differences are named, and the others counted


def require_same(
    made: Mapping[str, Any], now: Mapping[str, Any], what: str, whose: str, remedy: str
) -> None:
    """Refuse to go on with what was made with other settings or other data.

    Args:
        made: the identity that was recorded.
        now: the identity of the run; of `made`, its keys alone count.
        what: what was made, for the error.
        whose: whose the identity `now` is: "the run" or "the comparison".
        remedy: the next step, for the error.

    Raises:
        UserError: they differ; the error names the key and, in a list of domains, the domain.
    """
    made, now = completed(made), completed(now)
    for key, value in now.items():
        before = made.get(key)
        if before == value or key == START_DIGEST or (key == START and _same_start(made, now)):
            continue
        if _is_pairs(before) and _is_pairs(value):
            raise UserError(
                f"{what} was made with other {key}: {_difference(before, value, whose)}; {remedy}"
            )
        raise UserError(f"{what} was made with {key} = {before}, but {whose} has {value}: {remedy}")


def _same_start(made: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two paths lead to one checkpoint, or to checkpoints with the same weights."""
    before, after = made.get(START), now.get(START)
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    if Path(before).resolve() == Path(after).resolve():
        return True
    return not _digests(made).isdisjoint(_digests(now))


def _digests(identity: Mapping[str, Any]) -> set[str]:
    found = identity.get(START_DIGEST) or []
    return {found} if isinstance(found, str) else set(found)


def _is_pairs(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a value is a list of names with a fact about each."""
    return isinstance(value, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in value
    )


def _difference(before: list[Any], now: list[Any], whose: str) -> str:
    old, new = dict(before), dict(now)
    told = [f"{name!r} is new" for name in new if name not in old]
    told += [f"{name!r} is gone" for name in old if name not in new]
    for name in (name for name in new if name in old and new[name] != old[name]):
        numbers = all(isinstance(value, int | float) for value in (old[name], new[name]))
        told.append(
            f"{name!r} had {old[name]}, but {whose} has {new[name]}"
            if numbers
            else f"the data of {name!r} has changed"
        )
    if not told:
        place = next(i for i in range(len(now)) if list(before[i]) != list(now[i]))
        return f"the order has changed: {before[place][0]!r} was at the place of {now[place][0]!r}"
    more = [f"{len(told) - _NAMED} more differences"] if len(told) > _NAMED else []
    return ", ".join(told[:_NAMED] + more)
