"""The parts of a tokenizer that Megatron's datasets need when the data are already tokenised.

They are the size of the vocabulary and the key of Megatron's index cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.tokenizer import size_of_vocabulary
from nemo_chameleon.utils.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """The attributes of a tokenizer that Megatron's datasets read.

    It has no `pad` on purpose: tokenised data have no padding, and without `pad` Megatron masks
    nothing.

    Attributes:
        vocab_size: the highest id of a token, plus one.
        eod: a token id that never occurs, so that Megatron treats no token as an end of document.
        unique_identifiers: part of the key of Megatron's index cache. The rest of that key is paths
            and sizes, so the fingerprints of the data are added here.
    """

    vocab_size: int
    eod: int
    unique_identifiers: dict[str, Any]

    @classmethod
    def of(cls, data: DataConfig, contents: Sequence[str] = ()) -> "Vocabulary":
        """Return the vocabulary that the configuration names.

        Args:
            data: the data configuration.
            contents: fingerprints of the domains that a dataset has.

        Returns:
            The vocabulary.

        Raises:
            UserError: neither data.tokenizer nor data.vocab_size is set, or the tokenizer cannot be
                read.
        """
        size = data.vocab_size
        if size is None and data.tokenizer is not None:
            size = size_of_vocabulary(data.tokenizer)
        if size is None:
            raise UserError("set one of data.tokenizer and data.vocab_size")
        return cls.of_size(size, contents)

    @classmethod
    def of_size(cls, vocab_size: int, contents: Sequence[str] = ()) -> "Vocabulary":
        """Return a vocabulary of a given size.

        Args:
            vocab_size: number of tokens.
            contents: fingerprints of the domains that a dataset has.

        Returns:
            The vocabulary.
        """
        # No document boundary is reset or masked, so Megatron looks for no end token. Its id is not
        # -1, because Megatron takes -1 for padding when a tokenizer has none.
        return cls(vocab_size, -2, {"vocab_size": vocab_size, "contents": list(contents)})
