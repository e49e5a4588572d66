"""One line of JSONL to a text and the answers in it: chats, prompt and completion, plain text."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_chameleon.errors import UserError

_PAIRS = (("prompt", "completion"), ("input", "output"))
_FORMS = "messages, prompt and completion, input and output, or text"
# Templates say with this what the assistant writes; not many do.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class MalformedError(ValueError):
    """A line that is no example; the message says why."""


@dataclass(frozen=True)
class Example:
    """What a line says.

    Attributes:
        text: prompt and answers, as the model is to see them.
        answers: (start, stop) of each, in characters; what loss is on.
        begins: whether a tokenizer that begins texts with a token of its own is to do so.
        ends: whether the token that ends texts follows, as part of the answer. A chat template
            writes both itself.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    begins: bool
    ends: bool


class ChatTemplate:
    """A Hugging Face chat template, and where in what it writes the assistant speaks."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Of Jinja text, which may name the tokenizer's `special_tokens`, bos_token and so on."""
        self.source, self.special_tokens = source, dict(special_tokens)
        self._marks = _GENERATION.search(source) is not None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        """A chat's text, and its assistant's turns.

        A turn is what the template marks as generation, or else all that comes between the
        generation prompt and the next message: with what ends the turn.

        Raises:
            MalformedError: no assistant speaks, or the template refuses the chat.
            UserError: the template writes a turn otherwise once more messages follow.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise MalformedError("no answer: no message of the assistant's")
        messages = messages[: answers[-1] + 1]  # what is asked last is never answered
        text, marked = self._write(messages)
        if self._marks:
            return Example(text, tuple(marked), begins=False, ends=False)
        turns = []
        for i in answers:
            asked, _ = self._write(messages[:i], generation=True)
            answered, _ = self._write(messages[: i + 1])
            if not (text.startswith(answered) and answered.startswith(asked)):
                raise UserError(
                    "the chat template writes a turn otherwise once others follow, so where the "
                    "answers are cannot be seen: set data.chat_template to one that marks them "
                    "with {% generation %} and {% endgeneration %}"
                )
            turns.append((len(asked), len(answered)))
        return Example(text, tuple(turns), begins=False, ends=False)

    def _write(
        self, messages: Sequence[Mapping[str, Any]], generation: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            settings: dict[str, Any] = {
                **self.special_tokens,
                "conversations": [list(messages)],
                "chat_template": self.source,
                "add_generation_prompt": generation,
                "return_assistant_tokens_mask": self._marks,
            }
            rendered: Any = render_jinja_template(**settings)
        except TemplateError as error:
            cause = " ".join(str(error).split())
            raise MalformedError(f"the chat template refuses it: {cause}") from error
        texts, marked = rendered
        return texts[0], marked[0] if marked else []


def read_template(path: str | None, tokenizer: str) -> ChatTemplate | None:
    """The chat template of a Jinja file, or else the one that lies beside a tokenizer.json.

    Returns:
        None where there is none.

    Raises:
        UserError: no such file, or transformers, which renders it, is not installed.
    """
    beside = Path(tokenizer).parent
    settings = tokenizer_settings(tokenizer)
    source = settings.get("chat_template")
    file = Path(path) if path is not None else beside / "chat_template.jinja"
    if path is not None or file.is_file():
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template={file} cannot be read: {error}") from error
    if isinstance(source, list):  # several, by name
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if source is None:
        return None
    tokens = {key: _token(value) for key, value in settings.items() if key.endswith("_token")}
    return ChatTemplate(source, {key: token for key, token in tokens.items() if token is not None})


def tokenizer_settings(tokenizer: str) -> dict[str, Any]:
    """The tokenizer_config.json beside a tokenizer.json; empty where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(tokenizer).with_name("tokenizer_config.json")
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is no JSON object")
    return settings


def end_token(tokenizer: str, default: str) -> str:
    """The token that ends a text: of the tokenizer's own settings, or the default."""
    return _token(tokenizer_settings(tokenizer).get("eos_token")) or default


def _token(value: Any) -> str | None:
    """Written out, or as an added token with its settings."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


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
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise MalformedError("broken UTF-8") from error
    except ValueError as error:
        raise MalformedError("not JSON") from error
    if not isinstance(value, dict):
        raise MalformedError("no JSON object")
    if "messages" in value:
        example = _chat(value["messages"], template)
    elif pair := next((keys for keys in _PAIRS if all(key in value for key in keys)), None):
        prompt, completion = (_text(value[key], key) for key in pair)
        text = prompt + completion
        example = Example(text, ((len(prompt), len(text)),), begins=True, ends=True)
    elif "text" in value:
        # As `prepare` writes documents: what pretraining has seen.
        text = _text(value["text"], "text")
        example = Example(text, ((0, len(text)),), begins=False, ends=True)
    else:
        raise MalformedError(f"no known form: its keys are none of {_FORMS}")
    if not all(example.text[start:stop].strip() for start, stop in example.answers):
        raise MalformedError("empty answer")
    return example


def _chat(messages: Any, template: ChatTemplate | None) -> Example:
    if not isinstance(messages, list) or not messages:
        raise MalformedError("messages is no list of messages")
    for message in messages:
        if not isinstance(message, dict):
            raise MalformedError("a message is no JSON object")
        for key in ("role", "content"):
            if key not in message:
                raise MalformedError(f"a message has no {key}")
            _text(message[key], key)
        if message["role"] == "assistant" and not message["content"].strip():
            raise MalformedError("empty answer")
    if template is None:
        raise UserError(
            "it is a chat, and there is no chat template beside data.tokenizer: set "
            "data.chat_template to a Jinja file"
        )
    return template.render(messages)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise MalformedError(f"{key} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{key} is not valid Unicode") from error
    return value
