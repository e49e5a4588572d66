"""Puts the results of tool calls into the order of the calls.

Many templates write neither the ids nor the names of calls beside results, so that the order alone
says which result is of which call.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.roles import ROLES
from nemo_chameleon.data.sft.turns import Turn, called_functions

_ID = re.compile(r"\bid\b")


def writes_ids(source: str) -> bool:
    """Return whether a chat template names the ids of calls and of their results.

    Args:
        source: the Jinja text.

    Returns:
        Whether it does; a template that writes the ids of results alone says nothing by them.
    """
    return "tool_call_id" in source and _ID.search(source) is not None


def in_order(turns: Sequence[Turn], source: str) -> list[Turn]:
    """Check that results are of calls, and sort them if their order alone says of which.

    Args:
        turns: the turns of a chat.
        source: the Jinja text of the chat template.

    Returns:
        The turns.

    Raises:
        MalformedError: a result is of no call before it, two are of one call, or a call before
            another one has no result.
    """
    ordered: list[Turn] = []
    calls: list[Turn] = []
    known: set[str] = set()
    for of_tool, group in groupby(turns, _is_result):
        run = list(group)
        if not of_tool:
            calls = [turn for turn in run if turn.message.get("tool_calls")] or calls
            known.update(id for turn in calls for id in _ids(turn) if id is not None)
            ordered += run
            continue
        ids = [_said(turn.message.get("tool_call_id")) for turn in run]
        if known and (
            unknown := next((id for id in ids if id is not None and id not in known), None)
        ):
            raise MalformedError(
                f"the tool_call_id {unknown!r} of a message is the id of no call before it: write "
                "the id of the call that the message answers"
            )
        ordered += run if writes_ids(source) else _sorted(run, calls)
        calls = []
    return ordered


def _is_result(turn: Turn) -> bool:
    return ROLES.get(turn.message["role"]) == "tool" or (
        turn.message["role"] != "assistant" and _said(turn.message.get("tool_call_id")) is not None
    )


def _ids(turn: Turn) -> Iterator[str | None]:
    for call in turn.message["tool_calls"]:
        yield _said(call.get("id"))


def _said(value: Any) -> str | None:
    """Return an id or a name as a text, whatever a line has for it; None if it has nothing."""
    return None if value in (None, "") else str(value)


def _sorted(results: Sequence[Turn], calls: Sequence[Turn]) -> list[Turn]:
    """Sort results by the ids of their calls, or else by the names of the functions."""
    ids = [id for turn in calls for id in _ids(turn)]
    functions = [each for turn in calls for each in called_functions(turn.message)]
    names = [_said(function.get("name")) for function in functions]
    for key, called in (("tool_call_id", ids), ("name", names)):
        of = [_said(turn.message.get(key)) for turn in results]
        if len(called) < 2 or None in called or None in of or not set(of) <= set(called):
            continue
        if key == "name" and len(set(called)) < len(called):
            continue  # the names do not tell the calls apart
        places = [called.index(each) for each in of]
        placed = sorted(zip(places, results, strict=True), key=lambda pair: pair[0])
        if len(set(called)) == len(called) and sorted(places) != list(range(len(places))):
            raise MalformedError(
                f"each tool call must have one result, because the chat template does not write "
                f"{key}, and the order alone says which result is of which call"
            )
        return [turn for _, turn in placed]
    return list(results)
