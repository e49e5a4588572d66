"""Tells the format of a file by its contents, and describes the places in it.

A name decides only where the contents can be either: the first line of a damaged .jsonl file is no
document of plain text.
"""

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path

from nemo_chameleon.data.readers.compression import READ_ERRORS, open_bytes
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import sampled_digest

LINES, ARRAY, TEXT, PARQUET, ARROW = "lines", "array", "text", "parquet", "arrow"
COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}
"""The endings of the names of compressed files."""

_HEAD = 4096
_NUMBERED = {LINES: "line", ARRAY: "record", PARQUET: "row", ARROW: "row"}
_JSON = {".json", ".jsonl", ".ndjson", ".jsonlines"}
_TABLES_OF_TEXT = {".csv", ".tsv"}
_LFS = b"version https://git-lfs.github.com/spec/"
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*(?:\{|\]|$)")
_OBJECT = re.compile(rb"\{\s*(?:\"|\}|$)")
_OVER_LINES = re.compile(rb"\{[ \t\r]*\n\s*\"")
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf": "a 7z archive"}


@dataclass(frozen=True)
class DataFile:
    """A file that holds documents or examples.

    Attributes:
        path: the file; "-" is the standard input.
        format: LINES, ARRAY, TEXT, PARQUET or ARROW.
    """

    path: Path
    format: str

    def place(self, number: int) -> str:
        """Name a line of the file for a message.

        Args:
            number: number of the line or record, from 1.

        Returns:
            For instance "data/a.jsonl, line 3"; a file of plain text is one document.
        """
        name = "the standard input" if str(self.path) == "-" else str(self.path)
        unit = _NUMBERED.get(self.format)
        return name if unit is None else f"{name}, {unit} {number}"

    def below(self, folder: Path) -> "DataFile":
        """Return the file as messages name it that already name a folder.

        Args:
            folder: the folder, or the file itself.

        Returns:
            The file with its path within the folder, or with its name alone.
        """
        inside = self.path.relative_to(folder) if folder.is_dir() else Path(self.path.name)
        return DataFile(inside, self.format)

    def identity(self) -> tuple[str, int, int, str]:
        """Return what changes if the file becomes another one.

        Returns:
            Its absolute path, its size in bytes, its time of modification, and a digest of 64
            blocks.

        Raises:
            OSError: the file cannot be read.
        """
        status = self.path.stat()
        name = str(self.path.resolve())
        return name, status.st_size, status.st_mtime_ns, sampled_digest(self.path)


def recognize(path: Path) -> DataFile:
    """Tell the format of a file.

    Args:
        path: the file. The standard input and other pipes are taken for JSONL, because they can be
            read only once.

    Returns:
        The file with its format.

    Raises:
        UserError: the file cannot be read, or has a format that is not known here.
    """
    if str(path) == "-" or not path.is_file():
        return DataFile(path, LINES)
    try:
        stream, _ = open_bytes(path)
        with stream:
            head = stream.peek(_HEAD)[:_HEAD]
    except READ_ERRORS as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if head.startswith(b"PAR1"):
        return DataFile(path, PARQUET)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return DataFile(path, ARROW)
    return DataFile(path, _format_of_text(path, head))


def _format_of_text(path: Path, head: bytes) -> str:
    named = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    ending = named.suffix.lower()
    _require_utf8(path, head)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if ending in _TABLES_OF_TEXT:
        raise UserError(
            f"{path} is a table of text, which is not read: write it as JSONL or as parquet"
        )
    if text.startswith(_LFS):
        raise UserError(f"{path} only says where Git LFS keeps the file: git lfs pull gets it")
    if _OVER_LINES.match(text):
        raise UserError(
            f"{path} begins with a JSON object over several lines, and JSONL has each object on "
            f"one line: jq -c . {path} writes it so; of one object with a list, such as data, jq "
            f"-c '.data[]' {path} writes the records"
        )
    begins_array = text.startswith(b"[") if ending in _JSON else _ARRAY_OF_OBJECTS.match(text)
    if begins_array and not _first_line_is_whole(text):
        return ARRAY
    if ending in _JSON or _OBJECT.match(text):
        return LINES
    return TEXT if text or ending == ".txt" else LINES


def _first_line_is_whole(text: bytes) -> bool:
    """Return whether a value ends with the first line, and another one follows."""
    first, _, rest = text.partition(b"\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _require_utf8(path: Path, head: bytes) -> None:
    for mark, what in _ARCHIVES.items():
        if head.startswith(mark):
            raise UserError(f"{path} is {what}: unpack it, and name what was in it")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(
            f"{path} is UTF-16, as Windows writes it: convert it with iconv -f UTF-16 -t UTF-8"
        )
    if b"\0" in head:
        raise UserError(
            f"{path} is not text, and no other format that can be read: JSONL, a JSON array, "
            "plain text, parquet and Arrow can, and the former three also compressed with gzip, "
            "zstd, bzip2 or xz"
        )


def require_utf8_text(path: Path, contents: bytes) -> str:
    """Decode a file of plain text.

    Args:
        path: the file, which errors name.
        contents: its bytes.

    Returns:
        The text, without a byte order mark.

    Raises:
        UserError: the file is not UTF-8.
    """
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid UTF-8 at byte {error.start}: convert it, for instance with "
            "iconv -f LATIN1 -t UTF-8"
        ) from error
