"""Writes chats with Hugging Face chat templates, and finds the assistant's turns in the text.

The template is a Jinja file, or one of the tokenizer's own files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_chameleon.data.readers import MalformedError, require_text
from nemo_chameleon.data.tokenizer_files import (
    token_text,
    tokenizer_folder,
    tokenizer_settings,
)
from nemo_chameleon.utils.errors import UserError

# Some templates mark the text of the assistant with this block.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REMEDY = (
    "so the answers cannot be found; set data.chat_template to a template that marks them with "
    "{% generation %} and {% endgeneration %}"
)


@dataclass(frozen=True)
class Example:
    """The text of one line, and its answers.

    Chat templates write the tokens that begin and end a text themselves, so `begins` and `ends` are
    both False for chats.

    Attributes:
        text: prompts and answers, as the model sees them.
        answers: start and stop of each answer in characters; the answers carry loss.
        begins: whether the tokenizer adds the tokens that it begins a text with.
        ends: whether the token that ends a text is appended, as part of the last answer.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    begins: bool
    ends: bool


class ChatTemplate:
    """A Hugging Face chat template, and the way to find the assistant's turns in its output."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Make a template.

        Args:
            source: the Jinja text.
            special_tokens: the tokenizer's special tokens by name, for instance bos_token, which
                the Jinja text may use.
        """
        self.source, self.special_tokens = source, dict(special_tokens)
        self._marks = _GENERATION.search(source) is not None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> Example:
        """Write a chat as a text, and find the assistant's turns in it.

        A turn is the text that the template marks as generation. If it marks none, a turn is all
        text between the generation prompt and the next message, and so includes the end of the
        turn.

        Args:
            messages: the messages, each with role and content.
            tools: the tools that the assistant may call, in the form that the template expects.

        Returns:
            The text up to the last answer, with the assistant's turns as answers.

        Raises:
            MalformedError: no message is the assistant's, or the template refuses the chat.
            UserError: the template does not show where a turn begins or ends.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise MalformedError("no message has the role assistant")
        messages = messages[: answers[-1] + 1]  # a question after the last answer has no answer
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
                    "the chat template does not begin the assistant's turns with its generation "
                    f"prompt, {_REMEDY}"
                )
            if not text.startswith(answered):
                raise UserError(
                    f"the chat template changes a turn when other turns follow it, {_REMEDY}"
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
            raise UserError(f"the chat template is not valid Jinja: {error}") from error
        # A template may do anything with the values of a line, and so it may raise anything.
        except Exception as error:
            cause = " ".join(str(error).split())
            raise MalformedError(f"the chat template refuses the chat: {cause}") from error
        texts, marked = rendered
        text = require_text(texts[0], "the rendered chat")
        return text, marked[0] if marked else []


def read_template(path: str | None, tokenizer: str) -> ChatTemplate | None:
    """Read the chat template of a Jinja file, or else the one beside a tokenizer.

    Args:
        path: the Jinja file, or None.
        tokenizer: the tokenizer. Beside it, chat_template.jinja takes precedence over the
            chat_template in tokenizer_config.json.

    Returns:
        The template, or None if there is none.

    Raises:
        UserError: a file cannot be read.
    """
    beside = tokenizer_folder(tokenizer)
    settings = tokenizer_settings(tokenizer)
    source = settings.get("chat_template")
    file = Path(path) if path is not None else beside and beside / "chat_template.jinja"
    if file is not None and (path is not None or file.is_file()):
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template={file} cannot be read: {error}") from error
    if isinstance(source, list):  # a list of templates, each with a name
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if source is None:
        return None
    tokens = {key: token_text(value) for key, value in settings.items() if key.endswith("_token")}
    return ChatTemplate(source, {key: token for key, token in tokens.items() if token is not None})
