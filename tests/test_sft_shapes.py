"""data/sft/: every shape of a line is read by all it says, or refused by name."""

import json
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.examples import parse
from nemo_chameleon.data.sft.templates import ChatTemplate, Example
from nemo_chameleon.data.sft.unknown import UnknownKeysError, ignored_keys_setting

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# It marks the reasoning and the answer of a turn one by one.
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}{% generation %}({{ m.reasoning_content }}){% endgeneration %}"
    "{% endif %}{% generation %}{{ m.content }}</>{% endgeneration %}"
    "{% else %}{{ m.content }}</>{% endif %}{% endfor %}"
)
ASKED: dict[str, Any] = {"role": "user", "content": "2+2?"}
SAID: dict[str, Any] = {"role": "assistant", "content": "4"}
OBJECT = {"city": "Zürich", "days": 3}


def read(line: dict[str, Any], template: str | None = CHATML, *ignored: str) -> Example:
    """Read a JSON value as a line."""
    chat = None if template is None else ChatTemplate(template, {})
    return parse(json.dumps(line).encode(), chat, ignored)


def shown(example: Example) -> str:
    """Return the text with brackets around what carries loss."""
    text = example.text
    for start, stop in reversed(example.answers):
        text = f"{text[:start]}[{text[start:stop]}]{text[stop:]}"
    return text


ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{}\n\n### Input:\n{}\n\n### Response:\n{}"
)


def messages(*turns: dict[str, Any]) -> dict[str, Any]:
    """Return a line of messages."""
    return {"messages": list(turns)}


def parts(*texts: str) -> list[dict[str, str]]:
    """Return a content as parts."""
    return [{"type": "text", "text": text} for text in texts]


def shared(*turns: tuple[str, str], **beside: Any) -> dict[str, Any]:
    """Return a line of ShareGPT."""
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **beside}


