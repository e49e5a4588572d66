"""Tokenised examples in a cache: a Megatron indexed dataset of alternating prompts and answers.

Each example is a document. Its first sequence is the text before the first answer (empty for plain
text), its second sequence is the first answer, and so on. The .idx file thus says which tokens
carry loss. Each index has a folder of its own, named by a digest of all that it depends on. Any
number of jobs can share a cache (see `data/cached.py`).
"""

import hashlib
import json
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from nemo_chameleon.data import cached
from nemo_chameleon.data.index_file import token_type
from nemo_chameleon.data.parts import as_list
from nemo_chameleon.data.readers import (
    DataFile,
    Line,
    MalformedError,
    Source,
    files_of,
    find_files,
    read_lines,
)
from nemo_chameleon.data.readers.formats import COMPRESSED, TEXT
from nemo_chameleon.data.sft.layout import Layout
from nemo_chameleon.data.sft.reports import Reports, describe_malformed
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.data.tokenizer import vocabulary_size
from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.arrays import Bools, Ints
from nemo_chameleon.utils.console import progress_bar
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.ranks import is_first_rank

_BATCH = 512  # lines that are tokenised together
_PLAIN_TEXT = {".txt", ".text", ".md", ".markdown"}
FACTS, SKIPPED = "index.json", "malformed.txt"
_FILES = (manifest.NAME, FACTS, SKIPPED, "examples.bin", "examples.idx", "lines.npy")
# What this process has verified: name, inode, time and size of each file, by folder.
_verified: dict[Path, list[Any]] = {}


@dataclass(frozen=True, eq=False)
class Index(Layout):
    """Tokenised examples, and which of their tokens are answers.

    Attributes:
        folder: the folder of its files.
        facts: the contents of index.json: files, lines, examples, tokens and answer_tokens;
            fingerprint, a digest of the lines and their tokens; and those of `Reports`.
        sources: where the files lie now that it was made from; empty where only the index was
            named.
    """

    folder: Path
    facts: dict[str, Any]
    sources: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path, sources: Sequence[str] = ()) -> "Index":
        """Load an index that `build` made.

        Args:
            folder: the folder of the index.
            sources: where the files lie that it was made from.

        Returns:
            The index.
        """
        return cls(folder, json.loads((folder / FACTS).read_text()), tuple(sources))

    @property
    def prefix(self) -> str:
        """The prefix of its .bin and .idx files."""
        return str(self.folder / "examples")

    @cached_property
    def _dataset(self) -> IndexedDataset:
        return IndexedDataset(self.prefix)

    @cached_property
    def cuts(self) -> Ints:
        """See `Layout`."""
        return np.concatenate([[0], np.cumsum(self._dataset.sequence_lengths, dtype=np.int64)])

    @cached_property
    def firsts(self) -> Ints:
        """See `Layout`."""
        return np.asarray(self._dataset.document_indices, dtype=np.int64)

    def tokens(self, example: int, start: int = 0, stop: int | None = None) -> Ints:
        """Return the token ids of an example, or of a piece of it.

        Args:
            example: number of the example.
            start: first token of the piece.
            stop: end of the piece; None for the end of the example.

        Returns:
            (stop - start,) token ids.
        """
        first = int(self.starts[example])
        stop = int(self.lengths[example]) if stop is None else stop
        ids = self._dataset.bin_reader.read(
            dtype=self._dataset.index.dtype,
            count=stop - start,
            offset=(first + start) * self._dataset.index.dtype_size,
        )
        return np.asarray(ids, dtype=np.int64)

    def is_answer(self, example: int, start: int = 0, stop: int | None = None) -> Bools:
        """Return whether each token of an example, or of a piece of it, belongs to an answer.

        Args:
            example: number of the example.
            start: first token of the piece.
            stop: end of the piece; None for the end of the example.

        Returns:
            (stop - start,) whether each token belongs to an answer.
        """
        sequences = slice(self.firsts[example], self.firsts[example + 1])
        lengths = self._dataset.sequence_lengths[sequences]
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)[start:stop]

    @cached_property
    def _lines(self) -> Ints:
        lines: Ints = np.load(self.folder / "lines.npy")
        return lines

    def line(self, example: int) -> str:
        """Return the file and the line that an example was read from.

        Args:
            example: number of the example.

        Returns:
            For instance "chats.jsonl, line 3".
        """
        file, number = map(int, self._lines[example])
        named = DataFile(Path(self.facts["names"][file]), self.facts["formats"][file])
        return named.place(number)


