"""Reads a message of a chat: its role, what it says, and whether it is to be trained on.

Messages are written as OpenAI does, with role and content, or as ShareGPT does, with from and
value.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_chameleon.data.readers import MalformedError, distinct_keys, require_text
from nemo_chameleon.data.sft.keys import (
    present,
    require_known,
    require_metadata,
    says_nothing,
    unknown_keys,
)
from nemo_chameleon.data.sft.roles import CALL, ROLES, beside_role, has_other_name, without_role
from nemo_chameleon.data.sft.unknown import remedy

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys under which models' reasoning stands beside the content of a message."""
_MARKS = ("train", "training", "trainable", "loss", "loss_mask", "weight")
READ = ("role", "content", "tool_calls", "tool_call_id", *REASONING, *_MARKS)
"""The keys of a message that are read here, or checked in the text that a template writes."""
_KNOWN = (*READ, "name")
_FUNCTION = ("name", "arguments")
_PART = ("type", "text")


@dataclass(frozen=True)
class Turn:
    """A message of a chat.

    Attributes:
        message: what the chat template sees, with role and content; content is None in a message
            that only calls tools.
        carries_loss: whether the message is to be trained on.
        marked: whether the message itself says so.
        with_texts: the same message with the arguments of its tool calls as JSON texts, if the line
            has them as texts; the template sees objects instead.
        unknown: the keys and positions that lead to values of the message that only the chat
            template may understand.
    """

    message: dict[str, Any]
    carries_loss: bool
    marked: bool = False
    with_texts: dict[str, Any] | None = None
    unknown: tuple[tuple[str | int, ...], ...] = ()

    @property
    def content(self) -> str:
        """The text of the message, which is empty if it only calls tools."""
        return self.message["content"] or ""


def written_turn(role: str, content: str) -> Turn:
    """Return the turn of a text that is not in a list of messages.

    Args:
        role: system, user or assistant.
        content: the text.

    Returns:
        The turn; the assistant's carry loss.

    Raises:
        MalformedError: the turn is the assistant's, and empty.
    """
    if role == "assistant" and not content.strip():
        raise MalformedError("an answer is empty")
    return Turn({"role": role, "content": content}, role == "assistant")


def read_turns(messages: Any, key: str, ignored: Collection[str]) -> list[Turn]:
    """Read a list of messages, which may be given as JSON text.

    Args:
        messages: the value of the line.
        key: its key in the line; errors name it.
        ignored: keys of messages to leave out.

    Returns:
        The turns.

    Raises:
        MalformedError: a message is not understood.
    """
    if isinstance(messages, str):
        messages = _json(messages, key)
    if not isinstance(messages, list) or not messages:
        raise MalformedError(f"{key} must be a list of one or more messages")
    if not all(isinstance(message, dict) for message in messages):
        raise MalformedError("a message is not a JSON object")
    said = [present(message, ignored) for message in messages]
    other_names = any(has_other_name(message.get("role")) for message in said)
    return [_turn(_renamed(message, other_names), ignored) for message in said]


def _turn(message: dict[str, Any], ignored: Collection[str]) -> Turn:
    if "role" not in message:
        raise without_role(message)
    role = require_text(message["role"], "role")
    if says_nothing(message.get("tool_calls")):  # a template may take no calls for calls
        message.pop("tool_calls", None)
    calls = message.get("tool_calls")
    if "content" in message:
        message["content"] = _text(message["content"], ignored)
    elif not calls:
        how = f"write what is said as 'content', which is a text{beside_role(message)}"
        how = remedy(CALL, message[CALL], "message") if CALL in message else how
        raise MalformedError(f"a message has no content: {how}")
    else:
        message["content"] = None
    if role == "assistant" and not (message["content"] or "").strip() and not calls:
        raise MalformedError("an answer is empty")
    for key in REASONING:
        if key in message:
            require_text(message[key], key)
    mark = _mark(message)
    if mark and role != "assistant":
        raise MalformedError(f"a message of the role {role!r} asks for loss")
    require_metadata(message, "message")
    if calls:
        message["tool_calls"] = _without(ignored, calls)
    decoded = _decoded(message)
    return Turn(
        decoded,
        carries_loss=role == "assistant" if mark is None else mark,
        marked=mark is not None,
        with_texts=None if decoded == message else message,
        unknown=tuple(_unknown(message)),
    )


def _unknown(message: dict[str, Any]) -> Iterator[tuple[str | int, ...]]:
    """Yield where a message has values that are not understood here."""
    yield from ((key,) for key in unknown_keys(message, _KNOWN))
    for i, call in enumerate(message.get("tool_calls") or []):
        known = ("function",) if "function" in call else _FUNCTION
        yield from (("tool_calls", i, key) for key in unknown_keys(call, known))
        if "function" in call:
            keys = unknown_keys(call["function"], _FUNCTION)
            yield from (("tool_calls", i, "function", key) for key in keys)


