"""Imports the packages that only some formats need."""

import importlib
from typing import Any

from nemo_chameleon.utils.errors import UserError


def import_for(what: str, package: str) -> Any:
    """Import a package of the extra `data`.

    Args:
        what: what needs it, in the plural; the error begins with it.
        package: its name.

    Returns:
        The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{what} need {package}: pip install 'nemo_chameleon[data]'") from error
