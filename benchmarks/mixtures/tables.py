"""Figures and tables as docs/results.md writes them."""

import math
from typing import Any

from benchmarks.mixtures.measured import Array, interval


def verdict(values: Array) -> str:
    """A difference with its interval, and in words where three seeds or more exceed it."""
    mean, half = interval(values)
    if not math.isfinite(half):
        return f"{mean:+.3f} (one seed)"
    told = len(values) > 2 and abs(mean) > half
    word = "" if not told else " **better**" if mean < 0 else " **worse**"
    return f"{mean:+.3f} ± {half:.3f}{word}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Array) -> str:
    """Mean over seeds, and their standard deviation where there are some."""
    if len(values) < 2:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ({values.std(ddof=1):.3f})"


def figure(value: Any) -> str:
    """A number to three places."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
