"""Writes previewed examples for a terminal or for a file.

On a terminal the tokens that carry loss have a colour. Elsewhere they stand in brackets.
"""

import os
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TextIO

from nemo_chameleon.data.sft.preview import PreviewedLine, Stretch
from nemo_chameleon.utils.tables import printable, table

_WIDTH = 80
_LINE, _CONTINUED = "  | ", "    "  # a line of the text, and what does not fit beside it


@dataclass(frozen=True)
class Style:
    """How tokens that carry loss are set off.

    Attributes:
        colour: whether by colour, or else by brackets.
        before: what stands before tokens that carry loss.
        after: what stands after them.
        newline: what shows a line break that carries loss.
        encoding: what the text will be encoded as.
    """

    colour: bool
    before: str
    after: str
    newline: str
    encoding: str

    @classmethod
    def of(cls, stream: TextIO) -> "Style":
        """Return the style for a stream.

        Args:
            stream: what the text will be written to.

        Returns:
            The style: colour on a terminal, unless NO_COLOR is set or the terminal has none.
        """
        encoding = stream.encoding or "ascii"
        colour = stream.isatty() and not os.environ.get("NO_COLOR")
        colour = colour and os.environ.get("TERM") != "dumb"
        marks = ("⟦", "⟧", "↵")
        try:
            "".join(marks).encode(encoding)
        except UnicodeEncodeError:
            marks = ("[[", "]]", "\\n")
        before, after = ("", "") if colour else marks[:2]
        return cls(colour, before, after, marks[2], encoding)

    @property
    def legend(self) -> str:
        """A sentence that explains what is set off."""
        if self.colour:
            return (
                f"{_coloured('Green', loss=True, special=False)} tokens carry loss, and "
                f"{_coloured('underlined', loss=False, special=True)} tokens are special tokens."
            )
        return f"Tokens between {self.before} and {self.after} carry loss."


def write_line(line: PreviewedLine, style: Style) -> str:
    """Write one line of a domain: its tokens by turn, its text and its notes.

    Args:
        line: the line.
        style: how tokens that carry loss are set off.

    Returns:
        Lines of at most 80 columns, without a line break at the end.
    """
    where = printable(line.where, kept="")
    notes = [_wrapped(printable(note, kept="")) for note in line.notes]
    if not line.stretches:
        return _encodable("\n".join([where, *notes]), style)
    tokens = sum(turn.tokens for turn in line.turns)
    loss = sum(turn.loss_tokens for turn in line.turns)
    rows = [
        [f"{number} {turn.role}", f"{turn.tokens:,}", f"{turn.loss_tokens:,}"]
        for number, turn in enumerate(line.turns, 1)
    ]
    counts = textwrap.indent(table(["turn", "tokens", "with loss"], rows), "  ")
    head = f"{where}: {tokens:,} tokens, {loss:,} with loss"
    text = "\n".join(_lines(line.stretches, style))
    return _encodable("\n".join([head, counts, "", text, "", *notes, _specials(line)]), style)


def _specials(line: PreviewedLine) -> str:
    found = Counter(stretch.text for stretch in line.stretches if stretch.special)
    names = ", ".join(f"{printable(text, kept='')} {count}" for text, count in found.items())
    return _wrapped(f"Special tokens: {names or 'none'}")


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
    )


def _encodable(text: str, style: Style) -> str:
    return text.encode(style.encoding, "backslashreplace").decode(style.encoding)


def _lines(stretches: Sequence[Stretch], style: Style) -> Iterator[str]:
    """Yield the text in lines that fit; each begins and ends without a colour."""
    gutter, line = _LINE, list[tuple[str, bool, bool]]()
    room = _WIDTH - len(gutter)
    for character, text, loss, special in _pieces(stretches, style):
        width = sum(map(_columns, text))
        if width > room:
            yield gutter + _joined(line, style)
            gutter, line, room = _CONTINUED, [], _WIDTH - len(_CONTINUED)
        line.append((text, loss, special))
        room -= width
        if character == "\n":
            yield (gutter + _joined(line, style)).rstrip()
            gutter, line, room = _LINE, [], _WIDTH - len(_LINE)
    if line:
        yield gutter + _joined(line, style)


def _pieces(stretches: Sequence[Stretch], style: Style) -> Iterator[tuple[str, str, bool, bool]]:
    """Yield every character, how it is shown, and the kind of its token."""
    kinds = [(text, each.loss, each.special) for each in stretches for text in each.text]
    loss_around = [False, *(loss for _, loss, _ in kinds), False]
    for i, (character, loss, special) in enumerate(kinds):
        shown = printable(character, kept="")
        if character == "\n":
            shown = style.newline if loss else ""
        opens = style.before if loss and not loss_around[i] else ""
        closes = style.after if loss and not loss_around[i + 2] else ""
        yield character, f"{opens}{shown}{closes}", loss, special


def _joined(line: Sequence[tuple[str, bool, bool]], style: Style) -> str:
    groups = groupby(line, key=lambda piece: piece[1:])
    texts = [("".join(text for text, *_ in pieces), kind) for kind, pieces in groups]
    return "".join(_coloured(text, *kind) if style.colour else text for text, kind in texts)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _coloured(text: str, loss: bool, special: bool) -> str:
    codes = [*(["1", "32"] if loss else []), *(["4"] if special else [])]
    return f"\033[{';'.join(codes)}m{text}\033[0m" if codes and text else text
