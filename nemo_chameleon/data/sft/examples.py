"""Parses a line of JSONL into a text and the answers in it.

`shapes.py` reads what the line says, the chat template writes it, and `written.py` and `unread.py`
check that the template has left nothing out.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from nemo_chameleon.data.readers import MalformedError, parse_object
from nemo_chameleon.data.sft.keys import present, split_of
from nemo_chameleon.data.sft.results import in_order
from nemo_chameleon.data.sft.roles import ROLES, unknown_role
from nemo_chameleon.data.sft.shapes import Chat, Pair, Text, read_shape
from nemo_chameleon.data.sft.templates import ChatTemplate, Example
from nemo_chameleon.data.sft.turns import called_functions
from nemo_chameleon.data.sft.unread import require_read, unread_metadata
from nemo_chameleon.data.sft.written import require_written
from nemo_chameleon.utils.errors import UserError


def parse(line: bytes, template: ChatTemplate | None, ignored: Collection[str] = ()) -> Example:
    """Parse a line of JSONL into an example.

    Args:
        line: a JSON object of one of the shapes in docs/finetuning.md.
        template: the chat template that writes chats, or None.
        ignored: keys of lines and of messages to leave out.

    Returns:
        The example.

    Raises:
        MalformedError: the line has another form, it says something that is not understood or that
            the template does not write, or an answer is missing or empty.
        UserError: the line is a chat, and there is no template.
    """
    read = parse_object(line, distinct=True)
    example = _example(read_shape(read, ignored), template)
    return replace(example, split=split_of(present(read, ignored)))


def _example(said: Chat | Pair | Text, template: ChatTemplate | None) -> Example:
    if isinstance(said, Chat):
        return _chat(said, template)
    if isinstance(said, Pair):
        text = said.prompt + said.completion
        answer = (len(said.prompt), len(text))
        example = Example(text, (answer,), begins=True, ends=True, unread=said.unread)
    else:
        # `nemo-chameleon prepare` writes documents the same way, so pretraining has seen this form.
        answer = (0, len(said.text))
        example = Example(said.text, (answer,), begins=False, ends=True, unread=said.unread)
    if not all(example.text[start:stop].strip() for start, stop in example.answers):
        raise MalformedError("an answer is empty")
    return example


def _chat(chat: Chat, template: ChatTemplate | None) -> Example:
    if template is None:
        raise UserError(
            "the line is a chat, but there is no chat template beside data.tokenizer: set "
            "data.chat_template to a Jinja file"
        )
    roles = list(dict.fromkeys(turn.message["role"] for turn in chat.turns))
    trained = [i for i, turn in enumerate(chat.turns) if turn.carries_loss]
    if "assistant" not in roles:
        named = ", ".join(map(repr, roles))
        raise MalformedError(f"no message has the role assistant (the roles are {named})")
    for role in roles:
        if role not in ROLES and not template.knows(role):
            raise unknown_role(role)
    if not trained:
        raise MalformedError("no message carries loss")
    turns = in_order(chat.turns, template.source)
    chat = replace(chat, turns=tuple(turns))
    decoded = [turn.message for turn in chat.turns]
    _require_arguments(decoded, template)
    if all(turn.with_texts is None for turn in chat.turns):
        return _written(chat, template, trained, decoded)
    refused: MalformedError | None = None
    try:
        example = _written(chat, template, trained, decoded)
        if not _has_python(example):
            return example
    except MalformedError as error:
        refused = error
    # The template writes arguments as they are, without tojson: this is right for JSON text alone.
    as_texts = [turn.with_texts or turn.message for turn in chat.turns]
    try:
        return _written(chat, template, trained, as_texts)
    except MalformedError as error:
        raise refused or error from error


def _require_arguments(messages: Sequence[dict[str, Any]], template: ChatTemplate) -> None:
    """Check that calls have arguments, if the template writes them by this name."""
    if "arguments" not in template.source:
        return
    for function in (each for message in messages for each in called_functions(message)):
        if function.get("arguments") is None:
            other = next((key for key in ("parameters", "args", "input") if key in function), None)
            remedy = f"rename {other!r} to" if other else "write {} as"
            raise MalformedError(f"a tool call has no arguments: {remedy} 'arguments'")


def _written(
    chat: Chat, template: ChatTemplate, trained: Sequence[int], messages: Sequence[dict[str, Any]]
) -> Example:
    """Write a chat up to its last answer, and check that all it says is written."""
    last = trained[-1] + 1
    example = template.render(messages[:last], chat.tools, trained)
    example = require_written(example, chat.turns[:last])
    unknown = [turn.unknown for turn in chat.turns]
    require_read(template, messages, chat.tools, unknown, last)
    unread = (*chat.unread, *unread_metadata(template, messages[:last], example.text))
    return replace(
        example, unread=unread, after=tuple(turn.message["role"] for turn in chat.turns[last:])
    )


def _has_python(example: Example) -> bool:
    """Return whether a text has arguments as Python writes them, for instance {'city': 'Oslo'}."""
    given = [
        function.get("arguments")
        for message in example.messages
        for function in called_functions(message)
    ]
    return any(
        repr(arguments) in example.text and repr(arguments) != json.dumps(arguments)
        for arguments in given
        if isinstance(arguments, dict)
    )
