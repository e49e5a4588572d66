"""Reads the lines of JSONL files, for pretraining documents and for finetuning examples.

Lines are read as bytes. Blank lines and a byte order mark are left out.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_chameleon.utils.errors import UserError


class MalformedError(ValueError):
    """Raised for a line that cannot be used; the message says why."""


class Line(NamedTuple):
    """One line that is not blank.

    Attributes:
        file: position of its file among the files that are read, from 0.
        number: number of the line in its file, from 1.
        text: the bytes of the line, without a byte order mark.
    """

    file: int
    number: int
    text: bytes


def find_jsonl(path: str, where: str) -> list[Path]:
    """Return the JSONL files that a path names.

    Args:
        path: a file, or a folder of .jsonl files.
        where: the key of the configuration and its value; errors begin with it.

    Returns:
        The file itself, or the .jsonl files of the folder, sorted by name.

    Raises:
        UserError: there is no such file, or the folder has no .jsonl file.
    """
    files = [Path(path)]
    if files[0].is_dir():
        files = sorted(files[0].glob("*.jsonl"))
        if not files:
            raise UserError(f"{where}: this folder has no .jsonl file")
    if not files[0].is_file():
        hint = "; add the ending .jsonl" if Path(f"{path}.jsonl").is_file() else ""
        raise UserError(f"{where}: there is no such file{hint}")
    return files


def read_lines(
    files: Sequence[Path], advance: Callable[[int], Any] = lambda size: None
) -> Iterator[Line]:
    """Yield the lines of files that are not blank.

    Args:
        files: the files, in the order in which they are read.
        advance: called with the size of every line in bytes, for a progress bar.

    Yields:
        The lines.
    """
    for file, path in enumerate(files):
        with path.open("rb") as stream:
            for number, text in enumerate(stream, 1):
                advance(len(text))
                text = text.removeprefix(codecs.BOM_UTF8) if number == 1 else text
                if text.strip():
                    yield Line(file, number, text)


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Args:
        line: the bytes of the line.

    Returns:
        The object.

    Raises:
        MalformedError: the line is not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise MalformedError("not valid UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise MalformedError("not JSON") from error
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    return value


def require_text(value: Any, what: str) -> str:
    """Check that a value is text that UTF-8 can encode.

    Args:
        value: the value.
        what: what the value is; the error begins with it.

    Returns:
        The same value.

    Raises:
        MalformedError: the value is not text, or it has a lone surrogate, which JSON allows.
    """
    if not isinstance(value, str):
        raise MalformedError(f"{what} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{what} is not valid Unicode") from error
    return value


def read_jsonl(paths: Iterable[str | Path], key: str = "text") -> Iterator[str]:
    """Yield the documents of JSONL files, which have one JSON object per line.

    Args:
        paths: the files, in the order in which they are read.
        key: the key of the document in each object.

    Yields:
        The documents.

    Raises:
        UserError: a file or a line cannot be read; the message names the file and the line.
    """
    for path in map(Path, paths):
        try:
            for line in read_lines([path]):
                try:
                    yield _document(line, key)
                except MalformedError as error:
                    raise UserError(f"{path}, line {line.number}: {error}") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error}") from error


def _document(line: Line, key: str) -> str:
    value = parse_object(line.text)
    if key not in value:
        raise MalformedError(f"the JSON object has no key {key!r}")
    return require_text(value[key], repr(key))
