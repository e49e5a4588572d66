"""As much of a tokenizer as Megatron's datasets need where the tokens exist already."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_chameleon.config.schema import DataConfig
from nemo_chameleon.data.tokenizer import load_tokenizer
from nemo_chameleon.utils.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """What Megatron's datasets ask of a tokenizer.

    It has no `pad` on purpose: nothing in tokenised data is padding, and Megatron then masks
    nothing.

    Attributes:
        vocab_size: number of tokens.
        eod: a token that no data has, so that Megatron treats no token as an end of document.
        unique_identifiers: part of the key under which Megatron caches its indices. The rest of
            that key is paths and sizes, so the fingerprints of the data are put in here.
    """

    vocab_size: int
    eod: int
    unique_identifiers: dict[str, Any]

    @classmethod
    def of(cls, data: DataConfig, contents: Sequence[str] = ()) -> "Vocabulary":
        """Return the vocabulary that the configuration names.

        Args:
            data: the configuration.
            contents: fingerprints of the data that the datasets are over.

        Raises:
            UserError: the tokenizer's file cannot be read.
        """
        size = data.vocab_size
        if data.tokenizer is not None:
            size = load_tokenizer(data.tokenizer).get_vocab_size()
        if size is None:
            raise UserError("set one of data.tokenizer and data.vocab_size")
        return cls.of_size(size, contents)

    @classmethod
    def of_size(cls, vocab_size: int, contents: Sequence[str] = ()) -> "Vocabulary":
        """Return the vocabulary of so many tokens, for data with these fingerprints."""
        # No document boundary is reset or masked, so Megatron looks for no such token; and -1 is
        # what Megatron takes for padding where a tokenizer has none.
        return cls(vocab_size, -2, {"vocab_size": vocab_size, "contents": list(contents)})
