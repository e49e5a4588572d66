"""data/sft/: who speaks in a chat, by all usual names, and what is said of messages without it."""

import json
from typing import Any

import pytest

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.unknown import UnknownKeysError
from sft_lines import ASKED, CHATML, SAID, messages, read, shown

CHAT = "<user>2+2?</><assistant>[4</>]"


def said_by(role: str) -> dict[str, str]:
    """Return a message of a role."""
    return {"role": role, "content": "5"}


@pytest.mark.parametrize("role", ["ai", "AI", "bot", "model"])
def test_other_names_of_the_assistant(role: str) -> None:
    """They carry loss under role as under from, also beside turns of the assistant."""
    line = messages(ASKED, SAID, ASKED, said_by(role))
    assert shown(read(line)) == CHAT + CHAT.replace("4", "5")
    shared = {"conversations": [{"from": "human", "value": "2+2?"}, {"from": role, "value": "4"}]}
    assert shown(read(shared)) == CHAT


@pytest.mark.parametrize("role", ["agent", "developer", "Narrator", "a|b"])
@pytest.mark.parametrize("place", [1, 4])
def test_roles_that_nobody_knows(role: str, place: int) -> None:
    """Such a role is refused before and after the last answer, unless the template names it."""
    turns = [ASKED, SAID, ASKED, SAID]
    turns.insert(place, said_by(role))
    line = messages(*turns)
    sentence = f"You are a helpful {role} of few words. {CHATML}"
    for template in (CHATML, sentence, f"{{# {role}s #}}{CHATML}"):
        with pytest.raises(
            MalformedError, match="of a message is not known, and the chat"
        ) as error:
            read(line, template)
        assert repr(role) in str(error.value)
    for name in (f"'{role}'", f'"{role}"'):
        template = CHATML.replace("{{ m.role }}", f"{{{{ 'x' if m.role == {name} else m.role }}}}")
        assert read(line, template).answers
    assert read(line, f"{{% if false %}}<|{role}|>{{% endif %}}{CHATML}").answers


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"type": "human", "content": "2+2?"}, "no role: rename 'type' to 'role'$"),
        ({"speaker": "User", "content": "2+2?"}, "no role: rename 'speaker' to 'role'$"),
        ({"content": "user"}, r"no role: write who speaks as 'role'.* has 'content'\)$"),
        ({"user": "2+2?"}, r"no role: write who speaks as 'role', .* \(the message has 'user'\)$"),
        ({"role": "user", "parts": [{"text": "a"}]}, r"no content: write .* has 'parts'\)$"),
        ({"role": "user"}, "no content: write what is said as 'content', which is a text$"),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f"}},
            "no content: 'function_call' belongs to tools: write a call as 'tool_calls'",
        ),
    ],
)
def test_messages_without_role_or_content(message: dict[str, Any], says: str) -> None:
    """The error says which key to rename, or what to write."""
    with pytest.raises(MalformedError, match=says):
        read(messages(message, SAID))


def test_types_that_are_renamed_as_the_error_says() -> None:
    """LangChain's messages can be read once their type is the role."""
    assert shown(read(messages({"role": "human", "content": "2+2?"}, {**SAID, "role": "ai"}))) == (
        CHAT
    )


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_messages_in_json_text(key: str) -> None:
    """They are decoded, as tools are; other texts are refused."""
    assert shown(read({key: json.dumps([ASKED, SAID])})) == CHAT
    with pytest.raises(MalformedError, match=f"^{key} cannot be read as JSON$"):
        read({key: str([ASKED, SAID])})
    with pytest.raises(MalformedError, match="must be a list of one or more messages"):
        read({key: "{}"})
    with pytest.raises(MalformedError, match="duplicate key 'role'"):
        read({key: '[{"role": "user", "role": "tool", "content": "a"}]'})


def test_what_comes_after_the_last_answer() -> None:
    """The roles of turns that nobody answers are kept, to be named."""
    tool = {"role": "tool", "content": "b"}
    bad = {**SAID, "weight": 0}
    assert read(messages(ASKED, SAID, ASKED, bad, tool)).after == ("user", "assistant", "tool")
    assert read(messages(ASKED, SAID)).after == ()


@pytest.mark.parametrize("value", ["on", "off"])
def test_a_setting_of_reasoning(value: str) -> None:
    """Beside messages it is metadata; a text is none, and beside other forms it is refused."""
    assert read(messages(ASKED, SAID) | {"reasoning": value}).unread == ("reasoning",)
    for line in (messages(ASKED, SAID) | {"reasoning": "on it"}, {"text": "a", "reasoning": value}):
        with pytest.raises(UnknownKeysError, match="'reasoning' is not read here"):
            read(line)
