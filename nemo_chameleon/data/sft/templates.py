"""Writes chats with Hugging Face chat templates, and finds the assistant's turns in the text.

The template is a Jinja file, or one of the tokenizer's own files.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nemo_chameleon.data.readers import MalformedError, require_text
from nemo_chameleon.data.tokenizer_files import (
    token_text,
    tokenizer_folder,
    tokenizer_settings,
)
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.limits import OutOfTimeError, limited

# Some templates mark the text of the assistant with this block.
_JINJA = re.compile(r"\{[{%]")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REMEDY = (
    "so the answers cannot be found; set data.chat_template to a template that marks them with "
    "{% generation %} and {% endgeneration %}"
)
# What writing one chat may use. Without limits, a template can stop a run or a whole machine.
_SECONDS = 10.0
_MEMORY = 1 << 30  # bytes
# The longest text, in characters: so many, and so many for each of the chat in JSON.
_CHARACTERS, _PER_CHARACTER = 1 << 20, 100
_FIRST = (
    "the assistant begins the chat, and the chat template does not write what comes before such a "
    "turn; put a turn of the user or a system prompt before it, or mark the answers in the "
    "template with {% generation %} and {% endgeneration %}"
)
_MOVED = (
    "the chat template writes the system prompt elsewhere, or not at all, as soon as the assistant "
    "answers; write the system prompt at the beginning of the user's first message, or set "
    "data.chat_template to another template"
)

Span: TypeAlias = tuple[int, int]


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
        messages: the messages of a chat up to its last answer, as the template saw them.
        tools: the tools of a chat, or None.
        spans: the answers of a chat by the positions of their messages.
        left_out: where a chat has reasoning that the template has left out of its answers.
        unread: metadata of the line and of its messages that are not in the text.
        after: the roles of the messages of a chat after its last answer, which are left out.
        split: the split that the line says it is of, or None.
    """

    text: str
    answers: tuple[Span, ...]
    begins: bool
    ends: bool
    messages: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    tools: list[dict[str, Any]] | None = field(default=None, compare=False)
    spans: Mapping[int, Sequence[Span]] = field(default_factory=dict, compare=False)
    left_out: tuple[str, ...] = field(default=(), compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)
    after: tuple[str, ...] = field(default=(), compare=False)
    split: str | None = field(default=None, compare=False)


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

    def knows(self, role: str) -> bool:
        """Return whether the template has the name of a role, in quotes or in a special token.

        Args:
            role: the role of a message.

        Returns:
            Whether it has; the same word within a sentence is not the name of a role.
        """
        return re.search(rf"(?<![\w\s]){re.escape(role)}(?![\w\s])", self.source) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[dict[str, Any]] | None,
        trained: Collection[int],
    ) -> Example:
        """Write a chat as a text, and find the assistant's turns in it.

        A turn is the text that the template marks as generation. If it marks none, a turn is all
        text between the generation prompt and the next message, and so includes the end of the
        turn.

        Args:
            messages: the messages, each with role and content; the last one carries loss.
            tools: the tools that the assistant may call, in the form that the template expects.
            trained: positions of the assistant's messages that carry loss.

        Returns:
            The text, with those turns as answers.

        Raises:
            MalformedError: the template refuses the chat, or does not mark an answer.
            UserError: the template does not show where a turn begins or ends, or is no Jinja.
        """
        if not _JINJA.search(self.source):
            raise UserError(
                "the chat template has no Jinja such as {{ messages }}, so it writes the same text "
                "for all chats: set data.chat_template to a Jinja file"
            )
        text, marked = self._write(messages, tools)
        if self._marks:
            spans = self._spans_of_marks(messages, tools, marked, trained)
        else:
            spans = {i: [self._turn(messages, i, tools, text)] for i in trained}
        answers = {span for found in spans.values() for span in found}
        return Example(
            text,
            tuple(sorted(answers)),
            begins=False,
            ends=False,
            messages=tuple(messages),
            tools=tools,
            spans=spans,
        )

    def write(
        self, messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]] | None
    ) -> str:
        """Write a chat as a text.

        Args:
            messages: the messages.
            tools: the tools that the assistant may call, or None.

        Returns:
            The text.

        Raises:
            MalformedError: the template refuses the chat.
            UserError: the template is not valid.
        """
        return self._write(messages, tools)[0]

    def _turn(self, messages: Sequence[Mapping[str, Any]], i: int, tools: Any, text: str) -> Span:
        """Find a turn by writing the chat up to it, and up to its end."""
        try:
            asked, _ = self._write(messages[:i], tools, generation=True)
        except MalformedError as error:
            if i == 0:
                raise MalformedError(_FIRST) from error
            raise
        answered, _ = self._write(messages[: i + 1], tools)
        if not answered.startswith(asked):
            if i == 0:
                raise MalformedError(_FIRST)
            if self._moves_system(messages[: i + 1], tools):
                raise UserError(_MOVED)
            raise UserError(
                "the chat template does not begin the assistant's turns with its generation "
                f"prompt, {_REMEDY}"
            )
        if not text.startswith(answered):
            raise UserError(
                f"the chat template changes a turn when other turns follow it, {_REMEDY}"
            )
        return len(asked), len(answered)

    def _moves_system(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> bool:
        """Return whether the last turn could be found if the chat had no system prompt."""
        others = [message for message in messages if message["role"] != "system"]
        if len(others) in (1, len(messages)):
            return False
        try:
            asked, _ = self._write(others[:-1], tools, generation=True)
            return self._write(others, tools)[0].startswith(asked)
        except MalformedError:
            return False

    def _spans_of_marks(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Any,
        marked: Sequence[Span],
        trained: Collection[int],
    ) -> dict[int, Sequence[Span]]:
        """Tell which marks are of which turn."""
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(marked) < len(turns):
            raise MalformedError(
                f"the chat template marks {len(marked)} of {len(turns)} answers as generation"
            )
        counts = list(range(1, len(turns) + 1))
        if len(marked) > len(turns):
            counts = self._marks_up_to(messages, tools, marked, turns)
        if counts and counts == sorted(set(counts)) and counts[0] and counts[-1] == len(marked):
            firsts = [0, *counts[:-1]]
            own = {i: marked[a:b] for i, a, b in zip(turns, firsts, counts, strict=True)}
            return {i: [span for span in own[i] if span[0] < span[1]] for i in trained}
        if len(trained) < len(turns):
            raise MalformedError(
                "the chat template marks several pieces of a turn, so it cannot be told which turn "
                "is not to be trained on"
            )
        written = tuple(span for span in marked if span[0] < span[1])
        return dict.fromkeys(trained, written)

    def _marks_up_to(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Any,
        marked: Sequence[Span],
        turns: Sequence[int],
    ) -> list[int]:
        """Count the marks up to the end of each turn; empty if later turns change earlier marks."""
        counts = []
        for i in turns:
            _, before = self._write(messages[: i + 1], tools)
            if before != marked[: len(before)]:
                return []
            counts.append(len(before))
        return counts

    def ends_of_messages(self, example: Example) -> list[int | None]:
        """Find where the messages of a chat end in its text.

        Args:
            example: what `render` returned.

        Returns:
            For each message the position of its end; None if the template writes the message
            together with the next one.
        """
        ends: list[int | None] = []
        for i in range(1, len(example.messages)):
            try:
                text, _ = self._write(example.messages[:i], example.tools)
            except MalformedError:
                text = "\0"
            ends.append(len(text) if example.text.startswith(text) else None)
        return [*ends, len(example.text)]

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
            with limited(_SECONDS, _MEMORY):
                rendered: Any = render_jinja_template(**settings)
        except OutOfTimeError:
            raise UserError(
                f"the chat template takes longer than {_SECONDS:.0f} seconds to write one chat: "
                "set data.chat_template to another one"
            ) from None
        except MemoryError:
            raise UserError(
                f"the chat template needs more than {_MEMORY >> 20} MiB to write one chat: set "
                "data.chat_template to another one"
            ) from None
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja: {error}") from error
        # A template may do anything with the values of a line, and so it may raise anything.
        except Exception as error:
            cause = " ".join(str(error).split())
            raise MalformedError(f"the chat template refuses the chat: {cause}") from error
        texts, marked = rendered
        text = require_text(texts[0], "the rendered chat")
        if len(text) > _CHARACTERS:
            size = len(json.dumps([messages, tools], ensure_ascii=False, default=str))
            if len(text) > _CHARACTERS + _PER_CHARACTER * size:
                raise UserError(
                    f"the chat template writes {len(text):,} characters for a chat of {size:,}: "
                    "set data.chat_template to another one"
                )
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
            raise UserError(
                f"data.chat_template={file} cannot be read: {reason_of(error)}"
            ) from error
    if isinstance(source, list):  # a list of templates, each with a name
        named = [entry for entry in source if isinstance(entry, dict)]
        source = {entry.get("name"): entry.get("template") for entry in named}.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise UserError(
            f"the chat_template of {beside} is not a text: set data.chat_template to a Jinja file"
        )
    tokens = {key: token_text(value) for key, value in settings.items() if key.endswith("_token")}
    return ChatTemplate(source, {key: token for key, token in tokens.items() if token is not None})
