"""Tells whether a text that stands beside the turns of a line only repeats them.

Many datasets have the whole line a second time as `text`, as some template once wrote it.
"""

import re
from collections.abc import Iterable

# Alpaca's two beginnings, and Vicuna's.
_PREAMBLES = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.",
)
_LONGEST = 2 * max(map(len, _PREAMBLES))  # characters of markup in one place
_MARKUP = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        "|".join(re.escape(text).replace(r"\ ", r"\s+") for text in _PREAMBLES),
        r"<[^<>\s]{1,40}>",  # <|im_start|>, </s>, <<SYS>>
        r"[\n#][^\w\n]*[^\W\d]+(?: [^\W\d]+)? ?:",  # "### Instruction:" in any language
        r"\b(?:system|user|human|assistant|gpt|bot|model|tool|instruction|input|response|inst)\b",
    )
]
_WORD = re.compile(r"\w")


def repeats(whole: str, texts: Iterable[str]) -> bool:
    """Return whether a text has some texts in their order, and beside them only template markup.

    Args:
        whole: the text.
        texts: the texts; their lines may have markup between them.

    Returns:
        Whether it does.
    """
    whole, position = f"\n{whole}", 0
    for text in texts:
        for line in filter(None, map(str.strip, text.splitlines())):
            found = _find(whole, line, position)
            if found is None:
                return False
            position = found + len(line)
    return _is_markup(whole[position:])


def _find(whole: str, line: str, position: int) -> int | None:
    """Return where a line begins that has only markup before it, from a position on."""
    last = position + _LONGEST + len(line)
    found = whole.find(line, position, last)
    while found >= 0:
        if _is_markup(whole[position:found]):
            return found
        found = whole.find(line, found + 1, last)
    return None


def _is_markup(text: str) -> bool:
    if len(text) > _LONGEST:
        return False
    for markup in _MARKUP:
        text = markup.sub("\n", text)
    return _WORD.search(text) is None
