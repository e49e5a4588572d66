"""data/sft/: the chat template must write what a line says, or read what only it understands."""

import json
from typing import Any

import pytest

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.unknown import UnknownKeysError
from sft_lines import ASKED, CHATML, MARKED, SAID, messages, read, shown

OBJECT = {"city": "Zürich", "days": 3}
CHAT = "<user>2+2?</><assistant>[4</>]"


def test_a_template_that_marks_pieces_of_a_turn() -> None:
    """All pieces of a turn carry loss, and none of a turn that is marked."""
    thinks = {**SAID, "reasoning_content": "two and two"}
    line = messages(ASKED, thinks, ASKED, SAID)
    assert shown(read(line, MARKED)) == f"<user>2+2?</><assistant>[(two and two)][4</>]{CHAT}"
    line = messages(ASKED, {**thinks, "train": False}, ASKED, thinks)
    assert shown(read(line, MARKED)) == (
        "<user>2+2?</><assistant>(two and two)4</><user>2+2?</><assistant>[(two and two)][4</>]"
    )


def test_a_template_that_drops_a_piece_of_earlier_turns() -> None:
    """All marked pieces carry loss, and it cannot be told which of them are of which turn."""
    template = MARKED.replace("{% if m.reasoning", "{% if loop.last and m.reasoning")
    thinks = {**SAID, "reasoning_content": "two and two"}
    line = messages(ASKED, thinks, ASKED, thinks)
    assert shown(read(line, template)) == f"{CHAT}<user>2+2?</><assistant>[(two and two)][4</>]"
    with pytest.raises(MalformedError, match="cannot be told which turn is not to be trained on"):
        read(messages(ASKED, {**thinks, "train": False}, ASKED, thinks), template)


TOOL = {"type": "function", "function": {"name": "Add", "description": "2+2?"}}


def test_tools_that_the_template_does_not_write() -> None:
    """The name of a tool in a turn is not the tool."""
    line = messages({**ASKED, "content": "Add 2 and 2"}, SAID) | {"tools": [TOOL]}
    with pytest.raises(MalformedError, match="does not write the line's tools"):
        read(line)
    assert "Add" in read(line, "{{ tools | tojson if tools }}" + CHATML).text


def test_a_turn_whose_words_the_template_has_itself() -> None:
    """A turn that the template drops is missed, although its words are in the text."""
    template = (
        "Be kind, and sum.{% for m in messages if m.role != 'developer' %}"
        + CHATML[len("{% for m in messages %}") :]
    )
    assert read(messages(ASKED, SAID), template).answers
    line = messages({"role": "developer", "content": "Be kind"}, ASKED, SAID)
    with pytest.raises(MalformedError, match="does not write a message of the role 'developer'"):
        read(line, template)
    assert read(messages({"role": "system", "content": "Be kind"}, ASKED, SAID), template).answers


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"name": "f"}, "no arguments: write {} as 'arguments'"),
        ({"name": "f", "parameters": {"a": 1}}, "rename 'parameters' to 'arguments'"),
    ],
)
def test_calls_without_arguments(call: dict[str, Any], says: str) -> None:
    """The key that a tool call lacks is named, instead of what the template says of it."""
    line = messages(ASKED, {"role": "assistant", "tool_calls": [call]})
    with pytest.raises(MalformedError, match=says):
        read(line, QWEN)


