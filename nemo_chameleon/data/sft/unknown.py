"""Keys that are not understood: the error that names them, and the way out.

data.ignored_keys leaves a key out of all lines and messages of all domains. It is no way out for a
key that decides what is trained on, who speaks or what is called, or that may be a part of the
question, because the text or the loss would then be another one without a word. A key with a yes
or a no may decide that too, which only the reader of the error can tell.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.meanings import Meaning, is_flag, meaning_of

_LONGEST = 100  # characters of a value that is a title or a name, and no part of the text


class UnknownKeysError(MalformedError):
    """Raised for a line with keys that are not understood.

    Attributes:
        keys: the keys.
        kept: those that data.ignored_keys must not leave out, or only the reader can tell.
        readable: whether the line can be read without the keys, if the reader finds that none of
            them decides what is trained on.
        ignorable: all keys, or nothing if one is kept.
    """

    def __init__(self, said: Mapping[str, Any], of: str) -> None:
        """Name the keys.

        Args:
            said: the keys with their values.
            of: what has the keys, for instance "message".
        """
        self.keys = tuple(said)
        texts = [key for key, value in said.items() if _may_be_text(key, value)]
        remedies = {
            key: _not_read(texts, of) if key in texts else remedy(key, value, of)
            for key, value in said.items()
        }
        doubtful = [key for key in said if not remedies[key] and is_flag(said[key])]
        self.kept = tuple(key for key in said if remedies[key] or key in doubtful)
        self.readable = not any(remedies.values())
        self.ignorable = () if self.kept else self.keys
        quoted = ", ".join(map(repr, said))
        which = f"key {quoted} of a {of} is" if len(said) == 1 else f"keys {quoted} of a {of} are"
        sentences = dict.fromkeys(filter(None, remedies.values()))
        if doubtful:
            sentences[_doubt(doubtful)] = None
        super().__init__("; ".join([f"the {which} not understood", *sentences]))


def _doubt(keys: Sequence[str]) -> str:
    """Say that keys may decide what is trained on."""
    does, it, them = ("does", "it", "it") if len(keys) == 1 else ("do", "they", "them")
    return (
        f"{', '.join(map(repr, keys))} may decide what is trained on; if {it} {does} not, "
        f"data.ignored_keys reads the line without {them}"
    )


def remedy(key: str, value: Any, of: str) -> str:
    """Say what to write instead of a key.

    Args:
        key: a key that is not understood.
        value: its value.
        of: what has the key, for instance "message".

    Returns:
        What to do; empty for a key that may be ignored or is a text.
    """
    meaning = meaning_of(key, value)
    in_line = of == "line"
    if meaning in (Meaning.LOSS, Meaning.LEAVING_OUT):
        fault = f"{key!r} may say what is not to be trained on: write it as 'weight' (0 or 1)"
        if in_line:
            return (
                f"{fault} of each message of the assistant, or remove such lines, and then remove "
                "the key"
            )
        return fault
    if meaning is Meaning.SPEAKER:
        if in_line:
            return (
                f"{key!r} says who speaks: write each conversation as one line of messages, each "
                "with role and content"
            )
        return f"{key!r} says who speaks: write it as the role, or in the content"
    if meaning is Meaning.CALL:
        return (
            f"{key!r} belongs to tools: write a call as 'tool_calls' of its message "
            '([{"type": "function", "function": {"name": ..., "arguments": ...}}]), and the tools '
            "that may be called as 'tools' of the line, beside messages"
        )
    if meaning is Meaning.MEDIA:
        return (
            f"{key!r} is a picture, a film or a sound, which is not read: remove the lines that "
            "need it, or the key where the text is complete without it"
        )
    return ""


def _not_read(keys: Sequence[str], of: str) -> str:
    """Say what to do about keys that may be a part of the question or of the answer."""
    one = len(keys) == 1
    how = (
        "write the line as messages, and the text in one of them"
        if of == "line"
        else "write the text in the content"
    )
    return (
        f"{', '.join(map(repr, keys))} {'is' if one else 'are'} not read here: {how}; remove "
        f"{'the key if it belongs' if one else 'the keys if they belong'} to neither the question "
        "nor the answer"
    )


def _may_be_text(key: str, value: Any) -> bool:
    """Return whether a key may be a part of the question, by its name or by its value."""
    meaning = meaning_of(key, value)
    if meaning not in (Meaning.TEXT, Meaning.MEASURE, Meaning.UNKNOWN):
        return False
    if meaning is Meaning.TEXT or isinstance(value, dict):
        return True
    if isinstance(value, list):
        return not is_flag(value) or any(isinstance(each, str | list) for each in value)
    if isinstance(value, str):
        long = len(value) > _LONGEST or "\n" in value.strip()
        return long or (meaning is Meaning.MEASURE and any(map(str.isalpha, value)))
    return False


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


def advice(keys: Sequence[str], ignored: Sequence[str], lines: str = "the lines") -> str:
    """Advise to leave keys out.

    Args:
        keys: keys that may be left out.
        ignored: the keys that are left out already.
        lines: what is then read.

    Returns:
        The setting, what it does and when it is right.
    """
    these, they = ("this key", "it belongs") if len(keys) == 1 else ("these keys", "they belong")
    return (
        f"set {ignored_keys_setting([*ignored, *keys])} to read {lines} without {these}, if {they} "
        "to neither the question nor the answer"
    )


def _typed(key: str) -> str:
    plain = key.replace("_", "").replace("-", "").isalnum() and yaml.safe_load(key) == key
    if plain:
        return key
    # A configuration takes ${...} for a reference to another key, unless a backslash precedes it.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", key)
    return yaml.dump(escaped, default_style='"', allow_unicode=True, width=float("inf")).strip()
