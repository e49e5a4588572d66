"""The windows that embeddings are means over, read in the tokens of the model that embeds them.

Where the model has another tokenizer than the domains, each window is decoded to text and encoded
again. Special tokens of the domains' tokenizer are left out, and a text that looks like a special
token of the model's is encoded as ordinary text. The windows of a block are encoded in one call,
which uses all threads of the tokenizers library, while the device works on an earlier block.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nemo_chameleon.data.domain import Domain, Window
from nemo_chameleon.data.tokenizer import find_tokenizer
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.mixture.mixture import FORMERLY
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

# Windows from which the number of the model's tokens per token of a domain is estimated.
_PILOT = 16
# What a decoder makes of half a character at either end of a window.
_BROKEN = "\ufffd"


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
    cross_documents: bool = False
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
        settings = {**FORMERLY, **method}
        names = [item.name for item in fields(cls) if item.name != "layers"]
        return cls(layers, **{name: settings[name] for name in names})


@dataclass(frozen=True)
class Reencoding:
    """From the tokens of the domains to the tokens of the model that embeds them.

    Attributes:
        source: the tokenizer of the domains, as `find_tokenizer` takes it.
        target: the tokenizer of the model.
    """

    source: str
    target: str

    @classmethod
    def between(cls, source: str, target: str) -> "Reencoding | None":
        """Return how tokens of one tokenizer become tokens of another.

        Args:
            source: the tokenizer of the domains.
            target: the tokenizer of the model.

        Returns:
            The way, or None if the model has all tokens of the domains under the same ids.

        Raises:
            UserError: one of the tokenizers is not there.
        """
        own = find_tokenizer(target).get_vocab()
        tokens = find_tokenizer(source).get_vocab()
        if all(own.get(token) == number for token, number in tokens.items()):
            return None
        return cls(source, target)

    @classmethod
    def recorded(cls, proxy: Mapping[str, Any], target: str | None = None) -> "Reencoding | None":
        """Return how the domains of a mixture file were encoded for its proxy.

        Args:
            proxy: what the file records of its proxy.
            target: where the tokenizer of the model is now; None for the place that is recorded.

        Returns:
            The way, or None if the domains' tokens were the model's.

        Raises:
            UserError: one of the tokenizers is not there, or has changed.
        """
        if "reencoded" not in proxy:
            return None
        found = cls(proxy["tokenizer"], target or proxy["reencoded"]["tokenizer"])
        if found.record() != {**proxy["reencoded"], "tokenizer": found.target}:
            raise UserError(
                f"the tokenizers {found.source} and {found.target} are not those that the "
                "mixture's domains were encoded with: restore both, or compute the mixture again"
            )
        return found

    def record(self) -> dict[str, str]:
        """Describe the way for a mixture file.

        Returns:
            The model's tokenizer, and digests of both vocabularies; the file records the tokenizer
            of its domains elsewhere.
        """
        return {
            "tokenizer": self.target,
            "vocabulary": digest(find_tokenizer(self.target).get_vocab()),
            "from": digest(find_tokenizer(self.source).get_vocab()),
        }

    @property
    def identity(self) -> str:
        """A digest of both vocabularies."""
        return digest({key: value for key, value in self.record().items() if key != "tokenizer"})

    def encode(self, windows: Sequence[Window]) -> list[Window]:
        """Encode windows for the model.

        Every run of tokens between two special tokens is a text of its own, and so is every run of
        tokens that count and of tokens that do not.

        Args:
            windows: in the domains' tokens.

        Returns:
            The same texts in the model's tokens; a window without any text has none.
        """
        source, special = _decoder(self.source)
        runs, window_of, counts = [], [], []
        for number, window in enumerate(windows):
            omitted = np.isin(window.tokens, special)
            kind = window.counted + 2 * omitted
            changed = kind[1:] != kind[:-1]
            ends = [0, *(np.flatnonzero(changed) + 1).tolist(), len(window.tokens)]
            for start, stop in pairwise(ends):
                if stop > start and not omitted[start]:
                    runs.append(window.tokens[start:stop].tolist())
                    window_of.append(number)
                    counts.append(bool(window.counted[start]))
        texts = [text.strip(_BROKEN) for text in source.decode_batch(runs)]
        encoded: list[list[int]] = [[] for _ in windows]
        counted: list[list[bool]] = [[] for _ in windows]
        encodings = _encoder(self.target).encode_batch_fast(texts, add_special_tokens=False)
        for number, count, encoding in zip(window_of, counts, encodings, strict=True):
            encoded[number] += encoding.ids
            counted[number] += [count] * len(encoding.ids)
        return [
            Window(np.array(ids, dtype=np.int64), np.array(count, dtype=np.bool_))
            for ids, count in zip(encoded, counted, strict=True)
        ]


class WindowReader:
    """Draws windows of one domain by their indices; neither rank nor batch changes a window."""

    def __init__(self, domain: Domain, windows: Windows, reencoding: Reencoding | None) -> None:
        """Describe the windows; nothing is read yet.

        Args:
            domain: the domain.
            windows: the windows, and which layers they are for.
            reencoding: the way to the model's tokens; None if the domain's tokens are the model's.
        """
        self.domain, self._windows, self._reencoding = domain, windows, reencoding

    @functools.cached_property
    def tokens_per_token(self) -> float:
        """How many of the model's tokens encode one token of the domain, from a few windows.

        Raises:
            UserError: there is no text in these windows.
        """
        if self._reencoding is None:
            return 1.0
        drawn = [self._draw(index, self._windows.sample_length) for index in range(_PILOT)]
        encoded = sum(len(window.tokens) for window in self._reencoding.encode(drawn))
        if not encoded:
            raise UserError(
                f"domain {self.domain.name!r} has no text in {_PILOT} windows: was it tokenised "
                f"with {self._reencoding.source}?"
            )
        return encoded / sum(len(window.tokens) for window in drawn)

    @property
    def embeddable_tokens(self) -> int:
        """About how many of the model's tokens the domain has that count towards its embedding."""
        if self._reencoding is None:
            return self.domain.embeddable_tokens
        return math.ceil(self.domain.embeddable_tokens * self.tokens_per_token)

    def read(self, indices: Sequence[int]) -> list[Window]:
        """Draw windows.

        Args:
            indices: numbers of the windows.

        Returns:
            The windows in the model's tokens, each with at most `sample_length` of them. A window
            that may continue into the next document has exactly that many, unless the domain has
            fewer.
        """
        length = self._windows.sample_length
        if self._reencoding is None:
            return [self._draw(index, length) for index in indices]
        found: dict[int, Window] = {}
        wanted, left = math.ceil(length / self.tokens_per_token), list(indices)
        while left:
            drawn = [self._draw(index, wanted) for index in left]
            encoded = self._reencoding.encode(drawn)
            again = []
            for index, whole, window in zip(left, drawn, encoded, strict=True):
                found[index] = Window(window.tokens[:length], window.counted[:length])
                short = len(window.tokens) < length and len(whole.tokens) == wanted
                again += [index] if short and self._windows.cross_documents else []
            left, wanted = again, 2 * wanted
        return [found[index] for index in indices]

    def _draw(self, index: int, length: int) -> Window:
        return self.domain.window(
            index, length, self._windows.seed, cross_documents=self._windows.cross_documents
        )


def heaviest_token(shards: ShardedEmbedding, tokenizer: str | None) -> dict[str, str]:
    """Name the token with the largest hidden state, for the facts of a domain in a mixture file.

    Args:
        shards: the domain's embedding.
        tokenizer: the tokenizer of the model that embedded it; None if it is not known.

    Returns:
        `heaviest_token`, or nothing where it is not known.
    """
    if shards.heaviest is None or tokenizer is None:
        return {}
    text = find_tokenizer(tokenizer).id_to_token(shards.heaviest.token)
    return {} if text is None else {"heaviest_token": text}


@functools.cache
def _decoder(place: str) -> tuple[Tokenizer, list[int]]:
    """Return a tokenizer, and the ids of its special tokens."""
    tokenizer = find_tokenizer(place)
    added = tokenizer.get_added_tokens_decoder()
    return tokenizer, [number for number, token in added.items() if token.special]


@functools.cache
def _encoder(place: str) -> Tokenizer:
    """Return a tokenizer that cuts and pads nothing, and has no special tokens in texts."""
    tokenizer = Tokenizer.from_str(find_tokenizer(place).to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
