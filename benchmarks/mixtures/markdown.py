"""Format the figures and tables of docs/results.md."""

from typing import Any

from benchmarks.mixtures.measured import Array


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Array) -> str:
    """Format the mean, with the standard deviation where there are several values."""
    if len(values) < 2:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ({values.std(ddof=1):.3f})"


def figure(value: Any) -> str:
    """Format a number to three decimal places, and anything else as it is."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
