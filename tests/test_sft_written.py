"""data/sft/: templates that change a text, move the system prompt, or are no templates."""

import pytest

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.utils.errors import UserError
from sft_lines import ASKED, CHATML, SAID, messages, read, shown


@pytest.mark.parametrize("written", ["m.content.split() | join(' ')", "m.content.split() | join"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_template_that_changes_white_space(written: str, place: int) -> None:
    """White space within a text is a part of it, and may be missing at the ends alone."""
    template = CHATML.replace("m.content or ''", written)
    turns = [ASKED, SAID]
    turns[place] = {**turns[place], "content": "def f():\n    return 1"}
    assert read(messages(*turns)).answers
    with pytest.raises(MalformedError, match="does not write a"):
        read(messages(*turns), template)
    trimmed = CHATML.replace("m.content or ''", "m.content | trim")
    turns[place] = {**turns[place], "content": " \r\n a\r\nb  \n"}
    assert "a\r\nb<" in read(messages(*turns), trimmed).text
    unix = trimmed.replace("m.content |", "m.content.replace('\\r\\n', '\\n') |")
    assert "a\nb<" in read(messages(*turns), unix).text


def test_a_template_that_moves_the_system_prompt() -> None:
    """The system prompt is named as the cause, and the advice works."""
    template = (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>"
        "{{ messages[0].content if loop.last and messages[0].role == 'system' and m.role == 'user' "
        "}}{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(UserError, match="writes the system prompt elsewhere, or not at all, as so"):
        read(messages({"role": "system", "content": "Add."}, ASKED, SAID), template)
    line = messages({**ASKED, "content": "Add.\n2+2?"}, SAID)
    assert shown(read(line, template)) == "<user>Add.\n2+2?</><assistant>[4</>]"
    thinks = CHATML.replace("<assistant>{% endif", "<assistant>?{% endif")
    with pytest.raises(UserError, match="with its generation prompt"):
        read(messages({"role": "system", "content": "Add."}, ASKED, SAID), thinks)


def test_a_file_that_is_no_template() -> None:
    """A text without Jinja is named, and no answer is called empty."""
    with pytest.raises(
        UserError, match=r"has no Jinja such as .* set data.chat_template to a Jinja"
    ):
        read(messages(ASKED, SAID), '{"version": "1.0", "model": {"type": "BPE"}}')
