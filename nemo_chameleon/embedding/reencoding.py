"""From the tokens of the domains to those of a model with another tokenizer.

Tokens are decoded to text and encoded again. Special tokens of the domains' tokenizer are left out,
and a text that looks like a special token of the model's is encoded as ordinary text.
"""

import contextlib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nemo_chameleon.data.domain import Window
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, find_tokenizer, vocabulary_size
from nemo_chameleon.data.tokenizer_files import end_token
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

# What a decoder makes of half a character at either end of a window.
_BROKEN = "\ufffd"
# What stands between two texts where a special token was left out.
_BREAK = "\n\n"
# Two tokenizers with one vocabulary are the same if they also encode this alike.
_PROBE = "It's 2026: the naïve café sells 1,000 jars;\n\tif (x != y) { return f(x) }  海は広い。"
# A tokenizer that turns less than this share of its words back into text has no fitting decoder.
_WORDS, _LEAST_SHARE = (
    "the quick brown fox jumps over the lazy dog and runs through the forest",
    0.5,
)


@dataclass(frozen=True)
class Reencoding:
    """From the tokens of the domains to the tokens of the model that embeds them.

    Attributes:
        source: the tokenizer of the domains, as `find_tokenizer` takes it.
        target: the tokenizer of the model.
        source_digest: a digest of what the first does.
        target_digest: a digest of what the second does.
    """

    source: str
    target: str
    source_digest: str
    target_digest: str

    @classmethod
    def between(cls, source: str, target: str) -> "Reencoding | None":
        """Compare two tokenizers.

        Args:
            source: the tokenizer of the domains.
            target: the tokenizer of the model.

        Returns:
            How tokens of the first become tokens of the second, or None if the model has all of
            them under the same ids.

        Raises:
            UserError: one of the tokenizers is not there, or the first cannot decode.
        """
        own = find_tokenizer(target).get_vocab()
        tokens = find_tokenizer(source).get_vocab()
        if all(own.get(token) == number for token, number in tokens.items()):
            return None
        _require_decoder(source)
        return cls(source, target, _digest(source), _digest(target))

    @classmethod
    def recorded(cls, proxy: Mapping[str, Any], targets: Sequence[str] = ()) -> "Reencoding | None":
        """Return how the domains of a mixture file were encoded for its proxy.

        Args:
            proxy: what the file records of its proxy.
            targets: where the tokenizer of the model may be now; the recorded place is tried too.

        Returns:
            How tokens of the domains become tokens of the model; None if they were the model's.

        Raises:
            UserError: one of the tokenizers is not there, or has changed.
        """
        if "reencoded" not in proxy:
            return None
        known = proxy["reencoded"]
        source = _found([proxy["tokenizer"]], known["source_digest"])
        if source is None:
            raise UserError(
                f"{proxy['tokenizer']} is not there, or is not the tokenizer of the mixture's "
                "domains: name the place where that is now with --tokenizer"
            )
        places = [*targets, known["tokenizer"]]
        target = _found(places, known["target_digest"])
        if target is None:
            raise UserError(
                f"the tokenizer that the mixture's proxy was given is not at "
                f"{' or at '.join(places)}: copy it to one of these places, or name the proxy's "
                "folder with --proxy"
            )
        return cls(source, target, known["source_digest"], known["target_digest"])

    def record(self) -> dict[str, str]:
        """Describe the model's tokenizer for a mixture file, which records the domains' elsewhere.

        Returns:
            The model's tokenizer, and digests of both.
        """
        return {
            "tokenizer": self.target,
            "source_digest": self.source_digest,
            "target_digest": self.target_digest,
        }

    @property
    def identity(self) -> str:
        """A text that differs from that of any other pair of tokenizers."""
        return f"{self.source_digest}-{self.target_digest}"

    def encode(self, windows: Sequence[Window]) -> list[Window]:
        """Encode windows for the model.

        Every run of tokens between two special tokens is a text of its own, and so is every run of
        tokens that count and of tokens that do not. Texts that a special token divided get a
        paragraph break between them, which does not count.

        Args:
            windows: in the domains' tokens.

        Returns:
            The same texts in the model's tokens; a window without any text has none.

        Raises:
            UserError: a token is not in the domains' vocabulary.
        """
        source, size, special = _decoder(self.source)
        prefixes, places = list[list[int]](), list[tuple[int, bool, bool]]()
        for number, window in enumerate(windows):
            if len(window.tokens) and int(window.tokens.max()) >= size:
                raise UserError(
                    f"a domain has token id {int(window.tokens.max())}, which {self.source} lacks: "
                    "set data.tokenizer to the one that the domains were tokenised with"
                )
            omitted = np.isin(window.tokens, special)
            kind = window.counted + 2 * omitted
            ends = [0, *(np.flatnonzero(kind[1:] != kind[:-1]) + 1).tolist(), len(window.tokens)]
            begun = 0
            for start, stop in pairwise(ends):
                if stop == start:
                    continue
                if omitted[start] or (start and omitted[start - 1]):
                    begun = start
                # A run is decoded with the text before it, because decoders strip leading spaces.
                prefixes.append([] if omitted[start] else window.tokens[begun:stop].tolist())
                counts = bool(window.counted[start]) and not omitted[start]
                places.append((number, counts, begun == start))
        texts, before = list[str](), ""
        for ids, text, (_, _, begins) in zip(
            prefixes, source.decode_batch(prefixes), places, strict=True
        ):
            # Half a character at the end of one run belongs to the next.
            before = "" if begins else before.rstrip(_BROKEN)
            own = text[len(before) :] if text.startswith(before) else text
            texts.append(own.strip(_BROKEN) if ids else _BREAK)
            before = text
        encoded: list[list[int]] = [[] for _ in windows]
        counted: list[list[bool]] = [[] for _ in windows]
        encodings = _encoder(self.target).encode_batch_fast(texts, add_special_tokens=False)
        for (number, count, _), encoding in zip(places, encodings, strict=True):
            encoded[number] += encoding.ids
            counted[number] += [count] * len(encoding.ids)
        return [
            Window(np.array(ids, dtype=np.int64), np.array(count, dtype=np.bool_))
            for ids, count in zip(encoded, counted, strict=True)
        ]


