"""Says what a line of an unknown form should have been: which of its keys to rename to what."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.meanings import is_metadata
from nemo_chameleon.data.sft.unknown import UnknownKeysError, advice

_MESSAGES = tuple("conversation conversations dialogue dialog chat chats turns".split())
_QUESTIONS = tuple("question query problem inputs".split())
_ANSWERS = tuple("answer response reply solution target targets outputs".split())
# The names of each form, and other names that public datasets have for them. Of two forms with as
# many names to change the first is advised: a question is asked in a chat.
_FORMS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"messages": _MESSAGES},
    {
        "instruction": (*_QUESTIONS, "prompt"),
        "input": ("context", "passage"),
        "output": (*_ANSWERS, "completion"),
    },
    {"prompt": _QUESTIONS, "completion": (*_ANSWERS, "output")},
    {"input": (), "output": (*_ANSWERS, "completion")},
    {"text": ("content", "document", "texts")},
)
_WANTED = (
    "it needs messages, conversations, instruction and output, prompt and completion, input and "
    "output, or text"
)


def preference(said: Mapping[str, Any]) -> str:
    """Say what to do about preference data.

    Args:
        said: the keys of the line with their values.

    Returns:
        The fault and what is wanted; empty if the line is no preference data.
    """
    if "chosen" not in said and "rejected" not in said:
        return ""
    return (
        "preference data (chosen and rejected): a line has one answer to train on; write it as "
        "completion beside prompt, or as the last of messages"
    )


def complaint(
    said: Mapping[str, Any], read: Callable[[dict[str, Any]], Any], ignored: Collection[str]
) -> str:
    """Say what a line of an unknown form should have been.

    Args:
        said: the keys of the line with their values.
        read: reads a line; keys are to be renamed only if the line can then be read.
        ignored: the keys of lines that are left out already.

    Returns:
        The fault and what is wanted.
    """
    if text := preference(said):
        return text
    if "input_ids" in said:
        return f"tokenised already (input_ids): a line is text, and {_WANTED}"
    if best := _best_renaming(said, read, ignored):
        renamed, error = best
        if error is None or error.readable:
            steps = ", ".join(f"{key!r} to {name!r}" for key, name in renamed.items())
            also = f"; {error}" if error is not None else ""
            if error is not None and error.ignorable:
                also = f" and {advice(error.ignorable, list(ignored))}"
            return f"unknown form: rename {steps}{_joined(renamed, said)}{also}"
    names = ", ".join(repr(key) for key in said if not is_metadata(key)) or "only metadata"
    chat = next((key for key in _MESSAGES if key in said), None)
    how = f"; write {chat!r} as messages, a list of objects with role and content" if chat else ""
    if best and not how:
        how = f"; {best[1]}"
    return f"unknown form (it has {names}): {_WANTED}{how}"


def _joined(renamed: Mapping[str, str], said: Mapping[str, Any]) -> str:
    """Say what becomes of a pair that is no chat, if keys are renamed so."""
    names = {renamed.get(key, key) for key in said}
    for first, second in (("prompt", "completion"), ("input", "output")):
        if {first, second} <= names and not {"instruction", "messages"} & names:
            return (
                f" ({first} and {second} are joined as they are, without a chat template and "
                "without a space between them; instruction and output would be a chat)"
            )
    return ""


def _best_renaming(
    said: Mapping[str, Any], read: Callable[[dict[str, Any]], Any], ignored: Collection[str]
) -> tuple[dict[str, str], UnknownKeysError | None] | None:
    """Return the fewest keys to rename so that a line can be read, and what is then unknown."""
    found: list[tuple[dict[str, str], UnknownKeysError | None]] = []
    for renamed in _renamings(said):
        if not set(ignored).isdisjoint(renamed.values()):
            continue
        try:
            read({renamed.get(key, key): value for key, value in said.items()})
            found.append((renamed, None))
        except UnknownKeysError as error:
            found.append((renamed, error))
        except MalformedError:
            continue
    return min(found, key=_left_over, default=None)


def _left_over(
    found: tuple[dict[str, str], UnknownKeysError | None],
) -> tuple[bool, int, int, int]:
    """Return whether a line cannot be read, and how many keys are unknown and to be renamed."""
    renamed, error = found
    return (
        error is not None and not error.readable,
        len(error.keys) if error else 0,
        len(renamed),
        sum(key.lower() != name for key, name in renamed.items()),
    )


def _spelled(said: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the keys of a line with these names, whatever their capitals."""
    return [key for name in names for key in said if key.lower() == name]


def _renamings(said: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for form in _FORMS:
        choices = [
            [name] if name in said else _spelled(said, (name, *others))
            for name, others in form.items()
        ]
        if "instruction" in form and not choices[1]:
            del choices[1]  # the input may be missing
        names = [name for name in form if len(choices) == len(form) or name != "input"]
        for chosen in product(*choices):
            pairs = zip(chosen, names, strict=True)
            if renamed := {key: name for key, name in pairs if key != name}:
                yield renamed
