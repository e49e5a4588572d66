"""Tokenizers: Hugging Face `tokenizers` files, read and trained."""

import functools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

END_OF_DOCUMENT = "<|endoftext|>"


@functools.cache
def load_tokenizer(path: str) -> Tokenizer:
    """Read a tokenizer.json, once in a process.

    Raises:
        UserError: no such file, or not a tokenizer.
    """
    if not Path(path).is_file():
        raise UserError(f"tokenizer {path}: there is no such file")
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"tokenizer {path}: {error}") from error


@functools.cache
def vocabulary_digest(path: str) -> str:
    """Of a tokenizer.json's tokens and their numbers, made once in a process."""
    return digest(load_tokenizer(path).get_vocab())


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer, GPT-2's kind, with `<|endoftext|>` as its token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
