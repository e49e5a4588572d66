"""Keys that are not understood: the error that names them, and the way out.

data.ignored_keys leaves a key out of all lines and messages of all domains. It is no way out for a
key that decides what is trained on, who speaks or what is called, because the text or the loss
would then be another one without a word. A key with a yes or a no may decide that too, which only
the reader of the error can tell.
"""

import re
from collections.abc import Collection, Sequence

import yaml

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.deciding import decides_loss, words_of

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
        readable: whether the line can be read without the keys, if none of them decides what is
            trained on.
        ignorable: the keys too, or nothing if data.ignored_keys is no way out for one of them, or
            only the reader can tell.
    """

    def __init__(self, keys: Sequence[str], of: str, flags: Collection[str] = ()) -> None:
        """Name the keys.

        Args:
            keys: the keys.
            of: what has the keys, for instance "message".
            flags: those with a yes or a no as their values.
        """
        self.keys = tuple(keys)
        self.readable = len(ignorable(keys)) == len(keys)
        doubtful = [key for key in keys if key in flags and not remedy(key, of)]
        self.ignorable = self.keys if self.readable and not doubtful else ()
        quoted = ", ".join(map(repr, keys))
        which = f"key {quoted} of a {of} is" if len(keys) == 1 else f"keys {quoted} of a {of} are"
        remedies = dict.fromkeys(filter(None, (remedy(key, of) for key in keys)))
        if doubtful:
            remedies[_doubt(doubtful)] = None
        super().__init__("; ".join([f"the {which} not understood", *remedies]))


def ignorable(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys that data.ignored_keys may leave out.

    Args:
        keys: keys that are not understood.

    Returns:
        Those that decide neither the loss nor who speaks nor what is called.
    """
    return tuple(key for key in keys if not remedy(key, "line"))


def _doubt(keys: Sequence[str]) -> str:
    """Say that keys may decide what is trained on."""
    does, it, them = ("does", "it", "it") if len(keys) == 1 else ("do", "they", "them")
    return (
        f"{', '.join(map(repr, keys))} may decide what is trained on; if {it} {does} not, "
        f"data.ignored_keys reads the line without {them}"
    )


def remedy(key: str, of: str) -> str:
    """Say what to write instead of a key.

    Args:
        key: a key that is not understood.
        of: what has the key, for instance "message".

    Returns:
        What to do; empty for a key that may be ignored.
    """
    words = set(words_of(key))
    if decides_loss(key):
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
