"""Parses a line of JSONL into a text and the answers in it.

`shapes.py` reads what the line says, the chat template writes it, and `written.py` checks that the
template has left nothing out.
"""

import json
from collections.abc import Collection

from nemo_chameleon.data.readers import MalformedError, parse_object
from nemo_chameleon.data.sft.shapes import Chat, Pair, read_shape
from nemo_chameleon.data.sft.templates import ChatTemplate, Example
from nemo_chameleon.data.sft.turns import called_functions
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
    said = read_shape(parse_object(line), ignored, template.reads if template else _nothing)
    if isinstance(said, Chat):
        return _chat(said, template)
    if isinstance(said, Pair):
        text = said.prompt + said.completion
        example = Example(text, ((len(said.prompt), len(text)),), begins=True, ends=True)
    else:
        # `nemo-chameleon prepare` writes documents the same way, so pretraining has seen this form.
        example = Example(said.text, ((0, len(said.text)),), begins=False, ends=True)
    if not all(example.text[start:stop].strip() for start, stop in example.answers):
        raise MalformedError("an answer is empty")
    return example


def _nothing(key: str) -> bool:
    del key
    return False


def _chat(chat: Chat, template: ChatTemplate | None) -> Example:
    if template is None:
        raise UserError(
            "the line is a chat, but there is no chat template beside data.tokenizer: set "
            "data.chat_template to a Jinja file"
        )
    trained = [i for i, turn in enumerate(chat.turns) if turn.carries_loss]
    if not any(turn.message["role"] == "assistant" for turn in chat.turns):
        roles = ", ".join(dict.fromkeys(turn.message["role"] for turn in chat.turns))
        raise MalformedError(f"no message has the role assistant (the roles are {roles})")
    if not trained:
        raise MalformedError("no message carries loss")
    turns = chat.turns[: trained[-1] + 1]  # what follows the last answer has no answer
    messages = [turn.message for turn in turns]
    if all(turn.with_texts is None for turn in turns):
        return require_written(template.render(messages, chat.tools, trained), turns)
    try:
        example = template.render(messages, chat.tools, trained)
        if not _has_python(example):
            return require_written(example, turns)
    except MalformedError as error:
        refused: MalformedError | None = error
    else:
        refused = None
    # The template writes arguments as they are, without tojson: this is right for JSON text alone.
    messages = [turn.with_texts or turn.message for turn in turns]
    try:
        return require_written(template.render(messages, chat.tools, trained), turns)
    except MalformedError as error:
        raise refused or error from error


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
