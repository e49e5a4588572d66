"""Tokenizers: Hugging Face `tokenizers` files, read and trained."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_chameleon.errors import UserError

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


def vocabulary_digest(vocabulary: Mapping[str, int]) -> str:
    """Of tokens and their numbers, the same for one vocabulary whatever file it comes from."""
    text = json.dumps(sorted(vocabulary.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
