"""Readers of text and of examples: every format becomes lines, for prepare and for finetuning.

lines.py        a line, and what is read from it
packages.py     imports what only some formats need
compression.py  opens files that may be compressed
formats.py      tells the format of a file by its contents
tables.py       parquet and Arrow files
files.py        finds files, and says which files of a folder or a glob are not read
reading.py      reads the lines of files
"""

from nemo_chameleon.data.readers.files import Source, files_of, find_files
from nemo_chameleon.data.readers.formats import DataFile
from nemo_chameleon.data.readers.lines import (
    Line,
    MalformedError,
    UnusableLineError,
    distinct_keys,
    parse_object,
    require_text,
    text_at,
)
from nemo_chameleon.data.readers.reading import VERSION, document_of, read_lines

__all__ = [
    "VERSION",
    "DataFile",
    "Line",
    "MalformedError",
    "Source",
    "UnusableLineError",
    "distinct_keys",
    "document_of",
    "files_of",
    "find_files",
    "parse_object",
    "read_lines",
    "require_text",
    "text_at",
]
