"""Chat templates: a chat to a text, and where in the text the assistant speaks."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_chameleon.data.readers import MalformedError, require_text
from nemo_chameleon.utils.errors import UserError

# Templates say with this what the assistant writes; not many do.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


_REMEDY = (
    "where the answers are cannot be seen; set data.chat_template to one that marks them with "
    "{% generation %} and {% endgeneration %}"
)


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
        return require_text(texts[0], "what the chat template makes of it"), marked[
            0
        ] if marked else []


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