def _without(ignored: Collection[str], calls: Any) -> Any:
    """Leave ignored keys out of tool calls and of their functions."""
    if isinstance(calls, list):
        return [_without(ignored, call) for call in calls]
    if not isinstance(calls, dict):
        return calls
    kept = {key: said for key, said in calls.items() if key not in ignored}
    return kept | {"function": _without(ignored, kept["function"])} if "function" in kept else kept


def _renamed(message: dict[str, Any], other_names: bool) -> dict[str, Any]:
    """Rename ShareGPT's keys to OpenAI's, and roles too if the chat has other names for them."""
    for given, name in (("from", "role"), ("value", "content")):
        if given in message and name in message:
            raise MalformedError(f"a message has both {given} and {name}")
    role: Any
    if "from" in message:
        role = require_text(message["from"], "from")
        if role.lower() not in ROLES:
            known = ", ".join(ROLES)
            raise MalformedError(f"the role {role!r} of a message is not one of {known}")
        others = {key: said for key, said in message.items() if key not in ("from", "value")}
        renamed = {"role": role, **others}
        if "value" in message:
            renamed["content"] = message["value"]
    else:
        renamed = {"content" if key == "value" else key: said for key, said in message.items()}
        role = renamed.get("role")
    if isinstance(role, str) and ("from" in message or other_names):
        renamed["role"] = ROLES.get(role.lower(), role)
        if role.lower() == CALL:
            return _calling(renamed)
    return renamed


def _calling(message: dict[str, Any]) -> dict[str, Any]:
    """Make a tool call of the content of a message."""
    if says_nothing(message.get("content")):
        return message
    if "tool_calls" in message:
        raise MalformedError(f"a message of the role {CALL} has both a content and tool_calls")
    content = message["content"]
    if isinstance(content, str):
        content = _json(content, f"the value of a {CALL}")
    calls = content if isinstance(content, list) else [content]
    others = {key: said for key, said in message.items() if key != "content"}
    return {**others, "tool_calls": [{"type": "function", "function": call} for call in calls]}


def _text(content: Any, ignored: Collection[str]) -> str:
    """Return a content as a text; the texts of a list of parts follow each other directly."""
    if not isinstance(content, list):
        return require_text(content, "content")
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise MalformedError("a part of a content is not a JSON object")
        said = present(part, set(ignored) - set(_PART))
        if said.get("type") != "text":
            raise MalformedError(f"a part of a content has the type {said.get('type')!r}, not text")
        require_known(said, _PART, "part of a content")
        texts.append(require_text(said.get("text"), "a part of a content"))
    return "".join(texts)


def _mark(message: dict[str, Any]) -> bool | None:
    """Return whether a message is marked for training, or None if it has no mark."""
    marks = {key: message[key] for key in _MARKS if key in message}
    for key, value in marks.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            shown = json.dumps(value, ensure_ascii=False)[:40]
            raise MalformedError(
                f"{key} of a message is {shown}: only true, false, 0 and 1 are known"
            )
    wanted = {bool(value) for value in marks.values()}
    if len(wanted) > 1:
        raise MalformedError(f"the marks {' and '.join(marks)} of a message contradict each other")
    return wanted.pop() if wanted else None


def called_functions(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the functions that a message calls.

    Args:
        message: the message.

    Returns:
        Objects with name and arguments, of which either may be missing.

    Raises:
        MalformedError: tool_calls is not a list of objects.
    """
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise MalformedError("tool_calls is not a list of JSON objects")
    functions = [call.get("function", call) for call in calls]
    if not all(isinstance(function, dict) for function in functions):
        raise MalformedError("the function of a tool call is not a JSON object")
    return functions


def _decoded(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose tool calls have objects as arguments."""
    functions = called_functions(message)
    if not any(isinstance(function.get("arguments"), str) for function in functions):
        return message
    calls = []
    for call, function in zip(message["tool_calls"], functions, strict=True):
        if isinstance(text := function.get("arguments"), str):
            arguments = _json(text, "the arguments of a tool call") if text.strip() else {}
            if not isinstance(arguments, dict):
                raise MalformedError("the arguments of a tool call are not a JSON object")
            function = {**function, "arguments": arguments}
            call = {**call, "function": function} if "function" in call else function
        calls.append(call)
    return {**message, "tool_calls": calls}


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Read the tools that the assistant may call, which may be given as JSON text.

    Args:
        tools: the value of the line, or None.

    Returns:
        The tools; None if there are none.

    Raises:
        MalformedError: they are not a list of JSON objects.
    """
    if isinstance(tools, str):
        tools = (_json(tools, "tools") if tools.strip() else None) or None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise MalformedError("tools is not a list of JSON objects")
    return tools


def _json(text: Any, what: str) -> Any:
    try:
        return json.loads(require_text(text, what), object_pairs_hook=distinct_keys)
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what} cannot be read as JSON") from error


def contents(turns: Sequence[Turn]) -> list[str]:
    """Return what the turns say, without empty texts.

    Args:
        turns: the turns.

    Returns:
        Their texts.
    """
    return [turn.content for turn in turns if turn.content.strip()]
