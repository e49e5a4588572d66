"""Reads the lines of files in any format that formats.py knows."""

import codecs
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from nemo_chameleon.data.readers.compression import READ_ERRORS, open_bytes
from nemo_chameleon.data.readers.formats import (
    ARRAY,
    ARROW,
    HEAD,
    LINES,
    PARQUET,
    DataFile,
    require_lines,
    require_utf8_text,
)
from nemo_chameleon.data.readers.lines import (
    TOO_LONG,
    Line,
    MalformedError,
    UnusableLineError,
    text_at,
)
from nemo_chameleon.data.readers.tables import read_rows
from nemo_chameleon.utils.errors import UserError, reason_of

VERSION = 1
"""Of what is read of a file; a new number makes new indices, and `prepare` begins again."""
_CHARACTERS = 1 << 20
_SPACE = " \t\n\r"


def read_lines(
    files: Sequence[DataFile],
    advance: Callable[[int], Any] = lambda size: None,
    *,
    key: str | None = None,
    without: Collection[str] = (),
    after: tuple[int, int] = (0, 0),
) -> Iterator[Line]:
    """Yield the lines of files that are not blank.

    The lines of a JSONL file are its bytes. A record of another format becomes a JSON object, and
    a file of plain text becomes one object with the text.

    Args:
        files: the files, in the order in which they are read.
        advance: called with the number of bytes that were read of the files since the last call,
            for a progress bar.
        key: the only key that is needed of each line, as `text_at` takes it, under which the text
            of a plain file is found too; None for all keys, and "text".
        without: columns of tables that are not read, and so need not be text.
        after: file and number of the line after which to begin.

    Yields:
        The lines.

    Raises:
        UserError: a file cannot be read, is damaged or ends in the middle.
    """
    for file, data in enumerate(files):
        if file < after[0]:
            advance(data.path.stat().st_size)
            continue
        seen = 0
        try:
            for number, (text, position) in _numbered(data, key, without):
                if position > seen:
                    advance(position - seen)
                    seen = position
                if (file, number) > after:
                    yield Line(file, number, text)
            if data.path.is_file():
                advance(max(0, data.path.stat().st_size - seen))
        except READ_ERRORS as error:
            raise UserError(f"cannot read {data.path}: {reason_of(error)}") from error


def document_of(line: Line, files: Sequence[DataFile], key: str) -> str:
    """Return the document of a line.

    Args:
        line: what `read_lines` yields.
        files: the files that were read.
        key: the key of the document in each line, as `text_at` takes it.

    Returns:
        The document.

    Raises:
        UnusableLineError: the line has no document; the message names the file and the line.
    """
    try:
        return text_at(line.text, key)
    except MalformedError as error:
        raise UnusableLineError(f"{files[line.file].place(line.number)}: {error}") from error


def _numbered(
    data: DataFile, key: str | None, without: Collection[str]
) -> Iterator[tuple[int, tuple[bytes, int]]]:
    """Yield number, bytes and position in the file of each line that is not blank."""
    if data.format in (PARQUET, ARROW):
        size = data.path.stat().st_size
        columns = None if key is None else {key, key.split(".")[0]}
        for number, (text, share) in enumerate(read_rows(data, columns, without), 1):
            yield number, (text, int(share * size))
        return
    stream, position = open_bytes(data.path)
    with stream:
        if data.format == LINES:
            if not data.path.is_file():
                require_lines(data.path, stream.peek(HEAD)[:HEAD])
            yield from _lines(stream, position)
        elif data.format == ARRAY:
            for number, text in enumerate(_elements(data, stream), 1):
                yield number, (text, position())
        else:
            document = require_utf8_text(data.path, stream.read())
            if document.strip():
                yield 1, (json.dumps({key or "text": document}).encode(), position())


def _lines(
    stream: io.BufferedReader, position: Callable[[], int]
) -> Iterator[tuple[int, tuple[bytes, int]]]:
    for number, line in enumerate(stream, 1):
        text = line.removeprefix(codecs.BOM_UTF8)  # where files were joined too
        if text and not text.isspace():
            yield number, (text, position())


def _elements(data: DataFile, stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield the elements of a JSON array, of which only a part is in memory at a time."""
    reader = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    decoder = json.JSONDecoder()
    text, at, count, ended = "", 0, 0, False

    def more() -> None:
        nonlocal text, at, ended
        try:
            # An element that is longer than what was read needs few further attempts.
            read = reader.read(max(_CHARACTERS, len(text) - at))
        except UnicodeDecodeError as error:
            raise UserError(f"{data.place(count + 1)}: not valid UTF-8") from error
        text, at, ended = text[at:] + read, 0, not read

    def next_character() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at] in _SPACE:
                at += 1
            if at < len(text) or ended:
                return text[at : at + 1]
            more()

    next_character()
    at += 1  # the bracket by which the format was recognised
    while (character := next_character()) != "]":
        if count:
            if character != ",":
                raise UserError(_broken(data, count, character))
            at += 1
            next_character()
        while True:
            try:
                _, stop = decoder.raw_decode(text, at)
            except RecursionError as error:
                place = data.place(count + 1)
                raise UserError(f"{place}: not JSON that can be read: nested too deep") from error
            except ValueError as error:
                if not isinstance(error, json.JSONDecodeError):
                    raise UserError(f"{data.place(count + 1)}: {TOO_LONG}") from error
                if ended:
                    raise UserError(_broken(data, count, text[at:])) from error
                more()
            else:
                break
        count += 1
        element, at = text[at:stop], stop
        yield element.encode()
    at += 1
    if next_character():
        raise UserError(
            f"{data.path}: there is more after the end of its JSON array, at {text[at : at + 20]!r}"
        )


def _broken(data: DataFile, count: int, rest: str) -> str:
    if not rest:
        return f"{data.path}: the JSON array ends in the middle, after record {count}"
    return f"{data.place(count + 1)}: not JSON, or the file ends in the middle of it"
