"""Keys that are not understood: the error that names them, and the way out.

data.ignored_keys leaves a key out of all lines and messages of all domains. It is no way out for a
key that decides what is trained on, who speaks or what is called, because the text or the loss
would then be another one without a word.
"""

import re
from collections.abc import Sequence

import yaml

from nemo_chameleon.data.readers import MalformedError

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_LOSS = frozenset(
    "weight weights label labels mask masks masked loss losses train training trainable trained "
    "ignore ignored skip skipped exclude excluded".split()
)
_SPEAKERS = frozenset("role roles speaker speakers sender from".split())
_CALLS = frozenset(
    "function functions tool tools call calls api apis arguments parameters args".split()
)
# They are read in other places, where data.ignored_keys would leave them out too.
_READ_ELSEWHERE = frozenset(
    "instruction input system system_prompt history reasoning_content reasoning thinking".split()
)


class UnknownKeysError(MalformedError):
    """Raised for a line with keys that are not understood.

    Attributes:
        keys: the keys.
        ignorable: the keys too, or nothing if data.ignored_keys is no way out for one of them.
    """

    def __init__(self, keys: Sequence[str], of: str) -> None:
        """Name the keys.

        Args:
            keys: the keys.
            of: what has the keys, for instance "message".
        """
        self.keys = tuple(keys)
        self.ignorable = ignorable(keys) if len(ignorable(keys)) == len(keys) else ()
        quoted = ", ".join(map(repr, keys))
        which = f"key {quoted} of a {of} is" if len(keys) == 1 else f"keys {quoted} of a {of} are"
        remedies = dict.fromkeys(filter(None, (_remedy(key, of) for key in keys)))
        super().__init__("; ".join([f"the {which} not understood", *remedies]))


def ignorable(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys that data.ignored_keys may leave out.

    Args:
        keys: keys that are not understood.

    Returns:
        Those that decide neither the loss nor who speaks nor what is called.
    """
    return tuple(key for key in keys if not _remedy(key, "line"))


def _remedy(key: str, of: str) -> str:
    """Say what to write instead of a key; empty for a key that may be ignored."""
    words = {word.lower() for word in _WORD.findall(key)}
    if words & _LOSS:
        if of == "line":
            return (
                f"{key!r} may say what is not to be trained on: write it as 'weight' (0 or 1) of "
                "each message of the assistant, or remove such lines, and then remove the key"
            )
        return f"{key!r} may say what is not to be trained on: write it as 'weight' (0 or 1)"
    if words & _SPEAKERS:
        if of == "line":
            return (
                f"{key!r} says who speaks: write each conversation as one line of messages, each "
                "with role and content"
            )
        return f"{key!r} says who speaks: write it as the role, or in the content"
    if words & _CALLS:
        return (
            f"{key!r} belongs to tools: write a call as 'tool_calls' of its message "
            '([{"type": "function", "function": {"name": ..., "arguments": ...}}]), and the tools '
            "that may be called as 'tools' of the line, beside messages"
        )
    if key in _READ_ELSEWHERE:
        return f"{key!r} is not read here: write the line as messages, and the text in one of them"
    return ""


def ignored_keys_setting(keys: Sequence[str]) -> str:
    """Write the setting that leaves keys out, so that it works when it is typed.

    Args:
        keys: the keys.

    Returns:
        For instance "'data.ignored_keys=[title]'", in quotes for the shell.
    """
    setting = f"data.ignored_keys=[{', '.join(map(_typed, keys))}]"
    quoted = setting.replace("'", "'\\''")
    return f"'{quoted}'"


def _typed(key: str) -> str:
    plain = key.replace("_", "").replace("-", "").isalnum() and yaml.safe_load(key) == key
    if plain:
        return key
    # A configuration takes ${...} for a reference to another key, unless a backslash precedes it.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", key)
    return yaml.dump(escaped, default_style='"', allow_unicode=True, width=float("inf")).strip()
