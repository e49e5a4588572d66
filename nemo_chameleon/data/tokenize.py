"""Tokenises documents into Megatron datasets: texts in, .bin and .idx files out.

prepare.py does the same for files of any size, in several processes.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nemo_chameleon.data.index_file import token_type
from nemo_chameleon.data.stamp import stamp
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, encode_texts, vocabulary_size
from nemo_chameleon.data.tokenizer_files import without_end_token
from nemo_chameleon.data.unfinished import UnfinishedDataset
from nemo_chameleon.utils.errors import UserError

_BATCH = 256


class DocumentTokenizer:
    """Tokenises whole documents, and ends each with one token.

    Attributes:
        tokenizer: the tokenizer, without truncation and padding.
        end: the token that ends a document.
        place: the tokenizer as errors name it; None if it has no files.
        dtype: the type in which tokens are stored.
    """

    def __init__(
        self, tokenizer: Tokenizer, end: str = END_OF_DOCUMENT, place: str | None = None
    ) -> None:
        """Check a tokenizer.

        Args:
            tokenizer: the tokenizer, which stays as it is.
            end: the token that ends a document.
            place: the tokenizer, as `find_tokenizer` takes it, for errors; None if it has no files.

        Raises:
            UserError: the tokenizer has no such token.
        """
        number = tokenizer.token_to_id(end)
        if number is None:
            raise UserError(
                f"the tokenizer{f' {place}' if place else ''} has no token {end} to end documents "
                f"with: {without_end_token(place, end, tokenizer)}"
            )
        # The file may have been saved with truncation or padding switched on.
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.end, self.place, self._end = end, place, number
        self.dtype: Any = token_type(vocabulary_size(tokenizer))

    def encode(self, texts: Sequence[str]) -> tuple[bytes, bytes]:
        """Tokenise documents.

        Args:
            texts: the documents.

        Returns:
            The bytes of their tokens, and the bytes of the number of tokens of each, as int32.

        Raises:
            EncodingError: the tokenizer has no tokens for one of them.
        """
        tokens, lengths = list[int](), list[int]()
        encode = functools.partial(self.tokenizer.encode_batch_fast, add_special_tokens=False)
        for encoding in encode_texts(encode, texts, f"the tokenizer {self.place or ''}".rstrip()):
            ids = encoding.ids
            tokens += ids
            tokens.append(self._end)
            lengths.append(len(ids) + 1)
        return (
            np.array(tokens, dtype=self.dtype).tobytes(),
            np.array(lengths, dtype=np.int32).tobytes(),
        )


def write_dataset(
    documents: Iterable[str], tokenizer: Tokenizer, prefix: str | Path, end: str = END_OF_DOCUMENT
) -> int:
    """Tokenise documents into a Megatron dataset.

    Args:
        documents: the texts.
        tokenizer: the tokenizer.
        prefix: prefix of the .bin and .idx files; its folder is created.
        end: the token that ends each document.

    Returns:
        The number of tokens.

    Raises:
        UserError: the tokenizer has no such end token, there are no documents, or the files cannot
            be written.
    """
    encoder = DocumentTokenizer(tokenizer, end)
    with UnfinishedDataset(Path(prefix), encoder.dtype) as dataset:
        for batch in _batches(documents):
            dataset.append(*encoder.encode(batch))
        dataset.finish(stamp(tokenizer, end, dataset.documents, dataset.tokens))
    return dataset.tokens


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    every = iter(documents)
    while batch := list(islice(every, _BATCH)):
        yield batch
