"""The names that users choose: which of them can be written, and be names of folders."""

import os

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


def require_unicode(name: str) -> None:
    """Check that a domain's name can be written as UTF-8, as halves of surrogate pairs cannot be.

    Args:
        name: the name.

    Raises:
        UserError: it cannot.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of domain {name!r} is not Unicode: give it another one"
        ) from error
