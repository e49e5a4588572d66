"""Logging: one standard logger per package, and how commands print its messages.

Inside a host's process or a training run this package only logs. Records of ranks other than the
first are dropped unless they are logged with `extra=EVERY_RANK`, and every record has an attribute
`rank`. Commands and recipes call `show_on_stdout` to print the messages.
"""

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from nemo_chameleon.utils.ranks import rank
from nemo_chameleon.utils.tables import printable

EVERY_RANK = {"every_rank": True}
_ROOT = "nemo_chameleon"


class _RankFilter(logging.Filter):
    """Filter that adds the rank to each record and drops records of all ranks but the first."""

    def filter(self, record: logging.LogRecord) -> bool:
        own = rank()
        record.__dict__["rank"] = own
        return own == 0 or bool(getattr(record, "every_rank", False))


def package_logger(package: str) -> logging.Logger:
    """Return the logger of a package.

    Args:
        package: `__package__` of the module that logs, for instance "nemo_chameleon.train".

    Returns:
        The logger, with a filter for ranks.
    """
    logger = logging.getLogger(package)
    if not any(isinstance(known, _RankFilter) for known in logger.filters):
        logger.addFilter(_RankFilter())
    return logger


class _Message(logging.Formatter):
    """Formatter of the message alone, without control characters; a warning has "note: "."""

    def format(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage())
        return f"note: {text}" if record.levelno >= logging.WARNING else text


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # it takes no parameter before Python 3.11


class _Stdout(_StreamHandler):
    """Handler that writes to what sys.stdout is at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Ignore a closed pipe, so that the run continues without its reader."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


def show_on_stdout() -> None:
    """Print this package's messages on stdout; a second call changes nothing."""
    logger = logging.getLogger(_ROOT)
    if any(isinstance(handler, _Stdout) for handler in logger.handlers):
        return
    handler = _Stdout()
    handler.setFormatter(_Message())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Hosts add their own handler to the root logger, which would print each message again.
    logger.propagate = False