# As Qwen's templates do, it names keys of tool calls, and roles, that are no keys of a message.
QWEN = (
    "{% for m in messages %}<{{ 'tool' if m.role == 'tool' else m.role }}>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{% if call.function %}{% set call = call.function %}"
    "{% endif %}{{ call.name }}{{ call.arguments | tojson }}{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_part(part: str) -> str:
    """Return a template that writes something more of each message."""
    return CHATML.replace("{{ m.role }}", "{{ m.role }}" + part)


@pytest.mark.parametrize(
    ("part", "beside", "text"),
    [
        ("{{ m['mood'] or '' }}", {"mood": "!"}, "<user!>"),
        ("{{ m.mood }}", {"mood": "very good"}, "<uservery good>"),
        ("{{ m.mood | tojson if m.mood }}", {"mood": 'a "good"\nmood'}, '<user"a \\"good'),
        ("{{ '~' if m.quiet }}", {"quiet": True}, "<user~>"),
        ("{{ '~' if m.quiet }}", {"quiet": False}, "<user>"),
        (
            "{{ m.mood.name ~ m.mood.of[0] if m.mood }}",
            {"mood": {"name": "a", "of": [3]}},
            "<usera3>",
        ),
        ("{{ m.mood + '!' if 'mood' in m }}", {"mood": "?"}, "<user?!>"),
    ],
)
def test_keys_that_the_template_reads(part: str, beside: dict[str, Any], text: str) -> None:
    """A key of a message is understood if the template writes another text without it."""
    line = messages({**ASKED, **beside}, SAID)
    assert shown(read(line, with_part(part))).startswith(text)
    after = messages(ASKED, SAID, {**ASKED, **beside})
    assert shown(read(after, with_part(part))).endswith("[4</>]")
    with pytest.raises(UnknownKeysError, match=f"the key {next(iter(beside))!r} of a message is"):
        read(after, CHATML)


@pytest.mark.parametrize(
    ("template", "beside", "says"),
    [
        (QWEN, {"function": {"name": "SECRET"}}, "the key 'function' of a message"),
        (QWEN, {"tool": "SECRET"}, "the key 'tool' of a message"),
        (QWEN, {"arguments": "SECRET", "call": 3}, "the keys 'arguments', 'call' of a message"),
        (QWEN + "{# m.mood #}", {"mood": "SECRET"}, "the key 'mood' of a message"),
        (with_part("{{ '' if m.mood }}"), {"mood": "SECRET"}, "the key 'mood' of a message"),
        (with_part("{{ '!' if m.mood }}"), {"mood": "a SECRET"}, "the key 'mood' of a message"),
        (
            with_part("{{ m.mood[:3] if m.mood }}"),
            {"mood": "so good"},
            "the key 'mood' of a message",
        ),
        (
            with_part("{{ m.mood.a if m.mood }}"),
            {"mood": {"a": 1, "b": "SECRET"}},
            "the key 'mood' of a",
        ),
        (
            with_part("{{ m.mood[0] if m.mood }}"),
            {"mood": ["a", "SECRET"]},
            "the key 'mood' of a message",
        ),
    ],
)
def test_keys_that_the_template_does_not_read(
    template: str, beside: dict[str, Any], says: str
) -> None:
    """A name that the template has for something else does not make a key understood."""
    assert read(messages(ASKED, SAID), template).answers
    spoken = {**(SAID if template.startswith(QWEN) else ASKED), **beside}
    for line in (messages(ASKED, spoken, SAID), messages(ASKED, SAID, {**ASKED, **beside})):
        with pytest.raises(UnknownKeysError, match=says) as error:
            read(line, template)
        assert error.value.keys == tuple(beside)
        assert read(line, template, *beside).answers


def test_keys_of_tool_calls() -> None:
    """What a tool call says beside its name and arguments is read, or refused by its name."""
    function = {"name": "f", "arguments": {"x": "y"}}
    for calls in ({"function": {**function, "note": "a"}}, {**function, "note": "a"}):
        line = messages(ASKED, {"role": "assistant", "tool_calls": [{"id": "c", **calls}]})
        assert '"note": "a"' in read(line).text
        with pytest.raises(UnknownKeysError, match="the key 'note' of a tool call"):
            read(line, QWEN)
        assert shown(read(line, QWEN, "note")) == '<user>2+2?</><assistant>[f{"x": "y"}</>]'


CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": OBJECT}}


def call(arguments: Any, **beside: Any) -> dict[str, Any]:
    """Return a line with a tool call."""
    calls = [{**CALL, "function": {"name": "weather", "arguments": arguments}}]
    return messages(ASKED, {"role": "assistant", "tool_calls": calls, **beside})


def test_tool_calls() -> None:
    """Arguments in JSON text are as good as objects, and a call needs no content."""
    text = json.dumps(OBJECT)
    expected = f"<user>2+2?</><assistant>[{json.dumps(CALL, ensure_ascii=False)}</>]"
    for line in (call(OBJECT), call(text), call(text, content=None), call(text, content="")):
        assert shown(read(line)) == expected
    content = messages(ASKED, {**SAID, "content": text})
    assert shown(read(content)) == f"<user>2+2?</><assistant>[{text}</>]"
    with pytest.raises(MalformedError, match="arguments of a tool call cannot be read as JSON"):
        read(call('{"city": '))
    with pytest.raises(MalformedError, match="are not a JSON object"):
        read(call("3"))
    with pytest.raises(MalformedError, match="tool_calls is not a list"):
        read(messages(ASKED, {"role": "assistant", "tool_calls": {"name": "f"}}))


@pytest.mark.parametrize("written", ["'' + f.arguments", "f.arguments"])
def test_templates_that_write_arguments_as_they_are(written: str) -> None:
    """Without tojson a template needs the arguments as the text that the line has."""
    template = CHATML.replace(
        "{{ call | tojson }}",
        "{% set f = call.function %}{{ f.name }}{{ " + written + " }}",
    )
    text = '{"city":"Oslo"}'
    assert shown(read(call(text), template)) == f"<user>2+2?</><assistant>[weather{text}</>]"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (CHATML.replace("{{ call | tojson }}", ""), "does not write a tool call"),
        (CHATML.replace("call |", "call.function.name |"), "does not write a tool call"),
        (CHATML.replace("m.content or ''", "m.content"), "writes None for the content"),
        (CHATML.replace("{{ m.content or", "{{ m.content[:1] or"), "refuses the chat"),
    ],
)
def test_tool_calls_that_a_template_does_not_write(template: str, says: str) -> None:
    """A template that does not write a call, or writes None, is named."""
    with pytest.raises(MalformedError, match=says):
        read(call(OBJECT), template)


