"""Makes inputs of valid files, gives them to a reader, and says what the reader must not do."""

import contextlib
import itertools
import json
import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from nemo_chameleon.utils.errors import UserError

SECONDS = 20
"""The longest that a reader may take for one input, which is a few kilobytes."""
_ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**63,
    10**400,
    1e308,
    -0.0,
    "",
    "x",
    [],
    {},
    [[]],
]
_ODD += [float("inf"), float("nan"), "\ud800", "\x00", "../x", "${oc.env:HOME}", "a.b", {"": None}]
_TEXTS = """null true -1 1e999 NaN Infinity 0x10 1_0 [] {} "" [ ] { } , : " ' ${ } ? - # & * ! | >
% @ &a *a <<: !!python/object:os.system ~ .inf 12:30 \\ud800 \\u0000 . .. / // = ; \\""".split()
_BYTES = [
    b"\0",
    b"\n",
    b"\r\n",
    b"\t",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xe2\x80\xa8",
    b"\x85",
]
_BYTES += [b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b"- " * 2000, b"\x7f", b"\xff" * 8]
_BYTES += [number.to_bytes(8, "little", signed=True) for number in (-1, 1, 2**31, 2**62, -(2**63))]
TOKENS = [text.encode() for text in _TEXTS] + _BYTES


@dataclass(frozen=True)
class Target:
    """A reader, and valid inputs for it.

    Attributes:
        name: of the reader.
        seeds: valid inputs, which are changed.
        read: reads an input and uses what it says; refusing the input is one of `refusals`.
        refusals: the exceptions that the reader documents.
        quick: whether it is to be tried with a million inputs, not with a hundred thousand.
    """

    name: str
    seeds: list[bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (UserError,)
    quick: bool = False

    def structured(self) -> st.SearchStrategy[bytes] | None:
        """Return inputs with the keys of the seeds and any values, if the seeds are JSON."""
        with contextlib.suppress(ValueError):
            keys = sorted({key for data in self.seeds for key in _keys(json.loads(data))})
            if not keys:
                return None
            values = st.recursive(
                st.sampled_from(_ODD) | st.text(max_size=9) | st.integers() | st.floats(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(keys) | st.text(max_size=3), inner, max_size=4
                    )
                ),
                max_leaves=12,
            )
            return st.dictionaries(st.sampled_from(keys), values).map(_dumped)
        return None


def _keys(value: Any) -> Iterator[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    yield from value if isinstance(value, dict) else ()
    for item in inner:
        yield from _keys(item)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


class _SlowError(BaseException):
    """Raised where a reader takes too long; no reader catches it."""


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _SlowError(f"the reader takes longer than {SECONDS} seconds")


def attempt(target: Target, data: bytes) -> tuple[str, str]:
    """Give an input to a reader.

    Args:
        target: the reader.
        data: the input.

    Returns:
        "accepted", "refused" or, for what a reader must not do, a text that tells such findings
        apart; and the details of a finding.
    """
    before = signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)
            target.read(data)
    except target.refusals as error:
        if "\n" in str(error).strip():
            return f"several lines: {_place(error)}", traceback.format_exc()
        return "refused", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {_place(error)}", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "accepted", ""


def _place(error: BaseException) -> str:
    """Return the line of the package at which an exception came out."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "nemo_chameleon/" in frame.filename] or list(frames)
    return f"{own[-1].filename.rpartition('nemo_chameleon/')[2]}:{own[-1].lineno}"


def mutations(target: Target, batch: int, count: int) -> Iterator[bytes]:
    """Yield changed seeds; the same batch has the same inputs.

    Args:
        target: the reader.
        batch: number of the batch.
        count: number of inputs.

    Yields:
        The inputs.
    """
    generator = random.Random(f"{target.name}/{batch}")
    trees = []
    for data in target.seeds:
        with contextlib.suppress(ValueError):
            tree = json.loads(data)
            trees += [tree] if isinstance(tree, dict | list) else []
    for _ in range(count):
        if trees and generator.random() < 0.5:
            yield _changed_tree(generator, generator.choice(trees))
        else:
            yield _changed(generator, generator.choice(target.seeds), target.seeds)


def _changed(generator: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Flip, set, insert, cut, repeat, swap or replace bytes, once or a few times."""
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        i, j = sorted(generator.randrange(len(data) + 1) for _ in range(2))
        if generator.random() < 0.7:
            j = min(j, i + generator.choice((1, 2, 4, 8, 30)))
        how = generator.randrange(9)
        piece = data[i:j]
        if how == 0 and piece:
            piece = bytes([piece[0] ^ 1 << generator.randrange(8)]) + piece[1:]
        elif how == 1:
            piece = generator.randbytes(len(piece))
        elif how == 2:
            piece = b""
        elif how == 3:
            piece *= generator.choice((2, 2, 3, 5, 2000 if len(piece) < 40 else 2))
        elif how == 4:
            piece = generator.choice(TOKENS) + piece
        elif how == 5:
            piece = generator.choice(TOKENS)
        elif how == 6:
            piece = generator.choice(TOKENS)[: len(piece)].ljust(len(piece), b"\0")
        elif how == 7:
            other = generator.choice(seeds)
            k = generator.randrange(len(other) + 1)
            piece = other[k : k + generator.choice((4, 30, 300))]
        else:
            return data[:i] + (data[j:] if generator.random() < 0.5 else b"")
        data = data[:i] + piece + data[j:]
    return data


def _changed_tree(generator: random.Random, tree: Any) -> bytes:
    """Replace, rename, remove, nest or repeat values of JSON."""
    tree = json.loads(json.dumps(tree))
    for _ in range(generator.choice((1, 1, 2, 3))):
        places = list(itertools.islice(_places(tree), 500))
        if not places:
            break
        parent, key = generator.choice(places)
        how = generator.randrange(5)
        if how == 0:
            del parent[key]
        elif how == 1:
            parent[key] = [parent[key]] if generator.random() < 0.5 else {"a": parent[key]}
        elif how == 2:
            other, at = generator.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                parent[key] = json.loads(json.dumps(other[at]))
        elif how == 3 and isinstance(parent, dict):
            parent[str(generator.choice(_ODD))] = parent.pop(key)
        else:
            parent[key] = json.loads(json.dumps(generator.choice(_ODD)))
    return _dumped(tree)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def drawn(target: Target, batch: int, count: int, use: Callable[[bytes], object]) -> None:
    """Use inputs that hypothesis makes of the keys of a target's seeds, if those are JSON.

    Args:
        target: the reader.
        batch: number of the batch; the same batch has the same inputs.
        count: number of inputs.
        use: called with each input.
    """
    strategy = target.structured()
    if strategy is None:
        return

    @seed(batch)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(data: bytes) -> None:
        use(data)

    run()
