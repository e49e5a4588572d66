"""Loads and trains tokenizers of the Hugging Face `tokenizers` library.

A process reads each tokenizer.json once.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_chameleon.data.tokenizer_files import tokenizer_folder
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.huggingface import from_pretrained

END_OF_DOCUMENT = "<|endoftext|>"
"""The token that ends a document if the tokenizer names no other one."""


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
        place: a tokenizer.json, or a Hugging Face model by its folder or by its name in the local
            cache.

    Returns:
        The tokenizer.

    Raises:
        UserError: there is no tokenizer, or it is not one of the `tokenizers` library.
    """
    folder = tokenizer_folder(place)
    if place.endswith(".json") or Path(place).is_file():
        return load_tokenizer(place)
    if folder is not None and (inside := folder / "tokenizer.json").is_file():
        return load_tokenizer(str(inside))
    if folder is None:
        raise UserError(
            f"there is no file or folder {place}, and no model of this name in the local Hugging "
            f"Face cache: if it is the name of a model, get it with hf download {place}"
        )
    backend = getattr(from_pretrained("AutoTokenizer", str(folder)), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(
            f"{place} has no tokenizer.json, and transformers cannot make one from its other files"
        )
    return backend


def has_tokenizer(place: str) -> bool:
    """Return whether there is a tokenizer at a place that `find_tokenizer` takes."""
    try:
        find_tokenizer(place)
    except UserError:
        return False
    return True


@functools.cache
def vocabulary_digest(place: str) -> str:
    """Return a digest of a tokenizer's tokens and their ids.

    Args:
        place: the tokenizer, as `find_tokenizer` takes it.

    Returns:
        16 hexadecimal digits.
    """
    return digest(find_tokenizer(place).get_vocab())


@functools.cache
def size_of_vocabulary(place: str) -> int:
    """Return `vocabulary_size` of a tokenizer, which is counted once in a process.

    Args:
        place: the tokenizer, as `find_tokenizer` takes it.

    Returns:
        The highest id of a token, plus one.
    """
    return vocabulary_size(find_tokenizer(place))


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return the number of embeddings that a model of a tokenizer's tokens needs.

    Args:
        tokenizer: the tokenizer.

    Returns:
        The highest id of a token, plus one; more than there are tokens if the ids have gaps.
    """
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


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
