"""Reads a line, whatever its shape, as the turns of a chat, as a pair, or as a text.

docs/finetuning.md has a table of the shapes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_chameleon.data.readers import MalformedError, require_text
from nemo_chameleon.data.sft.forms import complaint, preference
from nemo_chameleon.data.sft.keys import present, require_known, unread_keys
from nemo_chameleon.data.sft.meanings import decides_loss
from nemo_chameleon.data.sft.repeated import repeats
from nemo_chameleon.data.sft.roles import is_user
from nemo_chameleon.data.sft.turns import (
    Turn,
    contents,
    read_tools,
    read_turns,
    written_turn,
)

_LISTS = ("messages", "conversations")
_PAIRS = (("prompt", "completion"), ("input", "output"))
_SYSTEM = ("system", "system_prompt")
_SETTINGS = ("on", "off")  # of reasoning beside messages, as Nemotron's data have it
_BESIDE = (*_SYSTEM, "history", "tools")  # they make a chat of a pair


@dataclass(frozen=True)
class Chat:
    """Turns, which the chat template writes.

    Attributes:
        turns: the turns.
        tools: the tools that the assistant may call, or None.
        unread: the metadata of the line, which are not read.
    """

    turns: tuple[Turn, ...]
    tools: list[dict[str, Any]] | None
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A prompt and its completion, which is the answer.

    Attributes:
        prompt: the text before the answer.
        completion: the answer.
        unread: the metadata of the line, which are not read.
    """

    prompt: str
    completion: str
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A text that is an answer as a whole.

    Attributes:
        text: the text.
        unread: the metadata of the line, which are not read.
    """

    text: str
    unread: tuple[str, ...]


def read_shape(line: Mapping[str, Any], ignored: Collection[str]) -> Chat | Pair | Text:
    """Read everything that a line says.

    Args:
        line: the JSON object.
        ignored: keys of lines and of messages to leave out.

    Returns:
        The turns, the pair or the text.

    Raises:
        MalformedError: the line has an unknown shape, or says something that is not understood.
    """
    said = present(line, ignored)
    # A row of a table has all columns: one without an instruction has the form of the others.
    empty = line.keys() - said.keys() - set(ignored)

    def turns(key: str) -> list[Turn]:
        return read_turns(said[key], key, ignored)

    def text(key: str) -> str:
        return require_text(said[key], key)

    if key := next((key for key in _LISTS if key in said), None):
        return _chat(said, turns(key), (key, *_mask(said)))
    if "output" in said and ("instruction" in said or ("input" in said and "instruction" in empty)):
        asked = [text(key) for key in ("instruction", "input") if key in said]
        question = "\n".join(part for part in asked if part.strip())
        pair = [written_turn("user", question), written_turn("assistant", text("output"))]
        return _chat(said, pair, ("instruction", "input", "output"))
    if keys := next((keys for keys in _PAIRS if all(key in said for key in keys)), None):
        first, second = keys
        lists = [isinstance(said[key], list) for key in keys]
        if first == "prompt" and all(lists):
            return _chat(said, [*_context(turns(first)), *turns(second)], keys)
        if first == "prompt" and any(lists):
            raise MalformedError("prompt and completion must both be texts or both be lists")
        if any(lists):
            raise MalformedError(
                "input and output must both be texts: write a list of messages as 'messages', with "
                "the answer as the last of them"
            )
        prompt, completion = text(first), text(second)
        if any(said.get(key) not in (None, [], {}) and _says(said[key]) for key in _BESIDE):
            pair = [written_turn("user", prompt), written_turn("assistant", completion)]
            return _chat(said, pair, keys)
        unread = _require_read(said, (*keys, *_BESIDE), [prompt, completion])
        return Pair(prompt, completion, unread)
    if "text" in said:
        return Text(text("text"), _require_read(said, ("text",), [said["text"]]))
    raise MalformedError(complaint(said, lambda line: read_shape(line, ignored), ignored))


def _chat(said: Mapping[str, Any], body: list[Turn], own: Collection[str]) -> Chat:
    """Put the system prompt and the earlier turns before the turns of a line."""
    system = [key for key in _SYSTEM if key in said and require_text(said[key], key).strip()]
    begins = [body.pop(0)] if body[0].message["role"] == "system" else []
    for key in system:
        if begins and begins[0].content != said[key]:
            raise MalformedError(f"{key} differs from the other system prompt of the line")
        begins = begins or [written_turn("system", said[key])]
    turns = [*begins, *_history(said.get("history")), *body]
    unread = _require_read(said, (*own, *_BESIDE), contents(turns))
    return Chat(tuple(turns), read_tools(said.get("tools")), unread)


def _history(history: Any) -> list[Turn]:
    if history is None:
        return []
    turns = []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise MalformedError("history is not a list of pairs [question, answer]")
        turns.append(written_turn("user", require_text(pair[0], "a question in history")))
        turns.append(written_turn("assistant", require_text(pair[1], "an answer in history")))
    return turns


def _context(turns: list[Turn]) -> list[Turn]:
    """Return turns without loss."""
    if any(turn.marked and turn.carries_loss for turn in turns):
        raise MalformedError("a message of the prompt asks for loss; the completion alone has it")
    return [replace(turn, carries_loss=False, marked=True) for turn in turns]


def _mask(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key `mask` of NeMo's chats if it masks the user, which has no loss anyway."""
    return ("mask",) if is_user(said.get("mask")) else ()


def _says(value: Any) -> bool:
    return not isinstance(value, str) or value.strip() not in ("", "[]")


def _require_read(
    said: Mapping[str, Any], own: Collection[str], texts: list[str]
) -> tuple[str, ...]:
    """Return the metadata; check that all else is understood, or repeats what the shape says."""

    # Many datasets have the first question a second time as `prompt`, or the whole as `text`.
    def is_repeated(key: str, value: Any) -> bool:
        if not isinstance(value, str) or decides_loss(key, value):
            return False
        return value.strip() in {text.strip() for text in texts} or (
            key == "text" and repeats(value, texts)
        )

    known = [key for key, value in said.items() if key in own or is_repeated(key, value)]
    if fault := preference(said):
        raise MalformedError(fault)
    settings = [
        key
        for key in ("reasoning",)
        if said.get(key) in _SETTINGS and not set(_LISTS).isdisjoint(own)
    ]
    require_known(said, [*known, *settings], "line")
    return (*unread_keys(said, known), *settings)
