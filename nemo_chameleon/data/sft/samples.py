"""The samples of some examples, made once and stored beside their index.

This module decides which pieces of examples go into samples; `packing.py` sorts them.
"""

import functools
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file, save

from nemo_chameleon.data.sft.index import Index
from nemo_chameleon.data.sft.layout import Layout
from nemo_chameleon.data.sft.packing import Packs, chunks, pack
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, write_atomically


@dataclass(frozen=True)
class Packing:
    """How examples become samples.

    Attributes:
        together: whether a sample may have several examples, or else one.
        on_too_long: what happens to an example that does not fit: refuse, skip or truncate.
    """

    together: bool = True
    on_too_long: str = "refuse"


@functools.cache
def packs_of(
    index: Index, part: range, seq_length: int, packing: Packing
) -> tuple[Packs, dict[str, Ints]]:
    """Return the samples of some examples: from the file beside the index, or make that file.

    A text without a prompt is cut into as many pieces as it needs, and loses nothing. Any other
    example that does not fit is too long. `on_too_long=truncate` cuts off its beginning, so that it
    begins with a prompt and ends with its whole last answer. Other values leave it out, and
    truncate does too if the last answer alone does not fit.

    Args:
        index: the index of the examples.
        part: the numbers of the examples.
        seq_length: tokens per sample.
        packing: how examples become samples.

    Returns:
        The samples; and the numbers of the examples that are "too long", "shortened" and
        "left out".

    Raises:
        UserError: the file cannot be written.
    """
    key = digest([[part.start, part.stop], seq_length, packing.together, packing.on_too_long])
    file = index.folder / f"packs-{key}.safetensors"
    if not file.is_file():
        try:
            write_atomically(file, save(packed(index, part, seq_length, packing)))
        except OSError as error:
            raise UserError(f"cannot write {file}: {error}; set another data.cache") from error
    found = load_file(file)
    packs = Packs(*(found.pop(name) for name in ("pieces", "starts", "answers")))
    return packs, found


def packed(index: Layout, part: range, length: int, packing: Packing) -> dict[str, Ints]:
    """Decide which pieces of examples go into samples; see `packs_of`.

    Args:
        index: the examples.
        part: the numbers of the examples.
        length: tokens per sample.
        packing: how examples become samples.

    Returns:
        The attributes of `Packs`, and what `packs_of` returns beside them.
    """
    examples = np.arange(part.start, part.stop, dtype=np.int64)
    lengths = index.lengths[examples]
    # Every token of a sample has a label, so a sample takes one token more than its length.
    fits = lengths <= length + 1
    whole = np.stack([examples, np.zeros_like(examples), lengths], axis=1)[fits]
    texts = examples[~fits & (index.prompts[examples] == 0)]
    pieces = chunks(index.lengths[texts], length + 1, overlap=1)
    pieces[:, 0] = texts[pieces[:, 0]]
    too_long = examples[~fits & (index.prompts[examples] > 0)]
    keeps_answer = index.last_answers[too_long] <= length
    truncates = packing.on_too_long == "truncate"
    shortened = too_long[keeps_answer] if truncates else too_long[:0]
    stops = index.lengths[shortened]
    # A shortened example begins with a prompt: an answer that is cut would answer nothing visible.
    begins = [
        index.prompt_from(int(i), int(stop) - (length + 1))
        for i, stop in zip(shortened, stops, strict=True)
    ]
    cut = np.stack([shortened, np.array(begins, dtype=np.int64), stops], axis=1)
    pieces = np.concatenate([whole, pieces, cut])
    firsts = index.starts[pieces[:, 0]]
    carrying = index.answers_before(firsts + pieces[:, 2]) - index.answers_before(
        firsts + pieces[:, 1] + 1
    )
    sizes = pieces[:, 2] - pieces[:, 1] - 1
    if packing.together:
        order, starts = pack(sizes, length)
    else:
        order = np.arange(len(pieces))
        starts = np.arange(len(pieces) + 1)
    answers = np.add.reduceat(carrying[order], starts[:-1]) if len(pieces) else carrying
    return {
        "pieces": pieces[order],
        "starts": starts,
        "answers": answers,
        "too long": too_long,
        "shortened": shortened,
        "left out": too_long[~keeps_answer] if truncates else too_long,
    }
