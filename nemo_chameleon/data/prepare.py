"""Tokenises files of any size into a Megatron dataset, in several processes.

The tokens are in the order of the lines, so that they do not depend on the number of processes. The
same command continues after a process that was killed.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers import __version__ as tokenizers_version

from nemo_chameleon.config.places import require_name
from nemo_chameleon.data.parts import ENDINGS
from nemo_chameleon.data.readers import (
    VERSION,
    DataFile,
    Line,
    UnusableLineError,
    document_of,
    files_of,
    find_files,
    read_lines,
)
from nemo_chameleon.data.stamp import stamp
from nemo_chameleon.data.tokenize import DocumentTokenizer
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, EncodingError, find_tokenizer
from nemo_chameleon.data.tokenizer_files import end_token
from nemo_chameleon.data.unfinished import UnfinishedDataset
from nemo_chameleon.utils.console import progress_bar
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.workers import one_tokenizer_thread, usable_cores, workers

logger = package_logger(__package__)

_VERSION = 1
_LINES, _BYTES = 512, 1 << 20  # the most of a batch, which has at least one line
_AHEAD = 3  # batches for each process that wait or are being tokenised


class Prepared(NamedTuple):
    """What was written.

    Attributes:
        documents: number of documents.
        tokens: number of tokens, with one at the end of each document.
    """

    documents: int
    tokens: int


class _Batch(NamedTuple):
    """Lines that are tokenised together, and how many bytes of the input end with them."""

    lines: list[Line]
    read: int


def prepare(
    paths: Sequence[str],
    tokenizer: str,
    prefix: str | Path,
    key: str = "text",
    workers: int | None = None,
) -> Prepared:
    """Tokenise files and folders into a Megatron dataset.

    Args:
        paths: files, folders and globs in any format that `find_files` takes; "-" is the standard
            input.
        tokenizer: a tokenizer.json, or a Hugging Face model by its folder or name.
        prefix: prefix of the .bin and .idx files; its folder is created.
        key: the key of the document in each line, as `text_at` takes it.
        workers: number of processes that tokenise; None for all cores that this process may use.

    Returns:
        The numbers of documents and of tokens.

    Raises:
        UserError: a file cannot be read, the tokenizer is not there, another process writes the
            dataset, or it cannot be written.
        UnusableLineError: a line has no document.
    """
    count = usable_cores() if workers is None else workers
    if count < 1:
        raise UserError(f"--workers {count}: there must be at least one process")
    _require_name(os.fspath(prefix))
    files, _ = files_of(find_files(paths))
    formats = Counter(file.format for file in files)
    if len(formats) > 1:
        counts = ", ".join(f"{count:,} of {name}" for name, count in sorted(formats.items()))
        logger.info("%s: files are read in several formats: %s", prefix, counts)
    loaded, end = find_tokenizer(tokenizer), end_token(tokenizer, END_OF_DOCUMENT)
    encoder = _Encoder(DocumentTokenizer(loaded, end, tokenizer), key, files)
    with UnfinishedDataset(
        Path(prefix), encoder.tokenizer.dtype, _identity(encoder, files, key)
    ) as dataset:
        try:
            _fill(dataset, encoder, files, count)
        except UnusableLineError:
            dataset.discard()  # once the line is mended, the input is another one
            raise
        dataset.finish(stamp(loaded, end, dataset.documents, dataset.tokens))
    return Prepared(dataset.documents, dataset.tokens)


def _require_name(prefix: str) -> None:
    require_name(prefix, "--output", "NAME")
    if prefix.endswith(ENDINGS):
        raise UserError(
            f"--output {prefix} is the name of a file, and two files are written: name their "
            f"prefix, which is {prefix[:-4]}"
        )


def _identity(encoder: "_Encoder", files: Sequence[DataFile], key: str) -> str | None:
    """Return a digest of all that decides the tokens; None if the input can be read only once."""
    if not all(file.path.is_file() for file in files):
        return None
    try:
        inputs = [(*file.identity(), file.format) for file in files]
    except OSError as error:
        raise UserError(f"cannot read the files: {error}") from error
    tokenizer = encoder.tokenizer
    of_tokens = [tokenizer.tokenizer.to_str(), tokenizer.end, tokenizers_version]
    return digest([_VERSION, VERSION, of_tokens, key, inputs])


def _fill(
    dataset: UnfinishedDataset, encoder: "_Encoder", files: Sequence[DataFile], count: int
) -> None:
    batches = _batches(files, encoder.key, dataset.position)
    first = next(batches, None)
    if first is None:
        return
    second = next(batches, None)
    every = chain(filter(None, (first, second)), batches)
    # Other processes would take longer to start than this one needs for a single batch.
    if count == 1 or second is None:
        encoded = _encoded_here(encoder, every)
    else:
        encoded = _encoded_by(count, encoder, every)
    known = all(file.path.is_file() for file in files)
    before, started = dataset.tokens, time.monotonic()
    with (
        closing(encoded),
        # The bar appears only if the work takes more than 5 seconds.
        progress_bar(
            desc=dataset.prefix.name,
            total=sum(file.path.stat().st_size for file in files) if known else None,
            initial=first.read if dataset.documents else 0,
            unit="B",
            unit_scale=True,
            delay=5,
        ) as bar,
    ):
        for batch, (tokens, lengths) in encoded:
            last = batch.lines[-1]
            dataset.append(tokens, lengths, (last.file, last.number))
            rate = (dataset.tokens - before) / max(time.monotonic() - started, 1e-9)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update(max(0, batch.read - bar.n))


def _batches(files: Sequence[DataFile], key: str, after: tuple[int, int]) -> Iterator[_Batch]:
    read = size = 0

    def advance(count: int) -> None:
        nonlocal read
        read += count

    lines: list[Line] = []
    for line in read_lines(files, advance, key=key, after=after):
        if lines and (len(lines) == _LINES or size + len(line.text) > _BYTES):
            yield _Batch(lines, read)
            lines, size = [], 0
        lines.append(line)
        size += len(line.text)
    if lines:
        yield _Batch(lines, read)


_Tokenised = Generator[tuple[_Batch, tuple[bytes, bytes]], None, None]


class _Encoder:
    """Turns lines into the bytes of their tokens."""

    def __init__(self, tokenizer: DocumentTokenizer, key: str, files: Sequence[DataFile]) -> None:
        self.tokenizer, self.key, self._files = tokenizer, key, files

    def encode(self, lines: Sequence[Line]) -> tuple[bytes, bytes]:
        texts = [document_of(line, self._files, self.key) for line in lines]
        try:
            return self.tokenizer.encode(texts)
        except EncodingError as error:
            line = lines[error.text]
            place = self._files[line.file].place(line.number)
            raise UnusableLineError(f"{place}: {error}") from error

    def arguments(self) -> tuple[Any, ...]:
        """Return what another process needs to make the same encoder."""
        tokenizer = self.tokenizer
        return tokenizer.tokenizer.to_str(), tokenizer.end, tokenizer.place, self.key, self._files


def _encoded_here(encoder: _Encoder, batches: Iterator[_Batch]) -> _Tokenised:
    with one_tokenizer_thread():
        for batch in batches:
            yield batch, encoder.encode(batch.lines)


def _encoded_by(count: int, encoder: _Encoder, batches: Iterator[_Batch]) -> _Tokenised:
    """Tokenise batches in other processes, and yield them in their order."""
    broken = (
        "a process that tokenises has ended by itself: if memory ran out, use fewer --workers; a "
        "script that calls prepare with workers needs if __name__ == '__main__'"
    )
    with workers(count, _begin_worker, encoder.arguments(), broken) as pool:
        waiting: deque[tuple[_Batch, Future[tuple[bytes, bytes]]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(_encode_in_worker, batch.lines)))
            if len(waiting) > _AHEAD * count:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()


_worker_encode: Callable[[Sequence[Line]], tuple[bytes, bytes]] | None = None


def _begin_worker(
    tokenizer: str, end: str, place: str | None, key: str, files: Sequence[DataFile]
) -> None:
    global _worker_encode  # what a process of the pool keeps between batches
    loaded = DocumentTokenizer(Tokenizer.from_str(tokenizer), end, place)
    _worker_encode = _Encoder(loaded, key, files).encode


def _encode_in_worker(lines: Sequence[Line]) -> tuple[bytes, bytes]:
    assert _worker_encode is not None, "_begin_worker runs first"
    return _worker_encode(lines)
