"""Loads and trains tokenizers of the Hugging Face `tokenizers` library.

A process reads each tokenizer.json once.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.huggingface import from_pretrained

END_OF_DOCUMENT = "<|endoftext|>"


@functools.cache
def load_tokenizer(path: str) -> Tokenizer:
    """Read a tokenizer.json; a second call in the same process returns the same object.

    Args:
        path: the file.

    Returns:
        The tokenizer.

    Raises:
        UserError: there is no such file, or it is not a tokenizer.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no tokenizer file {path}")
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"cannot read the tokenizer file {path}: {error}") from error


@functools.cache
def find_tokenizer(place: str) -> Tokenizer:
    """Read a tokenizer; a second call in the same process returns the same object.

    Args:
        place: a tokenizer.json, or a Hugging Face model by its folder or name.

    Returns:
        The tokenizer.

    Raises:
        UserError: there is no tokenizer, or it is not one of the `tokenizers` library.
    """
    if (inside := Path(place) / "tokenizer.json").is_file():
        return load_tokenizer(str(inside))
    if place.endswith(".json") or Path(place).is_file():
        return load_tokenizer(place)
    backend = getattr(from_pretrained("AutoTokenizer", place), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(
            f"{place} has no tokenizer.json, and transformers cannot make one from its other files"
        )
    return backend


@functools.cache
def vocabulary_digest(path: str) -> str:
    """Return a digest of a tokenizer.json's tokens and their ids.

    Args:
        path: the file.

    Returns:
        16 hexadecimal digits.
    """
    return digest(load_tokenizer(path).get_vocab())


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer of GPT-2's kind, with `<|endoftext|>` as token 0.

    Args:
        texts: the texts to train on.
        vocab_size: number of tokens.

    Returns:
        The tokenizer.
    """
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
