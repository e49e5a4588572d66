"""data/sft/examples.py: which parts of a line are answers, and which lines are no examples."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.examples import parse
from nemo_chameleon.data.sft.templates import ChatTemplate, Example, read_template
from nemo_chameleon.utils.errors import UserError

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# This template writes the same text and marks what the assistant writes.
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|end|>{% endgeneration %}{% else %}"
    "{{ message.content }}<|end|>{% endif %}\n{% endfor %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "content": "6"},
]


def answers(line: object, template: str | None = None) -> list[str]:
    """Return the parts of a line's text that carry loss."""
    found = example(line, template)
    return [found.text[start:stop] for start, stop in found.answers]


def example(line: object, template: str | None = None) -> Example:
    """Read a JSON value as a line."""
    chat = ChatTemplate(template, {}) if template else None
    return parse(json.dumps(line).encode(), chat)


def test_pairs() -> None:
    """The completion of a pair is its answer, and includes the token that ends the text."""
    for keys in (("prompt", "completion"), ("input", "output")):
        pair = dict(zip(keys, ("2+2=", "4"), strict=True))
        assert example(pair) == Example("2+2=4", ((4, 5),), begins=True, ends=True)


def test_text() -> None:
    """The whole of a plain text is an answer."""
    assert example({"text": "once"}) == Example("once", ((0, 4),), begins=False, ends=True)


def test_chats() -> None:
    """Every turn of the assistant is an answer, with the text that ends it, and nothing else is."""
    assert answers({"messages": CHAT}, CHATML) == ["4<|end|>\n", "6<|end|>\n"]
    assert not example({"messages": CHAT}, CHATML).ends


def test_templates_that_mark_the_answers() -> None:
    """Where a template marks what the assistant writes, exactly that is an answer."""
    assert answers({"messages": CHAT}, MARKED) == ["4<|end|>", "6<|end|>"]


def test_what_nobody_answers_is_left_out() -> None:
    """A last question without an answer is left out."""
    asked = [*CHAT, {"role": "user", "content": "And 4+4?"}]
    assert example({"messages": asked}, CHATML) == example({"messages": CHAT}, CHATML)


def test_templates_that_rewrite_earlier_turns() -> None:
    """A template that changes earlier turns as others follow is refused.

    The error says how to mark answers.
    """
    last_alone = CHATML.replace(
        "<|end|>", "{% if loop.last and message.role == 'assistant' %}!{% endif %}<|end|>"
    )
    with pytest.raises(
        UserError, match=r"changes a turn when other turns follow .* \{% generation %\}"
    ):
        example({"messages": CHAT}, last_alone)
    thinks = CHATML.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    with pytest.raises(
        UserError, match=r"does not begin .* with its generation prompt, .* \{% generation %\}"
    ):
        example({"messages": CHAT[1:3]}, thinks)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "a"', "not JSON"),
        (b'["text"]', "not a JSON object"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"text": "\\ud800"}', "not valid Unicode"),
        (b'{"texts": "a"}', "unknown form"),
        (b'{"prompt": "a"}', "unknown form"),
        (b'{"prompt": "a", "completion": "b", "completion": "c"}', "duplicate key 'completion'"),
        (
            b'{"messages": [{"role": "user", "role": "tool", "content": "a"}]}',
            "duplicate key 'role",
        ),
        (
            b'{"messages": [{"role": "user", "content": ""}], "tools": "{\\"a\\": 1, \\"a\\": 2}"}',
            "duplicate key 'a'",
        ),
        (b'{"text": 3}', "text is not text"),
        (b'{"text": " "}', "an answer is empty"),
        (b'{"prompt": "a", "completion": ""}', "an answer is empty"),
        (b'{"messages": []}', "must be a list of one or more messages"),
        (b'{"messages": ["a"]}', "a message is not a JSON object"),
        (b'{"messages": [{"content": "a"}]}', "a message has no role"),
        (b'{"messages": [{"role": "user"}]}', "a message has no content"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no message has the role assistant"),
        (b'{"messages": [{"role": "assistant", "content": ""}]}', "an answer is empty"),
    ],
)
def test_malformed_lines(line: bytes, says: str) -> None:
    """A line that is no example is refused with its fault."""
    with pytest.raises(MalformedError, match=says):
        parse(line, ChatTemplate(CHATML, {}))


def test_a_template_may_refuse_a_chat() -> None:
    """An error that a template raises is the fault of the line, and has the template's words."""
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(MalformedError, match="refuses the chat: roles must alternate"):
        example({"messages": CHAT}, strict)


@pytest.mark.parametrize(
    ("template", "line", "says"),
    [
        ("{{ messages[0].content + messages[0].n }}", {"n": 3}, "refuses the chat"),
        ("{{ messages[0].name }}", {"name": "\ud800"}, "the rendered chat is not valid Unicode"),
        ("{# {% generation %} #}{{ messages[0].content }}", {}, "marks 0 of 1 answers"),
    ],
)
def test_what_a_template_makes_of_a_line(template: str, line: dict[str, Any], says: str) -> None:
    """An error while a template writes a line is the fault of the line."""
    turn = {"role": "assistant", "content": "a", **line}
    with pytest.raises(MalformedError, match=says):
        example({"messages": [turn]}, template)


def test_a_broken_template_is_no_lines_fault() -> None:
    """A template that cannot be compiled is an error, and not the fault of a line."""
    with pytest.raises(UserError, match="the chat template is not valid Jinja"):
        example({"messages": CHAT}, "{% for message in messages }}")


def test_nested_too_deep() -> None:
    """A line that is nested too deeply for a parser is no JSON."""
    with pytest.raises(MalformedError, match="not JSON"):
        parse(b"[" * 100_000, None)


def test_tools() -> None:
    """The tools of a line reach the template, and a turn that calls one may have no content."""
    template = (
        "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}"
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content or '' }}"
        "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"name": "now"}]}]
    line = {"tools": [{"name": "now"}], "messages": [CHAT[1], *calls]}
    assert example(line, template).text.startswith('<|tools|>[{"name": "now"}]<|user|>')
    assert answers(line, template) == ['[{"name": "now"}]']


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat without transformers is an error that says what to install."""
    monkeypatch.setitem(sys.modules, "transformers.utils.chat_template_utils", None)
    with pytest.raises(UserError, match=r"pip install nemo_chameleon\[hf\]"):
        example({"messages": CHAT}, CHATML)


def test_a_chat_needs_a_template() -> None:
    """A chat without a template is an error that names the key to set."""
    with pytest.raises(UserError, match=r"set data\.chat_template"):
        example({"messages": CHAT})


def test_where_templates_come_from(tmp_path: Path) -> None:
    """The template is the file that is given, or chat_template.jinja, or the tokenizer's own.

    The first of them that exists is used.
    """
    tokenizer = str(tmp_path / "tokenizer.json")
    assert read_template(None, tokenizer) is None

    def read(path: str | None = None) -> ChatTemplate:
        template = read_template(path, tokenizer)
        assert template is not None
        return template

    settings = {"chat_template": "settings {{ eos_token }}", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = read()
    assert found.source == "settings {{ eos_token }}"
    assert found.special_tokens == {"eos_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "no"}')
    found = read()
    assert found.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert read().source == "beside"
    (tmp_path / "mine.jinja").write_text("mine")
    assert read(str(tmp_path / "mine.jinja")).source == "mine"
    with pytest.raises(UserError, match=r"data\.chat_template=.*none\.jinja cannot be read"):
        read_template(str(tmp_path / "none.jinja"), tokenizer)
