"""The samples of some examples, made once and stored beside their index.

This module decides which pieces of examples go into samples; `packing.py` sorts them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nemo_chameleon.data.sft.index import Index
from nemo_chameleon.data.sft.layout import Layout
from nemo_chameleon.data.sft.packing import Packs, chunks, pack
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, write_atomically
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)

_HASH = "xxh3_128"


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

    The file has a hash of what is in it. Without it, or with another one, it is made anew.

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
    try:
        found = _read(file)
        if found is None:
            found = packed(index, part, seq_length, packing)
            write_atomically(file, save(found, {_HASH: _hash(found)}))
    except OSError as error:
        raise UserError(f"cannot use {file}: {error}; set another data.cache") from error
    packs = Packs(*(found.pop(name) for name in ("pieces", "starts", "answers")))
    return packs, found


def _read(file: Path) -> dict[str, Ints] | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, "np") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            told = (stored.metadata() or {}).get(_HASH)
        fault = "its contents are not what was written" if told != _hash(found) else None
    except SafetensorError as error:
        told, fault = "", str(error)
    if fault is None:
        return found
    if told is not None:  # version 0.2 wrote no hash
        logger.warning("%s is damaged: %s. It is made anew.", file, fault)
    return None


def _hash(tensors: Mapping[str, Ints]) -> str:
    state = xxhash.xxh3_128()
    for name, values in sorted(tensors.items()):
        state.update(f"{name} {values.dtype} {values.shape}".encode())
        state.update(values.tobytes())
    return state.hexdigest()


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