def find_example_files(path: str | Sequence[str], key: str) -> list[Source]:
    """Find the files of a domain.

    Args:
        path: a file, a folder or a glob in any format that `find_files` takes; or a list of these.
        key: the key of the configuration; errors begin with it.

    Returns:
        What is read.

    Raises:
        UserError: there are no such files, one is there twice, one can be read only once, or one
            is a text that has no ending of plain text.
    """
    sources = find_files(as_list(path), key)
    files = [file for source in sources for file in source.files]
    if not all(file.path.is_file() for file in files):
        raise UserError(f"{key}: a pipe can be read only once; write its contents to a file")
    for file in files:
        names = [ending.lower() for ending in file.path.suffixes if ending not in COMPRESSED]
        if file.format == TEXT and (not names or names[-1] not in _PLAIN_TEXT):
            raise UserError(
                f"{key}: {file.path} has no examples: it is neither JSONL, a JSON array, parquet "
                "nor Arrow, and only .txt and .md files are read as plain text, each as one "
                "example; write it as JSONL, or rename it to end in .txt if it is plain text"
            )
    return sources


def build(sources: Sequence[Source], reader: ExampleTokenizer, cache: Path, where: str) -> Index:
    """Load the index of files of examples from the cache, or make it there.

    Malformed lines are left out and counted.

    Args:
        sources: the files, in the order in which the index has them.
        reader: the tokenizer of examples.
        cache: the folder of all indices.
        where: the key of the configuration and its value; errors begin with it.

    Returns:
        The index.

    Raises:
        UserError: the files cannot be read, they have no example, or the cache cannot be written.
    """
    files, named = files_of(sources)
    try:
        stats = [file.identity() for file in files]
    except OSError as error:
        raise UserError(f"{where}: {error}") from error
    folder = cache / digest([reader.identity, reader.rules, stats])
    places = [place for place, *_ in stats]
    if not _is_usable(folder):
        try:
            beside = cached.begin(folder)
            try:
                _write(files, named, reader, beside, where)
                cached.finish(beside, folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            _verified[folder] = _state(folder)
        except OSError as error:
            raise UserError(f"{where}: cannot make an index in {cache}: {error}") from error
    return Index.load(folder, places)


def _is_usable(folder: Path) -> bool:
    """Return whether an index is there and whole, which one rank verifies once."""
    if not is_first_rank():  # `first_rank_first` lets the first rank verify it before
        return (folder / FACTS).is_file()
    if folder in _verified and _verified[folder] == _state(folder):
        return True
    if not cached.is_whole(folder):
        return False
    _verified[folder] = _state(folder)
    return True


def _state(folder: Path) -> list[Any]:
    files = [folder / name for name in _FILES if (folder / name).exists()]
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def _write(
    files: list[DataFile],
    named: list[DataFile],
    reader: ExampleTokenizer,
    folder: Path,
    where: str,
) -> None:
    hashed = hashlib.sha256(reader.identity.encode())
    lines = array("q")
    read = tokens = answers = 0
    size = sum(file.path.stat().st_size for file in files)
    dtype = token_type(vocabulary_size(reader.tokenizer))
    builder = IndexedDatasetBuilder(str(folder / "examples.bin"), dtype=dtype)
    with (
        # The bar appears only if the work takes more than 5 seconds.
        progress_bar(
            desc=where.partition("=")[0], total=size, unit="B", unit_scale=True, delay=5
        ) as bar,
        (folder / SKIPPED).open("w", encoding="utf-8") as skipped,
    ):
        reports = Reports(skipped, reader.ignored_keys)

        def name(line: Line) -> str:
            return named[line.file].place(line.number)

        every = read_lines(files, bar.update, without=reader.ignored_keys)
        while batch := list(islice(every, _BATCH)):
            read += len(batch)
            for line in batch:
                hashed.update(line.text)
            try:
                examples = reader.read(batch, name)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            for line, found in zip(batch, examples, strict=True):
                if isinstance(found, MalformedError):
                    reports.malformed(name(line), found)
                    continue
                reports.left_out(name(line), found.example.left_out)
                reports.after(name(line), found.example.after)
                reports.unread(found.example.unread)
                reports.split(found.example.split)
                tensor = torch.tensor(found.tokens, dtype=torch.int64)
                # The lines alone do not decide the tokens: a template may write today's date.
                hashed.update(tensor.numpy().tobytes())
                builder.add_document(tensor, found.cuts)
                lines.extend((line.file, line.number))
                tokens += len(found.tokens)
                answers += sum(found.cuts[1::2])
    if not lines:
        faults = f": {text}" if (text := describe_malformed(reports.facts(), None)) else ""
        raise UserError(f"{where}: there is no example in {read:,} line(s){faults}")
    builder.finalize(str(folder / "examples.idx"))
    np.save(folder / "lines.npy", np.array(lines, dtype=np.int64).reshape(-1, 2))
    facts = {
        "files": [str(file.path) for file in files],
        "names": [str(file.path) for file in named],
        "formats": [file.format for file in named],
        "lines": read,
        "examples": len(lines) // 2,
        "tokens": tokens,
        "answer_tokens": answers,
        "fingerprint": hashed.hexdigest()[:32],
        **reports.facts(),
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
