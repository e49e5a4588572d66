"""Loads and trains tokenizers of the Hugging Face `tokenizers` library.

A process reads each tokenizer.json once.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_chameleon.data.tokenizer_files import tokenizer_folder
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.huggingface import from_pretrained

END_OF_DOCUMENT = "<|endoftext|>"
"""The token that ends a document if the tokenizer names no other one."""


# Of models without tokenizer.json. The configuration alone is of a tokenizer that needs no file.
_OTHER_FILES = ("*.model", "*.tiktoken", "*vocab*", "merges.txt", "tokenizer_config.json")
_SHOWN = 40  # characters of a text that a message shows


class EncodingError(UserError):
    """Raised for a text that a tokenizer cannot encode.

    Attributes:
        text: position of the text among those that were given.
    """

    def __init__(self, message: str, text: int) -> None:
        """Make the error.

        Args:
            message: which tokenizer it is, which text, and why.
            text: position of the text among those that were given.
        """
        super().__init__(message)
        self.text = text


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
        other = "; it is no tokenizer.json: name one, or the folder of the model"
        hint = "" if path.endswith(".json") else other
        raise UserError(f"cannot read the tokenizer file {path}: {error}{hint}") from error


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
    return _converted(place, folder)


def _converted(place: str, folder: Path) -> Tokenizer:
    """Make a tokenizer of the other files of a model, which transformers can if it has them."""
    if not any(file for pattern in _OTHER_FILES for file in folder.glob(pattern)):
        raise UserError(
            f"{place} has no tokenizer: there is no tokenizer.json in it; name the folder of a "
            "model with its tokenizer, or a tokenizer.json"
        )
    for file in sorted(folder.glob("*.model")):
        with file.open("rb") as stream:  # tiktoken's are text
            package = "sentencepiece" if stream.read(1) == b"\n" else "tiktoken"
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{place} has no tokenizer.json, and transformers makes one of {file.name} only "
                f"with {package}: pip install {package}, or put the model's tokenizer.json there"
            )
    try:
        found = from_pretrained("AutoTokenizer", str(folder))
    except UserError as error:
        raise UserError(f"{place} has no tokenizer.json, and none can be made: {error}") from error
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(
            f"{place} has no tokenizer.json, and transformers cannot make one from its other files"
        )
    return backend


def encode_texts(
    encode: Callable[[Sequence[str]], list[Encoding]], texts: Sequence[str], name: str
) -> list[Encoding]:
    """Encode texts together, and find the text if one cannot be encoded.

    Args:
        encode: a method of a tokenizer that encodes a batch.
        texts: the texts.
        name: the tokenizer; the error begins with it.

    Returns:
        The encodings.

    Raises:
        EncodingError: the tokenizer refuses a text, as one without an unk_token does.
    """
    try:
        return encode(texts)
    except Exception as error:  # the library raises nothing more specific
        for position, text in enumerate(texts):
            try:
                encode([text])
            except Exception as cause:
                shown = repr(text[:_SHOWN]) + ("..." if len(text) > _SHOWN else "")
                raise EncodingError(
                    f"{name} cannot encode the text {shown}: {cause}; a tokenizer of bytes can "
                    "encode any text, and one of words needs an unk_token in its vocabulary",
                    position,
                ) from error
        raise


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
