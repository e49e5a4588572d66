"""data/sft/: keys that are not understood, names of other forms, and metadata that stay unread."""

import re
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.unknown import UnknownKeysError, ignored_keys_setting
from sft_lines import ASKED, CHATML, SAID, messages, read, shown

CHAT = "<user>2+2?</><assistant>[4</>]"
PAIR = {"prompt": "2+2?", "completion": "4"}


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


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (messages(ASKED, SAID) | {"weight": 1}, "write it as 'weight' .0 or 1. of each message"),
        (messages(ASKED, SAID) | {"lossMask": [0, 1]}, "'lossMask' may say what is not"),
        (PAIR | {"label": False, "mood": 1}, "'label' may say what is not to be trained on"),
        (messages(ASKED, {**SAID, "train_detail": "no"}), "write it as 'weight' .0 or 1.$"),
        (messages(ASKED, {**SAID, "function_call": {"name": "f"}}), "a call as 'tool_calls'"),
        (messages({**ASKED, "functions": [{"name": "f"}]}, SAID), "'functions' belongs to tools"),
        ({"text": "a", "role": "prompter", "parent_id": "b"}, "conversation as one line of messag"),
        (messages({**ASKED, "sender": "Al"}, SAID), "write it as the role, or in the content"),
        ({"text": "a", "system": "b"}, "'system' is not read here: write the line as messages"),
        (PAIR | {"input": "3"}, "'input' is not read here"),
        (messages(ASKED, SAID) | {"reasoning": "sums"}, "'reasoning' is not read here"),
    ],
)
def test_keys_that_are_not_to_be_ignored(line: dict[str, Any], says: str) -> None:
    """A key that decides loss, roles or calls is to be written in another way."""
    with pytest.raises(UnknownKeysError, match=says) as error:
        read(line)
    assert not error.value.ignorable


def test_keys_that_may_be_ignored() -> None:
    """Other keys may be left out; a word within a word decides nothing."""
    beside = {"constraint": 3, "recall": "x", "lightweight": 3, "scroll": 2}
    with pytest.raises(UnknownKeysError, match=r"understood$") as error:
        read(PAIR | beside)
    assert error.value.ignorable == tuple(beside)
    assert shown(read(PAIR | beside, CHATML, *error.value.ignorable)) == "2+2?[4]"


CONTEXT = {"context": "Sums", "response": "4"}


