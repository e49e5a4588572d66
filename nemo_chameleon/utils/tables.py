"""Tables in plain text, the numbers in them, and text that does a terminal no harm."""

import unicodedata
from collections.abc import Sequence

# They change the order in which a terminal shows the text after them.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, kept: str = "\n\t") -> str:
    """Write control characters, which a terminal would obey, as escapes such as \\x1b.

    Args:
        text: any text; a name from a file may hold anything.
        kept: control characters that stay.

    Returns:
        The text with escapes.
    """
    if text.isprintable():
        return text
    return "".join(
        repr(char)[1:-1]
        if char not in kept
        and (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _REORDERING)
        else char
        for char in text
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], rule_before: int = -1) -> str:
    """Lay out text in columns: the first is aligned to the left, the others to the right.

    Args:
        header: one heading per column. Its last word goes to a second line, which keeps wide tables
            within a terminal's width.
        rows: the cells, as many in each row as there are headings.
        rule_before: index of the row that a rule is drawn above; -1 for no rule.

    Returns:
        The table's lines, without a line break at the end.
    """
    rows = [[printable(cell, kept="") for cell in row] for row in rows]
    header = [printable(cell, kept="") for cell in header]
    heads = [cell.rpartition(" ")[::2] for cell in header]
    lines = [[head[0] for head in heads], [head[1] for head in heads]]
    lines = [line for line in lines if any(line)]
    widths = [max(len(row[i]) for row in [*lines, *rows]) for i in range(len(header))]

    def text(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [text(row) for row in rows]
    if rule_before >= 0:
        body.insert(rule_before, rule)
    return "\n".join([*map(text, lines), rule, *body])


def listed(names: Sequence[str], most: int = 8) -> str:
    """List names in a sentence.

    Args:
        names: the names.
        most: so many are named, and the others counted.

    Returns:
        The names with commas between them.
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def amount(number: float) -> str:
    """Write a number with one decimal and a unit: 795.4k, 1.4M, 2.0B, 3.1T.

    Args:
        number: for instance a number of tokens.

    Returns:
        The text; a number below 1000 is rounded and has no unit.
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(round(number))


def decimal(value: float | None, digits: int = 2) -> str:
    """Write a number with a fixed number of decimals.

    Args:
        value: the number, or None.
        digits: how many decimals.

    Returns:
        The text, with commas between thousands; "-" for None.
    """
    return "-" if value is None else f"{value:,.{digits}f}"
