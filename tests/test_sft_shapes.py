"""data/sft/: every shape of a line is read by all it says, or refused by name."""

from typing import Any

import pytest

from nemo_chameleon.data.readers import MalformedError
from sft_lines import ASKED, CHATML, MARKED, SAID, messages, read, shown

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{}\n\n### Input:\n{}\n\n### Response:\n{}"
)


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
        ({"input": "2+2?", "output": "4", "instruction": None}, CHAT),
        ({"input": "2+2?", "output": "4", "messages": None}, "2+2?[4]"),
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
        ({"question": "a", "answer": "b"}, "rename 'question' to 'instruction', 'answer' to 'outp"),
        ({"query": "a", "response": "b"}, "rename 'query' to 'instruction', 'response' to 'output"),
        ({"prompt": "a", "response": "b"}, "to 'completion' .prompt and completion are joined as"),
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
        ({"input": [ASKED], "output": "4"}, "both be texts: write a list of messages as 'mess"),
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