@pytest.mark.parametrize(
    ("line", "renamed"),
    [
        ({"instruction": "2+2?", **CONTEXT}, {"context": "input", "response": "output"}),
        ({"instruction": "2+2?", "response": "4"}, {"response": "output"}),
        (
            {"question": "2+2?", **CONTEXT},
            {"question": "instruction", "context": "input", "response": "output"},
        ),
        ({"prompt": "2+2?", "response": "4"}, {"response": "completion"}),
        ({"input": "2+2?", "target": "4"}, {"target": "output"}),
        ({"system_prompt": "a", "question": "b", "response": "c"}, None),
        ({"chat": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, None),
        ({"content": "once"}, {"content": "text"}),
        ({"inputs": "2+2?", "targets": "4"}, {"inputs": "instruction", "targets": "output"}),
        ({"Prompt": "2+2?", "Completion": "4"}, {"Prompt": "prompt", "Completion": "completion"}),
        (
            {"Instruction": "2+2?", "Input": "", "Output": "4"},
            {"Instruction": "instruction", "Input": "input", "Output": "output"},
        ),
        ({"Conversations": [ASKED, SAID]}, {"Conversations": "messages"}),
    ],
)
def test_names_of_other_forms(line: dict[str, Any], renamed: dict[str, str] | None) -> None:
    """The line can be read once its keys are renamed as the error says."""
    with pytest.raises(MalformedError, match="rename") as error:
        read(line)
    steps = re.findall(r"'(\w+)' to '(\w+)'", str(error.value))
    assert renamed is None or dict(steps) == renamed
    new = dict(steps)
    assert read({new.get(key, key): value for key, value in line.items()}).answers


def test_names_beside_keys_to_ignore() -> None:
    """The error has both steps, and together they work."""
    line = {"question": "2+2?", "answer": "4", "title": "Sums"}
    with pytest.raises(
        MalformedError, match=r"'answer' to 'output' and set 'data.ign.*=\[mood, title\]' to read"
    ):
        read(line, CHATML, "mood")
    line = {"instruction": "2+2?", "output": "4", "title": "Sums"}
    assert shown(read(line, CHATML, "title")) == CHAT


def test_names_that_are_ignored() -> None:
    """No key gets a name that data.ignored_keys leaves out."""
    with pytest.raises(MalformedError, match=r"unknown form \(it has 'instruction', 'context'"):
        read({"instruction": "2+2?", **CONTEXT}, CHATML, "input")


@pytest.mark.parametrize(
    "line",
    [
        {"conversation": [{"system": "S", "input": "i", "output": "o"}]},
        {"conversation": [{"human": "q", "assistant": "a"}]},
        {"chat": {"turn_1": {"Human": "hi", "MOSS": "yo"}}},
        {"system": "S", "chat": "USER: hi\n\n\nASSISTANT: yo"},
    ],
)
def test_chats_that_no_name_makes_readable(line: dict[str, Any]) -> None:
    """Where another name is not enough, the error says what messages are."""
    with pytest.raises(MalformedError, match=r"write 'c[a-z]+' as messages, a list of") as error:
        read(line)
    assert "rename" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        {"title": "T", "context": "Ctx", "question": "Q?", "answers": {"text": ["A"]}},
        {"question": "Q?", "answer": "A", "solution": "B"},
        {"question": "Q?", "answer": 3},
    ],
)
def test_names_that_are_not_enough(line: dict[str, Any]) -> None:
    """Keys are to be renamed only if nothing of the text is then left."""
    with pytest.raises(MalformedError, match=r"unknown form \(it has '") as error:
        read(line)
    assert "rename" not in str(error.value)


NAMED = CHATML.replace("<{{ m.role }}>", "<{{ m.name or m.role }}>")


@pytest.mark.parametrize(
    ("line", "unread"),
    [
        (PAIR | {"id": 3, "prompt_id": "a-b", "parent_ids": ["a", "b"], "topic": ""}, ()),
        (PAIR | {"row": "two words"}, ("row",)),
        (PAIR | {"topic": "Sums", "SRC": "x"}, ("topic", "SRC")),
        (PAIR | {"topic": "2+2?"}, ()),
        ({"text": "a", "source": "x"}, ("source",)),
        ({"instruction": "Translate", "src": "Hallo", "output": "Hello"}, ("src",)),
        (messages(ASKED, SAID) | {"subject": "Sums"}, ("subject",)),
        (
            messages(ASKED, SAID) | {"metadata": {"system": "Add.", "lang": "en"}},
            ("metadata.system",),
        ),
        (messages(ASKED, SAID) | {"metadata": {"lang": "en"}}, ("metadata",)),
        (messages({**ASKED, "info": "angry"}, SAID), ("info of a message",)),
        (messages({**ASKED, "name": "Al"}, {**ASKED, "name": "Bo"}, SAID), ("name of a message",)),
        (messages(ASKED, SAID, {**ASKED, "name": "Al"}), ()),
        (messages(ASKED, {**SAID, "id": "a", "tool_call_id": "c"}), ()),
    ],
)
def test_metadata_that_are_not_read(line: dict[str, Any], unread: tuple[str, ...]) -> None:
    """An example has the keys of metadata that are not in its text, but for plain ids."""
    assert read(line).unread == unread
    ignored = [re.split(r"[ .]", key)[0] for key in unread]
    assert read(line, CHATML, *ignored).unread == ()


def test_metadata_that_the_template_reads() -> None:
    """A name that the template writes is in the text."""
    line = messages({**ASKED, "name": "Al"}, SAID)
    assert shown(read(line, NAMED)) == "<Al>2+2?</><assistant>[4</>]"
    assert read(line, NAMED).unread == ()