CHAT = "<user>2+2?</><assistant>[4</>]"
PAIR = {"prompt": "2+2?", "completion": "4"}
HISTORY = [["1+1?", "2"]]
EARLIER = "<user>1+1?</><assistant>[2</>]"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (messages(ASKED, SAID), CHAT),
        (messages(ASKED, SAID, ASKED), CHAT),
        (messages({**ASKED, "content": parts("2+", "2?")}, {**SAID, "content": parts("4")}), CHAT),
        (messages({**ASKED, "name": None, "tool_calls": None}, SAID) | {"tools": None}, CHAT),
        (messages({**ASKED, "id": "a"}, {**SAID, "timestamp": 3, "label": ""}), CHAT),
        (messages(ASKED, SAID) | {"id": 1, "source": "x", "conversation_id": "c"}, CHAT),
        (messages(ASKED, SAID) | {"prompt": "2+2?", "prompt_id": "x"}, CHAT),
        (messages(ASKED, SAID) | {"system": "Add."}, f"<system>Add.</>{CHAT}"),
        (messages(ASKED, SAID) | {"system_prompt": "Add."}, f"<system>Add.</>{CHAT}"),
        (messages(ASKED, SAID) | {"history": HISTORY}, EARLIER + CHAT),
        (messages({"role": "human", "content": "2+2?"}, {"role": "gpt", "content": "4"}), CHAT),
        (shared(("human", "2+2?"), ("gpt", "4")), CHAT),
        (shared(("User", "2+2?"), ("Assistant", "4"), mask="User", system=""), CHAT),
        (shared(("human", "2+2?"), ("gpt", "4"), system="Add."), f"<system>Add.</>{CHAT}"),
        (
            shared(("human", "a"), ("function_call", '{"name": "f", "arguments": "{}"}')),
            '<user>a</><assistant>[{"type": "function", "function": {"name": "f", "arguments": {}}}'
            "</>]",
        ),
        (
            messages(
                {"role": "User", "content": "a"},
                {"role": "function_call", "content": {"name": "f", "arguments": {}}},
                {"role": "observation", "content": "b"},
                {"role": "gpt", "content": "c"},
            ),
            '<user>a</><assistant>[{"type": "function", "function": {"name": "f", "arguments": {}}}'
            "</>]<tool>b</><assistant>[c</>]",
        ),
        (messages(ASKED, {**SAID, "role": "gpt"}, ASKED, SAID), CHAT + CHAT),
        (
            messages({**ASKED, "role": "human"}, {**SAID, "role": "Assistant"}, ASKED, SAID),
            2 * CHAT,
        ),
        (
            messages(ASKED, SAID, {"role": "function", "content": "b"}, SAID),
            f"{CHAT}<function>b</><assistant>[4</>]",
        ),
        (
            shared(("human", "a"), ("observation", "b"), ("gpt", "c")),
            "<user>a</><tool>b</><assistant>[c</>]",
        ),
        ({"instruction": "2+2?", "output": "4"}, CHAT),
        ({"instruction": "2+2?", "input": "", "output": "4"}, CHAT),
        ({"instruction": "Add.", "input": "2+2", "output": "4"}, CHAT.replace("2+2?", "Add.\n2+2")),
        ({"instruction": "2+2?", "output": "4", "text": "Below: 2+2? ### 4"}, CHAT),
        *(
            (
                {"instruction": "Add.", "input": "2+2", "output": "4", "text": text},
                CHAT.replace("2+2?", "Add.\n2+2"),
            )
            for text in (ALPACA.format("Add.", "2+2", "4"), "Add.\n2+2\n4")
        ),
        *(
            (
                {"instruction": "a", "output": "tell\n\nme", "text": text},
                "<user>a</><assistant>[tell\n\nme</>]",
            )
            for text in (
                "### Human: a### Assistant: tell\n\nme",
                "<s>[INST] a [/INST] tell\nme </s>",
                "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\ntell\n\nme<|im_end|>\n",
                "### Anweisung:\na\n\n### Antwort:\ntell\n\nme",
            )
        ),
        ({"instruction": "2+2?", "output": "4", "history": HISTORY}, EARLIER + CHAT),
        (PAIR, "2+2?[4]"),
        (PAIR | {"system": "", "history": [], "tools": "[]", "id": 3}, "2+2?[4]"),
        (PAIR | {"system": None, "history": None}, "2+2?[4]"),
        (PAIR | {"system": "Add."}, f"<system>Add.</>{CHAT}"),
        (PAIR | {"system": "Add.", "history": HISTORY}, f"<system>Add.</>{EARLIER}{CHAT}"),
        ({"prompt": [ASKED], "completion": [SAID]}, CHAT),
        (
            {"prompt": [ASKED, {**SAID, "content": "5"}, ASKED], "completion": [SAID]},
            f"<user>2+2?</><assistant>5</>{CHAT}",
        ),
        ({"input": "2+2?", "output": "4"}, "2+2?[4]"),
        ({"input": "2+2?", "output": "4", "instruction": None}, "2+2?[4]"),
        ({"text": "once", "url": "x"}, "[once]"),
    ],
)
def test_shapes(line: dict[str, Any], text: str) -> None:
    """Each shape gives this text, and what is in brackets carries loss."""
    assert shown(read(line)) == text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (PAIR | {"chosen": "a", "rejected": "b"}, "preference data"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference data"),
        ({"question": "a", "answer": "b"}, "rename 'question' to 'prompt', 'answer' to 'comple"),
        ({"query": "a", "response": "b"}, "rename 'query' to 'prompt', 'response' to 'completion'"),
        ({"conversation": [ASKED, SAID]}, "rename 'conversation' to 'messages'"),
        ({"input_ids": [1], "labels": [1]}, "tokenised already"),
        ({"id": 3}, "it has only metadata"),
        (PAIR | {"label": False}, "the key 'label' of a line is not understood"),
        (PAIR | {"weight": 0.5, "reward": 1}, "the keys 'weight', 'reward' of a line"),
        *(
            (line | {"text": text}, "the key 'text' of a line")
            for line in (PAIR, {"instruction": "2+2?", "output": "4"}, messages(ASKED, SAID))
            for text in (
                "2+2? 4 and a long essay that nobody trains on",
                "An essay. 2+2? 4",
                "2+2? in short: 4",
                "4 2+2?",
                "2+2? 4" + "!" * 900,
                ALPACA.format("2+2?", "with an input", "4"),
            )
        ),
        ({"text": "a", "system": "b"}, "the key 'system' of a line"),
        (PAIR | {"instruction": "Add."}, "the key 'instruction' of a line"),
        (messages(ASKED, SAID) | {"images": ["a.png"]}, "the key 'images' of a line"),
        (messages(ASKED, SAID) | {"prompt": "3+3?"}, "the key 'prompt' of a line"),
        (shared(("human", "a"), ("gpt", "b"), mask="gpt"), "the key 'mask' of a line"),
        (messages(ASKED, {**SAID, "audio": {"id": "x"}}), "the key 'audio' of a message"),
        (messages({**ASKED, "from": "human"}, SAID), "both from and role"),
        (shared(("alien", "a"), ("gpt", "b")), "the role 'alien' of a message is not one of"),
        (messages(ASKED, {**SAID, "role": "assitant"}, SAID), "not known: write 'assistant'"),
        (shared(("human", "a"), ("function_call", "f(x)")), "function_call cannot be read as JSON"),
        (
            messages(
                ASKED, {"role": "function_call", "content": '{"name": "f"}', "tool_calls": [{}]}
            ),
            "both a content and tool_calls",
        ),
        (messages({**ASKED, "content": [{"type": "image_url"}]}, SAID), "the type 'image_url'"),
        (messages({**ASKED, "content": ["a"]}, SAID), "a part of a content is not a JSON"),
        (messages({**ASKED, "content": {"a": "b"}}, SAID), "content is not text"),
        (messages({"role": "system", "content": "a"}, SAID) | {"system": "b"}, "system differs"),
        (PAIR | {"history": [["a"]]}, "not a list of pairs"),
        (PAIR | {"history": [["a", ""]]}, "an answer is empty"),
        (PAIR | {"history": "a"}, "not a list of pairs"),
        ({"prompt": [ASKED], "completion": "4"}, "both be texts or both be lists"),
        ({"prompt": [{**SAID, "train": True}, ASKED], "completion": [SAID]}, "prompt asks for"),
        ({"instruction": "a", "output": " "}, "an answer is empty"),
        (messages({"role": "human", "content": "a"}), r"assistant \(the roles are 'user'\)"),
        (messages(ASKED, SAID) | {"tools": "a hammer"}, "tools cannot be read as JSON"),
        (messages(ASKED, SAID) | {"tools": {"name": "f"}}, "tools is not a list"),
        (messages(ASKED, SAID) | {"tools": [{"name": "f"}]}, "does not write the line's tools"),
    ],
)
def test_what_is_refused(line: dict[str, Any], says: str) -> None:
    """What a line says and nobody reads is refused by its name."""
    with pytest.raises(MalformedError, match=says):
        read(line)