DROPS = CHATML.replace("m.content or ''", "(m.content or '').split('</think>')[-1].strip()")


def test_reasoning() -> None:
    """Reasoning that the template writes is trained on; what it leaves out is named."""
    thinks = {**SAID, "content": "<think>two and two</think>\n\n4"}
    assert shown(read(messages(ASKED, thinks))) == (
        "<user>2+2?</><assistant>[<think>two and two</think>\n\n4</>]"
    )
    assert read(messages(ASKED, thinks)).left_out == ()
    assert shown(read(messages(ASKED, thinks), DROPS)) == CHAT
    assert read(messages(ASKED, thinks), DROPS).left_out == ("what stands before </think>",)
    for key in ("reasoning_content", "thinking", "reasoning"):
        assert read(messages(ASKED, {**SAID, key: "two and two"})).left_out == (key,)
    assert read(messages(ASKED, {**SAID, "reasoning_content": "two"}), MARKED).left_out == ()
    with pytest.raises(MalformedError, match="reasoning of an answer that is nothing else"):
        read(messages(ASKED, {**SAID, "content": "<think>two and two</think>"}), DROPS)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (CHATML.replace("m.content or ''", "m.content[:3]"), "does not write an answer as"),
        (
            "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</>"
            "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
            "does not write a message of the role 'system'",
        ),
        (MARKED.replace("{{ m.content }}</>{% endgen", "{% endgen"), "an answer is empty"),
    ],
)
def test_what_a_template_leaves_out(template: str, says: str) -> None:
    """A template that leaves out an answer, or a turn before it, is named."""
    line = messages({"role": "system", "content": "Add."}, ASKED, {**SAID, "content": "It is 4"})
    with pytest.raises(MalformedError, match=says):
        read(line, template)


NO_SYSTEM = CHATML.replace("in messages %}", "in messages if m.role != 'system' %}")


