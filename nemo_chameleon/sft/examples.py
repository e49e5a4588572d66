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


_REMEDY = (
    "where the answers are cannot be seen; set data.chat_template to one that marks them with "
    "{% generation %} and {% endgeneration %}"
)


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

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> Example:
        """A chat's text, and its assistant's turns.

        A turn is what the template marks as generation, or else all that comes between the
        generation prompt and the next message: with what ends the turn.

        Args:
            messages: of role and content.
            tools: that the assistant may call, as the template wants them.

        Raises:
            MalformedError: no assistant speaks, or the template refuses the chat.
            UserError: the template does not show where a turn begins or ends.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise MalformedError("no answer: no message of the assistant's")
        messages = messages[: answers[-1] + 1]  # what is asked last is never answered
        text, marked = self._write(messages, tools)
        if self._marks:
            if len(marked) < len(answers):
                raise MalformedError(
                    f"the chat template marks {len(marked)} of {len(answers)} answers as generation"
                )
            return Example(text, tuple(marked), begins=False, ends=False)
        turns = []
        for i in answers:
            asked, _ = self._write(messages[:i], tools, generation=True)
            answered, _ = self._write(messages[: i + 1], tools)
            if not answered.startswith(asked):
                raise UserError(
                    "the chat template's generation prompt is not how it begins the assistant's "
                    f"turns: {_REMEDY}"
                )
            if not text.startswith(answered):
                raise UserError(
                    f"the chat template writes a turn otherwise once others follow: {_REMEDY}"
                )
            turns.append((len(asked), len(answered)))
        return Example(text, tuple(turns), begins=False, ends=False)

    def _write(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, generation: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            from jinja2 import TemplateSyntaxError
            from transformers.utils.chat_template_utils import render_jinja_template
        except ImportError as error:
            raise UserError("chats need transformers: pip install nemo_chameleon[hf]") from error
        settings: dict[str, Any] = {
            **self.special_tokens,
            "conversations": [list(messages)],
            "tools": tools,
            "chat_template": self.source,
            "add_generation_prompt": generation,
            "return_assistant_tokens_mask": self._marks,
        }
        try:
            rendered: Any = render_jinja_template(**settings)
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template is broken: {error}") from error
        # A template may do anything with what a line holds, and so raise anything.
        except Exception as error:
            cause = " ".join(str(error).split())
            raise MalformedError(f"the chat template refuses it: {cause}") from error
        texts, marked = rendered
        return _text(texts[0], "what the chat template makes of it"), marked[0] if marked else []


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
    """What lies beside a tokenizer.json in special_tokens_map.json and tokenizer_config.json.

    Raises:
        UserError: one of them cannot be read.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = Path(tokenizer).with_name(name)
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} is no JSON object")
        settings |= found
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
    except (ValueError, RecursionError) as error:
        raise MalformedError("not JSON") from error
    if not isinstance(value, dict):
        raise MalformedError("no JSON object")
    if "messages" in value:
        example = _chat(value["messages"], value.get("tools"), template)
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
                _text(message[key], key)
        says = (message["content"] or "").strip() or message.get("tool_calls")
        if message["role"] == "assistant" and not says:
            raise MalformedError("empty answer")
    if template is None:
        raise UserError(
            "it is a chat, and there is no chat template beside data.tokenizer: set "
            "data.chat_template to a Jinja file"
        )
    return template.render(messages, tools)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise MalformedError(f"{key} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{key} is not valid Unicode") from error
    return value