def _found(places: Sequence[str], expected: str) -> str | None:
    """Return the first of some places that holds a tokenizer with a digest."""
    for place in places:
        with contextlib.suppress(UserError):
            if _digest(place) == expected:
                return place
    return None


@functools.cache
def _digest(place: str) -> str:
    tokenizer = find_tokenizer(place)
    probe = _encoder(place).encode(_PROBE, add_special_tokens=False).ids
    return digest({"vocabulary": tokenizer.get_vocab(), "probe": probe})


def _require_decoder(place: str) -> None:
    """Refuse a tokenizer that does not turn tokens back into text."""
    text = find_tokenizer(place).decode(_encoder(place).encode(_WORDS).ids).casefold()
    found = re.findall(r"\w+", text)
    words = _WORDS.split()
    if sum(word in found for word in words) < _LEAST_SHARE * len(words):
        raise UserError(
            f"{place} does not turn its tokens back into text, so they cannot be encoded again for "
            f"the proxy: '{_WORDS[:19]}' becomes {text[:40]!r}; give that file its decoder"
        )


@functools.cache
def _decoder(place: str) -> tuple[Tokenizer, int, list[int]]:
    """Return a tokenizer, the size of its vocabulary, and the ids of its special tokens."""
    tokenizer = find_tokenizer(place)
    added = tokenizer.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    for name in (END_OF_DOCUMENT, end_token(place, END_OF_DOCUMENT)):
        if (end := tokenizer.token_to_id(name)) is not None:
            special.add(end)
    return tokenizer, vocabulary_size(tokenizer), sorted(special)


@functools.cache
def _encoder(place: str) -> Tokenizer:
    """Return a tokenizer that cuts and pads nothing, and has no special tokens in texts."""
    tokenizer = Tokenizer.from_str(find_tokenizer(place).to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
