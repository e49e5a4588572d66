"""Reads lines as examples, tokenises them, and divides their tokens into prompts and answers.

What a run trains on and what `nemo-chameleon sft preview` shows both come from `read`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.readers import VERSION, Line, MalformedError
from nemo_chameleon.data.sft.examples import parse
from nemo_chameleon.data.sft.templates import Example, read_template
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, encode_texts, find_tokenizer
from nemo_chameleon.data.tokenizer_files import end_token, without_end_token
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

_VERSION = 1
# Of the rules by which a line becomes an example. A new number makes new indices, but it changes
# neither `identity`, which mixture files record, nor fingerprints of tokens that stay the same.
_RULES = 6


@dataclass(frozen=True)
class Encoded:
    """The tokens of an example.

    Attributes:
        example: the example.
        tokens: its token ids.
        cuts: the numbers of tokens of its alternating prompts and answers, which begin with a
            prompt and end with an answer.
    """

    example: Example
    tokens: list[int]
    cuts: list[int]


class ExampleTokenizer:
    """The tokenizer and the chat template of a configuration.

    Attributes:
        tokenizer: the tokenizer, without truncation and padding.
        template: the chat template, or None.
        end: id of the token that ends a text.
        special_tokens: ids of the special tokens, among them `end`.
        ignored_keys: keys of lines and of messages that are left out.
        identity: digest of the tokenizer and the template, which decide the tokens of a text.
        rules: digest of what decides which text a line is.
    """

    def __init__(self, data: DataConfig) -> None:
        """Read data.tokenizer, data.chat_template and data.ignored_keys.

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
                f"data.tokenizer={data.tokenizer} has no token {name} to end texts with: "
                f"{without_end_token(data.tokenizer, name, self.tokenizer)}"
            )
        self._name = f"data.tokenizer={data.tokenizer}"
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_tokens = {self.end, *(i for i, token in added.items() if token.special)}
        template = self.template and [self.template.source, self.template.special_tokens]
        # The whole tokenizer counts, not the vocabulary alone: merges decide a text's tokens too.
        self.identity = digest([_VERSION, self.tokenizer.to_str(), template, name])
        self.ignored_keys = tuple(sorted(set(data.ignored_keys)))
        self.rules = digest([_RULES, VERSION, self.ignored_keys])

    def read(
        self, lines: Sequence[Line], where: Callable[[Line], str]
    ) -> list[Encoded | MalformedError]:
        """Read lines as examples and tokenise them.

        Args:
            lines: the lines; tokenising many together is faster.
            where: returns the file and the number of a line; errors begin with it.

        Returns:
            For each line its example, or what is wrong with the line.

        Raises:
            UserError: an example needs a chat template that is missing or cannot be used, or the
                tokenizer cannot encode it.
        """
        found: list[Example | MalformedError] = []
        for line in lines:
            try:
                found.append(parse(line.text, self.template, self.ignored_keys))
            except MalformedError as error:
                found.append(error)
            except UserError as error:
                raise UserError(f"{where(line)}: {error}") from error
        encoded = iter(self.encode([read for read in found if isinstance(read, Example)]))
        return [
            _with_loss(read, *next(encoded)) if isinstance(read, Example) else read
            for read in found
        ]

    def text_of(self, tokens: Sequence[int]) -> str:
        """Decode tokens.

        Args:
            tokens: token ids.

        Returns:
            Their text, with special tokens.
        """
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    def encode(self, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
        """Tokenise examples, and divide the tokens of each into prompts and answers.

        A token that is partly in an answer belongs to the answer. Tokens after the last answer are
        left out.

        Args:
            examples: the examples.

        Returns:
            For each example its token ids, and the numbers of tokens of its alternating prompts and
            answers, which begin with a prompt and end with an answer.

        Raises:
            UserError: the tokenizer cannot encode one of them.
        """
        encoded: list[Any] = [None] * len(examples)
        for begins in (False, True):
            mine = [i for i, example in enumerate(examples) if example.begins is begins]
            texts = [examples[i].text for i in mine]
            batch = functools.partial(self.tokenizer.encode_batch, add_special_tokens=begins)
            found = encode_texts(batch, texts, self._name)
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


def _with_loss(example: Example, tokens: list[int], cuts: list[int]) -> Encoded | MalformedError:
    carrying = sum(cuts[1::2]) - (cuts[0] == 0)  # nothing predicts the first token
    if carrying < 1:
        return MalformedError("nothing comes before the answer's only token")
    return Encoded(example, tokens, cuts)
