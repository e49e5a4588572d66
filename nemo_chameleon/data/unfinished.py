"""A dataset that is being written: under other names until it is complete, and resumable.

PREFIX.unfinished.bin holds the tokens so far, PREFIX.unfinished.len the number of tokens of each
document, and PREFIX.unfinished.json how much of both is certain to be on the disk. A lock on the
first file keeps a second process away.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from nemo_chameleon.data.index_file import write_index
from nemo_chameleon.data.stamp import ENDING
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import keep_names, write_atomically
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)

_SAVE_EVERY = 15.0  # seconds


class UnfinishedDataset:
    """The files of a dataset that is being written; a context manager.

    Leaving the context without `finish` keeps what a later start of the same work can use. Without
    an identity, or before the first save, nothing is kept.

    Attributes:
        prefix: prefix of the dataset's files.
        documents: number of documents so far.
        tokens: number of tokens so far.
        position: file and number of the last line that is in the dataset.
    """

    def __init__(self, prefix: Path, dtype: Any, identity: str | None = None) -> None:
        """Open the files, and find what an earlier start of the same work has left.

        Args:
            prefix: prefix of the dataset's files; its folder is created.
            dtype: the type of the tokens.
            identity: a digest of everything that decides the dataset; None if it cannot be resumed.

        Raises:
            UserError: another process writes this dataset, or the files cannot be written.
        """
        self.prefix, self.documents, self.tokens, self.position = prefix, 0, 0, (0, 0)
        self._dtype, self._identity = np.dtype(dtype), identity
        self._bin_file, self._lengths_file, self._index, self._journal, self._stamp = (
            prefix.with_name(f"{prefix.name}.unfinished.{ending}")
            for ending in ("bin", "len", "idx", "json", "info.json")
        )
        self._saved = time.monotonic()
        self._written = self._discarded = False
        try:
            prefix.parent.mkdir(parents=True, exist_ok=True)
            self._take_back()
            self._bin = _locked(self._bin_file, prefix)
            self._lengths = self._lengths_file.open("ab")
            self._resume()
        except OSError as error:
            raise UserError(f"cannot write {prefix}: {error}") from error

    def __enter__(self) -> "UnfinishedDataset":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        keeps = self._journal.exists() and not self._discarded
        self._index.unlink(missing_ok=True)
        self._stamp.unlink(missing_ok=True)
        if not self._written and not keeps:
            self._journal.unlink(missing_ok=True)
            self._lengths_file.unlink(missing_ok=True)
            self._bin_file.unlink(missing_ok=True)
        for stream in (self._lengths, self._bin):  # the latter ends the lock
            try:
                stream.close()
            except OSError as full:  # what was not yet written does not fit either
                error = error or full
        if error is not None and keeps:
            logger.warning("%s: what is tokenised is kept for the same command", self.prefix)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {self.prefix}: {error}") from error

    def discard(self) -> None:
        """Keep nothing of what was written, because no later start can continue it."""
        self._discarded = True

    def append(
        self, tokens: bytes, lengths: bytes, position: tuple[int, int] | None = None
    ) -> None:
        """Append documents, and from time to time make sure that they are on the disk.

        Args:
            tokens: the bytes of their tokens.
            lengths: the bytes of the number of tokens of each, as int32.
            position: file and number of the last of their lines.

        Raises:
            OSError: a file cannot be written.
        """
        self._bin.write(tokens)
        self._lengths.write(lengths)
        self.tokens += len(tokens) // self._dtype.itemsize
        self.documents += len(lengths) // 4
        self.position = position or self.position
        if self._identity is not None and time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write to the disk all that was appended, so that a later start can continue after it.

        Raises:
            OSError: a file cannot be written.
        """
        self._sync()
        facts = {
            "identity": self._identity,
            "position": self.position,
            "documents": self.documents,
            "tokens": self.tokens,
        }
        write_atomically(self._journal, json.dumps(facts) + "\n")
        self._saved = time.monotonic()

    def _sync(self) -> None:
        for stream in (self._bin, self._lengths):
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, stamp: str) -> None:
        """Give the dataset its name.

        Args:
            stamp: the contents of PREFIX.info.json.

        Raises:
            UserError: there are no documents.
            OSError: a file cannot be written.
        """
        if not self.documents:
            raise UserError(f"there are no documents to write to {self.prefix}")
        self._sync()
        write_index(self._index, self._dtype.type, self._lengths_file)
        write_atomically(self._stamp, stamp)
        if self._identity is not None:
            self.save()
        # A reader between these steps finds no dataset, never files of two datasets; nor does one
        # after a power failure, which may lose a step that was not waited for.
        Path(f"{self.prefix}.idx").unlink(missing_ok=True)
        keep_names(self.prefix.parent)
        self._bin_file.replace(f"{self.prefix}.bin")
        self._stamp.replace(f"{self.prefix}{ENDING}")
        keep_names(self.prefix.parent)
        self._index.replace(f"{self.prefix}.idx")
        keep_names(self.prefix.parent)
        self._written = True
        self._journal.unlink(missing_ok=True)
        self._lengths_file.unlink(missing_ok=True)

    def _take_back(self) -> None:
        """Undo the renaming of the tokens by a start that was killed before it had renamed all."""
        renamed = Path(f"{self.prefix}.bin")
        whole = Path(f"{self.prefix}.idx").exists() or self._bin_file.exists()
        if self._journal.is_file() and renamed.is_file() and not whole:
            with _locked(renamed, self.prefix):
                renamed.replace(self._bin_file)

    def _resume(self) -> None:
        """Take over what the journal says that an earlier start has written, or begin anew."""
        itemsize = self._dtype.itemsize
        if self._journal.is_file():
            facts = _facts(self._journal)
            sizes = [os.fstat(stream.fileno()).st_size for stream in (self._bin, self._lengths)]
            whole = sizes[0] >= facts["tokens"] * itemsize and sizes[1] >= facts["documents"] * 4
            if facts["identity"] == self._identity and whole:
                self.documents, self.tokens = facts["documents"], facts["tokens"]
                self.position = tuple(facts["position"])
                logger.info(
                    "%s: continues after the %s documents that an earlier start has tokenised",
                    self.prefix,
                    f"{self.documents:,}",
                )
            else:
                logger.warning(
                    "%s: an earlier start has tokenised other files or tokenised them otherwise, "
                    "so this one begins again",
                    self.prefix,
                )
                self._journal.unlink()
        self._bin.truncate(self.tokens * itemsize)
        self._lengths.truncate(self.documents * 4)


def _facts(journal: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(journal.read_text())
    except ValueError:
        facts = {}
    begun = {"identity": "", "position": [0, 0], "documents": 0, "tokens": 0}
    whole = isinstance(facts, dict) and all(
        isinstance(facts.get(key), type(value)) for key, value in begun.items()
    )
    return facts if whole else begun


def _locked(path: Path, prefix: Path) -> BinaryIO:
    """Open a file to append to it, and lock it for as long as it is open."""
    while True:
        stream = path.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                stream.close()
                raise UserError(
                    f"another process is writing {prefix}: wait until it has ended, or name "
                    "another --output"
                ) from error
            logger.warning(
                "%s: the file system has no locks, so nothing keeps a second process away", prefix
            )
            return stream
        # The process that held the lock before may have finished and renamed the file meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream
        stream.close()
