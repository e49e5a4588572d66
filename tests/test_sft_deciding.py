"""data/sft/deciding.py: what may decide the loss is never left out without a word."""

import json
from typing import Any

import pytest

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.unknown import UnknownKeysError
from sft_lines import ASKED, CHATML, SAID, messages, read, shown

CHAT = "<user>2+2?</><assistant>[4</>]"
LINE = messages(ASKED, SAID)
PAIR = {"prompt": "2+2?", "completion": "4"}


@pytest.mark.parametrize("key", ["task", "knowledge"])
@pytest.mark.parametrize("line", [LINE, PAIR, {"text": "a"}])
def test_keys_that_may_be_a_part_of_the_prompt(line: dict[str, Any], key: str) -> None:
    """They are refused by their names, and no error advises to ignore them."""
    with pytest.raises(UnknownKeysError, match=f"'{key}' is not read here: write the") as error:
        read(line | {key: "Translate into French"})
    assert not error.value.ignorable
    assert "ignored_keys" not in str(error.value)


@pytest.mark.parametrize("value", ["no", False, 0, "yes"])
def test_a_key_that_says_what_was_used(value: Any) -> None:
    """It decides the loss, whatever its value."""
    with pytest.raises(UnknownKeysError, match="'used_in_training' may say what is not") as error:
        read(LINE | {"used_in_training": value})
    assert not error.value.ignorable


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"train": False, "lang": "en"}, "train"),
        ({"weight": 0}, "weight"),
        ({"weight": 0.5}, "weight"),
        ({"lossMask": [0, 1]}, "lossMask"),
        ({"skip": True}, "skip"),
        ({"mask": 1}, "mask"),
        ({"of": {"exclude": 1}}, "of.exclude"),
        ([{"train": 0}], "train"),
        (json.dumps({"train": False}), "train"),
    ],
)
@pytest.mark.parametrize(
    "key", ["metadata", "info", "Meta", "extra_info", "annotations", "quality", "tags", "turn_id"]
)
def test_metadata_that_decide_the_loss(value: Any, named: str, key: str) -> None:
    """A word that leaves something out is refused with the way out, in lines and in messages."""
    for line in (LINE | {key: value}, PAIR | {key: value}, {"text": "a", key: value}):
        with pytest.raises(UnknownKeysError, match=f"'{key}.{named}' may say what is not") as error:
            read(line)
        assert not error.value.ignorable
        assert read(line, CHATML, key).answers
    with pytest.raises(
        UnknownKeysError, match=f"'{key}.{named}' of a message .* write it as 'weight' .0 or 1.$"
    ):
        read(messages(ASKED, {**SAID, key: value}))


@pytest.mark.parametrize(
    "value",
    [
        {"train": True, "weight": 1, "loss": 1.0, "skip": False, "exclude": 0, "mask_user": 0},
        {"train": None, "split": "train", "weighting": 0, "of": {"train": 1}},
        "train: false",
        '{"train": ',
    ],
)
def test_metadata_that_say_to_train(value: Any) -> None:
    """They leave nothing out, and are metadata as others are."""
    assert shown(read(LINE | {"metadata": value})) == CHAT
    assert shown(read(messages(ASKED, {**SAID, "metadata": value}))) == CHAT
    assert shown(read(LINE | {"generation_config": {"skip_special_tokens": True}})) == CHAT


@pytest.mark.parametrize("key", ["kto_tag", "is_preferred", "deleted", "learn", "supervised"])
@pytest.mark.parametrize("value", [True, False, 0, 1, 1.0, "No", [True, False]])
def test_flags(key: str, value: Any) -> None:
    """The reader of the error is to decide, and data.ignored_keys is not advised as the fix."""
    sentence = (
        f"'{key}' may decide what is trained on; if it does not, data.ignored_keys reads the line "
        "without it"
    )
    for line in (LINE | {key: value}, PAIR | {key: value}, messages(ASKED, {**SAID, key: value})):
        with pytest.raises(UnknownKeysError) as error:
            read(line)
        assert str(error.value).endswith(f"is not understood; {sentence}")
        assert not error.value.ignorable
        assert read(line, CHATML, key).answers
    with pytest.raises(MalformedError) as fault:
        read({"question": "2+2?", "answer": "4", key: value})
    assert str(fault.value).startswith(
        "unknown form: rename 'question' to 'instruction', 'answer' "
    )
    assert str(fault.value).endswith(sentence)


def test_flags_beside_other_keys() -> None:
    """One flag is enough to advise nothing, and flags share a sentence."""
    with pytest.raises(UnknownKeysError, match=r"; 'a', 'b' may .*; if they do not, .* them$") as e:
        read(PAIR | {"a": True, "mood": "good", "b": 0})
    assert e.value.keys == ("a", "mood", "b")
    assert not e.value.ignorable


@pytest.mark.parametrize(
    "key", ["skip_prompt_formatting", "skip", "masked", "mask_prompt", "ignoreLoss", "excluded"]
)
def test_what_leaves_nothing_out(key: str) -> None:
    """A key that begins so says nothing when it is off, and is refused when it is on."""
    for off in (False, 0, 0.0, None):
        assert shown(read(LINE | {key: off})) == CHAT
        assert shown(read(messages(ASKED, {**SAID, key: off}))) == CHAT
    for on in (True, 1, "off", [0]):
        with pytest.raises(UnknownKeysError, match=f"'{key}' may say what is not to be trained"):
            read(LINE | {key: on})


def test_a_mask_of_zero() -> None:
    """A mask of 0 may be a mask of the loss; other words must come first in a key."""
    assert shown(read(LINE | {"mask": False})) == CHAT
    for beside in ({"mask": 0}, {"train_skip": False}, {"weight": False}):
        with pytest.raises(UnknownKeysError, match="may say what is not to be trained on"):
            read(LINE | beside)


@pytest.mark.parametrize("beside", [{"weight": "0"}, {"train": "no"}, {"label": "no"}])
def test_a_key_that_decides_is_no_repetition(beside: dict[str, str]) -> None:
    """It is refused, although a turn has the same text; a label in words may repeat the answer."""
    said = next(iter(beside.values()))
    line = messages({**ASKED, "content": said}, SAID) | beside
    with pytest.raises(UnknownKeysError, match="may say what is not to be trained on"):
        read(line)
    line = PAIR | {"completion": "good", "label": "good"}
    assert shown(read(line)) == "2+2?[good]"


def test_a_label_in_words() -> None:
    """It is a part of the text, and no weight is to be written for it."""
    for line in (LINE | {"label": "quality:4"}, messages(ASKED, {**SAID, "label": "quality:4"})):
        with pytest.raises(UnknownKeysError, match="'label' is not read here") as error:
            read(line)
        assert "weight" not in str(error.value)
        assert not error.value.ignorable
    for value in ("0.5", ["0", "1"], 3, [1, 0]):
        with pytest.raises(UnknownKeysError, match="'label' may say what is not to be trained on"):
            read(LINE | {"label": value})


def test_settings_of_a_request() -> None:
    """They are metadata, as OpenAI's lines have them beside messages."""
    for beside in ({"parallel_tool_calls": False}, {"tool_choice": "auto"}):
        example = read(LINE | beside)
        assert shown(example) == CHAT
        assert example.unread == tuple(beside)
