"""The names that users choose: which of them can be written, and be names of folders."""

import json
import os
from typing import Any

from nemo_chameleon.utils.errors import UserError

_LONGEST = 200  # bytes; a folder's name may get an ending, and has at most 255


def fault_of_name(name: str) -> str | None:
    """Find out why a name cannot be that of one folder or file, inside another folder.

    Args:
        name: the name.

    Returns:
        What is wrong, for a sentence that begins with the name; None if nothing is.
    """
    if name in ("", os.curdir, os.pardir):
        return "is not a name of its own"
    if "\0" in name:
        return "has a NUL character"
    if os.sep in name:
        return "leads to another folder"
    if len(name.encode(errors="surrogatepass")) > _LONGEST:
        return f"is longer than {_LONGEST} bytes"
    return None


def require_unicode(value: Any, what: str = "a text") -> None:
    """Check that every text in a value can be written as UTF-8, as halves of characters cannot be.

    Args:
        value: a text, or what JSON can hold.
        what: has the text; the error begins with it.

    Raises:
        UserError: a text has half of a character, which JSON allows.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UserError(f"{what} has {half}, which is half of a character: correct it") from error
