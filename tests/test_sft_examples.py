"""sft/examples.py: which parts of a line are answers, and which lines are no examples."""

import json
from pathlib import Path

import pytest

from nemo_chameleon.errors import UserError
from nemo_chameleon.sft.examples import ChatTemplate, Example, MalformedError, parse, read_template

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The same text, and the template says itself where the assistant speaks.
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
    """The parts of a line's text that carry loss."""
    found = example(line, template)
    return [found.text[start:stop] for start, stop in found.answers]


def example(line: object, template: str | None = None) -> Example:
    """A JSON value as a line."""
    chat = ChatTemplate(template, {}) if template else None
    return parse(json.dumps(line).encode(), chat)


def test_pairs() -> None:
    """Of a pair the completion is the answer, and what ends a text belongs to it."""
    for keys in (("prompt", "completion"), ("input", "output")):
        pair = dict(zip(keys, ("2+2=", "4"), strict=True))
        assert example(pair) == Example("2+2=4", ((4, 5),), begins=True, ends=True)


def test_text() -> None:
    """Plain text is an answer to nothing."""
    assert example({"text": "once"}) == Example("once", ((0, 4),), begins=False, ends=True)


def test_chats() -> None:
    """Every turn of the assistant's is an answer, with what ends it, and nothing else is."""
    assert answers({"messages": CHAT}, CHATML) == ["4<|end|>\n", "6<|end|>\n"]
    assert not example({"messages": CHAT}, CHATML).ends


def test_templates_that_mark_the_answers() -> None:
    """Where the template says what the assistant writes, that is what counts."""
    assert answers({"messages": CHAT}, MARKED) == ["4<|end|>", "6<|end|>"]


def test_what_nobody_answers_is_left_out() -> None:
    """A last question without an answer carries no loss and takes no room."""
    asked = [*CHAT, {"role": "user", "content": "And 4+4?"}]
    assert example({"messages": asked}, CHATML) == example({"messages": CHAT}, CHATML)


def test_templates_that_rewrite_earlier_turns() -> None:
    """Where earlier turns change as others follow, the answers cannot be seen, and it says so."""
    last_alone = CHATML.replace(
        "{{ message.content }}", "{% if loop.last %}hm: {% endif %}{{ message.content }}"
    )
    with pytest.raises(UserError, match=r"writes a turn otherwise .* \{% generation %\}"):
        example({"messages": CHAT}, last_alone)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "a"', "not JSON"),
        (b'["text"]', "no JSON object"),
        (b'{"text": "\xff"}', "broken UTF-8"),
        (b'{"text": "\\ud800"}', "not valid Unicode"),
        (b'{"texts": "a"}', "no known form"),
        (b'{"prompt": "a"}', "no known form"),
        (b'{"text": 3}', "text is not text"),
        (b'{"text": " "}', "empty answer"),
        (b'{"prompt": "a", "completion": ""}', "empty answer"),
        (b'{"messages": []}', "no list of messages"),
        (b'{"messages": ["a"]}', "a message is no JSON object"),
        (b'{"messages": [{"content": "a"}]}', "a message has no role"),
        (b'{"messages": [{"role": "user"}]}', "a message has no content"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no answer"),
        (b'{"messages": [{"role": "assistant", "content": ""}]}', "empty answer"),
    ],
)
def test_malformed_lines(line: bytes, says: str) -> None:
    """A line that is no example says what is wrong with it."""
    with pytest.raises(MalformedError, match=says):
        parse(line, ChatTemplate(CHATML, {}))


def test_a_template_may_refuse_a_chat() -> None:
    """What a template raises is that line's fault, with its words."""
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(MalformedError, match="refuses it: roles must alternate"):
        example({"messages": CHAT}, strict)


def test_a_chat_needs_a_template() -> None:
    """None beside the tokenizer and none given: the key to set is named."""
    with pytest.raises(UserError, match=r"set data\.chat_template"):
        example({"messages": CHAT})


def test_where_templates_come_from(tmp_path: Path) -> None:
    """From the file that is given, chat_template.jinja, or the tokenizer's settings, in turn."""
    tokenizer = str(tmp_path / "tokenizer.json")
    assert read_template(None, tokenizer) is None
    settings = {"chat_template": "settings {{ eos_token }}", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = read_template(None, tokenizer)
    assert found is not None
    assert found.source == "settings {{ eos_token }}"
    assert found.special_tokens == {"eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert read_template(None, tokenizer).source == "beside"
    (tmp_path / "mine.jinja").write_text("mine")
    assert read_template(str(tmp_path / "mine.jinja"), tokenizer).source == "mine"
    with pytest.raises(UserError, match=r"data\.chat_template=.*none\.jinja cannot be read"):
        read_template(str(tmp_path / "none.jinja"), tokenizer)
