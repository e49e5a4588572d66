"""What an index says about its lines: which are malformed, and what is not read of the others."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft.unknown import UnknownKeysError, advice
from nemo_chameleon.utils.tables import printable

_SHOWN = 10  # kinds of faults that a message lists
_KINDS = 100  # that are counted one by one
_LONGEST = 300  # characters of a fault, and of all unknown keys that a message lists
_UNREAD = 20  # keys of metadata that a message lists
_KEPT = 1000  # keys that are remembered as not to be ignored
_OTHERS = "other faults"
# What a fault quotes of a line, and its numbers.
_VALUE = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d[\d.,]*")


class Reports:
    """Counts what is wrong with lines while an index is made, in little memory."""

    def __init__(self, listing: TextIO, ignored: Sequence[str]) -> None:
        """Start without any fault.

        Args:
            listing: every malformed line is written to it.
            ignored: the keys of lines that are left out already.
        """
        self._listing, self._ignored = listing, list(ignored)
        self._kinds: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._unknown: dict[str, None] = {}
        self._kept: set[str] = set()
        self._left_out: list[str] = []
        self._examples = 0
        self._after: list[str] = []
        self._with_after = self._turns_after = 0
        self._unread: Counter[str] = Counter()
        self._with_unread = 0
        self._splits: Counter[str] = Counter()

    def malformed(self, where: str, error: MalformedError) -> None:
        """Count a malformed line.

        Args:
            where: the file and the line.
            error: what is wrong with it.
        """
        fault = _shortened(str(error))
        kind = kind_of_fault(error)
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = _OTHERS
        self._kinds[kind] += 1
        self._first.setdefault(kind, f"{where}: {fault}")
        if isinstance(error, UnknownKeysError):
            # A key may be a title in one line, and a part of the question in another one.
            if len(self._kept) < _KEPT:
                self._kept.update(key for key in error.kept if len(key) <= _LONGEST)
            for key in error.ignorable:
                if sum(map(len, self._unknown)) + len(key) <= _LONGEST:
                    self._unknown[key] = None
        # A file's name need not be UTF-8, and the listing has one line for each line.
        self._listing.write(printable(f"{where}: {fault}", kept="") + "\n")

    def left_out(self, where: str, what: Sequence[str]) -> None:
        """Count an example whose reasoning the chat template leaves out.

        Args:
            where: the file and the line.
            what: where the line has the reasoning; empty if nothing is left out.
        """
        if what:
            self._examples += 1
            self._left_out = self._left_out or [where, *what]

    def after(self, where: str, roles: Sequence[str]) -> None:
        """Count an example with turns after its last answer.

        Args:
            where: the file and the line.
            roles: the roles of these turns; empty if there are none.
        """
        if roles:
            self._with_after += 1
            self._turns_after += len(roles)
            self._after = self._after or [where, *dict.fromkeys(map(_shortened, roles))]

    def unread(self, keys: Sequence[str]) -> None:
        """Count an example with metadata that are not read.

        Args:
            keys: the keys; empty if the example has none.
        """
        if not keys:
            return
        self._with_unread += 1
        for key in map(_shortened, keys):
            if key in self._unread or len(self._unread) < _KINDS:
                self._unread[key] += 1

    def split(self, name: str | None) -> None:
        """Count an example of a split.

        Args:
            name: the split that the line says it is of, or None.
        """
        name = None if name is None else _shortened(name)
        if name is not None and (name in self._splits or len(self._splits) < _KINDS):
            self._splits[name] += 1

    def facts(self) -> dict[str, Any]:
        """Return what there is to say.

        Returns:
            malformed, the number of malformed lines by kind of fault, the first kinds first; first,
            the first line of each of the first kinds with its fault; unknown_keys; ignored_keys;
            left_out, the number of examples without their reasoning; first_left_out, the first of
            them; after, the number of examples with turns after their last answer; turns_after,
            the number of these turns; first_after, the first of these examples; unread, the number
            of examples by key of metadata; with_unread, the number of examples that have any; and
            splits, the number of examples by the split that they say they are of.
        """
        return {
            "malformed": dict(self._kinds),
            "first": dict(list(self._first.items())[:_SHOWN]),
            "unknown_keys": self._ignorable(),
            "ignored_keys": self._ignored,
            "left_out": self._examples,
            "first_left_out": self._left_out,
            "after": self._with_after,
            "turns_after": self._turns_after,
            "first_after": self._after,
            "unread": dict(self._unread),
            "with_unread": self._with_unread,
            "splits": dict(self._splits),
        }

    def _ignorable(self) -> list[str]:
        """Return the unknown keys that no line needs; nothing if there are too many to tell."""
        if len(self._kept) >= _KEPT:
            return []
        return [key for key in self._unknown if key not in self._kept]


def kind_of_fault(error: MalformedError) -> str:
    """Return a fault without what it quotes of the line; the names of unknown keys are kinds.

    Args:
        error: what is wrong with a line.

    Returns:
        The text that all faults of this kind share.
    """
    if isinstance(error, UnknownKeysError):
        return _shortened(str(error))
    return _shortened(_VALUE.sub("...", str(error)))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def describe_malformed(facts: Mapping[str, Any], listing: Path | None) -> str:
    """Describe the malformed lines of an index.

    Args:
        facts: of `Reports.facts`.
        listing: the file that lists all malformed lines, or None if it is not kept.

    Returns:
        The first line of each kind of fault, and the number of such lines; empty if there are none.
    """
    counts = facts["malformed"]
    if not counts:
        return ""
    shown = [
        first + (f" ({counts[kind]:,} lines)" if counts[kind] > 1 else "")
        for kind, first in facts["first"].items()
    ]
    text = "; ".join(shown)
    if listing is not None and sum(counts.values()) > len(shown):
        text += f"; all are listed in {listing}"
    if keys := facts["unknown_keys"]:
        text += f"; {advice(keys, facts['ignored_keys'])}"
    return text


def describe_left_out(facts: Mapping[str, Any]) -> str:
    """Describe the reasoning that the chat template leaves out of answers.

    Args:
        facts: of an index.

    Returns:
        How many examples are affected, and the first of them; empty if there are none.
    """
    if not facts["left_out"]:
        return ""
    where, *what = facts["first_left_out"]
    return (
        f"the chat template leaves reasoning out of the answers of {facts['left_out']:,} of "
        f"{facts['examples']:,} examples (first: {where}, {' and '.join(what)}); they are trained "
        "on without it; set data.chat_template to a template that writes it to train on it"
    )


def describe_after(facts: Mapping[str, Any]) -> str:
    """Describe the turns that stand after the last answers that carry loss.

    Args:
        facts: of an index; one that an earlier version made does not count these turns.

    Returns:
        How many turns of how many examples, and the first of them; empty if there are none.
    """
    if not facts.get("after"):
        return ""
    where, *roles = facts["first_after"]
    return (
        f"{facts['turns_after']:,} turns of {facts['after']:,} of {facts['examples']:,} examples "
        f"come after the last answer that carries loss, and are left out (first: {where}, "
        f"{' and '.join(roles)})"
    )


def describe_unread(facts: Mapping[str, Any]) -> str:
    """Describe the metadata that are not read.

    Args:
        facts: of an index; one that an earlier version made does not count metadata.

    Returns:
        The keys with the number of examples that have them; empty if there are none.
    """
    counts = facts.get("unread")
    if not counts:
        return ""
    kept = list(counts)[:_UNREAD]
    names = [_named(key, counts[key], facts["with_unread"]) for key in kept]
    more = f" and {len(counts) - len(kept):,} more" if len(counts) > len(kept) else ""
    return (
        f"{facts['with_unread']:,} of {facts['examples']:,} examples also have {', '.join(names)}"
        f"{more}, which count as metadata and are not in their text; write what belongs to the "
        "text in a message or in the prompt"
    )


def describe_splits(facts: Mapping[str, Any]) -> str:
    """Describe examples that say they are of several splits.

    Args:
        facts: of an index.

    Returns:
        The splits with the number of their examples; empty if there are less than two.
    """
    counts = facts["splits"]
    if len(counts) < 2:
        return ""
    named = ", ".join(f"{name!r} ({count:,})" for name, count in list(counts.items())[:_SHOWN])
    more = f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
    return (
        f"the examples say that they are of several splits: {named}{more}; all of them are in this "
        "domain; to hold a split out, write its lines into a file of their own"
    )


def _named(key: str, count: int, of: int) -> str:
    return key if count == of else f"{key} ({count:,})"
