"""Tells the format of a file by its contents, and describes the places in it.

A name decides only where the contents can be either: the first line of a damaged .jsonl file is no
document of plain text.
"""

import codecs
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from nemo_chameleon.data.readers.compression import READ_ERRORS, open_bytes
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.files import sampled_digest
from nemo_chameleon.utils.tables import printable

LINES, ARRAY, TEXT, PARQUET, ARROW = "lines", "array", "text", "parquet", "arrow"
COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}
"""The endings of the names of compressed files."""

HEAD = 4096
"""Bytes that the format of a file is told by."""

_NUMBERED = {LINES: "line", ARRAY: "record", PARQUET: "row", ARROW: "row"}
_JSON = {".json", ".jsonl", ".ndjson", ".jsonlines"}
_TABLES_OF_TEXT = {".csv", ".tsv"}
_EXPORT = "save its text as JSONL, parquet or .txt in UTF-8"
# Files that are zip archives, which nobody wants to unpack.
_ZIPPED = {
    ".docx": ("a document of Word", _EXPORT),
    ".xlsx": ("a workbook of Excel", _EXPORT),
    ".pptx": ("a presentation of PowerPoint", _EXPORT),
    ".odt": ("a document of LibreOffice", _EXPORT),
    ".epub": ("a book in EPUB", _EXPORT),
    ".npz": ("an archive of NumPy arrays", _EXPORT),
}
_LFS = b"version https://git-lfs.github.com/spec/"
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*(?:\{|\]|$)")
_OBJECT = re.compile(rb"\{\s*(?:\"|\}|$)")
_OVER_LINES = re.compile(rb"\{[ \t\r]*\n\s*\"")
_UNPACK = "unpack it, and name what was in it"
_TWICE = "decompress it once, and name what was in it"
_ZIP = b"PK\x03\x04"
# What a file is by its first bytes, and what to do with it.
_SIGNATURES = {
    _ZIP: ("a zip archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a rar archive", _UNPACK),
    b"\x04\x22\x4d\x18": ("compressed with lz4, which is not read", "decompress it with lz4 -d"),
    b"\x1f\x9d": ("compressed with compress, which is not read", "decompress it with gzip -d"),
    b"LZIP": ("compressed with lzip, which is not read", "decompress it with lzip -d"),
    b"\x89LZO": ("compressed with lzop, which is not read", "decompress it with lzop -d"),
    b"\x5d\x00\x00": ("compressed with lzma, which is not read", "decompress it with xz -d"),
    b"\xff\x06\x00\x00sNaPpY": ("compressed with snappy, which is not read", "decompress it"),
    b"\x1f\x8b\x08": ("compressed twice", _TWICE),
    b"\x28\xb5\x2f\xfd": ("compressed twice", _TWICE),
    b"BZh": ("compressed twice", _TWICE),
    b"\xfd7zXZ": ("compressed twice", _TWICE),
    b"%PDF-": ("a PDF file", "write its text to a file first, for instance with pdftotext"),
    b"\xd0\xcf\x11\xe0": ("a document of Microsoft Office", "save it as plain text in UTF-8"),
    b"\x89PNG": ("an image", "leave it out"),
    b"\xff\xd8\xff": ("an image", "leave it out"),
    b"GIF8": ("an image", "leave it out"),
    b"ORC": ("an ORC file, which is not read", "write it as parquet"),
    b"Obj\x01": ("an Avro file, which is not read", "write it as parquet or JSONL"),
    b"\x89HDF": ("an HDF5 file, which is not read", "write its text as JSONL or parquet"),
    b"SQLite format 3": ("an SQLite database", "write its text as JSONL or parquet"),
    b"\x93NUMPY": ("a NumPy array", "write its text as JSONL or parquet"),
    b"\x80\x04\x95": ("a Python pickle, which is never read", "write its text as JSONL"),
    b"MMIDIDX": ("the .idx of a Megatron dataset", "it is tokenised already"),
}
_TAR = (257, b"ustar")
# UTF-32 comes first: its mark begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x19\x1c-\x1f\x7f]")  # of no text in any encoding
_NO_TEXT = (
    "is not text, and no other format that can be read: JSONL, a JSON array, plain text, parquet "
    "and Arrow can, and the former three also compressed with gzip, zstd, bzip2 or xz"
)


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
        name = "the standard input" if str(self.path) == "-" else printable(str(self.path), kept="")
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
            head = stream.peek(HEAD)[:HEAD]
    except READ_ERRORS as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error
    return DataFile(path, _table(head) or _format_of_text(path, head))


