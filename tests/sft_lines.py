"""Lines of examples and chat templates to write them, and what is made of both."""

import json
from typing import Any

from nemo_chameleon.data.sft.examples import parse
from nemo_chameleon.data.sft.templates import ChatTemplate, Example

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


def messages(*turns: dict[str, Any]) -> dict[str, Any]:
    """Return a line of messages."""
    return {"messages": list(turns)}
