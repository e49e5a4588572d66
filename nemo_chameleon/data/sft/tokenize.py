"""Tokenises examples, and divides their tokens into prompts and answers.

The identity of an `ExampleTokenizer` is part of the name of every index in the cache.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.sft.templates import Example, read_template
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, find_tokenizer
from nemo_chameleon.data.tokenizer_files import end_token
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

_VERSION = 1


class ExampleTokenizer:
    """The tokenizer and the chat template of a configuration.

    Attributes:
        tokenizer: the tokenizer, without truncation and padding.
        template: the chat template, or None.
        end: id of the token that ends a text.
        identity: digest of everything that decides the tokens of a line.
    """

    def __init__(self, data: DataConfig) -> None:
        """Read data.tokenizer and data.chat_template.

        Args:
            data: the data configuration.

        Raises:
            UserError: data.tokenizer is not set, a file cannot be read, or the tokenizer has no
                token to end texts with.
        """
        if data.tokenizer is None:
            raise UserError("data.dataset=sft needs data.tokenizer, to tokenise with")
        # The file may have been saved with truncation or padding switched on. A copy leaves the
        # tokenizer that others load as it is.
        self.tokenizer = Tokenizer.from_str(find_tokenizer(data.tokenizer).to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.template = read_template(data.chat_template, data.tokenizer)
        name = end_token(data.tokenizer, END_OF_DOCUMENT)
        self.end = self.tokenizer.token_to_id(name)
        if self.end is None:
            raise UserError(
                f"data.tokenizer={data.tokenizer} has no token {name} to end texts with: name its "
                "end token as eos_token in a tokenizer_config.json beside it"
            )
        template = self.template and [self.template.source, self.template.special_tokens]
        # The whole tokenizer counts, not the vocabulary alone: merges decide a text's tokens too.
        self.identity = digest([_VERSION, self.tokenizer.to_str(), template, name])

    def encode(self, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
        """Tokenise examples, and divide the tokens of each into prompts and answers.

        A token that is partly in an answer belongs to the answer. Tokens after the last answer are
        left out.

        Args:
            examples: the examples.

        Returns:
            For each example its token ids, and the numbers of tokens of its alternating prompts and
            answers, which begin with a prompt and end with an answer.
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
