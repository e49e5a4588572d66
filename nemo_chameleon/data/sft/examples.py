"""One line of JSONL to a text and the answers in it: chats, prompt and completion, plain text."""

from typing import Any

from nemo_chameleon.data.readers import MalformedError, parse_object, require_text
from nemo_chameleon.data.sft.templates import ChatTemplate, Example
from nemo_chameleon.utils.errors import UserError

_PAIRS = (("prompt", "completion"), ("input", "output"))
_FORMS = "messages, prompt and completion, input and output, or text"


def parse(line: bytes, template: ChatTemplate | None) -> Example:
    """What a line of JSONL says.

    Args:
        line: `messages` of role and content; `prompt` and `completion` (or `input` and `output`);
            or `text`.
        template: that writes chats.

    Raises:
        MalformedError: it is none of these, or has no answer.
        UserError: a chat, and no template to write it by.
    """
    value = parse_object(line)
    if "messages" in value:
        example = _chat(value["messages"], value.get("tools"), template)
    elif pair := next((keys for keys in _PAIRS if all(key in value for key in keys)), None):
        prompt, completion = (require_text(value[key], key) for key in pair)
        text = prompt + completion
        example = Example(text, ((len(prompt), len(text)),), begins=True, ends=True)
    elif "text" in value:
        # As `prepare` writes documents: what pretraining has seen.
        text = require_text(value["text"], "text")
        example = Example(text, ((0, len(text)),), begins=False, ends=True)
    else:
        raise MalformedError(f"no known form: its keys are none of {_FORMS}")
    if not all(example.text[start:stop].strip() for start, stop in example.answers):
        raise MalformedError("empty answer")
    return example


def _chat(messages: Any, tools: Any, template: ChatTemplate | None) -> Example:
    if not isinstance(messages, list) or not messages:
        raise MalformedError("messages is no list of messages")
    for message in messages:
        if not isinstance(message, dict):
            raise MalformedError("a message is no JSON object")
        for key in ("role", "content"):
            if key not in message:
                raise MalformedError(f"a message has no {key}")
            if message[key] is not None or not message.get("tool_calls"):
                require_text(message[key], key)
        says = (message["content"] or "").strip() or message.get("tool_calls")
        if message["role"] == "assistant" and not says:
            raise MalformedError("empty answer")
    if template is None:
        raise UserError(
            "it is a chat, and there is no chat template beside data.tokenizer: set "
            "data.chat_template to a Jinja file"
        )
    return template.render(messages, tools)
