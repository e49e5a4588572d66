"""Checks that a chat template has written all that the messages say.

An answer must stand in the text that carries loss. Everything else must stand somewhere in the
text. Reasoning may be left out, as many templates do, but not without a word.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.templates import Example
from nemo_chameleon.data.sft.turns import REASONING, Turn, called_functions

_END_OF_REASONING = "</think>"
REMEDY = "set data.chat_template to a template that does"
"""What to do about a chat template that does not write something."""


def require_written(example: Example, turns: Sequence[Turn]) -> Example:
    """Check that the text of a chat has all that its turns say.

    Args:
        example: what the chat template made of the turns.
        turns: the turns.

    Returns:
        The example, which names the reasoning that the template has left out of its answers.

    Raises:
        MalformedError: the template has left out something else.
    """
    dropped: dict[str, None] = {}
    for i, turn in enumerate(turns):
        if (spans := example.spans.get(i)) is None:
            _require_calls(example.text, turn)
            continue
        own = "".join(example.text[start:stop] for start, stop in spans)
        if not own.strip():
            raise MalformedError("an answer is empty")
        _require_answer(own, turn)
        left_out = [name for name, text in _reasoning(turn) if not _contains(own, text)]
        dropped.update(dict.fromkeys(left_out))
        if left_out and not _answer(turn).strip() and not turn.message.get("tool_calls"):
            raise MalformedError(
                f"the chat template does not write the reasoning of an answer that is nothing "
                f"else; {REMEDY}"
            )
    _require_contents(example, turns)
    _require_tools(example)
    return replace(example, left_out=tuple(dropped))


def _answer(turn: Turn) -> str:
    return turn.content.rpartition(_END_OF_REASONING)[2]


def _reasoning(turn: Turn) -> Iterator[tuple[str, str]]:
    """Yield where a turn has reasoning, and the reasoning."""
    for key in REASONING:
        if key in turn.message:
            yield key, turn.message[key]
    for part in turn.content.split(_END_OF_REASONING)[:-1]:
        yield f"what stands before {_END_OF_REASONING}", part.strip().removeprefix("<think>")


def _require_answer(own: str, turn: Turn) -> None:
    if not _contains(own, _answer(turn)):
        raise MalformedError(
            f"the chat template does not write an answer as the line has it; {REMEDY}"
        )
    if turn.message["content"] is None and own.lstrip().startswith("None"):
        raise MalformedError(
            "the chat template writes None for the content of a message that only calls tools; "
            f"{REMEDY} not"
        )
    for function in called_functions(turn.message):
        texts = [function.get("name"), *_texts(function.get("arguments"))]
        if not all(_has_words(own, text) for text in texts if isinstance(text, str)) or not all(
            _has_scalar(own, value) for value in _scalars(function.get("arguments"))
        ):
            raise MalformedError(f"the chat template does not write a tool call; {REMEDY}")


def _require_calls(text: str, turn: Turn) -> None:
    """Check that the calls of a turn without loss are written."""
    for function in called_functions(turn.message):
        texts = [function.get("name"), *_texts(function.get("arguments"))]
        if not all(_has_words(text, each) for each in texts if isinstance(each, str)) or not all(
            _has_scalar(text, value) for value in _scalars(function.get("arguments"))
        ):
            raise not_written(turn.message["role"])


def _require_contents(example: Example, turns: Sequence[Turn]) -> None:
    """Check that turns without loss are written; reasoning is often left out of earlier turns."""
    said = [_answer(turn).strip() for turn in turns]
    for i, turn in enumerate(turns):
        if i in example.spans or not said[i]:
            continue
        if _has_each(_unified(example.text), list(map(_unified, said)), i):
            continue
        if not any(_contains(example.text, form) for form in _as_json(said[i])):
            raise not_written(turn.message["role"])


def _has_each(text: str, said: Sequence[str], i: int) -> bool:
    """Return whether a text has what one turn says as often as all turns together."""
    # A short text may stand in other turns too, so that finding it once would show nothing.
    return text.count(said[i]) >= sum(other.count(said[i]) for other in said)


def not_written(role: str) -> MalformedError:
    """Return the error about a message that a chat template leaves out.

    Args:
        role: the role of the message.

    Returns:
        The error.
    """
    return MalformedError(
        f"the chat template does not write a message of the role {role!r}; {REMEDY}"
    )


def _require_tools(example: Example) -> None:
    for tool in example.tools or ():
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and not _has_words(example.text, name):
            raise MalformedError(f"the chat template does not write the line's tools; {REMEDY}")


def is_written(text: str, part: str) -> bool:
    """Return whether a text has a part, as it is or as JSON writes it.

    Args:
        text: the text of a chat.
        part: what it should have.

    Returns:
        Whether it does.
    """
    return any(_contains(text, form) for form in (part, *_as_json(part)))


def _as_json(part: str) -> Iterator[str]:
    for ascii_alone in (False, True):
        if (form := json.dumps(part, ensure_ascii=ascii_alone)[1:-1]) != part:
            yield form


def _contains(text: str, part: str) -> bool:
    """Return whether a text has a part, of which a template may remove white space at the ends."""
    return _unified(part).strip() in _unified(text)


def _unified(text: str) -> str:
    """Write all line breaks alike."""
    return text.replace("\r\n", "\n")


def _has_words(text: str, part: str) -> bool:
    """Return whether a text has every word of a part, however a template escapes what it writes."""
    words = re.findall(r"\w+", part) or part.split()  # there are texts without a letter, as "?!"
    return all(word in text or json.dumps(word)[1:-1] in text for word in words)


def _has_scalar(text: str, value: bool | int | float) -> bool:
    """Return whether a text has a number, true or false, as JSON or Python writes it."""
    forms = "|".join(re.escape(form) for form in (json.dumps(value), str(value)))
    before, after = ("[A-Za-z]", "[A-Za-z]") if isinstance(value, bool) else (r"[\d.]", r"\d")
    return re.search(f"(?<!{before})(?:{forms})(?!{after})", text) is not None


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in the arguments of a tool call, with the names of the arguments."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _scalars(value: Any) -> Iterator[bool | int | float]:
    """Yield the numbers, true and false in the arguments of a tool call."""
    if isinstance(value, bool | int | float):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _scalars(item)
