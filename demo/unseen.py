"""Read five sets of real text that the demo's models are evaluated on and never trained on.

They were chosen by kind before anything was trained, so that they are related to the eight domains
in varying degree:

    c                  another programming language, like cpp
    reference          a manual in English, like docs; its examples are like python
    readmes            descriptions of packages in prose, code and tables, a little like docs
    encyclopedia       English prose of 1911, like no domain; it is about what shakespeare holds
    chinese_interface  short lines in the Chinese of today, where chinese is an old novel

Documents that mostly repeat lines of a domain are left out.
"""

import re
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import distributions
from pydoc_data.topics import topics

from demo import text
from demo.translations import translations

LIMIT = 500_000  # bytes of UTF-8 per set, rounded up to whole documents
MINIMUM = 12_000  # bytes of UTF-8; a set with less is an error

_LINES = 40  # translations per document
_SCAN = re.compile(r"^(?:#.*|p\.\d+:\d+)$\n?", re.MULTILINE)


def sets() -> dict[str, Callable[[], Iterator[str]]]:
    """Return the sets: name to reader, a function that yields raw documents."""
    return {
        "c": _c,
        "reference": _reference,
        "readmes": _readmes,
        "encyclopedia": _encyclopedia,
        "chinese_interface": _chinese_interface,
    }


def documents(name: str, known: Collection[str]) -> list[str]:
    """Read a set's documents: cleaned, without repetitions, in a fixed random order.

    Args:
        name: a key of `sets()`.
        known: lines of the domains, as `text.lines_of` returns them.

    Returns:
        The documents.

    Raises:
        ValueError: the set has fewer than `MINIMUM` bytes on this machine.
    """
    try:
        found = text.some_of(text.distinct(sets()[name](), known), LIMIT)
    except ModuleNotFoundError as error:
        raise ValueError(f"unseen set {name!r}: {error}; run `make install`") from error
    if (total := sum(len(part.encode()) for part in found)) < MINIMUM:
        size = f"found {total:,} bytes of text, fewer than {MINIMUM:,}"
        raise ValueError(f"unseen set {name!r}: {size}; run `make install`")
    return found


def _c() -> Iterator[str]:
    """Yield the runtime of mypyc, which is written in C."""
    yield from text.code(text.package("mypyc") / "lib-rt", "**/*.c")


def _reference() -> Iterator[str]:
    """Yield the topics of Python's language reference; the domain python leaves this file out."""
    yield from topics.values()


def _readmes() -> Iterator[str]:
    """Yield the long descriptions of the installed packages, except this one's."""
    found = {each.name: each.read_text("METADATA") or "" for each in distributions()}
    for name, metadata in sorted(found.items()):
        if name != "nemo_chameleon":
            yield metadata.partition("\n\n")[2]


def _encyclopedia() -> Iterator[str]:
    """Yield the Encyclopaedia Britannica of 1911 on Shakespeare, without the marks of its scan."""
    path = text.package("shksprdata") / "ancillary" / "britannica-11th.txt"
    yield _SCAN.sub("", text.read(path))


def _chinese_interface() -> Iterator[str]:
    """Yield the Chinese of Django's interface."""
    lines = [chinese for _, chinese in translations("zh_Hans")]
    for start in range(0, len(lines), _LINES):
        yield "\n".join(lines[start : start + _LINES])
