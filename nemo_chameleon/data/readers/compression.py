"""Opens files that may be compressed, by what they begin with and not by their names.

A compressed file that ends in the middle is an error, never a shorter file.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from nemo_chameleon.data.readers.packages import import_for

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file that is damaged or not readable may raise."""

_BUFFER, _FRAMES = 1 << 20, 1 << 16
# A file that pzstd wrote begins with a frame to skip, which has another mark.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)


def _open_zstd(stream: BinaryIO) -> io.RawIOBase:
    return _Zstd(stream, import_for(".zst files", "zstandard"))


_DECOMPRESSORS: list[tuple[re.Pattern[bytes], Callable[[BinaryIO], Any]]] = [
    (re.compile(rb"\x1f\x8b"), lambda stream: gzip.GzipFile(fileobj=stream)),
    (_ZSTD, _open_zstd),
    (re.compile(rb"BZh[1-9]"), bz2.BZ2File),
    (re.compile(rb"\xfd7zXZ\x00"), lzma.LZMAFile),
]


class _Zstd(io.RawIOBase):
    """The contents of a zstd file of any number of frames."""

    def __init__(self, stream: BinaryIO, zstandard: Any) -> None:
        # The largest window that the format has on 64 bits, which `zstd --long=31` writes.
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._stream, self._frame = stream, decompressor.decompressobj
        self._error = zstandard.ZstdError
        self._current: Any = None
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or a part of it, with what comes next."""
        while not self._left:
            read = self._current.unused_data if self._current and self._current.eof else b""
            # A frame copies what follows it, and a file may have one frame for each record.
            read = read or self._stream.read(_FRAMES)
            if not read:
                if self._current and not self._current.eof:
                    raise EOFError("the compressed file ends in the middle")
                return 0
            if self._current is None or self._current.eof:
                self._current = self._frame()
            try:
                self._left = memoryview(self._current.decompress(read))
            except self._error as error:
                raise OSError(f"the compressed data are damaged: {error}") from error
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


class _Counting(io.RawIOBase):
    """A file that counts the bytes that were read from it; a pipe has no position."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self.count = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or a part of it, with what comes next."""
        size = self._file.readinto(buffer) or 0
        self.count += size
        return size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_bytes(path: Path) -> tuple[io.BufferedReader, Callable[[], int]]:
    """Open a file, and decompress it if it is compressed with gzip, zstd, bzip2 or xz.

    Args:
        path: the file; "-" is the standard input.

    Returns:
        The contents; and a function that returns how many bytes of the file were read so far.

    Raises:
        UserError: the file is compressed with zstd, and zstandard is not installed.
        OSError: the file cannot be opened.
    """
    # The standard input stays open, as it belongs to the whole process.
    raw = io.FileIO(0, closefd=False) if str(path) == "-" else io.FileIO(path)
    counting = _Counting(raw)
    stream: Any = io.BufferedReader(counting, _BUFFER)
    head = stream.peek(8)[:8]
    for mark, opened in _DECOMPRESSORS:
        if mark.match(head):
            return io.BufferedReader(opened(stream), _BUFFER), lambda: counting.count
    return stream, lambda: counting.count
