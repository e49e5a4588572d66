"""Pictures as SVG files, for which matplotlib must be installed."""

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def svg_picture(path: Path, *, width: float = 8.5, height: float = 4.8) -> Iterator[Any]:
    """Draw a picture in the block, which is then written; the same picture is the same bytes.

    Args:
        path: of the file.
        width: in inches.
        height: in inches.

    Yields:
        matplotlib's figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    if not can_draw():
        raise UserError("a picture needs matplotlib: pip install matplotlib")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.hashsalt": "picture", "svg.fonttype": "none", "font.size": 10}
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        write_atomically(path, drawn.getvalue())
