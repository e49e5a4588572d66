"""The stamp beside a dataset, PREFIX.info.json: which tokenizer wrote it, and how much.

Token ids say nothing about the tokenizer that they belong to. A dataset without a stamp is taken as
it is.
"""

import functools
import json
import threading
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nemo_chameleon.data.tokenizer import find_tokenizer, vocabulary_size
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.provenance import package_version

ENDING = ".info.json"
_FORMAT = 1
_ONE_AT_A_TIME = threading.Lock()


def stamp(tokenizer: Tokenizer, end: str, documents: int, tokens: int) -> str:
    """Return the contents of a dataset's stamp.

    Args:
        tokenizer: the tokenizer that wrote the dataset.
        end: the token that ends each document.
        documents: number of documents.
        tokens: number of tokens.

    Returns:
        A JSON object.
    """
    size = vocabulary_size(tokenizer)
    facts = {
        "format": _FORMAT,
        "documents": documents,
        "tokens": tokens,
        "vocabulary": _digest(tokenizer, size),
        "vocab_size": size,
        "end_token": end,
        "nemo_chameleon": package_version(),
    }
    return json.dumps(facts, indent=2) + "\n"


def require_tokenizer(prefix: str, documents: int, tokenizer: str | None, where: str) -> None:
    """Check that a dataset's stamp, if it has one, is of its own and of a tokenizer.

    Args:
        prefix: prefix of the dataset's files.
        documents: number of documents in the .idx.
        tokenizer: the tokenizer of the configuration, as `find_tokenizer` takes it; None if it is
            not known. It may have more tokens than the one that wrote the dataset, after all of
            that one's.
        where: the key of the configuration and its value; errors begin with it.

    Raises:
        UserError: the stamp cannot be read, belongs to other data or names another tokenizer.
    """
    file = Path(prefix + ENDING)
    if not file.is_file():
        return
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        size, known = int(facts["vocab_size"]), facts["vocabulary"]
        stamped = int(facts["documents"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: {file} cannot be read: {error}; copy it again, or remove it to use the "
            "dataset without this check"
        ) from error
    if stamped != documents:
        raise UserError(
            f"{where}: {file} describes {stamped:,} documents, but the .idx has {documents:,}: "
            "copy all files of the dataset again; if another program wrote the other files, remove "
            f"{file.name}"
        )
    if tokenizer is None or _digest_of(tokenizer, size) == known:
        return
    raise UserError(
        f"{where}: another tokenizer than {tokenizer} wrote this dataset, one of {size:,} tokens "
        f"that ends documents with {facts.get('end_token')}: set data.tokenizer (for "
        "mixture add: --tokenizer) to that one, or tokenise the text again with nemo-chameleon "
        "prepare"
    )


def _digest(tokenizer: Tokenizer, size: int) -> str:
    """Return a digest of the tokens whose ids are below a size."""
    vocabulary = tokenizer.get_vocab()
    return digest({token: number for token, number in vocabulary.items() if number < size})


def _digest_of(tokenizer: str, size: int) -> str:
    with _ONE_AT_A_TIME:
        return _digest_once(tokenizer, size)


@functools.cache  # a domain may have hundreds of datasets, which threads open
def _digest_once(tokenizer: str, size: int) -> str:
    return _digest(find_tokenizer(tokenizer), size)
