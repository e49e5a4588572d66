"""Logging: one standard logger for each package, and what commands do to show it.

Inside a host's process or a training run this package only logs. The records of a rank other than
the first are dropped, unless they are logged with `extra=EVERY_RANK`, and every record carries
`record.rank`. Commands and recipes call `show_on_stdout`, so that people see the messages.
"""

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from nemo_chameleon.utils.ranks import rank

EVERY_RANK = {"every_rank": True}
_ROOT = "nemo_chameleon"


class _RankFilter(logging.Filter):
    """Adds the rank to a record, and passes records of the first rank alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        own = rank()
        record.__dict__["rank"] = own
        return own == 0 or bool(getattr(record, "every_rank", False))


def package_logger(package: str) -> logging.Logger:
    """Return the logger of a package.

    Args:
        package: `__package__` of the module that logs, for instance "nemo_chameleon.train".
    """
    logger = logging.getLogger(package)
    if not any(isinstance(known, _RankFilter) for known in logger.filters):
        logger.addFilter(_RankFilter())
    return logger


class _Message(logging.Formatter):
    """The message alone; a warning begins with "note: "."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"note: {text}" if record.levelno >= logging.WARNING else text


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # it takes no parameter before Python 3.11


class _Stdout(_StreamHandler):
    """Writes to whatever sys.stdout is at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Let a run continue whose reader has closed the pipe."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


def show_on_stdout() -> None:
    """Print this package's messages on stdout, as commands and recipes do; idempotent."""
    logger = logging.getLogger(_ROOT)
    if any(isinstance(handler, _Stdout) for handler in logger.handlers):
        return
    handler = _Stdout()
    handler.setFormatter(_Message())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Hosts give the root logger a handler of their own, which would print each message again.
    logger.propagate = False
