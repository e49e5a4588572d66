"""Format the figures and tables of docs/results.md."""

import math
from typing import Any

from benchmarks.mixtures.measured import Array, interval


def verdict(values: Array) -> str:
    """Format a difference with its interval; say better or worse where the evidence suffices.

    That takes three seeds or more, and an interval that does not contain zero.
    """
    mean, half = interval(values)
    if not math.isfinite(half):
        return f"{mean:+.3f} (one seed)"
    told = len(values) > 2 and abs(mean) > half
    word = "" if not told else " **better**" if mean < 0 else " **worse**"
    return f"{mean:+.3f} ± {half:.3f}{word}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Array) -> str:
    """Format the mean over seeds, with the standard deviation where there are several."""
    if len(values) < 2:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ({values.std(ddof=1):.3f})"


def figure(value: Any) -> str:
    """Format a number to three decimal places, and anything else as it is."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
