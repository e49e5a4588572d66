"""data/sft/: the advice of an error, typed as it is printed, takes away no part of the text."""

import re
from typing import Any

import pytest
import yaml

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.unknown import UnknownKeysError
from sft_lines import ASKED, CHATML, SAID, messages, read, shown

CHAT = messages(ASKED, SAID)
QUESTION = {"question": "2+2?", "answer": "4"}


def typed(line: dict[str, Any]) -> tuple[dict[str, Any], list[str], str]:
    """Do what the error about a line says: rename keys and set data.ignored_keys."""
    with pytest.raises(MalformedError) as error:
        read(line)
    text = str(error.value)
    if isinstance(error.value, UnknownKeysError):
        ignored = list(error.value.ignorable)
    else:
        setting = re.search(r"'data\.ignored_keys=(\[.*?\])'", text)
        ignored = yaml.safe_load(setting[1]) if setting else []
    renamed = dict(re.findall(r"'(\w+)' to '(\w+)'", text))
    return {renamed.get(key, key): value for key, value in line.items()}, ignored, text


@pytest.mark.parametrize(
    "line",
    [
        {**QUESTION, "choices": ["3", "4"]},
        {**QUESTION, "options": {"A": "3", "B": "4"}},
        {**QUESTION, "anything": ["3", "4"]},
        {**QUESTION, "anything": ["yes", "no"]},
        {**QUESTION, "anything": "long " * 30},
        {**QUESTION, "anything": "first\nsecond"},
        {"definition": "Add the numbers.", "inputs": "2+2", "targets": "4"},
        {"document": "Once upon a time.", "summary": "A tale"},
        {**QUESTION, "db_schema": "CREATE TABLE t"},
        {**QUESTION, "persona": "A pirate"},
        {**QUESTION, "rationale": "Two and two"},
        {**QUESTION, "thinking_trajectories": ["Two and two"]},
        {**QUESTION, "userContext": "At school"},
        {**QUESTION, "title": "Sums", "documents": "At school"},
        *(
            CHAT | {key: "At school"}
            for key in ("context", "instructions", "system_message", "documents", "hint")
        ),
        CHAT | {"documents": ["At school"]},
        messages({**ASKED, "context": "At school"}, SAID),
        messages({**ASKED, "anything": [{"text": "At school"}]}, SAID),
    ],
)
def test_a_part_of_the_question(line: dict[str, Any]) -> None:
    """Neither is it ignored, nor is another key renamed so that it would be missing."""
    new, ignored, text = typed(line)
    assert new == line
    assert not ignored
    assert "ignored_keys" not in text
    assert "not read here: write the" in text


@pytest.mark.parametrize(
    "line",
    [
        *(
            CHAT | {key: value}
            for key, value in {
                "images": ["a.png"],
                "image": "a.png",
                "image_id": "x.png",
                "videoPath": "a.mp4",
                "audio": {"path": "a.wav"},
                "pixel_values": [[0.5]],
            }.items()
        ),
        {**QUESTION, "image": "a.png"},
        {"text": "a", "audio_filepath": "a.wav"},
        messages({**ASKED, "images": ["a.png"]}, SAID),
    ],
)
def test_pictures_and_sounds(line: dict[str, Any]) -> None:
    """A line that needs one cannot be read, and no setting is advised that leaves it out."""
    new, ignored, text = typed(line)
    assert new == line
    assert not ignored
    assert "ignored_keys" not in text
    assert "is a picture, a film or a sound, which is not read: remove the lines that" in text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (QUESTION, "<user>2+2?</><assistant>[4</>]"),
        ({**QUESTION, "title": "Sums"}, "<user>2+2?</><assistant>[4</>]"),
        ({**QUESTION, "context": "Add.", "mood": 3}, "<user>2+2?\nAdd.</><assistant>[4</>]"),
        ({**QUESTION, "answer_length": 12, "mood": "good"}, "<user>2+2?</><assistant>[4</>]"),
        (CHAT | {"title": "Sums", "prompt_length": 4}, "<user>2+2?</><assistant>[4</>]"),
        ({"prompt": "2+2?", "response": "4", "title": "Sums"}, "2+2?[4]"),
        ({"content": "once", "title": "Sums"}, "[once]"),
    ],
)
def test_advice_that_can_be_typed(line: dict[str, Any], text: str) -> None:
    """After it the line is read, with the whole question and the whole answer."""
    new, ignored, _ = typed(line)
    assert shown(read(new, CHATML, *ignored)) == text


def test_pairs_that_would_be_joined() -> None:
    """The advice says that a prompt and a completion are no chat."""
    assert "instruction and output would be a chat" in typed({"prompt": "a", "response": "b"})[2]
    assert "instruction and output would be a chat" in typed({"input": "a", "target": "b"})[2]
    assert "joined" not in typed(QUESTION)[2]


@pytest.mark.parametrize("key", ["target", "is_target", "enable_thinking", "has_image"])
def test_questions_that_a_key_asks(key: str) -> None:
    """A yes or a no is no text; only the reader can tell what it decides."""
    for value in (False, True) if key == "target" else (False, True, 0, "no"):
        _, ignored, text = typed(CHAT | {key: value})
        assert not ignored
        assert f"'{key}' may decide what is trained on; if it does not" in text


def test_several_parts_of_the_question() -> None:
    """They share a sentence."""
    _, _, text = typed({"text": "a", "question": "2+2?", "answer": "4"})
    assert text.endswith(
        "'question', 'answer' are not read here: write the line as messages, and the text in one "
        "of them; remove the keys if they belong to neither the question nor the answer"
    )