@pytest.mark.parametrize("text", ["?!", "🙂", "2+2?", "2", "It is", "a 4", "Add."])
def test_a_template_that_drops_a_turn(text: str) -> None:
    """A turn is dropped even if other turns have its text, or it has no letter."""
    line = messages({"role": "system", "content": text}, ASKED, {**SAID, "content": "It is a 4?!"})
    assert read(line).answers
    assert read(line, CHATML.replace("m.content or ''", "m.content | tojson")).answers
    with pytest.raises(MalformedError, match="does not write a message of the role 'system'"):
        read(line, NO_SYSTEM)


@pytest.mark.parametrize("text", ["?!", "🙂"])
def test_a_template_that_drops_what_has_no_letter(text: str) -> None:
    """A tool call and a tool are compared as they are if they have no word."""
    names = CHATML.replace("call |", "call.function.name |")
    with pytest.raises(MalformedError, match="does not write a tool call"):
        read(call({"x": text}), names.replace("{{ call", "x{{ call"))
    assert read(call({"x": text}), names.replace("call.function.name", "call")).answers


def test_the_assistant_begins() -> None:
    """A template that cannot write an empty chat is named, unless the turn carries no loss."""
    first = "{% if messages[0].role != 'system' %}<system>Be.</>{% endif %}"
    line = messages(SAID, ASKED, SAID)
    assert shown(read(line)) == f"<assistant>[4</>]{CHAT}"
    with pytest.raises(MalformedError, match=r"^the assistant begins the chat, and"):
        read(line, first + CHATML)
    unmarked = messages({**SAID, "weight": 0}, ASKED, SAID)
    assert shown(read(unmarked, first + CHATML)) == f"<system>Be.</><assistant>4</>{CHAT}"
    assert shown(read(line, first + MARKED)) == f"<system>Be.</><assistant>[4</>]{CHAT}"


KEYS_ALONE = CHATML.replace(
    "call | tojson", "call.function.name }}({{ call.function.arguments.keys() | join(' ') }}){{ ''"
)


@pytest.mark.parametrize("value", [5, -2.5, True, False, "Oslo", [7], {"n": 7}])
@pytest.mark.parametrize("weight", [0, 1])
def test_values_of_a_call_that_a_template_drops(value: Any, weight: int) -> None:
    """Numbers and booleans count like texts, also in a turn without loss."""
    for given in ({"n": value}, json.dumps({"n": value})):
        line = call(given, weight=weight)
        line["messages"] += [{"role": "tool", "content": "b"}, SAID]
        assert read(line).answers
        for template in (KEYS_ALONE, CHATML.replace("call |", "call.function.name |")):
            with pytest.raises(MalformedError, match="does not write a"):
                read(line, template)


@pytest.mark.parametrize("weight", [0, 1])
@pytest.mark.parametrize("value", [5, "Oslo"])
def test_values_of_a_call_that_stand_elsewhere(value: Any, weight: int) -> None:
    """A value that the question or the answer has as well is missed in the call."""
    line = call({"n": value}, weight=weight, content=f"I ask {value} n")
    line["messages"] = [{**ASKED, "content": f"{value} n"}, *line["messages"][1:], SAID]
    assert read(line).answers
    with pytest.raises(MalformedError, match="does not write a tool call"):
        read(line, KEYS_ALONE)


def test_no_calls() -> None:
    """An empty list of calls is none, whatever a template makes of it."""
    template = CHATML.replace(
        "{{ m.content or '' }}",
        "{% if m.tool_calls is defined %}{{ m.tool_calls | length }}{% else %}{{ m.content }}"
        "{% endif %}",
    )
    empty: list[Any] = [[], None, ""]
    for none in empty:
        line = messages({**ASKED, "tool_calls": none}, {**SAID, "tool_calls": none})
        assert shown(read(line, template)) == CHAT
    with pytest.raises(MalformedError, match="a message has no content"):
        read(messages(ASKED, {"role": "assistant", "content": None, "tool_calls": []}))
