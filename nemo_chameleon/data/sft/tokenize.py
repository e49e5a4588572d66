"""Examples to tokens, and which of the tokens are answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nemo_chameleon.config.schema import DataConfig
from nemo_chameleon.data.sft.templates import Example, end_token, read_template
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

_VERSION = 1


class ExampleTokenizer:
    """Lines to tokens, as a configuration says."""

    def __init__(self, data: DataConfig) -> None:
        """Of data.tokenizer and data.chat_template.

        Raises:
            UserError: either cannot be read, or the tokenizer has no token to end texts with.
        """
        if data.tokenizer is None:
            raise UserError("data.dataset=sft needs data.tokenizer: it is tokenised here")
        # A copy, for what was in force when the file was saved is in it too.
        self.tokenizer = Tokenizer.from_str(load_tokenizer(data.tokenizer).to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        vocabulary = self.tokenizer.get_vocab()
        if max(vocabulary.values()) >= len(vocabulary):
            raise UserError(
                f"data.tokenizer={data.tokenizer} has {len(vocabulary)} tokens and numbers up to "
                f"{max(vocabulary.values())}: the model has no embeddings for those"
            )
        self.template = read_template(data.chat_template, data.tokenizer)
        name = end_token(data.tokenizer, END_OF_DOCUMENT)
        self.end = self.tokenizer.token_to_id(name)
        if self.end is None:
            raise UserError(
                f"the tokenizer has no {name} to end texts with: name its own as eos_token in a "
                f"tokenizer_config.json beside {data.tokenizer}"
            )
        template = self.template and [self.template.source, self.template.special_tokens]
        # Its merges too, not the vocabulary alone: they decide which tokens a text becomes.
        self.identity = digest([_VERSION, self.tokenizer.to_str(), template, name])

    def encode(self, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each example, and how many of them are in turn prompt and answer.

        A token that reaches into an answer is part of it.
        """
        encoded: list[Any] = [None] * len(examples)
        for begins in (False, True):
            mine = [i for i, example in enumerate(examples) if example.begins is begins]
            texts = [examples[i].text for i in mine]
            found = self.tokenizer.encode_batch(texts, add_special_tokens=begins)
            for i, encoding in zip(mine, found, strict=True):
                encoded[i] = encoding
        return [self._cut(example, text) for example, text in zip(examples, encoded, strict=True)]

    def _cut(self, example: Example, encoding: Any) -> tuple[list[int], list[int]]:
        tokens = list(encoding.ids)
        starts, stops = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        cuts = [0]
        for start, stop in example.answers:
            first = int(np.searchsorted(stops, start, side="right"))
            last = int(np.searchsorted(starts, stop, side="left"))
            cuts += [max(first, cuts[-1]), max(last, first, cuts[-1])]
        if example.ends:
            if not tokens or tokens[-1] != self.end:
                tokens.append(self.end)
            cuts[-1] = len(tokens)
        return tokens[: cuts[-1]], np.diff(cuts).tolist()
