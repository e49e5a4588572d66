"""Describes the first examples of a domain as the model will see them, without making an index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise

import numpy as np

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.parts import shown
from nemo_chameleon.data.readers import Line, MalformedError, files_of, read_lines
from nemo_chameleon.data.sft.index import find_example_files
from nemo_chameleon.data.sft.layout import OneExample
from nemo_chameleon.data.sft.reports import kind_of_fault
from nemo_chameleon.data.sft.samples import Packing, packed
from nemo_chameleon.data.sft.tokenize import Encoded, ExampleTokenizer
from nemo_chameleon.data.sft.unknown import UnknownKeysError, advice
from nemo_chameleon.utils.arrays import Bools
from nemo_chameleon.utils.errors import UserError

_MOST_MALFORMED = 10  # the preview of a domain ends after so many malformed lines


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of one kind.

    Attributes:
        text: the text of the tokens.
        loss: whether they carry loss.
        special: whether they are special tokens.
    """

    text: str
    loss: bool
    special: bool


@dataclass(frozen=True)
class TurnCount:
    """The tokens of a turn.

    Attributes:
        role: the turn's role; several if the template writes several turns as one.
        tokens: number of its tokens.
        loss_tokens: number of them that carry loss.
    """

    role: str
    tokens: int
    loss_tokens: int


@dataclass(frozen=True)
class PreviewedLine:
    """A line, and what the model will see of it.

    Attributes:
        where: the file and the line.
        stretches: all tokens of the example, by kind; empty if the line is malformed.
        turns: the numbers of tokens by turn.
        notes: what there is to say about the line in addition.
    """

    where: str
    stretches: tuple[Stretch, ...]
    turns: tuple[TurnCount, ...]
    notes: tuple[str, ...]


def preview(
    path: str | Sequence[str],
    data: DataConfig,
    reader: ExampleTokenizer,
    seq_length: int,
    count: int,
    key: str,
) -> Iterator[PreviewedLine]:
    """Yield the first examples of a domain, and the malformed lines among them.

    Args:
        path: the path of the domain, or a list of its paths.
        data: the data configuration: what happens to malformed and long examples.
        reader: the tokenizer of examples.
        seq_length: tokens per sample.
        count: number of examples.
        key: the key of the configuration; errors begin with it.

    Yields:
        The lines. They end after ten malformed ones.

    Raises:
        UserError: there are no such files, they cannot be read, they have no line, or an example
            cannot be written.
    """
    files, named = files_of(find_example_files(path, key))

    def name(line: Line) -> str:
        return named[line.file].place(line.number)

    examples = malformed = 0
    firsts: dict[str, str] = {}
    lines = read_lines(files, without=reader.ignored_keys)
    try:
        while batch := list(islice(lines, count - examples)):
            for line, found in zip(batch, reader.read(batch, name), strict=True):
                if isinstance(found, Encoded):
                    examples += 1
                    yield _previewed(name(line), found, reader, data, seq_length)
                    continue
                malformed += 1
                where = name(line)
                first = firsts.setdefault(kind_of_fault(found), where)
                notes = [f"This line is malformed in the same way as {first}."]
                if first == where:
                    notes = list(_faults(found, data))
                yield PreviewedLine(where, (), (), tuple(notes))
                if malformed == _MOST_MALFORMED:
                    return
    except (OSError, UserError) as error:
        raise UserError(f"{key}: {error}") from error
    if not examples and not malformed:
        raise UserError(f"{key}={shown(path)}: there is no example in 0 line(s)")


def _faults(error: MalformedError, data: DataConfig) -> Iterator[str]:
    yield f"This line is malformed: {error}."
    if isinstance(error, UnknownKeysError) and error.ignorable:
        yield f"To go on, {advice(error.ignorable, data.ignored_keys, 'the line')}."
    if data.on_malformed == "refuse":
        yield "The run ends before it trains, because of data.on_malformed=refuse."
    else:
        yield "The run leaves the line out, because of data.on_malformed=skip."


