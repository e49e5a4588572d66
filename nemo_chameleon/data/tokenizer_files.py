"""The files beside a tokenizer.json: the settings of a Hugging Face tokenizer and its end token."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.huggingface import cached_folder

_SHOWN = 4  # tokens that a message lists


def tokenizer_folder(place: str) -> Path | None:
    """Return the folder that holds a tokenizer's files.

    Args:
        place: a tokenizer.json, or a Hugging Face model by its folder or name.

    Returns:
        The folder; None for a name that is not in the local Hugging Face cache.
    """
    path = Path(place)
    if path.is_dir():
        return path
    if path.is_file() or place.endswith(".json"):
        return path.parent
    return cached_folder(place)


def tokenizer_settings(place: str) -> dict[str, Any]:
    """Read the special_tokens_map.json and the tokenizer_config.json of a tokenizer.

    Args:
        place: the tokenizer, as `tokenizer_folder` takes it.

    Returns:
        The settings of both files; the latter file takes precedence.

    Raises:
        UserError: a file cannot be read.
    """
    settings: dict[str, Any] = {}
    for _, found in _settings_files(place):
        settings |= found
    return settings


def _settings_files(place: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = tokenizer_folder(place)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if folder is None or not (path := folder / name).is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} is not a JSON object")
        yield path, found


def end_token(place: str, default: str) -> str:
    """Return the token that ends a text.

    Args:
        place: the tokenizer, whose files may name the token as eos_token.
        default: the token if they do not.

    Returns:
        The text of the token.
    """
    return token_text(tokenizer_settings(place).get("eos_token")) or default


def without_end_token(place: str | None, end: str, tokenizer: Tokenizer) -> str:
    """Return what to do where a tokenizer has no token of the text that is to end a text.

    Args:
        place: the tokenizer, as `end_token` takes it; None if it has no files.
        end: the text that is no token.
        tokenizer: the tokenizer.

    Returns:
        A step that mends it, and some tokens that could end a text.
    """
    named = [] if place is None else list(_settings_files(place))
    files = [path for path, found in named if token_text(found.get("eos_token")) == end]
    if files:
        step = f"{files[-1]} names it as eos_token: name a token there that the tokenizer has"
    else:
        step = (
            "name its end token as eos_token in a tokenizer_config.json beside its tokenizer.json"
        )
    added = tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special][:_SHOWN]
    return step + (f", such as {' or '.join(special)}" if special else "")


def token_text(value: Any) -> str | None:
    """Return a token's text, which settings give alone or in an object as its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
