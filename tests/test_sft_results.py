"""data/sft/results.py: every result of a tool belongs to its call."""

from typing import Any

import pytest

from nemo_chameleon.data.readers import MalformedError
from sft_lines import ASKED, SAID, messages, read, shown

# As Qwen's templates, it writes no ids.
QWEN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITH_IDS = QWEN.replace("{{ m.content", "{{ m.tool_call_id }}{{ m.content").replace(
    "{{ call.function.name", "{{ call.id }}{{ call.function.name"
)


def calls(*names: str, **beside: Any) -> dict[str, Any]:
    """Return a turn that calls functions; the id of a call is its name in capitals."""
    made = [
        {"id": name.upper(), "type": "function", "function": {"name": name, "arguments": {}}}
        for name in names
    ]
    return {"role": "assistant", "content": "", "tool_calls": made, **beside}


def result(name: str, **beside: Any) -> dict[str, Any]:
    """Return the result of a function."""
    return {"role": "tool", "content": f"of {name}", "tool_call_id": name.upper(), **beside}


IN_ORDER = "<user>2+2?</><assistant>[f{}g{}</>]<tool>of f</><tool>of g</><assistant>[4</>]"


def test_results_in_another_order() -> None:
    """They are sorted where the order alone says whose they are, and stay where their ids do."""
    line = messages(ASKED, calls("f", "g"), result("g"), result("f"), SAID)
    assert shown(read(line, QWEN)) == IN_ORDER
    in_order = messages(ASKED, calls("f", "g"), result("f"), result("g"), SAID)
    assert shown(read(in_order, QWEN)) == IN_ORDER
    assert "<tool>Gof g</><tool>Fof f</>" in read(line, WITH_IDS).text
    of_results = WITH_IDS.replace("{{ call.id }}", "")
    assert "<tool>Fof f</><tool>Gof g</>" in read(line, of_results).text
    two = messages(ASKED, calls("f"), calls("g"), result("g"), result("f"), SAID)
    assert "<tool>of f</><tool>of g</>" in read(two, QWEN).text


def test_results_by_the_names_of_functions() -> None:
    """Without ids the names of functions say whose the results are."""
    named = [{"role": "tool", "content": f"of {name}", "name": name} for name in "gf"]
    called = calls("f", "g")
    called["tool_calls"] = [{"function": call["function"]} for call in called["tool_calls"]]
    assert shown(read(messages(ASKED, called, *named, SAID), QWEN)) == IN_ORDER


@pytest.mark.parametrize("template", [QWEN, WITH_IDS])
def test_a_result_of_no_call(template: str) -> None:
    """An id that no call before it has is named."""
    line = messages(ASKED, calls("f"), result("h"), SAID)
    with pytest.raises(MalformedError, match="the tool_call_id 'H' of a message is the id of no"):
        read(line, template)
    late = messages(ASKED, calls("f"), result("g"), calls("g"), result("g"), SAID)
    with pytest.raises(MalformedError, match="the tool_call_id 'G' of a message is the id of no"):
        read(late, template)
    unknown = messages(ASKED, SAID, result("h"), SAID)  # its call may stand in the content
    assert read(unknown, template).answers


@pytest.mark.parametrize("given", ["g", "ff", "fhh"])
def test_calls_without_a_result(given: str) -> None:
    """Where the order alone counts, a result would be taken for that of another call."""
    line = messages(ASKED, calls("f", "g", "h"), *map(result, given), SAID)
    with pytest.raises(MalformedError, match="each tool call must have one result, because the"):
        read(line, QWEN)
    assert read(line, WITH_IDS).answers
    first = messages(ASKED, calls("f", "g", "h"), result("f"), SAID)
    assert read(first, QWEN).answers


def test_calls_with_one_id() -> None:
    """Calls that share an id or a name cannot be told apart, and results stay as they are."""
    line = messages(ASKED, calls("f", "f"), result("f"), result("f", content="more"), SAID)
    assert "<tool>of f</><tool>more</>" in read(line, QWEN).text


@pytest.mark.parametrize("ids", [(0, 1), ({"n": 0}, {"n": 1}), (["a"], ["b"])])
def test_ids_that_are_no_texts(ids: tuple[Any, Any]) -> None:
    """They tell calls apart as texts do."""
    called = calls("f", "g")
    for call, each in zip(called["tool_calls"], ids, strict=True):
        call["id"] = each
    results = [result("g", tool_call_id=ids[1]), result("f", tool_call_id=ids[0])]
    assert shown(read(messages(ASKED, called, *results, SAID), QWEN)) == IN_ORDER