def _previewed(
    where: str, found: Encoded, reader: ExampleTokenizer, data: DataConfig, seq_length: int
) -> PreviewedLine:
    loss = np.repeat(np.arange(len(found.cuts)) % 2 == 1, found.cuts)
    loss[0] = False  # nothing predicts the first token
    notes = []
    if found.cuts[0] == 0:
        notes.append("The first token carries no loss, because nothing predicts it.")
    if found.example.left_out:
        what = " and ".join(found.example.left_out)
        notes.append(f"The chat template leaves reasoning out of the answers ({what}).")
    if after := found.example.after:
        turns = "The last turn is" if len(after) == 1 else f"The last {len(after)} turns are"
        roles = " and ".join(dict.fromkeys(after))
        notes.append(f"{turns} left out ({roles}), because no answer with loss follows.")
    if found.example.unread:
        keys = ", ".join(found.example.unread)
        notes.append(f"Metadata that are not in the text: {keys}.")
    if (fate := _fate_of_long(found, seq_length, data.on_too_long)) is not None:
        notes.append(fate)
    stretches = tuple(_stretches(found.tokens, loss.tolist(), reader))
    return PreviewedLine(where, stretches, tuple(_turns(found, loss, reader)), tuple(notes))


def _stretches(tokens: list[int], loss: list[bool], reader: ExampleTokenizer) -> Iterator[Stretch]:
    """Divide the text of the tokens where one kind of token ends."""
    special = [token in reader.special_tokens for token in tokens]
    kinds = list(zip(loss, special, strict=True))
    firsts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
    text = reader.text_of(tokens)
    # The first tokens of a character alone are decoded as a replacement character, which the whole
    # text does not have: a character whose tokens are of two kinds belongs to the latter.
    cuts = [_common(reader.text_of(tokens[:first]), text) for first in firsts]
    cuts = list(accumulate(cuts, max))
    for first, (start, stop) in zip(firsts, pairwise([*cuts, len(text)]), strict=True):
        yield Stretch(text[start:stop], *kinds[first])


def _common(beginning: str, text: str) -> int:
    """Return how many characters a text has in common with what should be its beginning."""
    if text.startswith(beginning):
        return len(beginning)
    pairs = enumerate(zip(beginning, text, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(beginning), len(text)))


def _turns(found: Encoded, loss: Bools, reader: ExampleTokenizer) -> Iterator[TurnCount]:
    """Count the tokens of every turn; the parts of a pair are its turns."""
    if found.example.messages:
        roles, ends = _ends_of_turns(found, reader)
    else:
        roles = ["prompt", "completion"] if found.example.begins else ["text"]
        ends = np.cumsum(found.cuts)[-len(roles) :].tolist()
    for role, (start, stop) in zip(roles, pairwise([0, *ends]), strict=True):
        yield TurnCount(role, stop - start, int(loss[start:stop].sum()))


def _ends_of_turns(found: Encoded, reader: ExampleTokenizer) -> tuple[list[str], list[int]]:
    """Return the roles of the turns of a chat, and where the turns end in its tokens."""
    assert reader.template is not None, "a chat has been written"
    roles, spans, together, start = [], [], [], 0
    ends = reader.template.ends_of_messages(found.example)
    for message, end in zip(found.example.messages, ends, strict=True):
        together.append(message["role"])
        if end is not None:
            roles.append(" + ".join(together))
            spans.append((start, end))
            together, start = [], end
    # As if every turn were an answer: the same code then finds the tokens of turns and of answers.
    ((_, cuts),) = reader.encode([replace(found.example, answers=tuple(spans))])
    stops = np.minimum(np.cumsum(cuts)[1::2], len(found.tokens)).tolist()
    return roles, [*stops[:-1], len(found.tokens)]


def _fate_of_long(found: Encoded, seq_length: int, on_too_long: str) -> str | None:
    """Say what a run does with an example that is longer than a sample; see `packs_of`.

    Args:
        found: the example.
        seq_length: tokens per sample.
        on_too_long: the value of data.on_too_long.

    Returns:
        A sentence, or None if the example fits.
    """
    samples = packed(OneExample(found.cuts), range(1), seq_length, Packing(False, on_too_long))
    pieces = samples["pieces"]
    longer = f"The example is longer than model.seq_length={seq_length}"
    if len(pieces) > 1:
        return f"{longer}, and is cut into {len(pieces)} samples, because it has no prompt."
    if not len(samples["too long"]):
        return None
    because = f"because of data.on_too_long={on_too_long}"
    if on_too_long == "refuse":
        return f"{longer}: the run ends before it trains, {because}."
    if on_too_long == "skip":
        return f"{longer}: the run leaves it out, {because}."
    if len(samples["left out"]):
        return f"{longer}, and so is its last answer: the run leaves it out, {because}."
    return f"{longer}: the run leaves out its first {pieces[0, 1]:,} tokens, {because}."