@pytest.mark.parametrize("mark", ["train", "training", "trainable", "loss", "loss_mask", "weight"])
@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_marks(mark: str, template: str) -> None:
    """A turn that is marked is not trained on, and stays in the text."""
    for off, on in ((False, True), (0, 1), (0.0, 1.0)):
        line = messages(ASKED, {**SAID, mark: off}, {**ASKED, mark: off}, {**SAID, mark: on})
        assert shown(read(line, template)) == f"<user>2+2?</><assistant>4</>{CHAT}"
    last = messages(ASKED, SAID, ASKED, {**SAID, mark: 0})
    assert shown(read(last, template)) == CHAT
    assert shown(read(messages(ASKED, {**SAID, mark: None}), template)) == CHAT
    for value in (0.5, 2, "false", [1]):
        with pytest.raises(MalformedError, match=rf"^{mark} of a message is .*: only true"):
            read(messages(ASKED, {**SAID, mark: value}), template)
    with pytest.raises(MalformedError, match="of the role 'user' asks for loss"):
        read(messages({**ASKED, mark: 1}, SAID), template)
    with pytest.raises(MalformedError, match="no message carries loss"):
        read(messages(ASKED, {**SAID, mark: 0}), template)


def test_marks_that_contradict_each_other() -> None:
    """Two marks of one message must agree."""
    with pytest.raises(MalformedError, match="train and weight of a message contradict"):
        read(messages(ASKED, {**SAID, "train": True, "weight": 0}))


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


def test_ignored_keys() -> None:
    """Ignored keys are left out of lines and of messages; the error has the keys."""
    line = messages({**ASKED, "mood": "good"}, SAID) | {"title": "Sums", "system": "Add."}
    assert shown(read(line, CHATML, "mood", "title", "system")) == CHAT
    with pytest.raises(UnknownKeysError) as error:
        read(line, CHATML, "mood")
    assert error.value.keys == ("title",)
    assert ignored_keys_setting(["title"]) == "'data.ignored_keys=[title]'"
    odd = ["no", "1", "a b", "a,b", 'a"b', "null", "it's", "${x}", "\\${x}", "😀", "a\u200d\x7f"]
    setting = ignored_keys_setting(odd)[1:-1].replace("'\\''", "'")
    loaded = OmegaConf.create(yaml.safe_load(setting.partition("=")[2]))
    assert OmegaConf.to_container(loaded, resolve=True) == odd


def test_ignored_keys_of_a_part_of_a_content() -> None:
    """The setting that the error names leaves the key out; the form of a part stays."""
    part = {"type": "text", "text": "2+2?", "cache_control": {"type": "ephemeral"}}
    line = messages({**ASKED, "content": [part]}, SAID)
    with pytest.raises(UnknownKeysError, match="'cache_control' of a part"):
        read(line)
    assert shown(read(line, CHATML, "cache_control", "type")) == CHAT


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
