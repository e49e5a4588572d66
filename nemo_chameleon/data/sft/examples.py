"""Parses a line of JSONL into a text and the answers in it.

A line is a chat, a prompt with its completion, or plain text.
"""

from typing import Any

from nemo_chameleon.data.readers import MalformedError, parse_object, require_text
from nemo_chameleon.data.sft.templates import ChatTemplate, Example
from nemo_chameleon.utils.errors import UserError

_PAIRS = (("prompt", "completion"), ("input", "output"))
_FORMS = "messages, prompt and completion, input and output, or text"


def parse(line: bytes, template: ChatTemplate | None) -> Example:
    """Parse a line of JSONL into an example.

    Args:
        line: a JSON object with `messages`, each with role and content; with `prompt` and
            `completion`, or `input` and `output`; or with `text`.
        template: the chat template that writes chats, or None.

    Returns:
        The example.

    Raises:
        MalformedError: the line has another form, or an answer is missing or empty.
        UserError: the line is a chat, and there is no template.
    """
    value = parse_object(line)
    if "messages" in value:
        example = _chat(value["messages"], value.get("tools"), template)
    elif pair := next((keys for keys in _PAIRS if all(key in value for key in keys)), None):
        prompt, completion = (require_text(value[key], key) for key in pair)
        text = prompt + completion
        example = Example(text, ((len(prompt), len(text)),), begins=True, ends=True)
    elif "text" in value:
        # `nemo-chameleon prepare` writes documents the same way, so pretraining has seen this form.
        text = require_text(value["text"], "text")
        example = Example(text, ((0, len(text)),), begins=False, ends=True)
    else:
        raise MalformedError(f"unknown form: it needs {_FORMS}")
    if not all(example.text[start:stop].strip() for start, stop in example.answers):
        raise MalformedError("an answer is empty")
    return example


def _chat(messages: Any, tools: Any, template: ChatTemplate | None) -> Example:
    if not isinstance(messages, list) or not messages:
        raise MalformedError("messages must be a list of one or more messages")
    for message in messages:
        if not isinstance(message, dict):
            raise MalformedError("a message is not a JSON object")
        for key in ("role", "content"):
            if key not in message:
                raise MalformedError(f"a message has no {key}")
            if message[key] is not None or not message.get("tool_calls"):
                require_text(message[key], key)
        says = (message["content"] or "").strip() or message.get("tool_calls")
        if message["role"] == "assistant" and not says:
            raise MalformedError("an answer is empty")
    if template is None:
        raise UserError(
            "the line is a chat, but there is no chat template beside data.tokenizer: set "
            "data.chat_template to a Jinja file"
        )
    return template.render(messages, tools)