def require_lines(path: Path, head: bytes) -> None:
    """Check that what a pipe gives can be JSONL, the one format that can be read of a pipe.

    Args:
        path: the pipe, which errors name.
        head: the first bytes that it gives, decompressed.

    Raises:
        UserError: it is of another format.
    """
    name = DataFile(path, TEXT).place(1)
    instead = "name the file in place of the pipe"
    if (table := _table(head)) is not None:
        raise UserError(f"{name} is {table}, which cannot be read of a pipe: {instead}")
    text = _text_of(name, None, head)
    if text.startswith(b"[") and not _first_line_is_whole(text):
        raise UserError(
            f"{name} is a JSON array, and a pipe must give JSONL: jq -c '.[]' writes it so, or "
            f"{instead}"
        )
    if text and text[:1] not in b"{[":
        raise UserError(
            f"{name} is not JSONL, as it begins with {text[:20].decode(errors='replace')!r}: give "
            f"it one JSON object a line, or {instead} if it is plain text"
        )


def _table(head: bytes) -> str | None:
    if head.startswith(b"PAR1"):
        return PARQUET
    return ARROW if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")) else None


def _format_of_text(path: Path, head: bytes) -> str:
    named = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    ending = named.suffix.lower()
    text = _text_of(str(path), path, head)
    if ending in _TABLES_OF_TEXT:
        raise UserError(
            f"{path} is a table of text, which is not read: write it as JSONL or as parquet"
        )
    begins_array = text.startswith(b"[") if ending in _JSON else _ARRAY_OF_OBJECTS.match(text)
    if begins_array and not _first_line_is_whole(text):
        return ARRAY
    if ending in _JSON or _OBJECT.match(text):
        return LINES
    return TEXT if text or ending == ".txt" else LINES


def _text_of(name: str, path: Path | None, head: bytes) -> bytes:
    """Return the beginning of a text; refuse what is none, and JSON that is laid out otherwise."""
    _require_no_other(name, path, head)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(_LFS):
        raise UserError(f"{name} only says where Git LFS keeps the file: git lfs pull gets it")
    if _OVER_LINES.match(text):
        of_file = f" {shlex.quote(str(path))}" if path else ""
        raise UserError(
            f"{name} begins with a JSON object over several lines, and JSONL has each object on "
            f"one line: jq -c .{of_file} writes it so; of one object with a list, such as data, jq "
            f"-c '.data[]'{of_file} writes the records"
        )
    return text


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


def _require_no_other(name: str, path: Path | None, head: bytes) -> None:
    """Refuse what a file is by its first bytes if it is not text in UTF-8."""
    if _is_utf8(head) and not _CONTROLS.search(head):
        return  # a text may begin with the letters of a signature
    for signature, (what, advice) in _SIGNATURES.items():
        if head.startswith(signature):
            if path is not None and signature == _ZIP:
                what, advice = _ZIPPED.get(path.suffix.lower(), (what, advice))
            raise UserError(f"{name} is {what}: {advice}")
    if head[_TAR[0] :].startswith(_TAR[1]):
        raise UserError(f"{name} is a tar archive: {_UNPACK}")
    encoding = next((which for mark, which in _MARKS.items() if head.startswith(mark)), None)
    if encoding is None and b"\0" in head:
        encoding = _without_mark(head)
        if encoding is None:
            raise UserError(f"{name} {_NO_TEXT}")
    if encoding is not None:
        raise UserError(f"{name} is {encoding}, not UTF-8: {_convert(encoding, path)}")


def _is_utf8(head: bytes) -> bool:
    """Return whether bytes are the beginning of UTF-8; their last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _without_mark(head: bytes) -> str | None:
    """Return the encoding of text that has zeros as UTF-16 of mostly Latin letters has."""
    zeros = [head[start::2].count(0) for start in range(2)]
    for empty, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if not zeros[1 - empty] and zeros[empty] > len(head) // 4:
            return encoding
    return None


def _convert(encoding: str, path: Path | None) -> str:
    command = f"convert it with iconv -f {encoding} -t UTF-8"
    if path is None:
        return command
    beside = path.with_name(f"{path.stem}.utf8{path.suffix}")
    read, written = shlex.quote(str(path)), shlex.quote(str(beside))
    return f"{command} {read} > {written} and leave {path.name} out"


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
        if _CONTROLS.search(contents):
            raise UserError(f"{path} {_NO_TEXT}") from error
        advice = _convert("LATIN1", path)
        raise UserError(
            f"{path} is not valid UTF-8 at byte {error.start}: if it is text in another encoding, "
            f"such as LATIN1, {advice}"
        ) from error
