"""Finds the values of messages that the chat template does not read.

Templates read keys of their own. A value under a key that only the template can understand is read
if the text would be another one without it. Metadata may stay unread, but not without a word.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.keys import says_nothing, unread_keys
from nemo_chameleon.data.sft.templates import ChatTemplate
from nemo_chameleon.data.sft.turns import READ, called_functions
from nemo_chameleon.data.sft.unknown import UnknownKeysError
from nemo_chameleon.data.sft.written import REMEDY, is_written, not_written

Place: TypeAlias = tuple[str | int, ...]
"""The keys and positions that lead into a message to one of its values."""
Messages: TypeAlias = Sequence[Mapping[str, Any]]
_READ = frozenset(READ)
_RARE = 730_918_264_001  # the first of the numbers that are taken to occur in no text


def require_read(
    template: ChatTemplate,
    messages: Messages,
    tools: list[dict[str, Any]] | None,
    unknown: Sequence[Sequence[Place]],
    written: int,
) -> None:
    """Check that a chat template reads the tools, and values that nothing else understands.

    Args:
        template: the chat template.
        messages: all messages of the chat.
        tools: the tools of the chat, or None.
        unknown: for each message the places of those values.
        written: so many messages are written; the others follow the last answer.

    Raises:
        UnknownKeysError: the template does not read a value.
        MalformedError: the template does not write the tools, or refuses the chat.
    """
    _require_tools(template, messages[:written], tools)
    _require_contents(template, messages[:written], tools)
    _require_arguments(template, messages[:written], tools)
    unread: dict[str, dict[str, Any]] = {}
    for i, places in enumerate(unknown):
        shown = messages[:written] if i < written else messages
        text = template.write(shown, tools) if places else ""
        for place in places:
            if not all(
                _is_read(template, shown, tools, text, i, leaf) for leaf in _leaves(shown[i], place)
            ):
                of = "message" if len(place) == 1 else "tool call"
                unread.setdefault(of, {})[str(place[-1])] = _at(shown[i], place)
    for of, keys in unread.items():
        raise UnknownKeysError(keys, of)


def unread_metadata(template: ChatTemplate, messages: Messages, text: str) -> tuple[str, ...]:
    """Return what messages have in addition that is not in the text of the chat.

    Args:
        template: the chat template.
        messages: the messages that are written.
        text: what the template made of them.

    Returns:
        For instance ("name of a message",).
    """
    found: dict[str, None] = {}
    named = set[str]()
    for message in messages:
        for key, value in message.items():
            if key in _READ or key in named or says_nothing(value):
                continue
            keys = [key] if key == "name" else unread_keys({key: value}, ())
            # Any other value than a text may be a setting of a template that has the key's name.
            if keys and not (
                is_written(text, value) if isinstance(value, str) else key in template.source
            ):
                named.add(key)
                found.update(dict.fromkeys(f"{each} of a message" for each in keys))
    return tuple(found)


def _require_tools(template: ChatTemplate, messages: Messages, tools: Any) -> None:
    """Check that the tools make the text another one; their names may occur in it without them."""
    if not tools:
        return
    text = template.write(messages, tools)
    try:
        without = template.write(messages, None)
    except MalformedError:
        return
    if text == without:
        raise MalformedError(f"the chat template does not write the line's tools; {REMEDY}")


def _require_contents(template: ChatTemplate, messages: Messages, tools: Any) -> None:
    """Check that turns are written whose words the template has of its own, such as a prompt."""
    own = "".join(template.source.split())
    for i, message in enumerate(messages):
        said = message["content"]
        if message["role"] == "assistant" or not said or "".join(said.split()) not in own:
            continue
        try:
            others = [*messages[:i], {**message, "content": f"{said} {said}"}, *messages[i + 1 :]]
            unchanged = template.write(others, tools) == template.write(messages, tools)
        except MalformedError:
            continue
        if unchanged:
            raise not_written(message["role"])


def _require_arguments(template: ChatTemplate, messages: Messages, tools: Any) -> None:
    """Check that each text and number in the arguments of tool calls is written in its place.

    Other turns, or the description of a tool, may have the same words. So other ones are put into
    the calls, which occur nowhere else.

    Raises:
        MalformedError: one is not written.
    """
    numbers = count(_RARE)
    others = [_with_rare(message, numbers) for message in messages]
    made = range(_RARE, next(numbers))
    if not made:
        return
    try:
        text = template.write(others, tools)
    except MalformedError:
        return
    if not all(str(number) in text for number in made):
        raise MalformedError(f"the chat template does not write a tool call; {REMEDY}")


def _with_rare(message: Mapping[str, Any], numbers: Iterator[int]) -> Mapping[str, Any]:
    """Return a message with other arguments in its tool calls."""
    calls = []
    for call, function in zip(
        message.get("tool_calls") or (), called_functions(message), strict=True
    ):
        if (arguments := function.get("arguments")) is not None:
            as_text = isinstance(arguments, str)
            rare = _rare(json.loads(arguments or "{}") if as_text else arguments, numbers)
            function = {**function, "arguments": json.dumps(rare) if as_text else rare}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls} if calls else message


def _rare(value: Any, numbers: Iterator[int]) -> Any:
    if isinstance(value, dict):
        return {key: _rare(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_rare(item, numbers) for item in value]
    if value in (None, "") or isinstance(value, bool):
        return value
    return f"x{next(numbers)}" if isinstance(value, str) else next(numbers)


def _is_read(
    template: ChatTemplate, messages: Messages, tools: Any, text: str, i: int, place: Place
) -> bool:
    value = _at(messages[i], place)
    # Some words can be a setting of the template, but a sentence is a part of the text.
    if isinstance(value, str) and len(value.split()) > 1 and not is_written(text, value):
        return False
    others = [_without(messages[i], place)]
    if isinstance(value, bool | int | float):
        others.append(_without(messages[i], place, [not value]))  # a key may be false by default
    for other in others:
        try:
            changed = template.write([*messages[:i], other, *messages[i + 1 :]], tools) != text
        except MalformedError:
            return True
        if changed:
            return True
    return False


def _leaves(message: Any, place: Place) -> Iterator[Place]:
    """Yield the places of the texts, numbers and so on in a value."""
    value = _at(message, place)
    if isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _leaves(message, (*place, key))
    elif not says_nothing(value):
        yield place


def _at(message: Any, place: Place) -> Any:
    for key in place:
        message = message[key]
    return message


def _without(value: Any, place: Place, instead: Sequence[Any] = ()) -> Any:
    """Return a copy without the value at a place, or with another one."""
    first, *rest = place
    new = [_without(value[first], tuple(rest), instead)] if rest else list(instead)
    if isinstance(value, list):
        assert isinstance(first, int), "a list has positions"
        return [*value[:first], *new, *value[first + 1 :]]
    return {
        key: new[0] if key == first else said for key, said in value.items() if key != first or new
    }
