"""Lines of JSONL files: one reader for pretraining documents and for finetuning examples."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_chameleon.utils.errors import UserError


class MalformedError(ValueError):
    """A line that cannot be read; the message says why."""


class Line(NamedTuple):
    """One line that is not blank.

    Attributes:
        file: number of the file among those that are read.
        number: of the line in its file, from 1.
        text: its bytes, without a byte order mark.
    """

    file: int
    number: int
    text: bytes


def find_jsonl(path: str, where: str) -> list[Path]:
    """Return the .jsonl files that a path names: itself, or those in a folder, sorted by name.

    Args:
        path: a file or a folder.
        where: the configuration's key and value, for errors.

    Raises:
        UserError: there is no such file, or the folder has none.
    """
    files = [Path(path)]
    if files[0].is_dir():
        files = sorted(files[0].glob("*.jsonl"))
        if not files:
            raise UserError(f"{where}: there is no .jsonl file in this folder")
    if not files[0].is_file():
        hint = "; name it with its ending" if Path(f"{path}.jsonl").is_file() else ""
        raise UserError(f"{where}: there is no such file{hint}")
    return files


def read_lines(
    files: Sequence[Path], advance: Callable[[int], Any] = lambda size: None
) -> Iterator[Line]:
    """Yield the lines of files that are not blank.

    Args:
        files: in the order in which they are read.
        advance: called with the bytes of every line, for a progress bar.
    """
    for file, path in enumerate(files):
        with path.open("rb") as stream:
            for number, text in enumerate(stream, 1):
                advance(len(text))
                text = text.removeprefix(codecs.BOM_UTF8) if number == 1 else text
                if text.strip():
                    yield Line(file, number, text)


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on a line.

    Raises:
        MalformedError: broken UTF-8, no JSON, or no object.
    """
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise MalformedError("broken UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise MalformedError("not JSON") from error
    if not isinstance(value, dict):
        raise MalformedError("no JSON object")
    return value


def require_text(value: Any, what: str) -> str:
    """Return a value as it is, if it is text that UTF-8 can hold.

    Raises:
        MalformedError: it is not, which a lone surrogate in JSON makes possible too.
    """
    if not isinstance(value, str):
        raise MalformedError(f"{what} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{what} is not valid Unicode") from error
    return value


def read_jsonl(paths: Iterable[str | Path], key: str = "text") -> Iterator[str]:
    """Yield documents from JSONL files, one JSON object a line.

    Args:
        paths: the files.
        key: of the document in each object.

    Raises:
        UserError: naming the file and the line that cannot be read.
    """
    files = [Path(path) for path in paths]
    try:
        for line in read_lines(files):
            try:
                facts = parse_object(line.text)
                if key not in facts:
                    raise MalformedError(f"no JSON object with {key!r}")
                yield require_text(facts[key], repr(key))
            except MalformedError as error:
                raise UserError(f"{files[line.file]}, line {line.number}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error}") from error
