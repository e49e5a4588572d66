"""The windows that embeddings are means over, read in the tokens of the model that embeds them.

Where the model has another tokenizer than the domains, the windows of a block are encoded again in
one call, which uses all threads of the tokenizers library, while the device works on an earlier
block.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from nemo_chameleon.data.domain import Domain, Window
from nemo_chameleon.embedding.reencoding import Reencoding
from nemo_chameleon.mixture.mixture import UNRECORDED
from nemo_chameleon.utils.errors import UserError

# The number of the model's tokens per token of a domain is estimated from the first windows: at
# least so many, and more until they have so many tokens, but no more than the last number.
_PILOT, _PILOT_TOKENS, _LARGEST_PILOT = 16, 256, 1024
# A window without a token that counts is drawn again this often, under other numbers.
_REDRAWS, _NEXT = 8, 2**40


@dataclass(frozen=True)
class Windows:
    """The layers and windows that embeddings are means over, and how tokens count.

    Attributes:
        layers: numbers of the model's layers, counted from 1.
        sample_length: the most tokens in a window, in the model's tokens.
        seed: seed of the windows.
        cross_documents: whether a window may continue into the next document.
        normalize_states: whether each token's state is divided by its root mean square.
    """

    layers: tuple[int, ...]
    sample_length: int
    seed: int
    cross_documents: bool = True
    normalize_states: bool = True

    @classmethod
    def recorded(cls, layers: tuple[int, ...], method: Mapping[str, Any]) -> "Windows":
        """Return the windows that a mixture file describes.

        Args:
            layers: numbers of the model's layers.
            method: the `method` of the file; older files may lack some settings.

        Returns:
            The windows of these layers.
        """
        settings = {**UNRECORDED, **method}
        names = [item.name for item in fields(cls) if item.name != "layers"]
        return cls(layers, **{name: settings[name] for name in names})


class WindowReader:
    """Draws windows of one domain by their numbers; neither rank nor batch changes a window."""

    def __init__(self, domain: Domain, windows: Windows, reencoding: Reencoding | None) -> None:
        """Describe the windows; nothing is read yet.

        Args:
            domain: the domain.
            windows: the windows, and which layers they are for.
            reencoding: how the domain's tokens become the model's; None if they are the model's.
        """
        self.domain, self._windows, self._reencoding = domain, windows, reencoding

    @functools.cached_property
    def _rates(self) -> tuple[float, float]:
        """The model's tokens per token of the domain: all tokens, and those that count."""
        assert self._reencoding is not None
        number = _PILOT
        while True:
            drawn = [self._draw(index, self._windows.sample_length) for index in range(number)]
            encoded = self._reencoding.encode(drawn)
            tokens = sum(len(window.tokens) for window in encoded)
            counted = sum(int(window.counted.sum()) for window in encoded)
            if counted and (tokens >= _PILOT_TOKENS or number >= _LARGEST_PILOT):
                before = sum(int(window.counted.sum()) for window in drawn)
                return tokens / sum(len(window.tokens) for window in drawn), counted / before
            if number >= _LARGEST_PILOT:
                raise UserError(
                    f"domain {self.domain.name!r} has no text in {number} windows: was it "
                    f"tokenised with {self._reencoding.source}?"
                )
            number *= 2

    @property
    def embeddable_tokens(self) -> int:
        """About how many of the model's tokens the domain has that count towards its embedding.

        Raises:
            UserError: the domain has no text.
        """
        if self._reencoding is None:
            return self.domain.embeddable_tokens
        return math.ceil(self.domain.embeddable_tokens * self._rates[1])

    def read(self, numbers: Sequence[int]) -> list[Window]:
        """Draw windows.

        Args:
            numbers: of the windows, from 0.

        Returns:
            The windows in the model's tokens, each with at most `sample_length` of them. A window
            that may continue into the next document has exactly that many, unless the domain has
            fewer. Of a longer text whose tokens do not all count, the end that counts is kept.

        Raises:
            UserError: the domain has no text, or a token that is not in its vocabulary.
        """
        if self._reencoding is None:
            return [self._draw(number, self._windows.sample_length) for number in numbers]
        found: dict[int, Window] = {}
        # Each window that is still wanted, with the number that it is drawn under.
        left = {number: number for number in numbers}
        for _ in range(_REDRAWS):
            found |= self._encoded(left)
            left = {
                number: drawn_as + _NEXT
                for number, drawn_as in left.items()
                if not found[number].counted.any()
            }
            if not left:
                break
        return [found[number] for number in numbers]

    def _encoded(self, drawn_as: Mapping[int, int]) -> dict[int, Window]:
        """Return windows in the model's tokens, as long as they may be."""
        assert self._reencoding is not None
        length, found = self._windows.sample_length, dict[int, Window]()
        wanted, left = math.ceil(length / self._rates[0]), dict(drawn_as)
        while left:
            drawn = [self._draw(number, wanted) for number in left.values()]
            encoded = self._reencoding.encode(drawn)
            again = {}
            for (number, as_number), whole, window in zip(
                left.items(), drawn, encoded, strict=True
            ):
                found[number] = _cut(window, length)
                if len(window.tokens) < length and len(whole.tokens) == wanted:
                    again[number] = as_number
            left, wanted = again if self._windows.cross_documents else {}, 2 * wanted
        return found

    def _draw(self, number: int, length: int) -> Window:
        return self.domain.window(
            number, length, self._windows.seed, cross_documents=self._windows.cross_documents
        )


def _cut(window: Window, length: int) -> Window:
    """Return at most `length` tokens: the first ones if all count, else the last that count."""
    start = 0
    if len(window.tokens) > length and not window.counted.all() and window.counted.any():
        start = max(0, int(np.flatnonzero(window.counted)[-1]) + 1 - length)
    return Window(window.tokens[start : start + length], window.counted[start : start + length])
